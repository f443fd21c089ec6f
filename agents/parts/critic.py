"""An ensemble of critics behind one seam: agents ask for values, targets and steps, and know neither torso nor head."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from agents.networks.critics import CriticEnsemble
from agents.parts import approximator
from agents.parts.heads import Head
from agents.parts.measure import mean
from agents.parts.optimizer import Learned, polyak
from agents.parts.types import Metrics, Transition


class Units(NamedTuple):
    """1 / scale of rewards that values are counted in; 0 before the first update."""

    online: jax.Array  # [], of the critics
    target: jax.Array  # [], of their slow copies


class CriticState(NamedTuple):
    """What the critics have learned."""

    online: Learned
    target: Any  # parameters of the slow copies
    units: Any = ()  # `Units` where targets are rescaled


class Target(NamedTuple):
    """What `Critic.regress` is given; its content is between `Critic.target` and it."""

    content: Any  # as the head has it; of `JointCritic`, what it is made from
    next_value: Any  # [E, B], of the target critics at (s', a'); None where `regress` finds it


@dataclasses.dataclass(frozen=True)
class Critic(approximator.Approximator):
    """Q(s, a), by `num_critics` members.

    Args:
      network: outputs `[E, B, K]`.
      head: what they mean.
      rescales: whether values at s' are brought to the scale that rewards are divided by in the batch.
    """

    network: CriticEnsemble
    head: Head
    rescales: bool = dataclasses.field(default=False, kw_only=True)

    def init_state(self, key: jax.Array, observation: jax.Array, action: jax.Array) -> CriticState:
        """Fresh critics and their copies; of the inputs only the shapes count."""
        online = self.init(key, observation, action)
        units = Units(jnp.zeros(()), jnp.zeros(())) if self.rescales else ()
        return CriticState(online, jax.tree.map(jnp.copy, online.params), units)

    def value(self, params: Any, observation: jax.Array, action: jax.Array) -> jax.Array:
        """Q_i(s, a) `[E, B]`, differentiable by action and parameters."""
        return self.head.value(self.apply(params, observation, action))

    @jax.named_scope("critic_value")
    def reduced_value(self, params: Any, observation: jax.Array, action: jax.Array) -> jax.Array:
        """One value `[B]` of all members, by the head's reduction: min_i Q_i(s, a) by default."""
        return self.head.reduction(self.value(params, observation, action))

    @jax.named_scope("critic_value")
    def first_value(self, params: Any, observation: jax.Array, action: jax.Array) -> jax.Array:
        """Q_1(s, a) `[B]` of the first member, without computing the others."""
        first = dataclasses.replace(self, network=self.network.clone(num_critics=1))
        return first.value(jax.tree.map(lambda leaf: leaf[:1], params), observation, action)[0]

    @jax.named_scope("critic_action_gradient")
    def action_gradient(
        self, params: Any, observation: jax.Array, action: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """mean_i Q_i(s, a) `[B]` and its gradient by the action `[B, A]`."""

        def total(action: jax.Array) -> tuple[jax.Array, jax.Array]:
            value = self.value(params, observation, action).mean(axis=0)
            return value.sum(), value

        (_, value), gradient = jax.value_and_grad(total, has_aux=True)(action)
        return value, gradient

    @jax.named_scope("critic_target")
    def target(
        self, state: CriticState, batch: Transition, next_action: jax.Array, bonus: jax.Array | None = None
    ) -> Target:
        """The backup of `batch` by the target critics at `next_action` `[B, A]`; no gradient flows through it.

        Args:
          bonus: `[B]`, added to the values at s' (see `Head.target`).
        """
        next_out = self.apply(state.target, batch.next_observation, next_action)
        discount, bonus = self.at_next(state, batch, bonus)
        content = self.head.target(batch.reward, discount, next_out, bonus)
        return Target(jax.lax.stop_gradient(content), self.head.value(next_out))

    def at_next(
        self, state: CriticState, batch: Transition, bonus: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """What values at s' are multiplied by, `[B]`, and the bonus `[B]` to them, which is no value of before.

        Target critics are an average of critics that learned r / scale at earlier scales: their values are in the same
        average of 1 / scale. Where the scale grows, a value that is taken for one of today is too large, and the error
        fades by 1 - discount a backup only.
        """
        if not self.rescales:
            return batch.discount, bonus
        then = state.units.target
        grown = jnp.where(then > 0, batch.scale * then, 1.0)
        return batch.discount / grown, None if bonus is None else bonus * grown

    def learned_in(self, state: CriticState, batch: Transition) -> CriticState:
        """`state` whose critics have learned from the rewards of `batch`."""
        if not self.rescales:
            return state
        return state._replace(units=state.units._replace(online=1 / batch.scale))

    @jax.named_scope("critic_regress")
    def regress(
        self, state: CriticState, batch: Transition, target: Target, rate: float | jax.Array
    ) -> tuple[CriticState, jax.Array, Metrics]:
        """One step of every member towards `target`, each by its own mean error.

        Returns:
          The new state (target critics as they were: see `follow`), the values `[E, B]` at (s', a'), and metrics.
        """

        def loss(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            out = self.apply(params, batch.observation, batch.action)
            errors = self.head.errors(out, target.content)
            # Summed over members, so that a member's step does not depend on their number.
            return errors.mean(axis=1).sum(), (self.head.value(out), errors)

        online, (values, errors) = self.descend(loss, state.online, rate)
        metrics = self.metrics(batch, values, errors, self.head.target_value(target.content))
        return self.learned_in(state._replace(online=online), batch), target.next_value, metrics

    def metrics(
        self, batch: Transition, values: jax.Array, errors: jax.Array, target_value: jax.Array
    ) -> Metrics:
        """Of a regression: values and errors `[E, B]` before its step, and targets `[B]`."""
        metrics = {
            "critic/q_replay": mean(values),
            "critic/target": mean(target_value),
            "critic/td_error_abs": mean(jnp.abs(values - target_value[None])),
            "critic/loss": mean(errors),
            "critic/disagreement": mean(values.std(axis=0)),
        }
        return metrics | ({} if batch.scale is None else {"critic/reward_scale": mean(batch.scale)})

    def follow(self, state: CriticState, rate: float | jax.Array) -> CriticState:
        """Moves the target critics towards the critics, by Polyak averaging."""
        state = state._replace(target=polyak(state.target, state.online.params, rate))
        return self.units_followed(state, rate)

    def units_followed(self, state: CriticState, rate: float | jax.Array) -> CriticState:
        """`state` with the units of target critics that have moved towards the critics, as their parameters have."""
        if not self.rescales:
            return state
        online, target = state.units
        return state._replace(
            units=Units(online, jnp.where(target > 0, polyak(target, online, rate), online))
        )


class JointCritic(Critic):
    """Critics that normalise batches: (s, a) and (s', a') go through the network together (Bhatt et al. 2024).

    There is no slow copy: `CriticState.target` has the parameters of the critics themselves. The running statistics
    stand beside the parameters, as the collection `batch_stats`; values outside `regress` are by them.
    """

    def target(
        self, state: CriticState, batch: Transition, next_action: jax.Array, bonus: jax.Array | None = None
    ) -> Target:
        """What `regress` needs for the backup; see `Critic.target`."""
        return Target(jax.lax.stop_gradient((next_action, bonus)), None)

    @jax.named_scope("critic_regress")
    def regress(
        self, state: CriticState, batch: Transition, target: Target, rate: float | jax.Array
    ) -> tuple[CriticState, jax.Array, Metrics]:
        """See `Critic.regress`; the target critics are the critics after the step."""
        next_action, bonus = target.content
        discount, bonus = self.at_next(state, batch, bonus)
        observations = jnp.concatenate([batch.observation, batch.next_observation])
        actions = jnp.concatenate([batch.action, next_action])
        torso = dataclasses.replace(self.network.torso, is_training=True)
        training = self.network.clone(torso=torso)

        def loss(params: Any) -> tuple[jax.Array, Any]:
            both, moved = training.apply(params, observations, actions, mutable=["batch_stats"])
            out, next_out = jnp.split(both, 2, axis=1)
            next_out = jax.lax.stop_gradient(next_out)
            content = jax.lax.stop_gradient(self.head.target(batch.reward, discount, next_out, bonus))
            errors = self.head.errors(out, content)
            values = self.head.value(out), self.head.value(next_out), self.head.target_value(content)
            return errors.mean(axis=1).sum(), (moved, errors, *values)

        online, (moved, errors, values, next_value, target_value) = self.descend(loss, state.online, rate)
        # They have no gradient: Adam leaves them as they were.
        online = online._replace(params={**online.params, **moved})
        metrics = self.metrics(batch, values, errors, target_value)
        state = self.learned_in(CriticState(online, online.params, state.units), batch)
        return self.units_followed(state, 1.0), next_value, metrics

    def follow(self, state: CriticState, rate: float | jax.Array) -> CriticState:
        """There is nothing to move."""
        return state
