"""What every agent is: the protocol between an algorithm and the loop that runs it.

An agent is a frozen, hashable value holding its configuration and sizes. Everything it learns lives in a
`State`, an immutable pytree, so the loop may jit, scan, vmap over seeds, donate and shard it without the
agent knowing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import jax

    from agents.parts.types import Metrics, Mode, Revision, Sampling, Transition

State = TypeVar("State")


class Agent(Protocol[State]):
    """What a learning algorithm offers, and all that may be asked of it; every function is pure and un-jitted."""

    @property
    def sampling(self) -> Sampling:
        """What the loop draws from replay for one update."""
        ...

    def init(self, key: jax.Array) -> State:
        """Fresh learned state from a typed key."""
        ...

    def discount(self, state: State) -> jax.Array:
        """gamma `[]`, per decision: of the state, for it may be swept along the seed axis."""
        ...

    def observe(self, state: State, time_step: Any, is_valid: jax.Array) -> State:
        """Updates running statistics; most agents return `state`.

        Called with every row that is stored, once, in the order of storing: starts (FIRST) and LAST arrivals included,
        and the first start before the first action.

        Args:
          time_step: `envs.api.TimeStep` with a leading axis `[N]` of environments.
          is_valid: `[N]` bool; the others hold nothing that was measured.
        """
        ...

    def act(self, state: State, observation: jax.Array, key: jax.Array, *, mode: Mode) -> jax.Array:
        """Actions `[B, A]` in [-1, 1] for observations `[B, O]`."""
        ...

    def sample_policy(self, state: State, observation: jax.Array, key: jax.Array) -> jax.Array:
        """Draws `[B, A]` of the policy alone: as it explores, without noise that exploring adds to its actions."""
        ...

    def action_value(self, state: State, observation: jax.Array, action: jax.Array) -> jax.Array | None:
        """What the agent holds actions `[B, A]` at observations `[B, O]` to be worth, `[B]`; None without a critic."""
        ...

    def update(
        self, state: State, batch: Transition, key: jax.Array, step: jax.Array
    ) -> tuple[State, Metrics]:
        """One learning step. `step` counts earlier updates and is never batched, so a `lax.cond` on it is cheap."""
        ...

    def revise(self, state: State, batch: Transition, key: jax.Array) -> Revision | None:
        """What to change in the rows of `batch` after the update that gave `state`; most agents return None.

        Asked only where `sampling.revises`.
        """
        ...
