"""Which runs a command trains, and in which folders: all are examined and owned before any of them is changed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from qsm.base.errors import UserError
from qsm.checkpoints.checkpoint import Checkpoints
from qsm.devices import processes
from qsm.options.run import LaunchOptions
from qsm.record import lock, run_folder
from qsm.record.config_file import is_run, resolved_config
from qsm.record.run_folder import RunDir
from qsm.training.group import Group, Member


def unfinished(members: Sequence[Member], agent: str, task: str, launch: LaunchOptions) -> Sequence[Member]:
    """The members whose runs have steps left, or are to be overwritten; prints which have none. Nothing is changed.

    Raises:
      UserError: a folder that cannot take its run.
    """
    finished = np.zeros(len(members), bool)
    with processes.barrier():
        if processes.is_writer() and not launch.overwrite:
            for i, member in enumerate(members):
                config = _resolved(member, agent, task, launch)
                run = RunDir.examine(member.path, config, extend_steps=launch.extend_steps)
                finished[i] = run is not None and run.finished
                if finished[i]:
                    print(
                        f"{member.path} is finished ({member.config.steps:,} steps); nothing to do. "
                        f"Look at it with: qsm eval {member.path}, or go on with more --steps and --extend-steps"
                    )
    # Decided by the process that writes: the others might still see the disk as it was.
    finished = processes.broadcast_from_writer(finished)
    return [member for member, is_finished in zip(members, finished, strict=True) if not is_finished]


@processes.barrier()
def open_group(
    stack: contextlib.ExitStack,
    members: Sequence[Member],
    agent: str,
    task: str,
    launch: LaunchOptions,
    command: Sequence[str],
    warn: Callable[[str], None],
) -> Group:
    """The runs of `members`, created or as they are, with their checkpoints, until `stack` ends.

    Raises:
      UserError: a folder that cannot take its run, is in use, or holds damaged checkpoints only.
    """
    is_writer = processes.is_writer()
    runs = describe_runs(members, agent, task, launch, command)
    if is_writer:
        runs = open_runs(stack, members, agent, task, launch, command, warn)
    checkpoints = [stack.enter_context(Checkpoints(run.checkpoints, read_only=not is_writer)) for run in runs]
    for one in checkpoints if is_writer else ():
        one.set_damaged_aside(warn)
    return Group(members, runs, checkpoints, is_writer)


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
        runs = [
            RunDir.create_or_open(member.path, config, command, launch.extend_steps)
            for member, config in zip(members, configs, strict=True)
        ]
        for run in runs:
            if run.finished:
                raise UserError(
                    f"{run.path} has just been finished by another process; the same command leaves it as it is"
                )
        return runs


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
