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

from envs.api import Arrival
from envs.vector import VectorEnvironment, VectorState
from qsm.learning import programs
from qsm.learning.keys import Streams
from qsm.learning.learner import Learner
from qsm.learning.memory import size_of
from qsm.learning.programs import TrainState
from qsm.loops.device_evaluate import DevicePlayer
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
        self.random_elapsed = config.random_elapsed
        self.pace = Pace()
        self._reset = jax.jit(jax.vmap(self._reset_one))
        axes = (0, 0, None, None, None, None, None, 0)
        advance = learner.placement.over_seeds(self._advance_seeds, axes)
        self._advance = jax.jit(advance, donate_argnums=0)

    def nbytes(self) -> int:
        """Bytes of the environments of all seeds, about, those of evaluation included; they are not allocated."""
        num_envs, num_episodes = self.environment.num_envs, self.evaluation.num_envs
        training = size_of(_without_keys(self._environment_shapes()))
        # In proportion: to trace the reset once more would cost the start a second. The two never step at a time.
        stepping = self.environment.environment.step_bytes * max(num_envs, num_episodes)
        return -(-training * (num_envs + num_episodes) // num_envs) + self.learner.num_seeds * stepping

    def begin(self) -> TrainState:
        environment = self._reset(self.learner.streams)
        environment = self.learner.placement.put_environment(environment)
        # The start of every episode is a row of its own.
        return self._store_starts(self.learner.init(environment))

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
        state = self._advance(
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
        return jax.eval_shape(self._reset, self.learner.streams)

    def _store_starts(self, state: TrainState) -> TrainState:
        """Writes the FIRST rows of all environments into the empty buffers, and shows them to the agents."""
        num_envs, spec = self.environment.num_envs, self.environment.spec
        active = jnp.ones(self.learner.num_seeds, bool)

        def store(state: TrainState) -> TrainState:
            first = jax.vmap(self.environment.first)(state.environment)
            yes = jnp.ones((self.learner.num_seeds, num_envs), bool)
            action = jnp.zeros((*yes.shape, spec.action_size))
            state = self.learner.store_seeds(state, action, Arrival(first, ~yes, first, yes), active)
            return self.learner.placement.constrain(state)

        return jax.jit(store, donate_argnums=0)(state)

    # ---- Inside programs ----------------------------------------------------------------------------------------

    def _advance_seeds(
        self,
        state: TrainState,
        streams: Streams,
        step: jax.Array,
        num_updates: jax.Array,
        ticks: jax.Array,
        updates: jax.Array,
        random_steps: jax.Array,
        active: jax.Array,
    ) -> TrainState:
        """`ticks` ticks of as many seeds as `state` holds; `updates` `[CHUNK]` says how many each makes."""
        simulate = jax.vmap(self._simulate_one, in_axes=(0, 0, 0, None, None, 0))

        def body(i: jax.Array, carry: tuple[TrainState, jax.Array]) -> tuple[TrainState, jax.Array]:
            state, count = carry
            here = step + i * self.schedule.increment
            environment, action, arrival = simulate(
                state.environment, state.agent, streams, here, here < random_steps, active
            )
            state = state._replace(environment=environment)
            state = self.learner.learn_seeds(state, streams, action, arrival, count, updates[i], active)
            return state, count + updates[i]

        state, _ = jax.lax.fori_loop(0, ticks, body, (state, num_updates))
        return state

    def _reset_one(self, streams: Streams) -> VectorState:
        state, _ = self.environment.reset(streams.environment)
        if self.random_elapsed:
            # Folded, as every draw from a stream is: a key that was consumed may not be given to a program again.
            key = jax.random.fold_in(streams.elapsed, 0)
            state = self.environment.put_out_of_step(state, key)
        return state

    def _simulate_one(
        self,
        environment: VectorState,
        agent_state: Any,
        streams: Streams,
        step: jax.Array,
        is_random: jax.Array,
        active: jax.Array,
    ) -> tuple[VectorState, jax.Array, Arrival]:
        """One step of every environment: their new state, the actions `[N, A]` and what came of them."""
        observation = self.environment.observation(environment)
        agent, action_size = self.learner.agent, self.environment.spec.action_size
        tick = jnp.zeros((), jnp.int32)
        action = programs.act(
            agent, action_size, "explore", streams.explore, agent_state, observation, step, tick, is_random
        )
        # The network of a frozen seed may be NaN, and a failing simulation is reset at every tick, for all seeds.
        action = jnp.where(active, action, 0.0)
        environment, arrival = self.environment.step(environment, action, streams.environment)
        return environment, action, arrival


class Pace:
    """How many ticks to dispatch at once, from how long the last ones took.

    Several processes must dispatch alike and have clocks of their own: they take `CHUNK` always.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.ticks = CHUNK if jax.process_count() > 1 else 1
        self._clock = clock
        self._is_first = True

    def dispatch(
        self, ticks: int, program: Callable[[], tuple[TrainState, Counters]]
    ) -> tuple[TrainState, Counters]:
        """What `program` of `ticks` ticks gives, finished."""
        if jax.process_count() > 1:
            return program()
        began = self._clock()
        state, at = jax.block_until_ready(program())
        seconds = self._clock() - began
        if not self._is_first:  # that one mostly compiled
            # Slowly up and at once down: ticks of the random start are much cheaper than those that learn.
            there = int(ticks / max(seconds, 1e-6) * DISPATCH_SECONDS)
            self.ticks = max(1, min(CHUNK, 4 * self.ticks, there))
        self._is_first = False
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
