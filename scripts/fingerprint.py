"""What the agents and the loops compute, as hashes: the same before and after a change that is to move no number.

    python scripts/fingerprint.py before.json        # at the commit before
    python scripts/fingerprint.py after.json --against before.json

Hashes hold for one machine, one version of jaxlib and one set of XLA flags: compare only what was made on the same one.
For each agent: 50 updates at default sizes, its metrics, its learned state (leaf by leaf, whatever their order) and its
actions. For the loops: `train.csv` and `eval.csv` of small runs, without the columns that measure time.
"""

from __future__ import annotations

import argparse
import collections
import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import agents
from agents.parts.types import Transition

OBSERVATION_SIZE, ACTION_SIZE, BATCH_SIZE, NUM_UPDATES = 17, 6, 256, 50
SMALL = (
    *("--hidden-sizes=32,32", "--batch-size=32", "--steps=1500", "--random-steps=500", "--eval-interval=500"),
    *("--eval-episodes=2", "--log-interval=250", "--checkpoint-interval=500", "--replay-capacity=2000"),
    "--wandb=disabled",
)
RUNS = {
    "host loop": ["qsm-clean", "cartpole-swingup"],
    "two seeds together": ["td3", "cartpole-swingup", "--num-seeds=2"],
    "killed and resumed": ["sac", "cartpole-swingup"],
    "device loop": ["qsm", "cartpole-swingup", "--backend=mjx", "--num-envs=4"],
}


def digest(*arrays: Any) -> str:
    """A hash of the bytes of `arrays`."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def batch(seed: int) -> Transition:
    """Random transitions, some of them terminal."""
    rng = np.random.default_rng(seed)
    observation, next_observation = rng.normal(size=(2, BATCH_SIZE, OBSERVATION_SIZE)).astype(np.float32)
    action = rng.uniform(-1, 1, (BATCH_SIZE, ACTION_SIZE)).astype(np.float32)
    reward = rng.uniform(size=BATCH_SIZE).astype(np.float32)
    discount = (0.99 * (rng.uniform(size=BATCH_SIZE) > 0.1)).astype(np.float32)
    put = jnp.asarray
    return Transition(put(observation), put(action), put(reward), put(discount), put(next_observation))


def of_agent(name: str) -> dict[str, str]:
    """Hashes of what agent `name` computes."""
    agent = agents.make_agent(name, OBSERVATION_SIZE, ACTION_SIZE)
    state = jax.jit(agent.init)(jax.random.key(0))
    update, metrics = jax.jit(agent.update), {}
    for step in range(NUM_UPDATES):
        state, found = update(state, batch(step), jax.random.key(step), jnp.asarray(step))
        for metric, mean in found.items():
            metrics.setdefault(metric, []).append(np.stack(mean))
    observation = batch(-1 % 1000).observation
    hashes = {f"metric {metric}": digest(*values) for metric, values in sorted(metrics.items())}
    for leaf, number in collections.Counter(digest(leaf) for leaf in jax.tree.leaves(state)).items():
        hashes[f"leaf {leaf}"] = str(number)
    for mode in ("explore", "evaluate"):
        act = jax.jit(agent.act, static_argnames="mode")
        hashes[f"act to {mode}"] = digest(act(state, observation, jax.random.key(7), mode=mode))
    return hashes


def of_table(file: Path) -> dict[str, str]:
    """Hashes of the columns of a table of metrics, without those that measure time."""
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    columns = [name for name in rows[0] if "second" not in name]
    return {f"{file.name} {name}": digest("|".join(row[name] for row in rows).encode()) for name in columns}


def of_run(kind: str, words: list[str], root: Path, more: list[str]) -> dict[str, str]:
    """Hashes of the tables of a small run, which is killed in its middle where `kind` says so."""
    command = [sys.executable, "-m", "qsm", "train", *words, *SMALL, *more, f"--runs={root}"]
    if kind.startswith("killed"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            table = next(iter(root.glob("*/*/*/*/train.csv")), None)
            if (
                table is not None
                and "\n1000," in table.read_text()
                and list(root.glob("*/*/*/*/checkpoints/500/*.json"))
            ):
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            raise RuntimeError("the run ended before it was killed")
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = {}
    for run in sorted(root.glob("*/*/*/*")):
        for name in ("train.csv", "eval.csv"):
            found |= {f"{run.name} {column}": value for column, value in of_table(run / name).items()}
    return found


def main() -> int:
    """Writes the hashes; 1 where they differ from those given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="file to write")
    parser.add_argument("--against", type=Path, help="file of an earlier run")
    parser.add_argument("--agents-only", action="store_true", help="train no run")
    parser.add_argument("--device-options", nargs="*", default=[], help="options of the run on the device")
    options = parser.parse_args()
    found = {f"agent {name}": of_agent(name) for name in agents.AGENTS}
    for kind, words in RUNS.items() if not options.agents_only else ():
        more = [f"--{word}" for word in options.device_options] if kind == "device loop" else []
        with tempfile.TemporaryDirectory() as root:
            found[f"run {kind}"] = of_run(kind, words, Path(root), more)
        print(f"{kind}: {len(found[f'run {kind}'])} columns", flush=True)
    options.output.write_text(json.dumps(found, indent=1, sort_keys=True) + os.linesep)
    if options.against is None:
        return 0
    before = json.loads(options.against.read_text())
    differ = 0
    for part, hashes in before.items():
        if part not in found:
            continue
        wrong = [name for name, value in hashes.items() if found[part].get(name) != value]
        differ += bool(wrong)
        print(f"{part}: {len(hashes) - len(wrong)} of {len(hashes)} equal", *wrong[:8])
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
