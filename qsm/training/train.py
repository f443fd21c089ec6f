"""`qsm train`: a group of runs from where they are to their last step."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from envs.tasks import full_return
from qsm.base.text import shorten
from qsm.devices import compilation_cache, kept_programs, processes, runtime
from qsm.learning.build import SIMULATORS, Simulators
from qsm.options.run import LaunchOptions
from qsm.record.status import Outcome
from qsm.training.build import GroupLoop, build_loop
from qsm.training.display import Display, Wait, open_log
from qsm.training.group import Group, Member
from qsm.training.opening import open_group, unfinished
from qsm.training.resume import Start, resume
from qsm.training.session import Session
from qsm.training.signals import POLL_INTERVAL, interrupts
from qsm.training.waiting import beside


class Waits(NamedTuple):
    """What is waited for while programs are compiled; how long, as on two cores (docs/speed.md, docs/scaling.md)."""

    start: Wait
    step: Wait
    resume: Wait


AGENT = (
    "compiling the agent's programs (10 to 30 s at a first start, a few seconds at the next: they are kept)"
)
ENVIRONMENTS = (
    "compiling the environments' programs and the agent's (one to three minutes at a first start, some 20 s at the "
    "next: they are kept)"
)
EVALUATED = "all is compiled and the first evaluation is made"
WAITS: dict[str, Waits] = {
    "dm_control": Waits(
        Wait(AGENT, EVALUATED, "compiling and evaluating"),
        Wait(
            "waiting for the compiler of the program that learns", "the first update is made", is_long=False
        ),
        Wait(AGENT, "all is compiled and a step is made"),
    ),
    "mjx": Waits(
        Wait(ENVIRONMENTS, EVALUATED, "compiling and evaluating"),
        Wait("compiling the program that steps and learns, the largest", "it is compiled and a step is made"),
        Wait(ENVIRONMENTS, "all is compiled and a step is made"),
    ),
}


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
            return _drive(session, start, stop_signal, WAITS[launch.backend])


def _drive(session: Session, start: Start, stop_signal: Callable[[], int], waits: Waits) -> Outcome:
    """Trains from `start` to the last step, or until asked to stop."""
    loop, schedule, display = session.loop, session.loop.schedule, session.display
    state, at = start.state, start.at
    try:
        if state is None:
            with display.compiling(waits.start):
                state = beside(lambda: session.handle("evaluation", loop.begin(), at), display.waiting)
        while at.step < schedule.steps and session.group.active_runs and not stop_signal():
            before = at.step
            until = schedule.next_event(before)
            if loop.compiles(at):
                advance = functools.partial(loop.advance, state, at, until)
                resumes = start.state is not None and at == start.at
                with display.compiling(waits.resume if resumes else waits.step):
                    state, at = beside(advance, display.waiting)
            else:
                state, at = loop.advance(state, at, until)
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
