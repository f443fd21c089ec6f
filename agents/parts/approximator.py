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

    A network may have a method `project(params)`, applied after each step: for weights that are kept on a sphere.
    """

    network: nn.Module

    def init(self, key: jax.Array, *inputs: jax.Array) -> Learned:
        """Fresh parameters for `inputs`, of which only the shapes count."""
        return optimizer.start(initializers.init(self.network, key, *inputs))

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
        """`optimizer.descend`, and the network's projection."""
        learned, aside = optimizer.descend(loss, learned, rate, *inputs)
        project: Callable[[Any], Any] | None = getattr(self.network, "project", None)
        return (learned if project is None else learned._replace(params=project(learned.params))), aside
