"""The help fits the terminal, names every option once, and says what a field's text says."""

from __future__ import annotations

import dataclasses
import re

import pytest

import agents
from qsm.command.train import parser_of
from qsm.options.commands import BenchOptions
from qsm.options.help import field_texts, option_rows, render, summary_of
from qsm.options.run import MjxRunConfig, RunConfig


@dataclasses.dataclass(frozen=True)
class Small:
    """What it is.

    And more on it.
    """

    size: int = 10_000
    """How large
    it is."""
    bare: str = "x"
    is_on: bool = True
    """Whether."""


@dataclasses.dataclass(frozen=True)
class Larger(Small):
    size: int = 3
    name: str | None = None
    """Its name."""


def test_rows_hold_type_text_and_default() -> None:
    rows = [(name, text.replace("\u00a0", " ")) for name, text in option_rows(Small)]
    assert rows == [
        ("--size INT", "How large it is. (default: 10_000)"),
        ("--bare TEXT", "(default: x)"),
        ("--[no-]is-on", "Whether. (default: on)"),
    ]
    assert summary_of(Small) == "What it is." and summary_of(Larger) == ""


def test_a_field_that_is_given_another_default_keeps_its_text() -> None:
    assert field_texts(Larger) == {
        "size": "How large it is.",
        "bare": "",
        "is_on": "Whether.",
        "name": "Its name.",
    }
    assert dict(option_rows(Larger))["--size INT"].startswith("How large it is.")


def test_the_layout() -> None:
    assert render("qsm x A [options]", "Does it.", [("A", "What.")], {"small": Larger}, 60) == (
        "usage: qsm x A [options]\n\nDoes it.\n\n"
        "  A                         What.\n\n"
        "small options\n\n"
        "  --size INT                How large it is. (default: 3)\n"
        "  --bare TEXT               (default: x)\n"
        "  --[no-]is-on              Whether. (default: on)\n"
        "  --name TEXT               Its name. (default: none)"
    )


@pytest.mark.parametrize("agent", agents.AGENTS)
@pytest.mark.parametrize("width", [60, 80, 100])
def test_lines_fit_and_every_option_is_there_once(agent: str, width: int) -> None:
    shown = parser_of(agent, "mjx").help(width)
    lines = shown.splitlines()
    assert max(map(len, lines)) <= width and "\u00a0" not in shown
    for config in (agents.config_class(agent), MjxRunConfig):
        for field in dataclasses.fields(config):
            flag = field.name.replace("_", "-")
            assert len([line for line in lines if re.match(rf"  --(\[no-\])?{flag}( |$)", line)]) == 1


@pytest.mark.parametrize("group", [RunConfig, MjxRunConfig, BenchOptions])
def test_every_option_has_a_text(group: type) -> None:
    assert all(field_texts(group)[field.name] for field in dataclasses.fields(group))
