"""What a checkpoint costs, written as those of a training are: by `qsm.checkpoints.saver`, behind the training."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from qsm.checkpoints.checkpoint import Checkpoints, Saved
from qsm.checkpoints.saver import Saver
from qsm.learning.learner import Learner, TrainState
from qsm.loops.schedule import Counters
from qsm.speed.limits import SPEC, full_replay


class Cost(NamedTuple):
    """Of one checkpoint, medians over several."""

    new_rows: int
    copied_seconds: float  # that training stands still
    written_seconds: float  # behind it
    state_bytes: int
    row_bytes: int


def measure(
    agent: Any, capacity: int, intervals: Sequence[int], repeats: int, folder: Path
) -> Iterator[Cost]:
    """The cost of checkpoints with so many new rows each, of `agent` with a full replay buffer.

    Raises:
      OSError: a checkpoint could not be written.
    """
    learner = Learner(agent, SPEC, [0], capacity)
    state = learner.init()
    filled = jax.jit(lambda: full_replay(capacity))()
    state = state._replace(replay=jax.tree.map(lambda leaf: leaf[None], filled))
    for interval in intervals:
        yield _measure_interval(learner, state, capacity, interval, repeats, folder / str(interval))


def _measure_interval(
    learner: Learner, state: TrainState, capacity: int, interval: int, repeats: int, folder: Path
) -> Cost:
    copied, written, step = [], [], capacity
    with Checkpoints(folder / "checkpoints") as checkpoints:
        saver = Saver([checkpoints], capacity)
        for _ in range(repeats):
            since = np.asarray(state.replay.written)[0]
            rows = state.replay._replace(written=state.replay.written + np.uint32(interval))
            state = state._replace(replay=rows)
            began = time.perf_counter()
            saved = Saved(
                learner.placement.member(state.agent, 0),
                [learner.rows_since(state, 0, since)],
                learner.placement.member(state.metrics, 0),
                {"state": np.zeros(100)},
            )
            copied.append(time.perf_counter() - began)
            step += interval
            saver.start({0: saved}, Counters(step, 0))
            saver.wait()
            if saver.problem is not None:
                raise OSError(f"a checkpoint could not be written: {saver.problem}")
            written.append(saver.seconds)
    return Cost(
        interval,
        statistics.median(copied),
        statistics.median(written),
        _size_of(folder / "checkpoints" / str(step)),
        (folder / "replay" / f"{step}.npz").stat().st_size,
    )


def _size_of(path: Path) -> int:
    """Bytes of all files under `path`."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
