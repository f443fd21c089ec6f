"""Which policy of a run is meant: the newest, the best evaluated one, or that of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from qsm.base.errors import UserError
from qsm.checkpoints.best import FOLDER, kept_steps, restore_best
from qsm.checkpoints.checkpoint import Checkpoints, restore_agent
from qsm.checkpoints.integrity import is_whole
from qsm.learning.learner import Learner


class Which(NamedTuple):
    """The newest policy, unless the best one or that of a step is asked for."""

    best: bool = False
    step: int | None = None


NEWEST = Which()


class Restored(NamedTuple):
    """A policy of a run."""

    agent: Any  # the learned state; of a best policy, zeros but for what acting reads
    step: int  # environment steps that it was trained for
    return_mean: float | None  # of the evaluation it was kept for; None for a checkpoint


def restore_policy(run: Path, learner: Learner, best: bool = False, step: int | None = None) -> Restored:
    """The policy of the run in the folder `run`: the newest checkpoint's, unless `best` or a `step` is asked for.

    Raises:
      UserError: there is no such policy, which names those that are there, or it cannot be read or does not fit.
    """
    folder, checkpoints = run / FOLDER, run / "checkpoints"
    if not best and step is None:
        return Restored(*restore_agent(checkpoints, learner), None)
    kept = kept_steps(folder)
    if best:
        if not kept:
            raise UserError(
                f"{run} has no best policy: it was never evaluated, or by a version of qsm that kept none; leave out "
                "--best for that of the newest checkpoint"
            )
        state, value = restore_best(folder, learner, kept[-1])
        return Restored(state, kept[-1], value)
    assert step is not None
    there: list[int] = []
    if checkpoints.is_dir():
        with Checkpoints(checkpoints, read_only=True) as opened:
            there = opened.steps()
            if step in there:
                opened.check_format()
                if is_whole(checkpoints / str(step)):
                    return Restored(opened.restore_agent(learner, step), step, None)
                if step not in kept[-1:]:
                    raise UserError(f"the checkpoint {checkpoints / str(step)} is damaged or not complete")
    if step in kept[-1:]:
        state, value = restore_best(folder, learner, step)
        return Restored(state, step, value)
    raise UserError(f"{run} has no policy of step {step:,}; {_named(there, kept[-1:])}")


def _named(checkpoints: list[int], best: list[int]) -> str:
    """The steps that can be asked for."""
    parts = [
        f"{what} {' and '.join(f'{step:,}' for step in steps)}"
        for what, steps in (("checkpoints of step", checkpoints), ("the best policy, of step", best))
        if steps
    ]
    return f"there are {', and '.join(parts)}" if parts else "none is there yet"
