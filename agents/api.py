"""What every agent is: the protocol between an algorithm and the loop that runs it.

An agent is a frozen, hashable value holding its configuration and sizes. Everything it learns lives in a
`State`, an immutable pytree, so the loop may jit, scan, vmap over seeds, donate and shard it without the
agent knowing.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    import jax

Mode = Literal["explore", "evaluate"]


class Transition(NamedTuple):
    """A batch of n-step transitions.

    `discount` already holds gamma^n and is zero only at true termination; a time limit bootstraps.
    """

    observation: jax.Array  # [B, O]
    action: jax.Array  # [B, A], in [-1, 1]
    reward: jax.Array  # [B], discounted sum over the n steps
    discount: jax.Array  # [B]
    next_observation: jax.Array  # [B, O]


class Mean(NamedTuple):
    """A metric as a running mean: `total / count` over whatever was accumulated.

    A metric skipped in an update has count 0: it is neither zero nor NaN, and adds nothing.
    """

    total: jax.Array  # []
    count: jax.Array  # []


Metrics = dict[str, Mean]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What the loop draws from replay for one update."""

    batch_size: int
    discount: float
    n_step: int


State = TypeVar("State")


class Agent(Protocol[State]):
    """The five functions a learning algorithm offers; all pure and un-jitted."""

    @property
    def sampling(self) -> Sampling: ...

    def init(self, key: jax.Array) -> State:
        """Fresh learned state from a typed key."""
        ...

    def observe(self, state: State, time_step: Any) -> State:
        """Updates running statistics from an environment's `TimeStep`; most agents return `state`."""
        ...

    def act(self, state: State, observation: jax.Array, key: jax.Array, *, mode: Mode) -> jax.Array:
        """Actions `[B, A]` in [-1, 1] for observations `[B, O]`."""
        ...

    def update(
        self, state: State, batch: Transition, key: jax.Array, step: jax.Array
    ) -> tuple[State, Metrics]:
        """One learning step. `step` counts earlier updates and is never batched, so a `lax.cond` on it is cheap."""
        ...
