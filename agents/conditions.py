"""When an option is read: conditions on other options, told in words that name them. Imports no JAX."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Condition:
    """What must hold of other options for one to be read; otherwise that one has no effect.

    Args:
      words: completes "read only where"; options that are asked stand in braces, as fields.
      holds: of the options of an agent.
    """

    words: str
    holds: Callable[[Any], bool]

    @property
    def options(self) -> tuple[str, ...]:
        """The options that are asked; none where nothing could make it hold."""
        return tuple(dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(self.words) if name))

    def __and__(self, other: Condition) -> Condition:
        return Condition(
            f"{self.words} and {other.words}", lambda config: self.holds(config) and other.holds(config)
        )

    def __or__(self, other: Condition) -> Condition:
        return Condition(
            f"{self.words}, or {other.words}", lambda config: self.holds(config) or other.holds(config)
        )


Conditions = dict[str, Condition]


def one_of(option: str, *values: str) -> Condition:
    """`option` has one of `values`."""
    *others, last = values
    shown = f"{', '.join(others)} or {last}" if others else last
    return Condition(f"{{{option}}} is {shown}", lambda config: getattr(config, option) in values)


def other_than(option: str, value: str) -> Condition:
    """`option` is not `value`."""
    return Condition(f"{{{option}}} is not {value}", lambda config: getattr(config, option) != value)


def above(option: str, number: int) -> Condition:
    """`option` is larger than `number`."""
    return Condition(f"{{{option}}} is above {number}", lambda config: getattr(config, option) > number)


def is_on(option: str) -> Condition:
    """The switch `option` is on."""
    return Condition(f"{{{option}}} is on", lambda config: getattr(config, option))


def is_off(option: str) -> Condition:
    """The switch `option` is off."""
    return Condition(f"{{{option}}} is off", lambda config: not getattr(config, option))


def left_out(option: str) -> Condition:
    """`option` is none, as it is where nothing is said."""
    return Condition(f"{{{option}}} is left out", lambda config: getattr(config, option) is None)


def never(reason: str) -> Condition:
    """Nothing makes an agent read it, for `reason`: it has the option because all agents have."""
    return Condition(reason, lambda config: False)


def without(conditions: Conditions, *names: str) -> Conditions:
    """`conditions` for an agent that always reads the options `names`."""
    return {name: condition for name, condition in conditions.items() if name not in names}


def without_effect(config: Any, names: set[str] | frozenset[str]) -> dict[str, Condition]:
    """Those options among `names` that nothing reads with the options `config`, each with what it would take."""
    conditions: Conditions = config.conditions
    return {
        name: condition
        for name, condition in conditions.items()
        if name in names and not condition.holds(config)
    }
