"""Who drives the compiled programs of training: act, and learn from what came of it, for S seeds at once.

Acting is dispatched first and learning behind it, so that the environment steps on the host while the update runs;
the action is the only thing the host waits for. Measured on two cores against one fused insert-update-act program,
this takes 0.81 to 0.97 of its time per step (docs/architecture.md).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agents.api import Agent
from agents.parts.types import Mean, Metrics
from envs.api import Arrival, EnvSpec, TimeStep
from qsm.data import replay
from qsm.data.replay import Rows
from qsm.devices import kept_programs
from qsm.learning import compiled
from qsm.learning.compiled import GroupPrograms
from qsm.learning.keys import make_streams
from qsm.learning.placement import Placement
from qsm.learning.programs import FAILURE_RATE, FINITE, REWARD, TrainState

__all__ = ["FAILURE_RATE", "REWARD", "Learner", "Means", "TrainState"]


class Means(NamedTuple):
    """What came of the updates of one seed since its metrics were last fetched."""

    values: dict[str, float]  # the metrics' means; what never happened is left out
    bad_updates: int  # from the first whose metrics were not finite on
    is_finite: bool  # every number of the learned state; metrics are of the state before an update


class Learner:
    """The compiled programs of an agent at fixed sizes, with the seeds and devices that they run for.

    Args:
      agent: see `agents.api.Agent`; a sequence of S where hyperparameters are swept. They may differ in what
        `AgentConfig.hyperparameters` gives, and in nothing else.
      spec: sizes of the environment.
      seeds: of every draw, one for each run; a single number for a group of one.
      capacity: time steps that the replay buffer of a seed holds, over all its environments.
      num_envs: environments N of a seed.
      placement: devices, and how the arrays lie on them; one device by default.

    Attributes:
      group: what the programs compute, to be called inside others.
      compiled: the programs.
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
        self.active = np.ones(len(self.seeds), bool)
        self.group = GroupPrograms(
            self.agent,
            spec.observation_size,
            spec.action_size,
            len(self.seeds),
            -(-capacity // num_envs),
            num_envs,
            self.placement,
        )
        self.compiled = compiled.compile_group(self.group)
        self._ahead: Future[Any] | None = None
        self._has_learned = False
        streams = [make_streams(seed) for seed in self.seeds]
        self.streams = jax.tree.map(lambda *keys: jnp.stack(keys), *streams)
        if self.placement.mesh is not None:
            self.streams = self.placement.put_seeds(self.streams)

    @property
    def num_seeds(self) -> int:
        return len(self.seeds)

    @property
    def num_rows(self) -> int:
        """Rows of the replay buffer for each environment."""
        return self.group.num_rows

    # ---- State --------------------------------------------------------------------------------------------------

    def init_agents(self) -> Any:
        """Fresh learned states `[S, ...]`, each exactly that of its seed alone, on the host."""
        # One at a time and not vmapped: each is then bit for bit that of its seed alone.
        states = [
            jax.device_get(compiled.init_agent(member, make_streams(seed).init))
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
            buffer = self.compiled.empty_replay()
        else:
            shapes = jax.eval_shape(self.group.empty_replay_of_one)
            buffers = [replay.from_rows(shapes, parts) for parts in saved_replay]
            buffer = jax.tree.map(lambda *leaves: np.stack(leaves), *buffers)
            buffer = self.placement.put_replay(buffer)
        # What a former version did not count begins with this row.
        sums = self.compiled.zero_metrics()
        sums |= {name: saved for name, saved in (metrics or {}).items() if name in sums}
        return TrainState(
            self.placement.put_seeds(agents), buffer, self.placement.put_seeds(sums), environment
        )

    def rows_since(self, state: TrainState, index: int, since: np.ndarray | None) -> Rows:
        """The rows of seed `index` from number `since` `[N]` on, copied to the host; all where it is None."""
        # None where there is none, which is no leaf.
        scalars = state.replay.written, state.replay.largest_priority
        written, largest_priority = self.placement.member(scalars, index)
        fetch = functools.partial(self.placement.rows, state.replay, index)
        rows = replay.rows_since(jax.eval_shape(self.group.empty_replay_of_one), written, since, fetch)
        return rows._replace(largest_priority=largest_priority)

    def agent_template(self) -> Any:
        """Shapes of the learned state of one seed."""
        return compiled.agent_shapes(self.agent)

    # ---- Acting and learning ------------------------------------------------------------------------------------

    def act_to_explore(self, state: TrainState, observation: Any, step: Any, is_random: Any) -> jax.Array:
        """Actions `[S, N, A]` at environment step `step`: uniform where `is_random`, else the agents'."""
        return self.compiled.explore(
            self.streams.explore, state.agent, observation, step, np.int32(0), is_random
        )

    def act_to_evaluate(self, agents: Any, observation: Any, step: Any, tick: Any) -> jax.Array:
        """Actions `[S, E, A]` of the evaluation made at environment step `step`, at its own `tick`."""
        return self.compiled.evaluate(self.streams.evaluate, agents, observation, step, tick, np.bool_(False))

    def learn(
        self, state: TrainState, action: Any, arrival: Arrival, first_update: Any, num_updates: Any
    ) -> TrainState:
        """Stores the `arrival` `[S, N, ...]` of `action`; makes `num_updates` updates, counted from `first_update`."""
        if num_updates == 0:
            # A program of its own, so that a run can begin before the large one is compiled.
            return self.compiled.store(state, action, arrival, self.active.copy())
        if self._ahead is not None:
            self._ahead.result()
            self._ahead = None
        self._has_learned = True
        return self.compiled.learn(
            state, self.streams, action, arrival, first_update, num_updates, self.active.copy()
        )

    @property
    def is_compiled(self) -> bool:
        """Whether `learn` can make updates without waiting for a compiler."""
        return self._has_learned or (self._ahead is not None and self._ahead.done())

    def compile_ahead(self) -> None:
        """Has `learn` compiled in the background; the first call of it that makes updates waits for that.

        It takes longest of all programs. Where there are several devices the first call compiles it: there the program
        depends on where the arrays lie.
        """
        if self.placement.mesh is not None or self._ahead is not None:
            return
        precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]

        def compile_learn() -> None:
            with jax.default_matmul_precision(precision):  # a context is its thread's alone
                kept_programs.compile_for(self.compiled.learn, *self.learn_shapes())

        threads = ThreadPoolExecutor(1, "compiler")
        self._ahead = threads.submit(compile_learn)
        threads.shutdown(wait=False)

    def learn_shapes(self) -> tuple[Any, ...]:
        """Of the arguments of `learn`, where environments live on the host."""
        shape, seeds = jax.ShapeDtypeStruct, (self.num_seeds,)
        environments = (*seeds, self.num_envs)
        state = TrainState(
            jax.tree.map(lambda leaf: shape((*seeds, *leaf.shape), leaf.dtype), self.agent_template()),
            jax.eval_shape(self.group.empty_replay),
            kept_programs.shapes(self.compiled.zero_metrics),
            (),
        )
        action, flags = shape((*environments, self.spec.action_size), np.float32), shape(environments, bool)
        scalar = shape(environments, np.float32)
        observation = shape((*environments, self.spec.observation_size), np.float32)
        step: Any = TimeStep(shape(environments, np.int8), scalar, scalar, observation)  # type: ignore[arg-type]
        streams = jax.tree.map(lambda leaf: shape(leaf.shape, leaf.dtype), self.streams)
        count = shape((), np.int32)
        arrival = Arrival(step, flags, step, flags)  # type: ignore[arg-type]
        return state, streams, action, arrival, count, count, shape(seeds, bool)

    def drain(self, state: TrainState) -> tuple[TrainState, list[Means]]:
        """Fetches the metrics' means in one transfer, for each seed, and sets them to zero."""
        return state._replace(metrics=self.compiled.zero_metrics()), self.means(state)

    def means(self, state: TrainState) -> list[Means]:
        """What came of the updates since the last `drain`, for each seed."""
        sums, are_finite = self.placement.fetch(
            (dict(state.metrics), compiled.are_finite(state.agent, self.placement))
        )
        finite = sums.pop(FINITE)
        # Of an environment step, whatever the action repeat: so it compares with returns.
        sums[REWARD] = Mean(sums[REWARD].total / np.float32(self.spec.action_repeat), sums[REWARD].count)
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
