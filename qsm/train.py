"""The host loop: dm_control steps on the CPU while the agent learns on the device. Knows no algorithm by name."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import numpy as np

import agents
from envs import dmc
from envs.api import HostEnvironment, StepType, TimeStep
from qsm import rundir
from qsm.checkpoint import Checkpoints, Counters
from qsm.config import RunConfig
from qsm.display import Display, open_log
from qsm.errors import UserError
from qsm.evaluate import Evaluation, evaluate
from qsm.learner import Learner, TrainState
from qsm.metrics import MetricWriter

BACKEND = "dm_control"


def updates_due(step: int, random_steps: int, ratio: Fraction) -> int:
    """Updates that must have been made by environment step `step`: floor(k p/q), k steps after the random start."""
    return int(max(step - random_steps, 0) * ratio)


@dataclasses.dataclass
class Hooks:
    """What the loop calls as it goes; everything that is not acting, storing and learning."""

    on_step: Callable[[int], None]
    on_evaluation: Callable[[int, TrainState], None]
    on_metrics: Callable[[int, TrainState, int], TrainState]
    on_checkpoint: Callable[[TrainState, Counters], None]
    should_stop: Callable[[], bool]


def run_loop(
    learner: Learner,
    environment: HostEnvironment,
    config: RunConfig,
    state: TrainState,
    counters: Counters,
    hooks: Hooks,
) -> tuple[TrainState, Counters]:
    """Trains from `counters.step` to `config.steps` environment steps, or until asked to stop.

    Each arrival at a time step is stored and learned from; from every one but the last of an episode the agent acts.
    The reset that follows is an arrival too, but no environment step.

    Returns:
      The final state and counters. `state` is donated.
    """
    step, num_updates = counters
    ratio, repeat = config.updates_per_step, environment.spec.action_repeat
    # Sampling needs a closed window: no update before the first n decisions, however short the random start.
    random_steps = max(config.random_steps, learner.agent.sampling.n_step * repeat)
    if step == 0:
        hooks.on_evaluation(step, state)
    time_step, is_reset = environment.reset(), True
    led_here: Any = np.zeros((1, environment.spec.action_size), np.float32)
    while True:
        is_done = step >= config.steps or hooks.should_stop()
        action = None
        if time_step.step_type != StepType.LAST and not is_done:
            is_random = np.bool_(step < random_steps)
            action = learner.act_to_explore(state, time_step.observation[None], np.int32(step), is_random)
        due = updates_due(step, random_steps, ratio)
        state = learner.learn(
            state, led_here, _batched(time_step), np.int32(num_updates), np.int32(due - num_updates)
        )
        num_updates = due
        if not is_reset:
            hooks.on_step(step)
            is_last = step >= config.steps  # written whatever the intervals
            if is_last or _crossed(step, repeat, config.log_interval):
                state = hooks.on_metrics(step, state, num_updates)
            if is_last or _crossed(step, repeat, config.eval_interval):
                hooks.on_evaluation(step, state)
            if _crossed(step, repeat, config.checkpoint_interval):
                hooks.on_checkpoint(state, Counters(step, num_updates))
        if is_done:
            return state, Counters(step, num_updates)
        if action is None:
            time_step, is_reset = environment.reset(), True
            led_here = np.zeros((1, environment.spec.action_size), np.float32)
        else:
            # The only wait of a step; the update goes on while the environment steps.
            time_step, is_reset = environment.step(np.asarray(action)[0]), False
            led_here, step = action, step + repeat


def train(
    agent_name: str,
    task: str,
    agent_config: Any,
    config: RunConfig,
    run_dir: Path,
    command: Sequence[str] = (),
) -> bool:
    """Trains `agent_name` on `task` into `run_dir`: `qsm train`. Resumes what is unfinished, leaves what is finished.

    Returns:
      True where the run reached its last step, False where it was interrupted.

    Raises:
      UserError: an impossible option, or a folder that cannot take the run.
    """
    try:
        environment = dmc.make_env(task, config.seed, config.action_repeat)
        spec = environment.spec
        agent = agents.build(agent_name, agent_config, spec.observation_size, spec.action_size)
    except ValueError as error:
        raise UserError(str(error)) from error
    resolved = rundir.resolved_config(agent_name, task, BACKEND, agent_config, config)
    run = rundir.RunDir.create_or_open(run_dir, resolved, command)
    if run.finished:
        print(
            f"{run.path} is finished ({config.steps:,} steps); nothing to do. Look at it with: qsm eval {run.path}"
        )
        return True
    learner = Learner(agent, spec, config.seed, config.replay_capacity)
    # Every environment is made with the training seed, for it draws the system itself in lqr; episodes are reseeded.
    evaluation_environments = [
        dmc.make_env(task, config.seed, config.action_repeat) for _ in range(config.eval_episodes)
    ]
    device = jax.devices()[0]
    with Checkpoints(run.checkpoints) as checkpoints:
        start = Counters(0, 0)
        resumed = checkpoints.latest_step is not None
        if resumed:
            state, start = checkpoints.restore(learner)
            # The spawn key keeps this apart from the seeds of evaluation: to entropy, (seed, step) is (seed, step, 0).
            fresh = np.random.SeedSequence((config.seed, start.step), spawn_key=(1,))
            environment.reseed(int(fresh.generate_state(1)[0] >> 1))
        else:
            state = learner.init()
        header = {
            "agent": agent_name,
            "task": task,
            "seed": str(config.seed),
            "device": f"{device.device_kind} ({jax.default_backend()})",
            "run": str(run.path),
        }
        display = Display(config.steps, header, log=open_log(run.log), first_step=start.step)
        with (
            display,
            MetricWriter(run, config.wandb, start.step if resumed else None, display.warn) as writer,
        ):
            run.record_start(device.device_kind, display.warn)
            if resumed:
                display.info(f"resuming at step {start.step:,}")
            session = _Session(run, config, learner, writer, display, checkpoints, evaluation_environments)
            try:
                with _interrupts(display) as should_stop:
                    state, end = run_loop(
                        learner, environment, config, state, start, session.hooks(should_stop)
                    )
                    checkpoints.save(state, end)
            except BaseException as error:
                state_name = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
                reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                run.write_status(state_name, session.step, config.steps, session.last_return, reason)
                raise
            finished = end.step >= config.steps
            state_name = "finished" if finished else "interrupted"
            run.write_status(state_name, end.step, config.steps, session.last_return)
            if finished:
                lines = [
                    f"Run      {run.path}",
                    f"Play     qsm eval {run.path}",
                    f"Look     qsm dashboard {run.path}",
                ]
            else:
                lines = [f"Stopped and saved at step {end.step:,}. Go on with the same command."]
            display.finish(lines)
    return finished


class _Session:
    """What happens between steps: evaluation, metrics, checkpoints, status."""

    def __init__(
        self,
        run: rundir.RunDir,
        config: RunConfig,
        learner: Learner,
        writer: MetricWriter,
        display: Display,
        checkpoints: Checkpoints,
        environments: Sequence[HostEnvironment],
    ) -> None:
        self.run, self.config, self.learner = run, config, learner
        self.writer, self.display, self.checkpoints = writer, display, checkpoints
        self.environments = environments
        self.step = 0
        self.last_return: float | None = None
        self._logged_at = time.perf_counter()
        self._logged_step: int | None = None
        self._evaluation_seconds = 0.0

    def hooks(self, should_stop: Callable[[], bool]) -> Hooks:
        return Hooks(self.on_step, self.on_evaluation, self.on_metrics, self.on_checkpoint, should_stop)

    def on_step(self, step: int) -> None:
        self.step = step
        self.display.progress(step)

    def on_evaluation(self, step: int, state: TrainState) -> None:
        began = time.perf_counter()
        jax.block_until_ready(state.agent)  # what is left of the last update is not evaluation time
        began_evaluating = time.perf_counter()
        result: Evaluation = evaluate(self.learner, state.agent, self.environments, self.config.seed, step)
        ended = time.perf_counter()
        metrics = result.metrics()
        self.last_return = metrics["return_mean"]
        self.writer.write("eval", step, metrics | {"seconds": ended - began_evaluating})
        self.display.evaluation(step, result.returns)
        self.run.write_status("running", step, self.config.steps, self.last_return)
        self._evaluation_seconds += ended - began

    def on_metrics(self, step: int, state: TrainState, num_updates: int) -> TrainState:
        state, metrics = self.learner.drain(state)
        now = time.perf_counter()
        metrics["loop/num_updates"] = float(num_updates)
        if self._logged_step is not None:
            seconds = now - self._logged_at - self._evaluation_seconds
            metrics["loop/steps_per_second"] = (step - self._logged_step) / max(seconds, 1e-9)
        self._logged_at, self._logged_step, self._evaluation_seconds = now, step, 0.0
        self.writer.write("train", step, metrics)
        return state

    def on_checkpoint(self, state: TrainState, counters: Counters) -> None:
        self.checkpoints.save(state, counters)


@contextmanager
def _interrupts(display: Display) -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the step under way; a second one ends at once."""
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        display.warn("stopping after this step and saving; once more ends at once without saving")

    former = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _batched(time_step: TimeStep) -> TimeStep:
    """A leading axis `[1]` for the one environment of the host loop."""
    return TimeStep(*(value[None] for value in time_step))


def _crossed(step: int, repeat: int, interval: int) -> bool:
    """Whether the last `repeat` steps reached or passed a multiple of `interval`."""
    return step // interval > (step - repeat) // interval
