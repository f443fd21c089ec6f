"""A network as agents use it: fresh parameters, its output, a step down a loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from agents.networks import initializers
from agents.parts import optimizer
from agents.parts.optimizer import Learned

if TYPE_CHECKING:
    import flax.linen as nn


@dataclasses.dataclass(frozen=True)
class Approximator:
    """A network with what is done to its parameters.

    A network may have a method `project(params)`, applied at the start and after each step: for weights that are kept
    on a sphere.

    Args:
      network: any.
      rule: of its steps.
    """

    network: nn.Module
    rule: optimizer.Rule = dataclasses.field(default=optimizer.PLAIN, kw_only=True)

    def init(self, key: jax.Array, *inputs: jax.Array) -> Learned:
        """Fresh parameters for `inputs`, of which only the shapes count."""
        return optimizer.start(self.projected(initializers.init(self.network, key, *inputs)))

    def apply(self, params: Any, *inputs: jax.Array, method: str | None = None) -> Any:
        """Output of the network, which for a module with parameters alone is all that flax returns."""
        return self.network.apply(params, *inputs, method=method)

    def descend(
        self,
        loss: Callable[..., tuple[jax.Array, Any]],
        learned: Learned,
        rate: float | jax.Array,
        *inputs: Any,
    ) -> tuple[Learned, Any]:
        """`optimizer.descend` by `rule`, and the network's projection."""
        learned, aside = optimizer.descend(loss, learned, rate, *inputs, rule=self.rule)
        return learned._replace(params=self.projected(learned.params)), aside

    def projected(self, params: Any) -> Any:
        """`params` where the network keeps them."""
        project: Callable[[Any], Any] | None = getattr(self.network, "project", None)
        return params if project is None else project(params)
