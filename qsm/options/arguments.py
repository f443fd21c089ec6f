"""Options as the words of a command line: the way back from what the parser reads."""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints

from qsm.options.kinds import flag_of, kind_of


def to_arguments(config: Any, defaults: Any = None) -> list[str]:
    """The words that `Parser` reads as `config`, those of its options that differ from `defaults`, or else their own.

    Raises:
      ValueError: an option that has no words: an empty text, or none where that is not the default.
    """
    defaults, hints = defaults or type(config)(), get_type_hints(type(config))
    words: list[str] = []
    for field in dataclasses.fields(config):
        value, flag, kind = getattr(config, field.name), flag_of(field.name), kind_of(hints[field.name])
        if value == getattr(defaults, field.name):
            continue
        if kind is None:
            words.append(flag if value else negated(flag))
            continue
        first, *rest = ([] if value is None else kind.words(value)) or [""]
        if not first:
            raise ValueError(f"{field.name} is {value!r}, for which the command line has no words")
        words += [f"{flag}={first}", *rest]
    return words


def negated(flag: str) -> str:
    """`--no-dry-run` for `--dry-run`."""
    return "--no" + flag[1:]


def show_options(config: Any) -> list[str]:
    """A line for each option of `config`, in the form that the command line reads, and what differs."""
    defaults, hints = type(config)(), get_type_hints(type(config))
    rows = []
    for field in dataclasses.fields(config):
        value, default, flag = getattr(config, field.name), getattr(defaults, field.name), flag_of(field.name)
        kind = kind_of(hints[field.name])
        if kind is None:
            row, usual = (flag if value else negated(flag)), ("on" if default else "off")
        elif value is None:  # there is no text for it: left out, it is none
            rows.append((f"# {flag} none", ""))
            continue
        else:
            row, usual = f"{flag} {kind.show(value)}", kind.show(default)
        rows.append((row, f"# default: {usual}" if value != default else ""))
    width = max(len(row) for row, _ in rows)
    return [f"{row:{width}}  {note}".rstrip() for row, note in rows]
