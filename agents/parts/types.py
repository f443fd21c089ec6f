"""What passes between an agent, the loop and the replay buffer. Imports no JAX."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import jax

Mode = Literal["explore", "evaluate"]


class Index(NamedTuple):
    """Where sampled transitions begin in the replay buffer."""

    row: jax.Array  # [B] int32, of the observation; the next row, its arrival, holds the action
    environment: jax.Array  # [B] int32


class Transition(NamedTuple):
    """A batch of n-step transitions.

    `discount` already holds gamma^n and is zero only at true termination; a time limit bootstraps.
    """

    observation: jax.Array  # [B, O]
    action: jax.Array  # [B, A], in [-1, 1]
    reward: jax.Array  # [B], discounted sum over the n steps
    discount: jax.Array  # [B]
    next_observation: jax.Array  # [B, O]
    index: Index | None = None  # None for a batch that comes from no replay buffer
    scale: Any = None  # [], that rewards were divided by; None where they were not


class Revision(NamedTuple):
    """What an agent changes in the rows of a batch after it has learned from it; None leaves a field as it is."""

    action: Any = None  # [B, A], in the place of the action that was taken
    priority: Any = None  # [B], at least 0: rows are drawn in proportion to it


class Mean(NamedTuple):
    """A metric as a running mean: `total / count` over whatever was accumulated.

    A metric skipped in an update has count 0: it is neither zero nor NaN, and adds nothing.
    """

    total: jax.Array  # []
    count: jax.Array  # []


Metrics = dict[str, Mean]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What the loop draws from replay for one update, and what may come back."""

    batch_size: int
    n_step: int
    revises: bool = False  # whether `Agent.revise` changes rows: then a checkpoint holds the whole buffer
    prioritized: bool = False  # whether rows are drawn in proportion to a priority that `revise` sets
