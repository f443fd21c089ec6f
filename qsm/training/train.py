"""`qsm train`: a group of runs from where they are to their last step."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax

from envs.tasks import full_return
from qsm.base.text import shorten
from qsm.devices import compilation_cache, kept_programs, processes, runtime
from qsm.learning.build import SIMULATORS, Simulators
from qsm.options.run import LaunchOptions
from qsm.record.status import Outcome
from qsm.training.build import GroupLoop, build_loop
from qsm.training.display import Display, open_log
from qsm.training.group import Group, Member
from qsm.training.opening import open_group, unfinished
from qsm.training.resume import Start, resume
from qsm.training.session import Session
from qsm.training.signals import POLL_INTERVAL, interrupts


def train(
    agent_name: str,
    task: str,
    members: Sequence[Member],
    launch: LaunchOptions | None = None,
    command: Sequence[str] = (),
    simulators: Simulators = SIMULATORS,
    end_process: Callable[[int], Any] = os._exit,
    keep_programs: bool = False,
) -> Outcome:
    """Trains the runs `members` together. Resumes what is unfinished, leaves what is finished.

    Args:
      command: for the record, the words that it was started with.
      simulators: makes the environments.
      end_process: called with the exit status at a second signal; does not return.
      keep_programs: whether later starts find the programs traced; only where the code of this process is that on disk.

    Returns:
      `finished` where every run reached its last step, `interrupted` or `preempted` where they were stopped by Ctrl-C
      or SIGTERM, `diverged` where one was frozen because its numbers were no longer finite, and `unsaved` where the
      last checkpoint could not be written.

    Raises:
      UserError: an impossible option, or a folder that cannot take its run.
    """
    launch = launch or LaunchOptions()
    # Shown once there is a display.
    warnings = [line for line in (processes.join_processes(), compilation_cache.use_cache()) if line]
    if keep_programs:
        kept_programs.use()
    members = unfinished(members, agent_name, task, launch)
    if not members:
        return "finished"
    runtime.set_precision(members[0].config.matmul_precision)
    # Whether it fits is known before a folder is made.
    built = build_loop(agent_name, task, members, launch, simulators)
    with contextlib.ExitStack() as stack:
        group = open_group(stack, members, agent_name, task, launch, command, warnings.append)
        start = resume(group, built.loop)
        display = stack.enter_context(_display(group, built, start, agent_name, task, launch.backend))
        for line in warnings:
            display.warn(line)
        session = Session(group, built.loop, display)
        with (
            interrupts(display, POLL_INTERVAL[launch.backend], session.abandon, end_process) as stop_signal,
            session.writing(start),
        ):
            return _drive(session, start, stop_signal)


def _drive(session: Session, start: Start, stop_signal: Callable[[], int]) -> Outcome:
    """Trains from `start` to the last step, or until asked to stop."""
    loop, schedule = session.loop, session.loop.schedule
    state, at = start.state, start.at
    try:
        session.display.compiling()
        if state is None:
            state = session.handle("evaluation", loop.begin(), at)
        while at.step < schedule.steps and session.group.active_runs and not stop_signal():
            before = at.step
            state, at = loop.advance(state, at, schedule.next_event(before))
            session.on_step(at.step)
            for event in schedule.due(before, at.step):
                state = session.handle(event, state, at)
        session.save_last(state, at)
        return session.finish(at.step, stop_signal())
    except BaseException as error:
        session.fail(error)
        raise


def _display(group: Group, built: GroupLoop, start: Start, agent: str, task: str, backend: str) -> Display:
    header = {
        "agent": agent,
        "task": f"{task} ({backend})",
        "runs": shorten([member.label for member in group.members]),
        "device": f"{jax.devices()[0].device_kind} ({built.devices})",
        "memory": built.memory,
        "folder": shorten([str(run.path) for run in group.runs], 1),
    }
    log = open_log(*(run.log for run in group.runs)) if group.is_writer else None
    return Display(
        group.config.steps,
        header,
        log=log,
        first_step=start.at.step,
        quiet=not group.is_writer,
        full_return=full_return(task),
    )
