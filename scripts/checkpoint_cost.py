"""What a checkpoint costs: seconds that training stands still, seconds behind it, bytes on disk.

    python scripts/checkpoint_cost.py [--agent qsm] [--intervals 1000 10000 100000] [--folder /where/runs/lie]

Each checkpoint goes the way of those of a training: state and new rows are copied from the device, then written by
`qsm.checkpoints.saver`. Medians over several.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import speed_cases as cases  # beside this file
import tyro
from rich.console import Console
from rich.table import Table

import agents
from qsm.checkpoints.checkpoint import Checkpoints, Saved
from qsm.checkpoints.saver import Saver
from qsm.learning.learner import Learner
from qsm.learning.schedule import Counters


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure checkpoints."""

    agent: str = "qsm"
    """Agent, at its defaults, with the sizes of cheetah-run."""
    capacity: int = 1_000_000
    """Rows of the replay buffer."""
    intervals: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    """New rows of each checkpoint."""
    repeats: int = 7
    """Checkpoints of each interval."""
    folder: Path | None = None
    """Where to write; none: the folder for temporary files."""


def size_of(path: Path) -> int:
    """Bytes of all files under `path`."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def main() -> None:
    """Measures and prints a table."""
    options = tyro.cli(Options, description=__doc__)
    spec = cases.SPEC
    agent = agents.make_agent(options.agent, spec.observation_size, spec.action_size)
    learner = Learner(agent, spec, [0], options.capacity)
    state = learner.init()
    filled = jax.jit(lambda: cases.full_replay(options.capacity))()
    state = state._replace(replay=jax.tree.map(lambda leaf: leaf[None], filled))
    environment = {"state": np.zeros(100)}
    table = Table("new rows", "copied, s", "written, s", "learned state, MB", "rows, MB")
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        for interval in options.intervals:
            folder = Path(temporary) / str(interval)
            with Checkpoints(folder / "checkpoints") as checkpoints:
                saver = Saver([checkpoints], options.capacity)
                copied, written, step = [], [], options.capacity
                for _ in range(options.repeats):
                    since = np.asarray(state.replay.written)[0]
                    rows = state.replay._replace(written=state.replay.written + np.uint32(interval))
                    state = state._replace(replay=rows)
                    began = time.perf_counter()
                    saved = Saved(
                        learner.placement.member(state.agent, 0),
                        [learner.rows_since(state, 0, since)],
                        learner.placement.member(state.metrics, 0),
                        environment,
                    )
                    copied.append(time.perf_counter() - began)
                    step += interval
                    saver.start({0: saved}, Counters(step, 0))
                    saver.wait()
                    if saver.problem is not None:
                        raise SystemExit(f"a checkpoint could not be written: {saver.problem}")
                    written.append(saver.seconds)
                table.add_row(
                    f"{interval:,}",
                    f"{statistics.median(copied):.3f}",
                    f"{statistics.median(written):.3f}",
                    f"{size_of(folder / 'checkpoints' / str(step)) / 1e6:.2f}",
                    f"{(folder / 'replay' / f'{step}.npz').stat().st_size / 1e6:.2f}",
                )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
