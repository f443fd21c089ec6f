"""What to measure, and the command line that says so."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qsm.speed.cases import Sizes

AXES: dict[str, tuple[int, ...]] = {
    "width": (64, 128, 256, 512, 1024),
    "batch": (64, 256, 1024, 4096),
    "denoising_steps": (1, 5, 20, 100),
    "replay": (10_000, 100_000, 1_000_000, 10_000_000),
    "seeds": (1, 2, 4, 8, 16),
}
"""Sizes over which an update's time grows, in the part `growth`."""
PARTS = ("seeds", "precision", "waterfall", "growth", "device", "agents", "host", "processes")
"""In the order of what they need: a machine without a simulator has the first four."""


class Options(argparse.Namespace):
    """What to measure; `parse` says what each is."""

    parts: list[str]
    agents: list[str]
    agent: str
    task: str
    device_task: str
    seeds: list[int]
    num_envs: list[int] | None
    replay_ratio: str
    axes: list[str]
    blocks: int
    block_seconds: float
    capacity: int
    hidden_sizes: list[int]
    batch_size: int
    minutes: float
    output: Path | None

    def sizes(self, agent: str | None = None) -> Sizes:
        """What the cases have in common."""
        name = agent or self.agent
        return Sizes(name, self.task, self.capacity, tuple(self.hidden_sizes), self.batch_size)


def parse(arguments: Sequence[str] | None, description: str | None = None) -> Options:
    """Options from `arguments`; from the command line where it is None."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=layout)

    def add(flag: str, default: Any, text: str, kind: Any = str, **more: Any) -> None:
        if isinstance(default, list):
            more["nargs"] = "+"
        parser.add_argument(flag, default=default, type=kind, help=text, **more)

    add("--parts", list(PARTS), "what to measure, in this order", choices=PARTS, metavar="PART")
    add(
        "--agents",
        ["qsm", "qsm-clean", "sac", "td3"],
        "agents of the parts `agents` and `waterfall`, at their defaults",
    )
    add("--agent", "qsm", "agent of the other parts, at its defaults")
    add("--task", "cheetah-run", "task of the host loop; the parts that simulate nothing have its sizes")
    add("--device-task", "cartpole-swingup", "task of the device loop")
    add("--seeds", [1, 4, 16], "numbers of seeds S", int)
    many = "numbers of environments N of the device loop; by default up to 128 on a CPU and 4096 elsewhere"
    add("--num-envs", None, many, int, nargs="+")
    add("--replay-ratio", "1/16", "updates per environment step in the device loop")
    add("--axes", list(AXES), "sizes of the part `growth`", choices=tuple(AXES), metavar="AXIS")
    add(
        "--blocks", 31, "blocks of each case, in turn; many short ones: machines stand still for moments", int
    )
    add("--block-seconds", 0.1, "how long a block takes, about", float)
    add("--capacity", 100_000, "rows of each seed's replay buffer", int)
    add("--hidden-sizes", [256, 256], "layers of every network", int)
    add("--batch-size", 256, "transitions in a batch", int)
    add("--minutes", 20.0, "how long all may take; what does not fit any more is skipped", float)
    add("--output", None, "JSON file to write, anew after every case", Path)
    return parser.parse_args(arguments, namespace=Options())
