"""Parameters with their optimizer, a step down a loss, and slow copies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import optax

if TYPE_CHECKING:
    from agents.config import AgentConfig

Tree = TypeVar("Tree")

DECAYED = "kernel"
"""Name of the parameters that weight decay pulls: neither biases nor scales, nor kernels kept at unit length."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a gradient becomes a step.

    Args:
      beta1: Adam's decay of its mean of gradients.
      weight_decay: of kernels, times the learning rate and apart from Adam (Loshchilov & Hutter 2019); 0 for none.
      gradient_clip: longest gradient of a network as a whole; a longer one is shortened to it. 0 for none.
      decay_steps: steps over which the learning rate falls linearly, by the count of Adam; 0 for never.
      last_rate: what it falls to, as a share of the first.
    """

    beta1: float = 0.9
    weight_decay: float = 0.0
    gradient_clip: float = 0.0
    decay_steps: int = 0
    last_rate: float = 0.0

    @property
    def adam(self) -> optax.GradientTransformation:
        """What scales gradients."""
        return optax.scale_by_adam(b1=self.beta1)

    def clipped(self, gradient: Tree) -> Tree:
        """`gradient`, no longer than `gradient_clip`."""
        if not self.gradient_clip:
            return gradient
        size = optax.tree.norm(gradient)
        return jax.tree.map(lambda g: g * jnp.minimum(1.0, self.gradient_clip / (size + 1e-12)), gradient)

    def decayed(self, updates: Tree, params: Tree) -> Tree:
        """`updates` with the pull of the weight decay."""
        if not self.weight_decay:
            return updates

        def one(path: tuple[Any, ...], update: jax.Array, param: jax.Array) -> jax.Array:
            is_kernel = getattr(path[-1], "key", None) == DECAYED if path else False
            return update + self.weight_decay * param if is_kernel else update

        return jax.tree_util.tree_map_with_path(one, updates, params)

    def rate(self, rate: Any, count: jax.Array) -> Any:
        """The learning rate of the step after `count` others."""
        if not self.decay_steps:
            return rate
        return rate * (1 - (1 - self.last_rate) * jnp.minimum(count / self.decay_steps, 1.0))


PLAIN = Rule()


def rule_of(config: AgentConfig, decays: bool = True) -> Rule:
    """What the options of an agent say; its learning rate as given unless it `decays`."""
    return Rule(
        config.adam_beta1,
        config.weight_decay,
        config.gradient_clip,
        config.learning_rate_decay_steps if decays else 0,
        config.last_learning_rate,
    )


class Learned(NamedTuple):
    """Parameters, and the state of the optimizer that moves them."""

    params: Any
    optimizer: optax.OptState


def start(params: Any) -> Learned:
    """`params` with a fresh Adam."""
    return Learned(params, PLAIN.adam.init(params))


@jax.named_scope("adam")
def step(learned: Learned, gradient: Any, rate: float | jax.Array, rule: Rule = PLAIN) -> Learned:
    """One step of Adam down `gradient`. The rate is an argument so that one program serves a sweep of it."""
    rate = rule.rate(rate, cast(Any, learned.optimizer).count)
    updates, optimizer = rule.adam.update(cast(Any, rule.clipped(gradient)), learned.optimizer)
    updates = rule.decayed(updates, learned.params)
    params = jax.tree.map(lambda p, u: p - rate * u, learned.params, updates)
    return Learned(params, optimizer)


def descend(
    loss: Callable[..., tuple[jax.Array, Any]],
    learned: Learned,
    rate: float | jax.Array,
    *inputs: Any,
    rule: Rule = PLAIN,
) -> tuple[Learned, Any]:
    """One step down `loss(params, *inputs)`, which returns a scalar and something else; that comes back beside it."""
    gradient, aside = jax.grad(loss, has_aux=True)(learned.params, *inputs)
    return step(learned, gradient, rate, rule), aside


@jax.named_scope("polyak")
def polyak(target: Tree, online: Tree, rate: float | jax.Array) -> Tree:
    """target + rate (online - target), leaf by leaf."""
    return jax.tree.map(lambda old, new: old + rate * (new - old), target, online)


def cosine_decay(step: jax.Array, num_steps: int) -> jax.Array:
    """From 1 at `step` 0 to 0 at `num_steps`, and 0 after it."""
    return 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step / num_steps, 1.0)))
