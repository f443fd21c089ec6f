"""The device loop: environments, replay and updates in one compiled program. Knows no algorithm by name.

Between two events (logging, evaluation, checkpoint) everything stays on the device: one dispatch runs up to `CHUNK`
ticks, as many as take about `DISPATCH_SECONDS`, its state is donated, and metrics come over once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs.vector import VectorEnvironment, VectorState
from qsm.devices import kept_programs
from qsm.learning.learner import Learner
from qsm.learning.memory import size_of
from qsm.learning.programs import TrainState
from qsm.loops.device_evaluate import DevicePlayer
from qsm.loops.device_programs import DevicePrograms, compile_device
from qsm.loops.evaluate import Evaluation
from qsm.loops.schedule import Counters, Schedule
from qsm.options.run import RunConfig

CHUNK = 1024
"""Ticks of one dispatch at most."""
DISPATCH_SECONDS = 1.0
"""How long a dispatch may take: so often progress is shown and Ctrl-C heard. The numbers do not depend on it."""


class DeviceLoop:
    """N environments for each of S seeds, stepped together.

    A tick acts in every environment, steps them all, stores what came of it (an episode's end and the next one's
    beginning as two rows) and makes the updates that have become due.

    Args:
      environment: `num_envs` of them, for training.
      config: of the run.
    """

    def __init__(self, learner: Learner, environment: VectorEnvironment, config: RunConfig) -> None:
        self.learner = learner
        self.environment = environment
        n_step = learner.agent.sampling.n_step
        self.schedule = Schedule.of(config, environment.spec.action_repeat, n_step)
        self.evaluation = VectorEnvironment(environment.environment, config.eval_episodes)
        self.player = DevicePlayer(learner, self.evaluation)
        self.pace = Pace()
        self.programs = DevicePrograms(
            learner.group, environment, self.schedule.increment, config.random_elapsed
        )
        self.compiled = compile_device(self.programs)

    def nbytes(self) -> int:
        """Bytes of the environments of all seeds, about, those of evaluation included; they are not allocated."""
        num_envs, num_episodes = self.environment.num_envs, self.evaluation.num_envs
        training = size_of(_without_keys(self._environment_shapes()))
        # In proportion: to trace the reset once more would cost the start a second. The two never step at a time.
        stepping = self.environment.environment.step_bytes * max(num_envs, num_episodes)
        return -(-training * (num_envs + num_episodes) // num_envs) + self.learner.num_seeds * stepping

    def begin(self) -> TrainState:
        environment = self.compiled.reset(self.learner.streams)
        environment = self.learner.placement.put_environment(environment)
        # The start of every episode is a row of its own.
        return self.compiled.store_starts(self.learner.init(environment))

    def compiles(self, at: Counters) -> bool:
        return self.pace.is_first

    def advance(self, state: TrainState, at: Counters, until: int) -> tuple[TrainState, Counters]:
        """Makes as many ticks as take about `DISPATCH_SECONDS`; see `Loop.advance`."""
        ticks = min((until - at.step) // self.schedule.increment, self.pace.ticks)
        return self.pace.dispatch(ticks, lambda: self.tick(state, at, ticks))

    def tick(self, state: TrainState, at: Counters, ticks: int) -> tuple[TrainState, Counters]:
        """Dispatches `ticks` (at most `CHUNK`) ticks."""
        # Counted in Python, exactly: the program is given how many updates each tick makes.
        steps = [at.step + (i + 1) * self.schedule.increment for i in range(ticks)]
        due = [self.schedule.updates_due(step) for step in steps]
        updates = np.zeros(CHUNK, np.int32)
        updates[:ticks] = np.diff([at.num_updates, *due])
        state = self.compiled.advance(
            state,
            self.learner.streams,
            np.int32(at.step),
            np.int32(at.num_updates),
            np.int32(ticks),
            updates,
            np.int32(self.schedule.random_steps),
            self.learner.active.copy(),
        )
        return state, Counters(steps[-1], due[-1])

    def evaluate(self, state: TrainState, step: int) -> list[Evaluation | None]:
        return self.player(state.agent, step)

    def save(self, state: TrainState, index: int) -> dict[str, np.ndarray]:
        member = self.learner.placement.member(_without_keys(state.environment), index)
        return {f"{i:03}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(member))}

    def restore(self, saved: Sequence[Mapping[str, np.ndarray]]) -> object:
        template = self._environment_shapes()
        leaves, structure = jax.tree.flatten(_without_keys(template))
        shapes = [leaf.shape[1:] for leaf in leaves]
        for one in saved:
            there = [np.shape(one[name]) for name in sorted(one)]
            if there != shapes:
                raise ValueError("the environments saved there are not those of this task and num_envs")
        stacked = [
            np.stack([np.asarray(one[f"{i:03}"], leaf.dtype) for one in saved])
            for i, leaf in enumerate(leaves)
        ]
        environment = _with_keys(jax.tree.unflatten(structure, stacked), template)
        return self.learner.placement.put_environment(environment)

    def _environment_shapes(self) -> VectorState:
        return kept_programs.shapes(self.compiled.reset, self.learner.streams)


class Pace:
    """How many ticks to dispatch at once, from how long the last ones took.

    Several processes must dispatch alike and have clocks of their own: they take `CHUNK` always.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.ticks = CHUNK if jax.process_count() > 1 else 1
        self._clock = clock
        self.is_first = True

    def dispatch(
        self, ticks: int, program: Callable[[], tuple[TrainState, Counters]]
    ) -> tuple[TrainState, Counters]:
        """What `program` of `ticks` ticks gives, finished."""
        if jax.process_count() > 1:
            self.is_first = False
            return program()
        began = self._clock()
        state, at = jax.block_until_ready(program())
        seconds = self._clock() - began
        if not self.is_first:  # that one mostly compiled
            # Slowly up and at once down: ticks of the random start are much cheaper than those that learn.
            there = int(ticks / max(seconds, 1e-6) * DISPATCH_SECONDS)
            self.ticks = max(1, min(CHUNK, 4 * self.ticks, there))
        self.is_first = False
        return state, at


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_keys(tree: Any) -> Any:
    """Typed keys as the numbers they are made of, to be saved."""

    def convert(leaf: Any) -> Any:
        if not _is_key(leaf):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.eval_shape(jax.random.key_data, leaf)
        return jax.random.key_data(leaf)

    return jax.tree.map(convert, tree)


def _with_keys(tree: Any, template: Any) -> Any:
    def convert(leaf: Any, like: Any) -> Any:
        return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like)) if _is_key(like) else leaf

    return jax.tree.map(convert, tree, template)
