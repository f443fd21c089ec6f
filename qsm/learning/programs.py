"""What one seed computes: act, store, sample, update, revise. Pure, un-jitted, and without an axis of seeds.

`qsm.learning.learner` and `qsm.loops.device_loop` compile these for S seeds. Knows no algorithm by name.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from agents.api import Agent
from agents.parts.types import Mean, Metrics, Mode, Transition
from envs.api import Arrival, StepType
from qsm.data import replay, sampling
from qsm.data.replay import Replay
from qsm.learning.keys import Streams, make_streams

KEPT = 64
"""Agents and groups whose programs a process remembers."""
FAILURE_RATE = "simulator/failure_rate"
REWARD = "loop/reward"
"""Mean reward of what was done in training."""
FINITE = "learner/finite_updates"
"""Sum beside the metrics: updates up to the first whose metrics were not finite, and all updates."""
OF_THE_LOOP = (FAILURE_RATE, FINITE, REWARD)
"""Sums that are there beside those of the agent's metrics."""


class TrainState(NamedTuple):
    """All that runs learn and remember on the device; every leaf `[S, ...]`, but for the programs of one seed."""

    agent: Any
    replay: Replay
    metrics: Metrics  # sums since they were last fetched
    environment: Any  # of the device loop; () where environments live on the host


def init(agent: Agent, key: jax.Array) -> Any:
    """Fresh learned state."""
    return _traced_once(agent.init)(key)


@functools.lru_cache(maxsize=KEPT)
def _traced_once(function: Any) -> Any:
    """`function` of an agent, whose operations are remembered for all programs that hold it."""
    return jax.jit(function, inline=True)


def act(
    agent: Agent,
    action_size: int,
    mode: Mode,
    stream: jax.Array,
    agent_state: Any,
    observation: jax.Array,
    step: jax.Array,
    tick: jax.Array,
    is_random: jax.Array,
) -> jax.Array:
    """Actions `[N, A]` for observations `[N, O]`: uniform in [-1, 1] where `is_random`, else the agent's."""
    key = jax.random.fold_in(jax.random.fold_in(stream, step), tick)
    policy = functools.partial(agent.act, agent_state, observation, mode=mode)
    shape = (observation.shape[0], action_size)
    return jax.lax.cond(
        is_random, lambda key: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0), policy, key
    )


@jax.named_scope("replay_store")
def store(
    agent: Agent, state: TrainState, action: jax.Array, arrival: Arrival, active: jax.Array
) -> TrainState:
    """Stores what `action` `[N, A]` led to, and shows it to the agent, row by row; only where `active`."""
    is_stored, is_start = arrival.is_valid & active, arrival.is_reset & active
    buffer = replay.insert(state.replay, action, arrival.time_step, is_stored)
    buffer = replay.insert(buffer, jnp.zeros_like(action), arrival.first, is_start)
    seen = agent.observe(state.agent, arrival.time_step, is_stored)
    seen = agent.observe(seen, arrival.first, is_start)
    is_tick = (arrival.time_step.step_type != StepType.FIRST) & active  # the start of a run has none
    is_whole = is_tick & arrival.is_valid
    rewards = jnp.where(is_whole, arrival.time_step.reward, 0)
    sums = dict(state.metrics)
    for name, what, of in (
        (FAILURE_RATE, is_tick & ~arrival.is_valid, is_tick),
        (REWARD, rewards, is_whole),
    ):
        total, count = sums[name]
        sums[name] = Mean(total + what.astype(jnp.float32).sum(), count + of.astype(jnp.float32).sum())
    return state._replace(agent=where_active(active, seen, state.agent), replay=buffer, metrics=sums)


@jax.named_scope("replay_sample")
def sample(
    agent: Agent,
    agent_state: Any,
    buffer: Replay,
    stream: jax.Array,
    count: jax.Array,
    active: jax.Array | bool = True,
) -> Transition:
    """The batch `[B, ...]` of the `count`-th update; any rows unless `active`."""
    key = jax.random.fold_in(stream, count)
    return sampling.sample(buffer, agent.sampling, agent.discount(agent_state), key, active)


def update(
    agent: Agent,
    agent_state: Any,
    sums: Mean,
    batch: Transition,
    stream: jax.Array,
    count: jax.Array,
    active: jax.Array,
) -> tuple[Any, Mean]:
    """The `count`-th update, and the sums, as `pack` has them, with its metrics; changes nothing unless `active`."""
    key = jax.random.fold_in(stream, count)
    new_state, metrics = _traced_once(agent.update)(agent_state, batch, key, count)
    is_finite = jnp.isfinite(jnp.stack([mean.total for mean in metrics.values()])).all()
    names = packed_names(metrics)
    at = names.index(FINITE)
    so_far = is_finite & (sums.total[at] == sums.count[at])
    none = jnp.zeros((), jnp.float32)
    metrics |= dict.fromkeys(OF_THE_LOOP, Mean(none, none))
    metrics |= {FINITE: Mean(so_far.astype(jnp.float32), none + 1)}
    added = jax.tree.map(jnp.add, sums, pack(metrics))
    return where_active(active, (new_state, added), (agent_state, sums))


def packed_names(metrics: Metrics) -> list[str]:
    """The order in which `pack` has the metrics of an agent and those of the loop."""
    return sorted({*metrics, *OF_THE_LOOP})


def pack(sums: Metrics) -> Mean:
    """Sums `[...]` of each metric as two arrays `[..., M]`: to add to them takes one operation for all and not M."""
    rows = [sums[name] for name in packed_names(sums)]
    return Mean(*(jnp.stack(values, axis=-1) for values in zip(*rows, strict=True)))


def unpack(packed: Mean, like: Metrics) -> Metrics:
    """The sums of each metric, of the types of `like`."""

    def sums(i: int, mean: Mean) -> Mean:
        return Mean(
            packed.total[..., i].astype(mean.total.dtype), packed.count[..., i].astype(mean.count.dtype)
        )

    return {name: sums(i, like[name]) for i, name in enumerate(packed_names(like))}


def revise(
    agent: Agent,
    agent_state: Any,
    buffer: Replay,
    batch: Transition,
    stream: jax.Array,
    count: jax.Array,
    active: jax.Array,
) -> Replay:
    """The buffer with what the agent changes in the rows of `batch` after the `count`-th update, where `active`."""
    revision = agent.revise(agent_state, batch, jax.random.fold_in(stream, count))
    if revision is None or batch.index is None:
        return buffer
    return replay.revise(buffer, batch.index, revision, active)


def where_active(active: jax.Array, new: Any, old: Any) -> Any:
    """`new` where `active`, else `old`; XLA fuses it into whatever computes `new`."""
    return jax.tree.map(lambda n, o: jnp.where(active, n, o), new, old)


def sum_shapes(agent: Agent, buffer: Replay) -> Metrics:
    """Shapes of `TrainState.metrics`; `buffer` may be shapes, too."""

    def update_metrics(buffer: Replay, streams: Streams) -> Metrics:
        agent_state = _traced_once(agent.init)(streams.init)
        count = jnp.zeros((), jnp.int32)
        batch = sample(agent, agent_state, buffer, streams.replay, count)
        return _traced_once(agent.update)(agent_state, batch, streams.update, count)[1]

    found = jax.eval_shape(update_metrics, buffer, jax.eval_shape(lambda: make_streams(0)))
    number: Any = jax.ShapeDtypeStruct((), jnp.float32)
    return found | dict.fromkeys(OF_THE_LOOP, Mean(number, number))


def is_finite(agent_state: Any) -> jax.Array:
    """`[]` whether every number of a learned state is finite."""
    leaves = [leaf for leaf in jax.tree.leaves(agent_state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()
