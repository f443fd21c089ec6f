"""What every agent's critics share: TD targets, the ensemble's loss, Polyak averaging, Adam with a swept rate."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import optax

from agents.parts.types import Mean, Metrics

Tree = TypeVar("Tree")

SATURATED = 0.99  # |a| above which an action component counts as saturated


def td_target(reward: jax.Array, discount: jax.Array, next_values: jax.Array) -> jax.Array:
    """y = r + discount * min_i Q'_i(s', a'), with next_values `[E, B]`; `[B]`, no gradient."""
    return jax.lax.stop_gradient(reward + discount * next_values.min(axis=0))


def critic_loss(values: jax.Array, target: jax.Array) -> jax.Array:
    """Each member's own mean squared error against `target` `[B]`, summed over members of `values` `[E, B]`."""
    return jnp.square(values - target[None]).mean(axis=1).sum()


def critic_metrics(values: jax.Array, target: jax.Array) -> Metrics:
    """What the critics say of a replay batch: value, TD error and disagreement (std over members)."""
    return {
        "critic/q_replay": mean(values),
        "critic/target": mean(target),
        "critic/td_error_abs": mean(jnp.abs(values - target[None])),
        "critic/loss": mean(jnp.square(values - target[None])),
        "critic/disagreement": mean(values.std(axis=0)),
    }


def mean(values: jax.Array) -> Mean:
    """A metric over all entries of `values`, weighted as one observation."""
    return Mean(values.mean(), jnp.ones(()))


def skipped() -> Mean:
    """The metric of something that did not happen in this update."""
    return Mean(jnp.zeros(()), jnp.zeros(()))


def polyak(target: Tree, online: Tree, rate: float | jax.Array) -> Tree:
    """target + rate (online - target), leaf by leaf."""
    return jax.tree.map(lambda old, new: old + rate * (new - old), target, online)


_adam = optax.scale_by_adam()


def adam_init(params: Any) -> optax.OptState:
    """State of Adam for `params`."""
    return _adam.init(params)


def adam_step(
    grads: Tree, state: optax.OptState, params: Tree, learning_rate: float | jax.Array
) -> tuple[Tree, optax.OptState]:
    """One step of Adam. The rate is an argument, not a constant, so that one program serves a sweep of it."""
    updates, state = _adam.update(cast(Any, grads), state)
    return jax.tree.map(lambda p, u: p - learning_rate * u, params, updates), state
