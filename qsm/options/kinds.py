"""How values of each type are read from words and shown as words."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from qsm.base.errors import nearest

LARGEST = 10**18  # beyond this a whole number of anything here is a slip, and 1e999999999 would take minutes
NUMBER = re.compile(r"[+-]?(\d+(_\d+)*)?(\.(\d+(_\d+)*)?)?(e[+-]?\d{1,4})?", re.IGNORECASE | re.ASCII)


class Kind(NamedTuple):
    """How values of one type are read from the command line and shown."""

    read: Callable[..., Any]  # of one word, or of several where it takes many; raises ValueError
    allowed: str  # completes "it must be ..."
    metavar: str
    show: Callable[[Any], str] = str
    takes_many: bool = False  # all words up to the next flag

    def words(self, value: Any) -> list[str]:
        """The words that read back as `value`."""
        return [str(entry) for entry in value] if self.takes_many else [self.show(value)]


def read_whole_number(text: str) -> int:
    """An int from `5000`, `1_000_000`, `1e6` or `2.5e4`, exactly.

    Raises:
      ValueError: anything else, such as `1.5`, `inf` or a number above 1e18.
    """
    if not NUMBER.fullmatch(text) or not re.search(r"\d", text.lower().partition("e")[0]):
        raise ValueError(f"{text!r} is no whole number")
    mantissa, _, exponent = text.lower().replace("_", "").partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits, shift = whole + fraction, int(exponent or 0) - len(fraction)
    if shift < 0:  # 2.50e1: what is cut off must be zeros
        if digits.lstrip("+-")[shift:].strip("0"):
            raise ValueError(f"{text!r} is no whole number")
        digits = digits[:shift]
    number = int(digits if digits.lstrip("+-") else 0) * 10 ** max(shift, 0)
    if abs(number) > LARGEST:
        raise ValueError(f"{text!r} is above 1e18")
    return number


def read_number(text: str) -> float:
    """A finite float; raises ValueError for anything else."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is not finite")
    return number


def read_whole_numbers(text: str) -> tuple[int, ...]:
    """A tuple of ints from `256,256`; raises ValueError for anything else."""
    return tuple(
        read_whole_number(entry.strip()) for entry in text.strip("()[] ").removesuffix(",").split(",")
    )


KINDS: dict[Any, Kind] = {
    int: Kind(
        read_whole_number,
        "a whole number such as 5000 or 1e6",
        "INT",
        lambda value: f"{value:_}" if value >= 10_000 else str(value),
    ),
    float: Kind(read_number, "a finite number such as 0.5 or 3e-4", "FLOAT", repr),
    str: Kind(str, "a text", "TEXT"),
    Path: Kind(Path, "a path", "PATH"),
    tuple[int, ...]: Kind(
        read_whole_numbers,
        "whole numbers with commas between them, such as 256,256",
        "INT,INT,...",
        lambda value: ",".join(map(str, value)),
    ),
    tuple[str, ...]: Kind(
        lambda *words: tuple(name for word in words for name in word.split()),
        "one or more names with spaces between them",
        "NAME ...",
        " ".join,
        takes_many=True,
    ),
    tuple[Path, ...]: Kind(
        lambda *words: tuple(map(Path, words)),
        "one or more paths with spaces between them",
        "PATH ...",
        lambda value: " ".join(map(str, value)),
        takes_many=True,
    ),
}


def kind_of(annotation: Any) -> Kind | None:
    """The kind of a field's type: one of `KINDS`, one of them or None, or a choice of texts; None for a switch."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType) and NoneType in arguments and len(arguments) == 2:
        inner = kind_of(next(argument for argument in arguments if argument is not NoneType))
        return inner and inner._replace(show=lambda value: "none" if value is None else inner.show(value))
    if origin is Literal:

        def choose(text: str) -> str:
            if text not in arguments:
                raise ValueError(nearest(text, arguments))
            return text

        return Kind(choose, "one of " + ", ".join(arguments), "{" + ",".join(arguments) + "}")
    return KINDS.get(annotation)


def flag_of(field: str) -> str:
    """`--score-scale` for the field `score_scale`."""
    return "--" + field.replace("_", "-")
