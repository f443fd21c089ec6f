"""Parameters with their optimizer, a step down a loss, and slow copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import optax

Tree = TypeVar("Tree")

_adam = optax.scale_by_adam()


class Learned(NamedTuple):
    """Parameters, and the state of the optimizer that moves them."""

    params: Any
    optimizer: optax.OptState


def start(params: Any) -> Learned:
    """`params` with a fresh Adam."""
    return Learned(params, _adam.init(params))


@jax.named_scope("adam")
def step(learned: Learned, gradient: Any, rate: float | jax.Array) -> Learned:
    """One step of Adam down `gradient`. The rate is an argument so that one program serves a sweep of it."""
    updates, optimizer = _adam.update(cast(Any, gradient), learned.optimizer)
    params = jax.tree.map(lambda p, u: p - rate * u, learned.params, updates)
    return Learned(params, optimizer)


def descend(
    loss: Callable[..., tuple[jax.Array, Any]], learned: Learned, rate: float | jax.Array, *inputs: Any
) -> tuple[Learned, Any]:
    """One step down `loss(params, *inputs)`, which returns a scalar and something else; that comes back beside it."""
    gradient, aside = jax.grad(loss, has_aux=True)(learned.params, *inputs)
    return step(learned, gradient, rate), aside


@jax.named_scope("polyak")
def polyak(target: Tree, online: Tree, rate: float | jax.Array) -> Tree:
    """target + rate (online - target), leaf by leaf."""
    return jax.tree.map(lambda old, new: old + rate * (new - old), target, online)


def cosine_decay(step: jax.Array, num_steps: int) -> jax.Array:
    """From 1 at `step` 0 to 0 at `num_steps`, and 0 after it."""
    return 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step / num_steps, 1.0)))
