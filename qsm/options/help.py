"""The help of a command: its options in groups, each with its type, its line and its default."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import get_type_hints

from qsm.options.kinds import flag_of, kind_of

WIDEST = 100
"""Columns of the help at most: longer lines are hard to read."""
INDENT = 28
"""Column at which the lines on options begin."""

UNBROKEN = "\u00a0"
"""A space at which no line is wrapped."""

Row = tuple[str, str]
"""An option with its type, and the line on it."""


def terminal_width() -> int:
    """Columns of the help on this terminal."""
    return max(min(shutil.get_terminal_size().columns, WIDEST), 2 * INDENT)


def render(
    usage: str,
    description: str,
    positionals: Sequence[Row],
    groups: Mapping[str, type],
    width: int | None = None,
) -> str:
    """The help of a command.

    Args:
      usage: the line of its usage.
      description: what it does, in a paragraph.
      positionals: its arguments without flags.
      groups: a dataclass of options for each title.
      width: columns; None: those of the terminal.
    """
    width = width or terminal_width()
    parts = [f"usage: {usage}", textwrap.fill(description, width, break_on_hyphens=False)]
    rows = [*positionals] if groups else [*positionals, ("-h, --help", "Show this help.")]
    if rows:
        parts.append("\n".join(_lines(rows, width)))
    for title, group in groups.items():
        rows = [*option_rows(group)]
        summary = textwrap.fill(
            summary_of(group), width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
        )
        parts.append(
            "\n".join([f"{title} options", *([summary] if summary.strip() else []), "", *_lines(rows, width)])
        )
    return "\n\n".join(parts)


def option_rows(group: type) -> Iterator[Row]:
    """Every option of the dataclass `group` with its line."""
    texts, hints, defaults = field_texts(group), get_type_hints(group), group()
    for field in dataclasses.fields(group):
        kind, value, flag = kind_of(hints[field.name]), getattr(defaults, field.name), flag_of(field.name)
        if kind is None:
            name, default = f"--[no-]{flag[2:]}", "on" if value else "off"
        else:
            name, default = f"{flag} {kind.metavar}", kind.show(value)
        yield name, f"{texts.get(field.name, '')} {default_note(default)}".strip()


def default_note(default: str) -> str:
    """`(default: 5)`, to be set in one piece."""
    return f"(default:{UNBROKEN}{default.replace(' ', UNBROKEN)})"


def summary_of(group: type) -> str:
    """The first paragraph of the docstring of `group`, in one line; empty where it has none of its own."""
    text = inspect.cleandoc(group.__dict__.get("__doc__") or "")
    return "" if text.startswith(f"{group.__name__}(") else " ".join(text.partition("\n\n")[0].split())


@functools.cache
def field_texts(group: type) -> dict[str, str]:
    """The text below each field of a dataclass, inherited ones included; empty where the source is not there."""
    texts: dict[str, str] = {}
    for kind in reversed(group.__mro__):
        if not dataclasses.is_dataclass(kind):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
        except (OSError, TypeError, SyntaxError):
            continue
        body: list[ast.stmt] = tree.body[0].body  # type: ignore[attr-defined]
        for field, below in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                text = " ".join(str(below.value.value).split()) if is_text else ""  # type: ignore[attr-defined]
                texts[field.target.id] = text or texts.get(field.target.id, "")
    return texts


def _lines(rows: Sequence[Row], width: int) -> Iterator[str]:
    for name, text in rows:
        wrapped = [
            line.replace(UNBROKEN, " ")
            for line in textwrap.wrap(text, width - INDENT, break_on_hyphens=False)
        ]
        head = f"  {name}"
        if len(head) > INDENT - 2:
            yield head
        else:
            yield f"{head:{INDENT}}{wrapped[0] if wrapped else ''}".rstrip()
            wrapped = wrapped[1:]
        yield from (" " * INDENT + line for line in wrapped)
