"""`qsm train`: builds the loop of a group of runs, resumes them, and does what happens between steps."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

import agents
from agents.api import Agent
from envs.api import DeviceEnvironment, EnvSpec, HostEnvironment
from qsm.base.errors import UserError
from qsm.base.text import shorten
from qsm.checkpoints.checkpoint import Checkpoints, Saved
from qsm.devices import compilation_cache, processes, runtime
from qsm.learning import memory
from qsm.learning.device_loop import DeviceLoop
from qsm.learning.host_loop import HostLoop
from qsm.learning.learner import Learner, TrainState
from qsm.learning.loop import Loop
from qsm.learning.placement import Placement
from qsm.learning.schedule import Counters, Schedule
from qsm.options.run import LaunchOptions, RunConfig
from qsm.record.status import Outcome
from qsm.record.tables import WaitingRow
from qsm.training.display import Display, open_log
from qsm.training.group import Member
from qsm.training.opening import NO_STEP, describe_runs, open_runs, where_to_resume
from qsm.training.session import PATIENCE, Session

end_at_once: Callable[[int], Any] = os._exit
POLL_INTERVAL = {"dm_control": 64, "mjx": 1}
"""How often several processes agree on whether to stop: every so many ticks, or dispatches of the device loop."""


def train(
    agent_name: str,
    task: str,
    members: Sequence[Member],
    launch: LaunchOptions | None = None,
    command: Sequence[str] = (),
) -> Outcome:
    """Trains the runs `members` together. Resumes what is unfinished, leaves what is finished.

    Returns:
      `finished` where every run reached its last step, `interrupted` or `preempted` where they were stopped by Ctrl-C
      or SIGTERM, `diverged` where one was held because its numbers were no longer finite, and `unsaved` where the last
      checkpoint could not be written.

    Raises:
      UserError: an impossible option, or a folder that cannot take its run.
    """
    launch = launch or LaunchOptions()
    # Told once there is a display.
    told = [line for line in (processes.join_processes(), compilation_cache.use_cache()) if line]
    is_writer = processes.is_writer()
    # Whether it fits is known before a folder is made.
    with processes.barrier():
        builder = _Builder(agent_name, task, launch, members)
    with processes.barrier():
        placement, loop, memory_line = builder.build(members)
    with contextlib.ExitStack() as stack:
        with processes.barrier():
            runs = (
                open_runs(stack, members, agent_name, task, launch, command, told.append)
                if is_writer
                else describe_runs(members, agent_name, task, launch, command)
            )
        finished = processes.broadcast_from_writer(np.array([run.finished for run in runs]))
        for run, member in zip(runs, members, strict=True):
            if run.finished and is_writer:
                print(
                    f"{run.path} is finished ({member.config.steps:,} steps); nothing to do. "
                    f"Look at it with: qsm eval {run.path}"
                )
        if finished.all():
            return "finished"
        if finished.any():
            unfinished = np.flatnonzero(~finished).tolist()
            members, runs = [members[i] for i in unfinished], [runs[i] for i in unfinished]
            with processes.barrier():
                placement, loop, memory_line = builder.build(members)
        with processes.barrier():
            checkpoints = [
                stack.enter_context(Checkpoints(run.checkpoints, read_only=not is_writer)) for run in runs
            ]
            for one in checkpoints if is_writer else ():
                one.set_damaged_aside(told.append)
            where = where_to_resume(members, runs, checkpoints) if is_writer else np.zeros(len(runs) + 1, int)
        # Decided by the process that writes: the others might still see the disk as it was.
        *held, step = processes.broadcast_from_writer(where).tolist()
        step = None if step == NO_STEP else step
        with processes.barrier():
            nothing = None, Counters(0, 0), [{}] * len(runs)
            restored = _restore(loop, checkpoints, held, step) if step is not None else nothing
        state, start, waiting = restored
        device = jax.devices()[0]
        header = {
            "agent": agent_name,
            "task": f"{task} ({launch.backend})",
            "runs": shorten([member.label for member in members]),
            "device": f"{device.device_kind} ({placement.describe()})",
            "memory": memory_line,
            "folder": shorten([str(run.path) for run in runs], 1),
        }
        display = stack.enter_context(
            Display(
                members[0].config.steps,
                header,
                log=open_log(*(run.log for run in runs)) if is_writer else None,
                first_step=start.step,
                quiet=not is_writer,
            )
        )
        for warning in told:
            display.warn(warning)
        session = Session(members, runs, loop, display, checkpoints, held, start)
        if is_writer:
            for run in runs:
                run.record_start(device.device_kind, display.warn)
            if step is not None:
                display.info(f"resuming at step {start.step:,}")
        with (
            _interrupts(display, POLL_INTERVAL[launch.backend], session.abandon) as should_stop,
            session.writing(step, waiting),
        ):
            try:
                state, end = _drive(loop, session, state, start, lambda: should_stop() != 0)
                session.save_last(state, end)
                return session.finish(end, preempted=should_stop() == signal.SIGTERM)
            except BaseException as error:
                session.fail(error)
                session.saver.wait(PATIENCE)
                raise


def _drive(
    loop: Loop, session: Session, state: TrainState | None, at: Counters, should_stop: Callable[[], bool]
) -> tuple[TrainState, Counters]:
    """Trains from `at` to the last step, or until asked to stop; from the beginning where there is no state yet."""
    schedule = loop.schedule
    if state is None:
        state = session.handle("evaluation", loop.begin(), at)
    while at.step < schedule.steps and session.going and not should_stop():
        before = at.step
        state, at = loop.advance(state, at, schedule.next_event(before))
        session.on_step(at.step)
        for event in schedule.due(before, at.step):
            state = session.handle(event, state, at)
    return state, at


class _Builder:
    """The loop of a group. Made before any folder, so that impossible options leave nothing behind."""

    def __init__(self, agent_name: str, task: str, launch: LaunchOptions, members: Sequence[Member]) -> None:
        self.agent_name, self.task, self.launch = agent_name, task, launch
        config = members[0].config
        runtime.set_precision(config.matmul_precision)
        try:
            self.environment = self._device_environment(config) if launch.backend == "mjx" else None
            if self.environment is None:
                if config.num_envs > 1:
                    raise ValueError(
                        f"num_envs is {config.num_envs}; dm_control steps one environment for each seed. Take "
                        "--num-seeds for more seeds, or --backend mjx for more environments"
                    )
                self.hosts = {member.path: self._host_environment(member.config) for member in members}
                spec = self.hosts[members[0].path].spec
            else:
                spec = self.environment.spec
            self.spec = spec
            self.agents: dict[Path, Agent] = {
                member.path: agents.build(
                    agent_name, member.agent_config, spec.observation_size, spec.action_size
                )
                for member in members
            }
            self._placement(members)
            _check_counts(members[0], spec)
        except ValueError as error:
            raise UserError(str(error)) from error

    def _device_environment(self, config: RunConfig) -> DeviceEnvironment:
        from envs import mjx

        return mjx.make_env(self.task, config.action_repeat)

    def _host_environment(self, config: RunConfig) -> HostEnvironment:
        from envs import dmc

        return dmc.make_env(self.task, config.seed, config.action_repeat)

    def _placement(self, members: Sequence[Member]) -> Placement:
        config = members[0].config
        return Placement(
            self.launch.num_devices, len(members), config.num_envs, members[0].agent_config.batch_size
        )

    def build(self, members: Sequence[Member]) -> tuple[Placement, Loop, str]:
        """Placement, loop and a line on memory for `members`, which may be fewer than were given at first."""
        from envs.vector import VectorEnvironment

        config = members[0].config
        seeds = [member.config.seed for member in members]
        try:
            placement = self._placement(members)
        except ValueError as error:
            raise UserError(str(error)) from error
        learner = Learner(
            [self.agents[member.path] for member in members],
            self.spec,
            seeds,
            config.replay_capacity,
            config.num_envs,
            placement,
        )
        if self.environment is not None:
            loop = DeviceLoop(learner, VectorEnvironment(self.environment, config.num_envs), config)
            line = memory.check(learner, loop.nbytes())
            return placement, loop, line
        line = memory.check(learner, 0)
        # All are made with the training seed, for it draws the system itself in lqr; episodes are reseeded.
        environments = [self.hosts[member.path] for member in members]
        evaluation = [
            [self._host_environment(member.config) for _ in range(config.eval_episodes)] for member in members
        ]
        return placement, HostLoop(learner, environments, evaluation, config), line


def _check_counts(member: Member, spec: EnvSpec) -> None:
    """Raises ValueError for counts that are possible each and cannot learn together."""
    config, n_step = member.config, member.agent_config.n_step
    schedule = Schedule.of(config, spec.action_repeat, n_step)
    if schedule.random_steps >= config.steps:
        raise ValueError(
            f"steps is {config.steps}, but {config.num_envs} environments take {schedule.random_steps} steps before "
            "the first update; train for longer or with fewer environments"
        )
    if schedule.updates_due(config.steps) >= 2**31:
        raise ValueError(
            f"replay_ratio is {config.replay_ratio}; over {config.steps} steps that is more than 2^31 updates"
        )
    least = memory.min_capacity(config.num_envs, n_step)
    if config.replay_capacity < least:
        raise ValueError(
            f"replay_capacity is {config.replay_capacity}; {config.num_envs} environments need {least} or more"
        )


def _restore(
    loop: Loop, checkpoints: Sequence[Checkpoints], held: Sequence[bool], step: int
) -> tuple[TrainState, Counters, list[Mapping[str, Sequence[WaitingRow]]]]:
    """The state of the group at `step`, and rows of metrics that wait for their file.

    A held run's place is taken by another's numbers, and held.
    """
    learner = loop.learner
    counters = Counters(step, 0)
    saved: list[Saved | None] = []
    for one, is_held in zip(checkpoints, held, strict=True):
        if is_held:
            saved.append(None)
            continue
        found, counters = one.restore(learner, step)
        saved.append(found)
    stand_in = next(one for one in saved if one is not None)
    parts = [one or stand_in for one in saved]
    try:
        environment = loop.restore([one.environment for one in parts])
    except (ValueError, KeyError) as error:
        raise UserError(f"the environment saved at step {step:,} cannot be restored: {error}") from error
    agents_ = jax.tree.map(lambda *leaves: np.stack(leaves), *[one.agent for one in parts])
    metrics = {
        name: jax.tree.map(lambda *sums: np.stack(sums), *(one.metrics[name] for one in parts))
        for name in stand_in.metrics
    }
    try:
        state = learner.place(agents_, [one.replay for one in parts], metrics, environment)
    except ValueError as error:
        raise UserError(f"the replay buffer saved at step {step:,} cannot be restored: {error}") from error
    learner.active[:] = ~np.array(held, bool)
    return state, counters, [one.waiting if one is not None else {} for one in saved]


@contextmanager
def _interrupts(
    display: Display, poll_interval: int, abandon: Callable[[int], None]
) -> Iterator[Callable[[], int]]:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the step under way; a second one ends at once.

    At once means that nothing is waited for, neither a drive nor wandb: `abandon` is told the signal, and the process
    ends with the status that shells give it.

    Yields a function that gives the signal's number, 0 before it.
    """
    asked = 0
    agreed = 0  # by all processes
    calls = 0

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            abandon(number)
            display.finish(["Ended at once. The same command goes on from the newest checkpoint."])
            end_at_once(128 + number)
        asked = number
        display.warn("stopping after this step and saving; once more ends at once without saving")

    def should_stop() -> int:
        nonlocal agreed, calls
        if jax.process_count() == 1:
            return asked
        # All processes must stop at the same step, and a signal reaches them at different ones.
        calls += 1
        if not agreed and calls % poll_interval == 0:
            agreed = int(np.max(multihost_utils.process_allgather(np.array(asked))))
        return agreed

    if threading.current_thread() is not threading.main_thread():
        yield should_stop  # signals can only be handled in the main thread
        return
    former = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield should_stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
