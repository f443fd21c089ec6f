"""The compiled programs of training: act, and learn from what came of it, for S seeds at once.

Every array has a leading axis `[S]` of independent seeds, also where there is one: the programs of one seed are those
of `qsm.learning.programs`, and `vmap` or `each_seed` makes them those of the group. What is the same for all seeds
(step, update count, whether actions are random) stays unbatched, so that a `lax.cond` on it pays for one branch.

Acting is dispatched first and learning behind it, so that the environment steps on the host while the update runs;
the action is the only thing the host waits for. Measured on two cores against one fused insert-update-act program,
this takes 0.81 to 0.97 of its time per step (docs/architecture.md).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agents.api import Agent
from agents.parts.types import Mean, Metrics, Mode, Transition
from envs.api import Arrival, EnvSpec
from qsm.data import replay
from qsm.data.replay import Replay, Rows
from qsm.learning import programs
from qsm.learning.keys import Streams, make_streams
from qsm.learning.placement import Placement
from qsm.learning.programs import FAILURE_RATE, FINITE, TrainState
from qsm.learning.seeds import axis_of_seeds, each_seed

__all__ = ["FAILURE_RATE", "Learner", "Means", "TrainState"]


class Means(NamedTuple):
    """What came of the updates of one seed since its metrics were last fetched."""

    values: dict[str, float]  # the metrics' means; what never happened is left out
    bad_updates: int  # from the first whose metrics were not finite on
    is_finite: bool  # every number of the learned state; metrics are of the state before an update


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

    Attributes:
      active: `[S]` bool, the seeds that go on; the others are frozen: their state stays as it is.
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
        self.active = np.ones(len(self.seeds), bool)
        self._init_one = jax.jit(lambda agent, key: agent.init(key), static_argnums=0)
        self._explore, self._evaluate = self._compile_act("explore"), self._compile_act("evaluate")
        learn = self.placement.over_seeds(self.learn_seeds, (0, 0, 0, 0, None, None, 0))
        self._learn = jax.jit(learn, donate_argnums=0)
        self._are_finite = jax.jit(jax.vmap(programs.is_finite))
        self._zeros = jax.jit(self._zero_metrics, out_shardings=self.placement.seed_sharding)

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
            sharding = self.placement.replay_sharding(jax.eval_shape(self.empty_replay))
            buffer = jax.jit(self.empty_replay, out_shardings=sharding)()
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
        # None where there is none, which is no leaf.
        scalars = state.replay.written, state.replay.largest_priority
        written, largest_priority = self.placement.member(scalars, index)
        fetch = functools.partial(self.placement.rows, state.replay, index)
        rows = replay.rows_since(jax.eval_shape(self._empty_replay), written, since, fetch)
        return rows._replace(largest_priority=largest_priority)

    def empty_replay(self) -> Replay:
        """Empty buffers `[S, T, N, ...]`."""
        one = self._empty_replay()
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (self.num_seeds, *leaf.shape)), one)

    def agent_template(self) -> Any:
        """Shapes of the learned state of one seed."""
        return jax.eval_shape(lambda: self.agent.init(jax.random.key(0)))

    # ---- Acting and learning ------------------------------------------------------------------------------------

    def act_to_explore(self, state: TrainState, observation: Any, step: Any, is_random: Any) -> jax.Array:
        """Actions `[S, N, A]` at environment step `step`: uniform where `is_random`, else the agents'."""
        return self._explore(self.streams.explore, state.agent, observation, step, np.int32(0), is_random)

    def act_to_evaluate(self, agents: Any, observation: Any, step: Any, tick: Any) -> jax.Array:
        """Actions `[S, E, A]` of the evaluation made at environment step `step`, at its own `tick`."""
        return self._evaluate(self.streams.evaluate, agents, observation, step, tick, np.bool_(False))

    def learn(
        self, state: TrainState, action: Any, arrival: Arrival, first_update: Any, num_updates: Any
    ) -> TrainState:
        """Stores the `arrival` `[S, N, ...]` of `action`; makes `num_updates` updates, counted from `first_update`."""
        return self._learn(
            state, self.streams, action, arrival, first_update, num_updates, self.active.copy()
        )

    def drain(self, state: TrainState) -> tuple[TrainState, list[Means]]:
        """Fetches the metrics' means in one transfer, for each seed, and sets them to zero."""
        return state._replace(metrics=self._zeros()), self.means(state)

    def means(self, state: TrainState) -> list[Means]:
        """What came of the updates since the last `drain`, for each seed."""
        sums, are_finite = self.placement.fetch((dict(state.metrics), self._are_finite(state.agent)))
        finite = sums.pop(FINITE)
        return [
            Means(
                {
                    name: float(mean.total[i] / mean.count[i])
                    for name, mean in sums.items()
                    if mean.count[i] > 0 or math.isnan(mean.total[i])
                },
                int(finite.count[i] - finite.total[i]),
                bool(are_finite[i]),
            )
            for i in range(self.num_seeds)
        ]

    # ---- Inside programs ----------------------------------------------------------------------------------------

    def store_seeds(
        self, state: TrainState, action: jax.Array, arrival: Arrival, active: jax.Array
    ) -> TrainState:
        """`programs.store` of as many seeds as `state` holds."""
        return jax.vmap(functools.partial(programs.store, self.agent))(state, action, arrival, active)

    def learn_seeds(
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
        state = self.store_seeds(state, action, arrival, active)
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

    def _compile_act(self, mode: Mode) -> Any:
        axes = (0, 0, 0, None, None, None)
        act = functools.partial(programs.act, self.agent, self.spec.action_size, mode)
        return jax.jit(self.placement.over_seeds(each_seed(act, axes), axes))

    def _sample(
        self, agent_state: Any, buffer: Replay, stream: jax.Array, count: jax.Array, active: jax.Array
    ) -> Transition:
        batch = programs.sample(self.agent, agent_state, buffer, stream, count, active)
        return self.placement.constrain_batch(batch)

    def _zero_metrics(self) -> Metrics:
        shapes = programs.sum_shapes(self.agent, jax.eval_shape(self._empty_replay))
        return jax.tree.map(lambda leaf: jnp.zeros((self.num_seeds, *leaf.shape), leaf.dtype), shapes)

    def _empty_replay(self) -> Replay:
        return replay.create(
            self.num_rows,
            self.num_envs,
            self.spec.observation_size,
            self.spec.action_size,
            self.agent.sampling.prioritized,
        )
