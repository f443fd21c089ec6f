"""Options that come out of a file are of their types, or named in one line."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agents
from qsm.options.run import MjxRunConfig, RunConfig
from qsm.options.saved import agent_options, check_run_options, check_saved, with_former_options

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=4,
)


@pytest.mark.parametrize("agent", agents.AGENTS)
def test_what_is_saved_reads_back(agent: str):
    config = agents.config_class(agent)(discount=1, hidden_sizes=(8,))
    assert agent_options(agent, json.loads(json.dumps(dataclasses.asdict(config)))) == config
    for run_config in (RunConfig(), MjxRunConfig(seed=3)):
        check_run_options(json.loads(json.dumps(dataclasses.asdict(run_config))))


def test_entries_of_a_run_that_other_versions_had_are_let_be():
    check_run_options({"of_the_future": "x", "seed": 3})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"discount": "0.9"}, "agent_config.discount is '0.9'; it must be a finite number such as"),
        ({"discount": True}, "agent_config.discount is True; it must be a finite number"),
        ({"discount": None}, "agent_config.discount is None; it must be a finite number"),
        ({"discount": float("nan")}, "agent_config.discount is nan; it must be a finite number"),
        ({"discount": 2}, "agent_config.discount is 2; it must be from 0 to 1"),
        ({"batch_size": 1.5}, "agent_config.batch_size is 1.5; it must be a whole number"),
        ({"batch_size": 10**400}, "agent_config.batch_size is "),
        ({"hidden_sizes": 256}, "agent_config.hidden_sizes is 256; it must be whole numbers"),
        ({"hidden_sizes": [8, "8"]}, "agent_config.hidden_sizes is [8, '8']; it must be whole numbers"),
        ({"critic_layer_norm": "no"}, "agent_config.critic_layer_norm is 'no'; it must be true or false"),
        ({"schedule": ["cosine"]}, "agent_config.schedule is ['cosine']; it must be one of"),
        ({"scale": 3}, "agent_config.scale is no option of qsm."),
    ],
)
def test_an_option_of_the_wrong_kind_is_named(values: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=r"agent_config\.") as error:
        agent_options("qsm", values)
    assert str(error.value).startswith(message)


def test_an_unknown_agent_is_named():
    with pytest.raises(ValueError, match="unknown agent 'qsn'; agents are: qsm"):
        agent_options("qsn", {})


@settings(max_examples=200)
@given(st.sampled_from(sorted(agents.AGENTS)), st.data())
def test_any_value_of_any_option(agent: str, data: st.DataObject):
    readers = [
        (agents.config_class(agent), lambda values: agent_options(agent, values)),
        (RunConfig, check_run_options),
    ]
    for config_class, read in readers:
        names = [field.name for field in dataclasses.fields(config_class)]
        values = data.draw(st.dictionaries(st.sampled_from(names), JSON, min_size=1, max_size=2))
        try:
            read(values)
        except ValueError as error:
            assert any(name in str(error) for name in values), error


def saved_config(**changes: Any) -> dict[str, Any]:
    config = {
        "agent": "qsm",
        "task": "walker-walk",
        "backend": "dm_control",
        "agent_config": {},
        "run_config": {},
    }
    return config | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "brax"}, "unknown backend 'brax'"),
        ({"task": "walker-wlak"}, "Unknown task 'walker-wlak'"),
        ({"task": "dog-run", "backend": "mjx"}, "exists on dm_control only"),
        ({"agent": "qsn"}, "unknown agent 'qsn'"),
        ({"agent_config": {"scale": 3}}, "agent_config.scale is no option of qsm"),
        ({"run_config": {"seed": "x"}}, "run_config.seed is 'x'"),
    ],
)
def test_what_keeps_a_saved_run_from_being_used_is_told(changes: dict[str, Any], message: str):
    check_saved(saved_config())
    with pytest.raises(ValueError, match=r".") as error:
        check_saved(saved_config(**changes))
    assert message in str(error.value)


@pytest.mark.parametrize("agent", agents.AGENTS)
@pytest.mark.parametrize(("backend", "kind"), [("dm_control", RunConfig), ("mjx", MjxRunConfig)])
def test_options_that_a_former_version_lacked_mean_what_it_did(agent: str, backend: str, kind: type):
    found = with_former_options(saved_config(agent=agent, backend=backend))
    run_options = json.loads(json.dumps(dataclasses.asdict(kind())))
    assert found["run_config"] == run_options | kind.former  # type: ignore[attr-defined]
    assert set(found["agent_config"]) == {
        field.name for field in dataclasses.fields(agents.config_class(agent))
    }
    assert with_former_options(found) == found
    given = with_former_options(saved_config(agent=agent, run_config={"steps": 7, "odd": 1}))
    assert (given["run_config"]["steps"], given["run_config"]["odd"]) == (7, 1)


def test_options_of_an_unknown_agent_are_let_be():
    assert with_former_options(saved_config(agent="x", agent_config={"a": 1}))["agent_config"] == {"a": 1}


def test_an_agents_former_value_is_taken_where_it_differs_from_its_default(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(agents.config_class("sac"), "former", {"n_step": 3}, raising=False)
    assert agent_options("sac", {"discount": 0.5}).n_step == 3
    assert agent_options("sac", {"n_step": 1}).n_step == 1
