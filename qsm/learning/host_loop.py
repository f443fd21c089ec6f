"""The host loop: dm_control steps on the CPU while the agents learn on the device. Knows no algorithm by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from envs.api import Arrival, HostEnvironment, SimulationError, StepType, TimeStep, time_step
from qsm.learning.evaluate import Evaluation, evaluate
from qsm.learning.learner import Learner, TrainState
from qsm.learning.schedule import Counters, Hooks, Schedule
from qsm.options.run import RunConfig

ACTION = "next_action"


class HostLoop:
    """One environment for each of S seeds, stepped in turn.

    Threads and processes were measured against stepping in turn (docs/scaling.md).

    Args:
      environments: `[S]`, each seeded as its run is.
      evaluation_environments: `[S][E]`, apart from those of training.
    """

    def __init__(
        self,
        learner: Learner,
        environments: Sequence[HostEnvironment],
        evaluation_environments: Sequence[Sequence[HostEnvironment]],
        config: RunConfig,
    ) -> None:
        self.learner = learner
        self.environments = environments
        self.evaluation_environments = evaluation_environments
        spec = environments[0].spec
        n_step = learner.agent.sampling.n_step
        self.schedule = Schedule.of(config, spec.action_repeat, n_step)
        self._action: Any = None  # [S, 1, A] for the next step; None before the first
        blank = np.zeros(spec.observation_size, np.float32)
        self._blank = time_step(StepType.FIRST, 0.0, 1.0, blank)
        self._no_reset = _stack([self._blank] * learner.num_seeds)
        # Shared by every step that has no reset; nothing writes to them, as JAX reads NumPy arguments in place.
        self._never = np.zeros((learner.num_seeds, 1), bool)
        self._always = np.ones((learner.num_seeds, 1), bool)

    @property
    def steps_per_tick(self) -> int:
        return self.schedule.increment

    def begin(self) -> TrainState:
        self._action = None
        return self.learner.init()

    def run(self, state: TrainState, counters: Counters, hooks: Hooks) -> tuple[TrainState, Counters]:
        """Trains from `counters.step` to the last step, or until asked to stop.

        Each arrival is stored and learned from, and the agents act on it; where it ends an episode, on the first
        observation of the next, which is an arrival too but no environment step.
        """
        step, num_updates = counters
        schedule = self.schedule
        if self._action is None:
            hooks.on_evaluation(step, state)
            state = self._act_and_learn(state, self._start(), step, num_updates, 0)
        while step < schedule.steps and not hooks.should_stop():
            # The only wait of a step; the update goes on while the environments step.
            arrival = self._step(self.learner.placement.fetch(self._action))
            step += schedule.increment
            due = schedule.updates_due(step)
            state = self._act_and_learn(state, arrival, step, num_updates, due - num_updates)
            num_updates = due
            state = schedule.events(step, state, num_updates, hooks)
        return state, Counters(step, num_updates)

    def evaluate(self, state: TrainState, step: int) -> list[Evaluation | None]:
        return evaluate(self.learner, state.agent, self.evaluation_environments, step)

    def save(self, state: TrainState, index: int) -> dict[str, np.ndarray]:
        action = self.learner.placement.fetch(self._action)[index]
        return {ACTION: action, **self.environments[index].save()}

    def restore(self, saved: Sequence[Mapping[str, np.ndarray]]) -> object:
        for environment, one in zip(self.environments, saved, strict=True):
            environment.restore({name: value for name, value in one.items() if name != ACTION})
        self._action = np.stack([np.asarray(one[ACTION], np.float32) for one in saved])
        return ()

    def _act_and_learn(
        self, state: TrainState, arrival: Arrival, step: int, num_updates: int, due: int
    ) -> TrainState:
        """Dispatches the next actions, and behind them the updates that `arrival` makes due."""
        observation = np.where(
            arrival.is_reset[..., None], arrival.first.observation, arrival.time_step.observation
        )
        led_here = self._action
        if led_here is None:
            led_here = np.zeros((*observation.shape[:2], self.learner.spec.action_size), np.float32)
        is_random = np.bool_(step < self.schedule.random_steps)
        self._action = self.learner.act_to_explore(state, observation, np.int32(step), is_random)
        return self.learner.learn(state, led_here, arrival, np.int32(num_updates), np.int32(due))

    def _start(self) -> Arrival:
        first = _stack([environment.reset() for environment in self.environments])
        return Arrival(self._no_reset, self._never, first, self._always)

    def _step(self, actions: np.ndarray) -> Arrival:
        """Steps every environment whose seed goes on, and resets those whose episode is over."""
        reached: list[TimeStep] = []
        first: list[TimeStep] = []
        is_valid, is_reset = self._always, self._never
        for i, environment in enumerate(self.environments):
            arrived, fresh = self._blank, self._blank
            if self.learner.active[i]:
                try:
                    arrived = environment.step(actions[i, 0])
                except SimulationError:
                    is_valid = is_valid.copy()
                    is_valid[i] = False
                    # Counted, and stored nowhere; the episode is abandoned.
                    arrived = self._blank._replace(step_type=np.array(StepType.LAST, np.int8))
                if arrived.step_type == StepType.LAST:
                    is_reset = is_reset.copy()
                    is_reset[i] = True
                    fresh = environment.reset()
            reached.append(arrived)
            first.append(fresh)
        return Arrival(
            _stack(reached), is_valid, self._no_reset if is_reset is self._never else _stack(first), is_reset
        )


def _stack(time_steps: Sequence[TimeStep]) -> TimeStep:
    """`[S, 1, ...]` from one of each seed; fresh arrays."""
    return TimeStep(*(np.stack(values)[:, None] for values in zip(*time_steps, strict=True)))
