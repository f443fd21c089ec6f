"""The programs of S seeds of an agent, compiled once in a process however many trainings ask for them.

Every array has a leading axis `[S]` of independent seeds, also where there is one: the programs of one seed are those
of `qsm.learning.programs`, and `vmap` or `each_seed` makes them those of the group. What is the same for all seeds
(step, update count, whether actions are random) stays unbatched, so that a `lax.cond` on it pays for one branch.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from agents.api import Agent
from agents.parts.types import Mean, Metrics, Mode, Transition
from envs.api import Arrival
from qsm.data import replay
from qsm.data.replay import Replay
from qsm.devices import compiler_options, kept_programs
from qsm.learning import programs
from qsm.learning.keys import Streams
from qsm.learning.placement import Placement
from qsm.learning.programs import KEPT, TrainState
from qsm.learning.seeds import axis_of_seeds, each_seed


@dataclasses.dataclass(frozen=True)
class GroupPrograms:
    """What S seeds compute at fixed sizes; pure and un-jitted. Equal ones have equal programs.

    Args:
      agent: of which the programs are; members of a sweep differ from it in their states alone.
      num_rows: T of each environment's replay buffer.
      num_envs: N of each seed.
    """

    agent: Agent
    observation_size: int
    action_size: int
    num_seeds: int
    num_rows: int
    num_envs: int
    placement: Placement

    def empty_replay_of_one(self) -> Replay:
        """An empty buffer `[T, N, ...]`."""
        is_prioritized = self.agent.sampling.prioritized
        return replay.create(
            self.num_rows, self.num_envs, self.observation_size, self.action_size, is_prioritized
        )

    def empty_replay(self) -> Replay:
        """Empty buffers `[S, T, N, ...]`."""
        one = self.empty_replay_of_one()
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (self.num_seeds, *leaf.shape)), one)

    def zero_metrics(self) -> Metrics:
        """Sums `[S]` of nothing."""
        shapes = programs.sum_shapes(self.agent, jax.eval_shape(self.empty_replay_of_one))
        return jax.tree.map(lambda leaf: jnp.zeros((self.num_seeds, *leaf.shape), leaf.dtype), shapes)

    def store(self, state: TrainState, action: jax.Array, arrival: Arrival, active: jax.Array) -> TrainState:
        """`programs.store` of as many seeds as `state` holds."""
        return jax.vmap(functools.partial(programs.store, self.agent))(state, action, arrival, active)

    def learn(
        self,
        state: TrainState,
        streams: Streams,
        action: jax.Array,
        arrival: Arrival,
        first_update: jax.Array,
        num_updates: jax.Array,
        active: jax.Array,
    ) -> TrainState:
        """Stores an arrival and makes `num_updates` updates, of as many seeds as `state` holds.

        The trip count is an argument: one program serves the random start, ratios below and above one.
        """
        state = self.store(state, action, arrival, active)
        # Only the update itself is `each_seed`: with another view of the replay buffers XLA copies them whole.
        sample = jax.vmap(self._sample, in_axes=(0, 0, 0, None, 0))
        update = each_seed(functools.partial(programs.update, self.agent), (0, 0, 0, 0, None, 0))
        revise = jax.vmap(functools.partial(programs.revise, self.agent), in_axes=(0, 0, 0, 0, None, 0))
        revises = self.agent.sampling.revises
        # What the loop carries has the shapes that its updates compute in, for else every array of it is copied.
        together, apart = axis_of_seeds(state.agent)

        def body(i: jax.Array, carry: tuple[Any, Mean, Any]) -> tuple[Any, Mean, Any]:
            agents, sums, revised = together(carry[0]), together(carry[1]), carry[2]
            # A buffer that no update changes is not carried along: the loop reads it where it lies.
            buffer = revised if revises else state.replay
            count = first_update + i
            batch = sample(agents, buffer, streams.replay, count, active)
            agents, sums = update(agents, sums, batch, streams.update, count, active)
            if revises:
                revised = revise(agents, buffer, batch, streams.revise, count, active)
            return apart(agents), apart(sums), revised

        carry = (apart(state.agent), apart(programs.pack(state.metrics)), state.replay if revises else ())
        agents, sums, revised = jax.lax.fori_loop(0, num_updates, body, carry)
        buffer = revised if revises else state.replay
        metrics = programs.unpack(together(sums), state.metrics)
        state = state._replace(agent=together(agents), metrics=metrics, replay=buffer)
        return self.placement.constrain(state)

    def _sample(
        self, agent_state: Any, buffer: Replay, stream: jax.Array, count: jax.Array, active: jax.Array
    ) -> Transition:
        batch = programs.sample(self.agent, agent_state, buffer, stream, count, active)
        return self.placement.constrain_batch(batch)


class Compiled(NamedTuple):
    """`GroupPrograms` as JAX compiles them, at the first call of each."""

    explore: Any
    evaluate: Any
    store: Any  # donates the state, as does
    learn: Any
    empty_replay: Any
    zero_metrics: Any


@functools.lru_cache(maxsize=KEPT)
def compile_group(group: GroupPrograms) -> Compiled:
    """The same functions for equal groups, so that JAX finds what it has traced and compiled for another."""
    placement, often, seldom = group.placement, compiler_options.of_updates(), compiler_options.of_starts()

    def kept(function: Any, name: str, **options: Any) -> Any:
        return kept_programs.jit(function, name, group, **options)

    def act(mode: Mode) -> Any:
        axes = (0, 0, 0, None, None, None)
        act_one = functools.partial(programs.act, group.agent, group.action_size, mode)
        return kept(placement.over_seeds(each_seed(act_one, axes), axes), mode, compiler_options=often)

    def store(state: TrainState, action: Any, arrival: Arrival, active: Any) -> TrainState:
        return placement.constrain(group.store(state, action, arrival, active))

    store_seeds = placement.over_seeds(store, (0, 0, 0, 0))
    learn = placement.over_seeds(group.learn, (0, 0, 0, 0, None, None, 0))
    replay_sharding = placement.replay_sharding(jax.eval_shape(group.empty_replay))
    return Compiled(
        explore=act("explore"),
        evaluate=act("evaluate"),
        store=kept(store_seeds, "store", donate_argnums=0, compiler_options=often),
        learn=kept(learn, "learn", donate_argnums=0, compiler_options=often),
        empty_replay=kept(
            group.empty_replay, "empty_replay", out_shardings=replay_sharding, compiler_options=seldom
        ),
        zero_metrics=kept(
            group.zero_metrics, "zero_metrics", out_shardings=placement.seed_sharding, compiler_options=seldom
        ),
    )


def init_agent(agent: Agent, key: jax.Array) -> Any:
    """`programs.init`, compiled for each agent."""
    return _init_agent(agent)(key)


def agent_shapes(agent: Agent) -> Any:
    """Shapes of what `init_agent` returns."""
    return kept_programs.shapes(_init_agent(agent), _key_shape())


def are_finite(agents: Any, placement: Placement) -> jax.Array:
    """`programs.is_finite` `[S]` of learned states `[S, ...]`, which lie as `placement` has them."""
    return _are_finite(placement)(agents)


# Made when first called: which options there are depends on the device, and importing this does not look for one.
@functools.lru_cache(maxsize=KEPT)
def _init_agent(agent: Agent) -> Any:
    init = functools.partial(programs.init, agent)
    return kept_programs.jit(init, "init", agent, compiler_options=compiler_options.of_starts())


@functools.lru_cache(maxsize=KEPT)
def _are_finite(placement: Placement) -> Any:
    options = compiler_options.of_updates()
    return kept_programs.jit(jax.vmap(programs.is_finite), "are_finite", placement, compiler_options=options)


@functools.cache
def _key_shape() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))
