"""The host loop: dm_control steps on the CPU while the agents learn on the device. Knows no algorithm by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from envs.api import Arrival, HostEnvironment, SimulationError, StepType, TimeStep, time_step
from qsm.learning.learner import Learner
from qsm.learning.programs import TrainState
from qsm.loops.evaluate import Evaluation, evaluate
from qsm.loops.schedule import Counters, Schedule
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
        self._action: Any = None  # [S, 1, A] for the next step
        self._has_acted = False
        blank = np.zeros(spec.observation_size, np.float32)
        self._blank = time_step(StepType.FIRST, 0.0, 1.0, blank)
        self._no_reset = _stack([self._blank] * learner.num_seeds)
        # Shared by every step that has no reset; nothing writes to them, as JAX reads NumPy arguments in place.
        self._never = np.zeros((learner.num_seeds, 1), bool)
        self._always = np.ones((learner.num_seeds, 1), bool)

    def begin(self) -> TrainState:
        self.learner.compile_ahead()
        state, start = self.learner.init(), self._start()
        # Stored before the first acting: agents may learn from what they are shown how to look at it.
        nothing = np.zeros((*start.is_reset.shape, self.learner.spec.action_size), np.float32)
        state = self.learner.learn(state, nothing, start, np.int32(0), np.int32(0))
        self._action = self._act(state, start.first.observation, 0)
        return state

    def compiles(self, at: Counters) -> bool:
        updates = self.schedule.updates_due(at.step + self.schedule.increment) - at.num_updates
        return not self._has_acted or (updates > 0 and not self.learner.is_compiled)

    def advance(self, state: TrainState, at: Counters, until: int) -> tuple[TrainState, Counters]:
        """Makes one tick; see `Loop.advance`.

        The arrival is stored and learned from, and the agents act on it; where it ends an episode, on the first
        observation of the next, which is an arrival too but no environment step.
        """
        # The only wait of a step; the update goes on while the environments step.
        action = self._action
        arrival = self._step(self.learner.placement.fetch(action))
        step = at.step + self.schedule.increment
        due = self.schedule.updates_due(step)
        observation = np.where(
            arrival.is_reset[..., None], arrival.first.observation, arrival.time_step.observation
        )
        # Dispatched first, and the updates behind it: they go on while the environments take the action.
        self._action = self._act(state, observation, step)
        first, number = np.int32(at.num_updates), np.int32(due - at.num_updates)
        return self.learner.learn(state, action, arrival, first, number), Counters(step, due)

    def evaluate(self, state: TrainState, step: int) -> list[Evaluation | None]:
        return evaluate(self.learner, state.agent, self.evaluation_environments, step)

    def save(self, state: TrainState, index: int) -> dict[str, np.ndarray]:
        action = self.learner.placement.fetch(self._action)[index]
        return {ACTION: action, **self.environments[index].save()}

    def restore(self, saved: Sequence[Mapping[str, np.ndarray]]) -> object:
        for environment, one, is_active in zip(self.environments, saved, self.learner.active, strict=True):
            if is_active:  # a frozen one is never stepped, and what is saved is another's
                environment.restore({name: value for name, value in one.items() if name != ACTION})
        self._action = np.stack([np.asarray(one[ACTION], np.float32) for one in saved])
        return ()

    def _act(self, state: TrainState, observation: np.ndarray, step: int) -> Any:
        """Dispatches the actions `[S, 1, A]` for `observation` `[S, 1, O]`, to be taken after `step`."""
        is_random = np.bool_(step < self.schedule.random_steps)
        self._has_acted = True
        return self.learner.act_to_explore(state, observation, np.int32(step), is_random)

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
