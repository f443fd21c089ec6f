"""The options that every agent shares, and the check that each option lies inside its limits."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any, ClassVar

from agents.parts.types import Sampling

Limits = dict[str, tuple[float, float]]
INFINITY = math.inf


def check_limits(config: Any, limits: Limits) -> None:
    """Holds each number (or each entry of a tuple) of `config` to its inclusive `limits`; all must be finite, or None.

    Raises:
      ValueError: naming the field, its value and what is allowed.
    """
    for name, (low, high) in limits.items():
        value = getattr(config, name)
        for entry in value if isinstance(value, tuple) else (value,):
            if entry is not None and not (math.isfinite(entry) and low <= entry <= high):
                allowed = f"at least {low:.10g}" if high == INFINITY else f"from {low:.10g} to {high:.10g}"
                raise ValueError(f"{name} is {value}; it must be {allowed}")


def check_choices(config: Any) -> None:
    """Holds each field of `config` typed `Literal` to its choices.

    Raises:
      ValueError: naming the field, its value and what is allowed.
    """
    for name, kind in typing.get_type_hints(type(config)).items():
        if typing.get_origin(kind) is typing.Literal and getattr(config, name) not in typing.get_args(kind):
            allowed = ", ".join(typing.get_args(kind))
            raise ValueError(f"{name} is {getattr(config, name)!r}; it must be one of {allowed}")


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    """Options of every agent, with one default for all so that comparisons are fair.

    Whole numbers, choices and switches shape the program; every float but those in `constants` is a hyperparameter
    that the agent keeps in `State.hyperparameters`, so one compiled program serves any value of it.
    """

    batch_size: int = 256
    """Transitions in an update."""
    discount: float = 0.99
    """Discount factor gamma per decision."""
    n_step: int = 1
    """Steps of reward before bootstrapping."""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of actor and critics."""
    num_critics: int = 2
    """Members of the critic ensemble."""
    critic_layer_norm: bool = False
    """Layer normalisation after each hidden layer of the critics."""
    critic_learning_rate: float = 3e-4
    """Adam's learning rate for the critics."""
    target_rate: float = 0.005
    """Polyak rate of the target critics, per update."""

    limits: ClassVar[Limits] = {
        "batch_size": (1, 2**20),
        "discount": (0, 1),
        "n_step": (1, 100),
        "hidden_sizes": (1, 2**16),
        "num_critics": (1, 64),
        "critic_learning_rate": (0, 10),
        "target_rate": (0, 1),
    }

    constants: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_limits(self, self.limits)
        check_choices(self)
        if not self.hidden_sizes:
            raise ValueError("hidden_sizes is empty; it must hold at least one width")

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.batch_size, self.n_step)

    def hyperparameters(self) -> dict[str, float]:
        """The float options by name, without `constants`: they shape nothing and may be swept along the seed axis."""
        # By the default's type: an option given as 50 is as much a float as 50.0.
        return {
            field.name: float(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if isinstance(field.default, float) and field.name not in self.constants
        }
