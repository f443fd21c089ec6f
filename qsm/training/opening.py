"""Which runs a command may train in, and where they go on: all are examined and owned before any of them is changed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from qsm.base.errors import UserError
from qsm.checkpoints.checkpoint import Checkpoints
from qsm.options.run import LaunchOptions
from qsm.record import lock, run_folder
from qsm.record.config_file import is_run, resolved_config
from qsm.record.run_folder import RunDir
from qsm.training.group import Member, common_step

NO_STEP = -1
"""In place of the step to resume from, where all runs begin."""


def describe_runs(
    members: Sequence[Member], agent: str, task: str, launch: LaunchOptions, command: Sequence[str]
) -> list[RunDir]:
    """The runs of `members` as the process that writes them will have made them; nothing is read or written."""
    return [RunDir(member.path, _resolved(member, agent, task, launch), command) for member in members]


def open_runs(
    stack: contextlib.ExitStack,
    members: Sequence[Member],
    agent: str,
    task: str,
    launch: LaunchOptions,
    command: Sequence[str],
    warn: Callable[[str], None],
) -> list[RunDir]:
    """The runs of `members`, created or as they are, and this process's own until `stack` ends.

    A refusal of one leaves all as they were: of a group, none is emptied, extended or created before every run has been
    examined and is owned.

    Raises:
      UserError: a folder that cannot take its run, or is in use.
    """
    configs = [_resolved(member, agent, task, launch) for member in members]
    replaced = [launch.overwrite and is_run(member.path) for member in members]
    with _nothing_left_behind() as created:
        for member, config, is_replaced in zip(members, configs, replaced, strict=True):
            found = None
            if not is_replaced:
                found = RunDir.examine(member.path, config, command, launch.extend_steps)
            if found is not None and found.finished:
                continue  # nobody trains there
            missing = run_folder.missing_folders(member.path)
            try:
                member.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock.owned(member.path, run_folder.now(), warn))
            except OSError as error:
                run_folder.remove_empty(missing)
                raise run_folder.explain(member.path, error) from error
            if found is None and not is_replaced:
                created[member.path] = missing
        for member, is_replaced in zip(members, replaced, strict=True):
            if is_replaced:
                run_folder.empty_run(member.path, keep=lock.NAME)
        # Examined again, for another process may have made a run there before this one owned the folder.
        return [
            RunDir.create_or_open(member.path, config, command, launch.extend_steps)
            for member, config in zip(members, configs, strict=True)
        ]


def _resolved(member: Member, agent: str, task: str, launch: LaunchOptions) -> dict:
    return resolved_config(agent, task, launch.backend, member.agent_config, member.config)


@contextmanager
def _nothing_left_behind() -> Iterator[dict[Path, list[Path]]]:
    """Yields where to note the folders made for a run that this process owns; a refusal removes them."""
    created: dict[Path, list[Path]] = {}
    try:
        yield created
    except UserError:
        for path, folders in created.items():
            for name in ("config.json", lock.NAME):
                with contextlib.suppress(OSError):
                    (path / name).unlink()
            run_folder.remove_empty(folders)
        raise


def where_to_resume(
    members: Sequence[Member], runs: Sequence[RunDir], checkpoints: Sequence[Checkpoints]
) -> np.ndarray:
    """`[S + 1]` which runs are held from the beginning (1), and the step that the others go on from, or `NO_STEP`.

    Removes the checkpoints after that step: they were of a group that was killed while it saved.

    Raises:
      UserError: a run's checkpoints are gone, or one of the runs has gone on alone.
    """
    held = np.array([run.status().state == "diverged" for run in runs])
    if held.all():
        held[:] = False  # asked for again: let them show it again
    going = np.flatnonzero(~held).tolist()
    for i in going:
        if not checkpoints[i].steps():
            _refuse_if_saved(runs[i])
    if not all(checkpoints[i].steps() for i in going) and not any(_saved_step(runs[i]) for i in going):
        # Killed while it saved for the first time: some may have a checkpoint, and others none yet.
        for one in checkpoints:
            one.go_back_to(NO_STEP)
        return np.array([*np.zeros_like(held), NO_STEP])
    step = common_step([checkpoints[i].steps() for i in going], [members[i].label for i in going])
    if step is None:
        return np.array([*np.zeros_like(held), NO_STEP])
    _refuse_if_alone([runs[i] for i in going], [members[i].label for i in going], step)
    for one in checkpoints:
        one.go_back_to(step)
    return np.array([*held, step])


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
