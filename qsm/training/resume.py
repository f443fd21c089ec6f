"""Where the runs of a group go on, and the state that they go on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from qsm.base.errors import UserError
from qsm.checkpoints.checkpoint import Saved
from qsm.devices import processes
from qsm.learning.learner import TrainState
from qsm.loops.loop import Loop
from qsm.loops.schedule import Counters
from qsm.record.run_folder import RunDir
from qsm.record.tables import WaitingRow
from qsm.training.group import Group

NO_STEP = -1
"""In place of the step to resume from, where all runs begin."""


class Start(NamedTuple):
    """Where a group begins or goes on."""

    at: Counters
    state: TrainState | None  # None where it begins
    waiting: Sequence[
        Mapping[str, Sequence[WaitingRow]]
    ]  # of each run, rows of metrics that wait for their file

    @property
    def resume_step(self) -> int | None:
        """The step of the checkpoint that it goes on from; None where it begins."""
        return None if self.state is None else self.at.step


def resume(group: Group, loop: Loop) -> Start:
    """Finds the step that all runs have and restores it; runs that diverged before are frozen in `group` and `loop`.

    Raises:
      UserError: the runs have no step in common, or what was saved cannot be read.
    """
    with processes.barrier():
        where = where_to_resume(group) if group.is_writer else np.zeros(len(group.runs) + 1, int)
    # Decided by the process that writes: the others might still see the disk as it was.
    *frozen, step = processes.broadcast_from_writer(where).tolist()
    if step == NO_STEP:
        return Start(Counters(0, 0), None, [{}] * len(group.runs))
    group.frozen = {i: group.runs[i].status().message for i in np.flatnonzero(frozen).tolist()}
    with processes.barrier():
        return restore(group, loop, step)


def where_to_resume(group: Group) -> np.ndarray:
    """`[S + 1]` which runs diverged and are frozen (1), and the step that the others go on from, or `NO_STEP`.

    Removes the checkpoints after that step: they were of a group that was killed while it saved.

    Raises:
      UserError: a run's checkpoints are gone, or one of the runs has gone on alone.
    """
    runs, checkpoints = group.runs, group.checkpoints
    frozen = np.array([run.status().state == "diverged" for run in runs])
    if frozen.all():
        frozen[:] = False  # asked for again: let them show it again
    active = np.flatnonzero(~frozen).tolist()
    for i in active:
        if not checkpoints[i].steps():
            _refuse_if_saved(runs[i])
    labels = [member.label for member in group.members]
    if not all(checkpoints[i].steps() for i in active) and not any(_saved_step(runs[i]) for i in active):
        for i in np.flatnonzero(frozen).tolist():
            _refuse_if_lost(runs[i], labels[i])
        # Killed while it saved for the first time: some may have a checkpoint, and others none yet.
        for one in checkpoints:
            one.go_back_to(NO_STEP)
        return np.array([*np.zeros_like(frozen), NO_STEP])
    step = common_step([checkpoints[i].steps() for i in active], [labels[i] for i in active])
    assert step is not None  # one of them was saved, and none that was is without a checkpoint
    _refuse_if_alone([runs[i] for i in active], [labels[i] for i in active], step)
    for i in active:  # a frozen run is left as it is: nothing of it is made again
        checkpoints[i].go_back_to(step)
    return np.array([*frozen, step])


def common_step(steps: Sequence[Sequence[int]], labels: Sequence[str]) -> int | None:
    """The newest checkpoint that every run has; None where none has any.

    Args:
      steps: for each run the steps of its checkpoints.

    Raises:
      UserError: the runs have no step in common.
    """
    if not any(steps):
        return None
    shared = set(steps[0]).intersection(*steps[1:])
    if shared:
        return max(shared)
    reached = ", ".join(
        f"{label} at {max(have):,}" if have else f"{label} at the beginning"
        for label, have in zip(labels, steps, strict=True)
    )
    raise UserError(
        f"These runs have no checkpoint of the same step ({reached}). Go on with each alone: leave out --num-seeds "
        "and --sweep, and give its --seed"
    )


def _saved_step(run: RunDir) -> int:
    """The step at which a run was last saved, as its status has it; 0 where it was not."""
    return run.status().saved_step or 0


def _refuse_if_saved(run: RunDir) -> None:
    """Raises UserError where a run without a checkpoint had one: beginning anew would drop its scores unasked."""
    if saved := _saved_step(run):
        raise UserError(
            f"{run.path} was saved at step {saved:,}, but no checkpoint is in {run.checkpoints}; nothing was changed. "
            "Restore it from a copy, or begin anew, without the scores that are there, with --overwrite"
        )


def _refuse_if_lost(diverged: RunDir, label: str) -> None:
    """Raises UserError where a run that diverged had been saved, and the others, which begin, would have it begin."""
    if saved := _saved_step(diverged):
        raise UserError(
            f"{label} diverged and was saved at step {saved:,} before, and the others have not begun; together they "
            "would begin anew, and its scores would be lost. Train the others by themselves, by their --seed"
        )


def _refuse_if_alone(runs: Sequence[RunDir], labels: Sequence[str], step: int) -> None:
    """Raises UserError where a run has been trained further than the others by itself and would lose that."""
    # A group is saved as one: steps that differ come of a run that went on alone. Where they do not differ, a newer
    # checkpoint is of a group that was killed while it saved, or the others' are damaged.
    reached = [_saved_step(run) for run in runs]
    for label, here in zip(labels, reached, strict=True):
        if here > max(step, min(reached)):
            raise UserError(
                f"{label} has gone on alone to step {here:,}, and the others are at {step:,}; together they would "
                "go on from there, and what it learned since would be lost. Go on with each alone, by its --seed"
            )


def restore(group: Group, loop: Loop, step: int) -> Start:
    """The state of the group at `step`; a frozen run's place is taken by another's numbers, which learn no more.

    Raises:
      UserError: what was saved does not fit, or cannot be read.
    """
    learner = loop.learner
    learner.active[:] = [i not in group.frozen for i in range(len(group.runs))]
    counters = Counters(step, 0)
    saved: list[Saved | None] = [None] * len(group.runs)
    for i in group.active_runs:
        saved[i], counters = group.checkpoints[i].restore(learner, step)
    stand_in = next(one for one in saved if one is not None)
    parts = [one or stand_in for one in saved]
    try:
        environment = loop.restore([one.environment for one in parts])
    except (ValueError, KeyError) as error:
        raise UserError(f"the environment saved at step {step:,} cannot be restored: {error}") from error
    agents = jax.tree.map(lambda *leaves: np.stack(leaves), *[one.agent for one in parts])
    metrics = {
        name: jax.tree.map(lambda *sums: np.stack(sums), *(one.metrics[name] for one in parts))
        for name in stand_in.metrics
    }
    try:
        state = learner.place(agents, [one.replay for one in parts], metrics, environment)
    except ValueError as error:
        raise UserError(f"the replay buffer saved at step {step:,} cannot be restored: {error}") from error
    return Start(counters, state, [one.waiting if one is not None else {} for one in saved])
