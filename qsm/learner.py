"""The compiled programs of training: act, and learn from what came of it.

Acting is dispatched first and learning behind it, so that the environment steps on the host while the update runs;
the action is the only thing the host waits for. Measured on two cores against one fused insert-update-act program,
this takes 0.81 to 0.97 of its time per step (docs/architecture.md).
"""

from __future__ import annotations

import functools
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from agents.api import Agent, Metrics, Mode
from envs.api import EnvSpec, TimeStep
from qsm import replay
from qsm.replay import Replay


class Streams(NamedTuple):
    """One key per purpose; a draw folds in the counter it belongs to, so there is no other random state."""

    init: jax.Array
    explore: jax.Array  # folded with the environment step
    update: jax.Array  # folded with the update
    replay: jax.Array  # folded with the update
    evaluate: jax.Array  # folded with the environment step, then the tick of the evaluation


def make_streams(seed: int) -> Streams:
    """The key streams of a seed. Names, not positions, tell streams apart: adding one changes no other."""
    root = jax.random.key(seed)
    return Streams(*(jax.random.fold_in(root, zlib.crc32(name.encode())) for name in Streams._fields))


class TrainState(NamedTuple):
    """All that a run learns and remembers on the device."""

    agent: Any
    replay: Replay
    metrics: Metrics  # sums since the last `drain`


class Learner:
    """An agent's compiled programs at fixed sizes. Each is compiled once.

    Args:
      agent: see `agents.api.Agent`.
      spec: sizes of the environment.
      seed: of every draw.
      capacity: rows of the replay buffer.
    """

    def __init__(self, agent: Agent, spec: EnvSpec, seed: int, capacity: int, num_envs: int = 1) -> None:
        self.agent = agent
        self.spec = spec
        self.streams = make_streams(seed)
        self.capacity = capacity
        self.num_envs = num_envs
        self.init_agent = jax.jit(self._init_agent)
        self.init = jax.jit(self._init)
        self.act = jax.jit(self._act, static_argnames="mode")
        self.learn = jax.jit(self._learn, donate_argnums=0)
        self._zero_metrics = jax.jit(self._zeros)

    def act_to_explore(self, state: TrainState, observation: Any, step: Any, is_random: Any) -> jax.Array:
        """Actions `[N, A]` at environment step `step`: uniform where `is_random`, else the agent's."""
        return self.act(state.agent, observation, step, 0, is_random, mode="explore")

    def act_to_evaluate(self, agent_state: Any, observation: Any, step: Any, tick: Any) -> jax.Array:
        """Actions `[N, A]` of the evaluation made at environment step `step`, at its own `tick`."""
        return self.act(agent_state, observation, step, tick, False, mode="evaluate")

    def drain(self, state: TrainState) -> tuple[TrainState, dict[str, float]]:
        """Fetches the metrics' means in one transfer, leaving out what never happened, and sets them to zero."""
        means = jax.device_get(state.metrics)
        values = {name: float(mean.total / mean.count) for name, mean in means.items() if mean.count > 0}
        return state._replace(metrics=self._zero_metrics()), values

    def restore(self, agent_state: Any, rows: dict[str, Any]) -> TrainState:
        """A state from a checkpoint's agent and replay rows (see `replay.rows`)."""
        buffer = replay.from_rows(self._empty_replay(), rows)
        return TrainState(agent_state, buffer, self._zero_metrics())

    # ---- Programs -----------------------------------------------------------------------------------------------

    def _empty_replay(self) -> Replay:
        return replay.create(self.capacity, self.num_envs, self.spec.observation_size, self.spec.action_size)

    def _init_agent(self) -> Any:
        return self.agent.init(jax.random.clone(self.streams.init))  # asked again, it answers the same

    def _init(self) -> TrainState:
        return TrainState(self._init_agent(), self._empty_replay(), self._zeros())

    def _act(
        self,
        agent_state: Any,
        observation: jax.Array,
        step: jax.Array,
        tick: jax.Array,
        is_random: jax.Array,
        mode: Mode,
    ) -> jax.Array:
        stream = self.streams.explore if mode == "explore" else self.streams.evaluate
        key = jax.random.fold_in(jax.random.fold_in(stream, step), tick)
        policy = functools.partial(self.agent.act, agent_state, observation, mode=mode)
        shape = (observation.shape[0], self.spec.action_size)
        return jax.lax.cond(
            is_random, lambda key: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0), policy, key
        )

    def _learn(
        self,
        state: TrainState,
        action: jax.Array,
        time_step: TimeStep,
        first_update: jax.Array,
        num_updates: jax.Array,
    ) -> TrainState:
        """Stores the arrival `[N, ...]` and makes `num_updates` updates, counted on from `first_update`.

        The trip count is an argument: one program serves the random start, ratios below and above one.
        """
        buffer = replay.insert(state.replay, action, time_step)
        agent_state = self.agent.observe(state.agent, time_step)

        def update(i: jax.Array, carry: tuple[Any, Metrics]) -> tuple[Any, Metrics]:
            agent_state, sums = carry
            agent_state, metrics = self._update(agent_state, buffer, first_update + i)
            return agent_state, jax.tree.map(jnp.add, sums, metrics)

        agent_state, sums = jax.lax.fori_loop(0, num_updates, update, (agent_state, state.metrics))
        return TrainState(agent_state, buffer, sums)

    def _update(self, agent_state: Any, buffer: Replay, count: jax.Array) -> tuple[Any, Metrics]:
        discount = agent_state.hyperparameters["discount"]
        key = jax.random.fold_in(self.streams.replay, count)
        batch = replay.sample(buffer, self.agent.sampling, discount, key)
        return self.agent.update(agent_state, batch, jax.random.fold_in(self.streams.update, count), count)

    def _zeros(self) -> Metrics:
        shapes = jax.eval_shape(
            lambda: self._update(self._init_agent(), self._empty_replay(), jnp.zeros((), jnp.int32))[1]
        )
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
