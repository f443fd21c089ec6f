"""The compiled programs of training: act, and learn from what came of it, for S seeds at once.

Every array has a leading axis `[S]` of independent seeds, also where there is one: the programs of one seed are written
below, and `vmap` or `each_seed` makes them those of the group. What is the same for all seeds (step, update count,
whether actions are random) stays unbatched, so that a `lax.cond` on it pays for one branch.

Acting is dispatched first and learning behind it, so that the environment steps on the host while the update runs;
the action is the only thing the host waits for. Measured on two cores against one fused insert-update-act program,
this takes 0.81 to 0.97 of its time per step (docs/architecture.md).
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agents.api import Agent
from agents.parts.types import Mean, Metrics, Mode, Transition
from envs.api import Arrival, EnvSpec, StepType
from qsm.data import replay
from qsm.data.replay import Replay, Rows
from qsm.learning.placement import Placement, each_seed

FAILURE_RATE = "simulator/failure_rate"
FINITE = "learner/finite_updates"
"""Sum beside the metrics: updates up to the first whose metrics were not finite, and all updates."""
BAD_UPDATES = "learner/bad_updates"
"""Updates from that one on; among the means only where there are any."""
BAD_STATE = "learner/bad_state"
"""Among the means only where a number of the learned state is not finite: metrics are of the state before an update."""


class Streams(NamedTuple):
    """One key `[S]` per purpose; a draw folds in the counter it belongs to, so there is no other random state."""

    init: jax.Array
    explore: jax.Array  # folded with the environment step
    update: jax.Array  # folded with the update
    replay: jax.Array  # folded with the update
    evaluate: jax.Array  # folded with the environment step, then the tick of the evaluation
    environment: jax.Array  # for the starts of episodes in device environments


def make_streams(seed: int) -> Streams:
    """The key streams of one seed. Names, not positions, tell streams apart: adding one changes no other."""
    root = jax.random.key(seed)
    return Streams(*(jax.random.fold_in(root, zlib.crc32(name.encode())) for name in Streams._fields))


class TrainState(NamedTuple):
    """All that S runs learn and remember on the device; every leaf `[S, ...]`."""

    agent: Any
    replay: Replay
    metrics: Metrics  # sums since the last `drain`
    environment: Any  # of the device loop; () where environments live on the host


class Learner:
    """The compiled programs of an agent at fixed sizes. Each is compiled once.

    Args:
      agent: see `agents.api.Agent`; a sequence of S where hyperparameters are swept. They may differ in what
        `AgentConfig.hyperparameters` gives, and in nothing else.
      spec: sizes of the environment.
      seeds: of every draw, one for each run; a single number for a group of one.
      capacity: time steps that the replay buffer of a seed holds, over all its environments.
      num_envs: environments N of a seed.
      placement: devices, and how the arrays lie on them; one device by default.
    """

    def __init__(
        self,
        agent: Agent | Sequence[Agent],
        spec: EnvSpec,
        seeds: int | Sequence[int],
        capacity: int,
        num_envs: int = 1,
        placement: Placement | None = None,
    ) -> None:
        self.seeds = (seeds,) if isinstance(seeds, int) else tuple(seeds)
        self.members = tuple(agent) if isinstance(agent, Sequence) else (agent,) * len(self.seeds)
        assert len(self.members) == len(self.seeds), "one agent for each seed, or one for all"
        self.agent = self.members[0]
        self.spec = spec
        self.capacity = capacity
        self.num_envs = num_envs
        self.placement = placement or Placement()
        streams = [make_streams(seed) for seed in self.seeds]
        self.streams = jax.tree.map(lambda *keys: jnp.stack(keys), *streams)
        if self.placement.mesh is not None:
            self.streams = self.placement.put_seeds(self.streams)
        self._init_one = jax.jit(lambda agent, key: agent.init(key), static_argnums=0)
        self._act = jax.jit(self._act_all, static_argnames="mode")
        self._learn = jax.jit(self._learn_all, donate_argnums=0)
        self._is_finite = jax.jit(_is_finite)
        self._zeros = jax.jit(self._zero_metrics, out_shardings=self.placement.seed_sharding)
        self.active = np.ones(len(self.seeds), bool)
        """`[S]` which seeds go on; the state of the others is held as it is."""

    @property
    def num_seeds(self) -> int:
        return len(self.seeds)

    @property
    def num_rows(self) -> int:
        """Rows of the replay buffer for each environment."""
        return -(-self.capacity // self.num_envs)

    # ---- State --------------------------------------------------------------------------------------------------

    def init_agents(self) -> Any:
        """Fresh learned states `[S, ...]`, each exactly that of its seed alone, on the host."""
        # One at a time and not vmapped: each is then bit for bit that of its seed alone.
        states = [
            jax.device_get(self._init_one(member, make_streams(seed).init))
            for member, seed in zip(self.members, self.seeds, strict=True)
        ]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *states)

    def init(self, environment: Any = ()) -> TrainState:
        """A fresh training state; `environment` is that of the device loop, already placed."""
        return self.place(self.init_agents(), None, None, environment)

    def place(
        self,
        agents: Any,
        saved_replay: Sequence[Sequence[Rows]] | None,
        metrics: Metrics | None,
        environment: Any,
    ) -> TrainState:
        """A training state on the devices from parts on the host, each `[S, ...]`; None for an empty part.

        Args:
          saved_replay: for each seed its rows, in parts, oldest first.
        """
        if saved_replay is None:
            buffer = jax.jit(self.empty_replay, out_shardings=self.placement.replay_sharding)()
        else:
            shapes = jax.eval_shape(self._empty_replay)
            buffers = [replay.from_rows(shapes, parts) for parts in saved_replay]
            buffer = jax.tree.map(lambda *leaves: np.stack(leaves), *buffers)
            buffer = self.placement.put_replay(buffer)
        sums = self._zeros() if metrics is None else metrics
        return TrainState(
            self.placement.put_seeds(agents), buffer, self.placement.put_seeds(sums), environment
        )

    def rows_since(self, state: TrainState, index: int, since: np.ndarray | None) -> Rows:
        """The rows of seed `index` from number `since` `[N]` on, copied to the host; all where it is None."""
        written = self.placement.member(state.replay.written, index)
        fetch = functools.partial(self.placement.rows, state.replay, index)
        return replay.rows_since(jax.eval_shape(self._empty_replay), written, since, fetch)

    def empty_replay(self) -> Replay:
        """Empty buffers `[S, T, N, ...]`."""
        one = self._empty_replay()
        return jax.tree.map(lambda leaf: jnp.zeros((self.num_seeds, *leaf.shape), leaf.dtype), one)

    def agent_template(self) -> Any:
        """Shapes of the learned state of one seed."""
        return jax.eval_shape(lambda: self.agent.init(jax.random.key(0)))

    # ---- Acting and learning ------------------------------------------------------------------------------------

    def act_to_explore(self, state: TrainState, observation: Any, step: Any, is_random: Any) -> jax.Array:
        """Actions `[S, N, A]` at environment step `step`: uniform where `is_random`, else the agents'."""
        return self._act(
            self.streams.explore, state.agent, observation, step, np.int32(0), is_random, mode="explore"
        )

    def act_to_evaluate(self, agents: Any, observation: Any, step: Any, tick: Any) -> jax.Array:
        """Actions `[S, E, A]` of the evaluation made at environment step `step`, at its own `tick`."""
        return self._act(
            self.streams.evaluate, agents, observation, step, tick, np.bool_(False), mode="evaluate"
        )

    def learn(
        self, state: TrainState, action: Any, arrival: Arrival, first_update: Any, num_updates: Any
    ) -> TrainState:
        """Stores the `arrival` `[S, N, ...]` of `action`; makes `num_updates` updates, counted from `first_update`."""
        return self._learn(
            state, self.streams, action, arrival, first_update, num_updates, self.active.copy()
        )

    def drain(self, state: TrainState) -> tuple[TrainState, list[dict[str, float]]]:
        """Fetches the metrics' means in one transfer, for each seed, and sets them to zero."""
        return state._replace(metrics=self._zeros()), self.means(state)

    def means(self, state: TrainState) -> list[dict[str, float]]:
        """The metrics' means since the last `drain`, for each seed; what never happened is left out."""
        sums, is_finite = self.placement.fetch((dict(state.metrics), self._is_finite(state.agent)))
        finite = sums.pop(FINITE)
        means = [
            {
                name: float(mean.total[i] / mean.count[i])
                for name, mean in sums.items()
                if mean.count[i] > 0 or math.isnan(mean.total[i])
            }
            for i in range(self.num_seeds)
        ]
        for i, found in enumerate(means):
            if finite.total[i] < finite.count[i]:
                found[BAD_UPDATES] = float(finite.count[i] - finite.total[i])
            if not is_finite[i]:
                found[BAD_STATE] = 1.0
        return means

    # ---- Programs of the group ----------------------------------------------------------------------------------

    def _act_all(
        self, stream: Any, agents: Any, observation: Any, step: Any, tick: Any, is_random: Any, mode: Mode
    ) -> jax.Array:
        axes = (0, 0, 0, None, None, None)
        act = each_seed(functools.partial(self.act_one, mode=mode), axes)
        return self.placement.over_seeds(act, axes)(stream, agents, observation, step, tick, is_random)

    def _learn_all(
        self,
        state: TrainState,
        streams: Streams,
        action: Any,
        arrival: Arrival,
        first_update: Any,
        num_updates: Any,
        active: Any,
    ) -> TrainState:
        axes = (0, 0, 0, 0, None, None, 0)
        learn = self.placement.over_seeds(self.learn_some, axes)
        return self.placement.constrain(
            learn(state, streams, action, arrival, first_update, num_updates, active)
        )

    def learn_some(
        self,
        state: TrainState,
        streams: Streams,
        action: jax.Array,
        arrival: Arrival,
        first_update: jax.Array,
        num_updates: jax.Array,
        active: jax.Array,
    ) -> TrainState:
        """`learn` of as many seeds as `state` holds: all, or those of one device.

        The trip count is an argument: one program serves the random start, ratios below and above one.
        """
        state = jax.vmap(self.store_one)(state, action, arrival, active)
        # Only the update itself is `each_seed`: with another view of the replay buffers XLA copies them whole.
        sample = jax.vmap(self.sample_one, in_axes=(0, 0, 0, None, 0))
        update = each_seed(self.update_one, (0, 0, 0, 0, None, 0))

        def body(i: jax.Array, carry: tuple[Any, Metrics]) -> tuple[Any, Metrics]:
            agents, sums = carry
            count = first_update + i
            batch = sample(agents, state.replay, streams.replay, count, active)
            return update(agents, sums, batch, streams.update, count, active)

        agents, sums = jax.lax.fori_loop(0, num_updates, body, (state.agent, state.metrics))
        return state._replace(agent=agents, metrics=sums)

    def _zero_metrics(self) -> Metrics:
        def zeros(leaf: Any) -> jax.Array:
            return jnp.zeros((self.num_seeds, *leaf.shape), leaf.dtype)

        return jax.tree.map(zeros, jax.eval_shape(self._one_update))

    # ---- Programs of one seed -----------------------------------------------------------------------------------

    def act_one(
        self,
        stream: jax.Array,
        agent_state: Any,
        observation: jax.Array,
        step: jax.Array,
        tick: jax.Array,
        is_random: jax.Array,
        mode: Mode,
    ) -> jax.Array:
        """Actions `[N, A]` for observations `[N, O]`."""
        key = jax.random.fold_in(jax.random.fold_in(stream, step), tick)
        policy = functools.partial(self.agent.act, agent_state, observation, mode=mode)
        shape = (observation.shape[0], self.spec.action_size)
        return jax.lax.cond(
            is_random, lambda key: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0), policy, key
        )

    def store_one(
        self, state: TrainState, action: jax.Array, arrival: Arrival, active: jax.Array
    ) -> TrainState:
        """Stores the arrival `[N, ...]` of `action`, and shows the agent what it acts on next; only where `active`."""
        buffer = replay.insert(state.replay, action, arrival.time_step, arrival.is_valid & active)
        buffer = replay.insert(buffer, jnp.zeros_like(action), arrival.first, arrival.is_reset & active)
        # What the agent acts on next: the start of a new episode, or else the arrival.
        current = jax.tree.map(
            lambda first, there: jnp.where(
                arrival.is_reset.reshape(-1, *(1,) * (first.ndim - 1)), first, there
            ),
            arrival.first,
            arrival.time_step,
        )
        agent_state = self._held(
            active, self.agent.observe(state.agent, current, arrival.is_valid | arrival.is_reset), state.agent
        )
        sums = dict(state.metrics)
        failures = (~arrival.is_valid & (arrival.time_step.step_type != StepType.FIRST)).astype(jnp.float32)
        ticked = (arrival.time_step.step_type != StepType.FIRST).astype(jnp.float32)
        rate = sums[FAILURE_RATE]
        sums[FAILURE_RATE] = Mean(
            rate.total + jnp.where(active, failures.sum(), 0), rate.count + jnp.where(active, ticked.sum(), 0)
        )
        return state._replace(agent=agent_state, replay=buffer, metrics=sums)

    def sample_one(
        self, agent_state: Any, buffer: Replay, stream: jax.Array, count: jax.Array, active: Any = True
    ) -> Transition:
        """The batch of the `count`-th update; any rows unless `active`."""
        discount = self.agent.discount(agent_state)
        key = jax.random.fold_in(stream, count)
        batch = replay.sample(buffer, self.agent.sampling, discount, key, active)
        return self.placement.constrain_batch(batch)

    def update_one(
        self,
        agent_state: Any,
        sums: Metrics,
        batch: Transition,
        stream: jax.Array,
        count: jax.Array,
        active: jax.Array,
    ) -> tuple[Any, Metrics]:
        """The `count`-th update, and the sums with its metrics; changes nothing unless `active`."""
        new_state, metrics = self.agent.update(agent_state, batch, jax.random.fold_in(stream, count), count)
        added = jax.tree.map(jnp.add, {name: sums[name] for name in metrics}, metrics)
        is_finite = jnp.isfinite(jnp.stack([mean.total for mean in metrics.values()])).all()
        finite = sums[FINITE]
        so_far = is_finite & (finite.total == finite.count)
        added[FINITE] = Mean(finite.total + so_far, finite.count + 1)
        return self._held(active, (new_state, sums | added), (agent_state, sums))

    @staticmethod
    def _held(active: jax.Array, new: Any, old: Any) -> Any:
        """`new` where `active`, else `old`; XLA fuses it into whatever computes `new`."""
        return jax.tree.map(lambda n, o: jnp.where(active, n, o), new, old)

    def _empty_replay(self) -> Replay:
        return replay.create(self.num_rows, self.num_envs, self.spec.observation_size, self.spec.action_size)

    def _one_update(self) -> Metrics:
        streams = make_streams(0)
        agent_state = self.agent.init(jax.random.clone(streams.init))
        count = jnp.zeros((), jnp.int32)
        batch = self.sample_one(agent_state, self._empty_replay(), streams.replay, count)
        metrics = self.agent.update(agent_state, batch, streams.update, count)[1]
        nothing = Mean(jnp.zeros(()), jnp.zeros(()))
        return metrics | {FAILURE_RATE: nothing, FINITE: nothing}


def _is_finite(agents: Any) -> jax.Array:
    """`[S]` whether every number of the learned states `[S, ...]` is finite."""
    leaves = [leaf for leaf in jax.tree.leaves(agents) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all(range(1, leaf.ndim)) for leaf in leaves]).all(0)
