"""N environments on the accelerator, stepped together, with the ends of their episodes told as in dm_env.

The usual automatic reset hides the last observation of an episode and starts every episode from one stored
state; and since under `vmap` both sides of a `lax.cond` are computed, resetting afresh would cost a reset of
every environment at every tick. Here fresh starts wait in a pool of N, are handed out one by one, and the pool
is refilled in a `while_loop`, whose body costs nothing at ticks where enough of them are left. That holds under
an outer `vmap` over seeds too, at ticks where no seed needs more.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.api import Arrival, DeviceEnvironment, DeviceState, EnvSpec, StepType, TimeStep


class VectorState(NamedTuple):
    """Everything that the next steps depend on, besides the actions and the key of the run."""

    current: DeviceState  # [N, ...]
    elapsed: jax.Array  # [N] int32, control steps into the episode
    pool: DeviceState  # [N, ...] fresh starts; the first `available` have not been handed out yet
    available: jax.Array  # [] int32
    num_refills: jax.Array  # [] int32, how often N starts have been drawn; folded into the key of the next


@dataclasses.dataclass(frozen=True)
class VectorEnvironment:
    """`num_envs` (N) environments of one kind; pure and un-jitted, to be scanned and vmapped over seeds.

    `reset` and every `step` of a run are given the same typed key: starts are drawn from it and from the
    number of refills alone. So a run is resumed exactly from its `VectorState`, and the actions of one
    environment shift the starts of another only by changing the order in which they are handed out.
    """

    environment: DeviceEnvironment
    num_envs: int

    def __post_init__(self) -> None:
        """Raises ValueError if `num_envs` is less than 1."""
        if self.num_envs < 1:
            raise ValueError(f"num_envs is {self.num_envs}; it must be 1 or more environments.")

    @property
    def spec(self) -> EnvSpec:
        """Sizes and timing of each environment."""
        return self.environment.spec

    def reset(self, key: jax.Array) -> tuple[VectorState, TimeStep]:
        """N fresh environments and their FIRST time steps `[N, ...]`; the pool stays empty until it is needed."""
        num_refills = jnp.zeros((), jnp.int32)
        current = self._draw(key, num_refills)
        state = VectorState(
            current=current,
            elapsed=jnp.zeros(self.num_envs, jnp.int32),
            # Arrays of its own: whoever donates the state may not donate one array twice.
            pool=jax.tree.map(jnp.zeros_like, current),
            available=jnp.zeros((), jnp.int32),
            num_refills=num_refills + 1,
        )
        return state, self._first(current)

    def put_out_of_step(self, state: VectorState, key: jax.Array) -> VectorState:
        """Has the episodes under way after `reset` end at different times, though all were begun at once.

        Tasks that do not terminate would be reset in the same tick for ever, and early batches would hold beginnings of
        episodes alone. Each environment is taken to have come a random way already, of whole actions and uniform over
        the episode, so that its first episode is that much shorter.
        """
        repeat, longest = self.spec.action_repeat, self.spec.episode_steps
        num_actions = -(-longest // repeat)
        elapsed = repeat * jax.random.randint(key, (self.num_envs,), 0, num_actions)
        return state._replace(elapsed=elapsed)

    def observation(self, state: VectorState) -> jax.Array:
        """Observations to act on `[N, O]`: of the new episode where one has begun."""
        return state.current.observation

    def first(self, state: VectorState) -> TimeStep:
        """FIRST time steps `[N, ...]` with the observations to act on now."""
        return self._first(state.current)

    def step(self, state: VectorState, action: jax.Array, key: jax.Array) -> tuple[VectorState, Arrival]:
        """Applies `action` `[N, A]` in [-1, 1] for `spec.action_repeat` control steps, fewer where an episode ends.

        Rewards are summed and discounts multiplied over the repeats. Discount is 0 where the episode
        terminated, 1 at the time limit. All that is answered is finite: where the simulation is not, the time
        step is MID with zeros in place of what was lost.
        """
        arrived, elapsed = jax.vmap(self._hold)(state.current, state.elapsed, action)
        is_valid = arrived.valid
        is_last = is_valid & ((arrived.discount == 0) | (elapsed >= self.spec.episode_steps))
        is_reset = is_last | ~is_valid

        state, fresh = self._hand_out(state, is_reset, key)
        current = _where(is_reset, fresh, arrived)
        state = state._replace(current=current, elapsed=jnp.where(is_reset, 0, elapsed))
        step_type = jnp.where(is_last, StepType.LAST, StepType.MID).astype(jnp.int8)
        return state, Arrival(
            time_step=_time_step(
                step_type,
                # Not left to whoever reads it: a sum weighted by zero is NaN all the same.
                reward=jnp.where(is_valid, arrived.reward, 0),
                discount=jnp.where(is_valid, arrived.discount, 1),
                observation=jnp.where(is_valid[:, None], arrived.observation, 0),
            ),
            is_valid=is_valid,
            first=self._first(current),
            is_reset=is_reset,
        )

    def _hold(
        self, state: DeviceState, elapsed: jax.Array, action: jax.Array
    ) -> tuple[DeviceState, jax.Array]:
        """One environment under one action `[A]` for up to `action_repeat` control steps.

        Of the state returned, reward and discount are those of the whole action, and `valid` takes in the
        observation and the reward.
        """

        def repeat(
            _: int, carry: tuple[DeviceState, jax.Array, jax.Array]
        ) -> tuple[DeviceState, jax.Array, jax.Array]:
            state, elapsed, goes_on = carry
            reached = self.environment.step(state, action)
            valid = reached.valid & jnp.isfinite(reached.observation).all() & jnp.isfinite(reached.reward)
            held = reached._replace(
                reward=state.reward + reached.reward, discount=state.discount * reached.discount, valid=valid
            )
            elapsed_then = elapsed + 1
            goes_on_then = valid & (reached.discount != 0) & (elapsed_then < self.spec.episode_steps)
            # An environment that has come to its end is computed with the others and stays as it is.
            return _where(goes_on, (held, elapsed_then, goes_on_then), carry)

        begun = state._replace(reward=jnp.zeros_like(state.reward), discount=jnp.ones_like(state.discount))
        carry = (begun, elapsed, jnp.ones((), bool))
        state, elapsed, _ = jax.lax.fori_loop(0, self.spec.action_repeat, repeat, carry)
        return state, elapsed

    def _hand_out(
        self, state: VectorState, is_reset: jax.Array, key: jax.Array
    ) -> tuple[VectorState, DeviceState]:
        """A start from the pool `[N, ...]` for each environment that is reset `[N]`, none of them twice."""
        needed = is_reset.sum(dtype=jnp.int32)

        def is_short(carry: tuple[DeviceState, jax.Array, jax.Array]) -> jax.Array:
            return needed > carry[1]

        def refill(
            carry: tuple[DeviceState, jax.Array, jax.Array],
        ) -> tuple[DeviceState, jax.Array, jax.Array]:
            num_refills = carry[2]
            # The few that were left are dropped: to keep them would take a pool of 2 N.
            return self._draw(key, num_refills), jnp.full((), self.num_envs, jnp.int32), num_refills + 1

        carry = (state.pool, state.available, state.num_refills)
        pool, available, num_refills = jax.lax.while_loop(is_short, refill, carry)
        rank = jnp.cumsum(is_reset, dtype=jnp.int32) - 1  # among the environments that are reset
        index = jnp.where(is_reset, available - 1 - rank, 0)
        fresh = jax.tree.map(lambda leaf: leaf[index], pool)
        return state._replace(pool=pool, available=available - needed, num_refills=num_refills), fresh

    def _draw(self, key: jax.Array, num_refills: jax.Array) -> DeviceState:
        """N starts `[N, ...]`: a function of the run's key and the number of draws before this one."""
        keys = jax.random.split(jax.random.fold_in(key, num_refills), self.num_envs)
        return jax.vmap(self.environment.reset)(keys)

    def _first(self, state: DeviceState) -> TimeStep:
        shape = (self.num_envs,)
        step_type = jnp.full(shape, StepType.FIRST, jnp.int8)
        return _time_step(step_type, jnp.zeros(shape), jnp.ones(shape), state.observation)


def _where(condition: jax.Array, chosen: Any, other: Any) -> Any:
    """Trees of `chosen` where `condition` (`[]` or `[N]`, the leading axis of the leaves), else of `other`."""
    if condition.ndim:
        return jax.vmap(_where)(condition, chosen, other)
    return jax.tree.map(lambda one, two: jnp.where(condition, one, two), chosen, other)


def _time_step(step_type: Any, reward: Any, discount: Any, observation: Any) -> TimeStep:
    """A `TimeStep` of device arrays; its fields are typed as the host's, NumPy's."""
    return TimeStep(step_type, reward, discount, observation)
