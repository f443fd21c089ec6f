"""Options become words that read back as they were."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

import agents
from qsm.options.arguments import to_arguments
from qsm.options.commands import BenchOptions, ClusterOptions, OutputOptions, ReportOptions
from qsm.options.parser import Parser
from qsm.options.run import LaunchOptions, MjxRunConfig, RunConfig

GROUPS = [
    *map(agents.config_class, agents.AGENTS),
    *(RunConfig, MjxRunConfig, LaunchOptions, OutputOptions, BenchOptions, ClusterOptions, ReportOptions),
]
TEXTS = st.text("ab-_=. ,@:'\"é", min_size=1, max_size=6)
NAMES = st.text("ab=@:.", min_size=1, max_size=6)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type, of those that words can say."""
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_args(hint) and type(None) in get_args(hint):
        return values_of(next(kind for kind in get_args(hint) if kind is not type(None)))
    return {
        bool: st.booleans(),
        int: st.integers(-(10**18), 10**18),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: TEXTS,
        Path: TEXTS.map(Path),
        tuple[int, ...]: st.lists(st.integers(0, 10**6), min_size=1, max_size=3).map(tuple),
        tuple[str, ...]: st.lists(NAMES, min_size=1, max_size=3).map(tuple),
        tuple[Path, ...]: st.lists(NAMES.map(Path), min_size=1, max_size=3).map(tuple),
    }[hint]


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
@given(data=st.data())
def test_options_read_back_from_their_words(group: type, data: st.DataObject) -> None:
    # Without the group's checks: every value of its type must survive, allowed or not.
    unchecked = type(group.__name__, (group,), {"__post_init__": lambda self: None})
    hints = get_type_hints(group)
    names = data.draw(
        st.sets(st.sampled_from([field.name for field in dataclasses.fields(group)]), max_size=5)
    )
    config = unchecked(**{name: data.draw(values_of(hints[name]), name) for name in sorted(names)})
    words = to_arguments(config)
    assert Parser("qsm", "", {"group": unchecked}).parse(words)["group"] == config
    assert len({word.partition("=")[0] for word in words if word.startswith("--")}) <= len(names)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_defaults_need_no_words(group: type) -> None:
    assert to_arguments(group()) == []


def test_what_has_no_words_is_refused() -> None:
    with pytest.raises(ValueError, match="wandb_project is ''"):
        to_arguments(RunConfig(wandb_project=""))
