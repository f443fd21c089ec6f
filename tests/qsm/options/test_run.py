"""The options of a run and what they refuse."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest

import agents
from qsm.options.run import RunConfig


def test_defaults_are_those_of_the_paper():
    config = RunConfig()
    assert (config.random_steps, config.replay_capacity) == (10_000, 1_000_000)
    assert config.updates_per_step == 1
    assert (config.eval_interval, config.eval_episodes) == (5_000, 10)


@pytest.mark.parametrize(
    ("text", "ratio"), [("2", Fraction(2)), ("1/4", Fraction(1, 4)), ("0.1", Fraction(1, 10)), ("1024", 1024)]
)
def test_replay_ratio_is_exact(text: str, ratio: Fraction):
    assert RunConfig(replay_ratio=text).updates_per_step == ratio


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1/0", "nan", "inf", "1e999999999", "1025", "one", "1/2/3", "9" * 99]
)
def test_replay_ratio_that_cannot_be_is_refused(text: str):
    with pytest.raises(ValueError, match=r"^replay_ratio is .*it must be"):
        RunConfig(replay_ratio=text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("seed", 2**31),
        ("steps", 0),
        ("random_steps", 0),
        ("replay_capacity", 1),
        ("action_repeat", 0),
        ("eval_interval", 0),
        ("eval_episodes", 0),
        ("log_interval", -5),
        ("checkpoint_interval", 0),
        ("wandb", "of"),
    ],
)
def test_a_value_out_of_limits_is_refused(field: str, value: object):
    with pytest.raises(ValueError, match=f"^{field} is {value!r}; it must be"):
        RunConfig(**{field: value})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("steps", [1, 10_000])
def test_a_run_that_would_never_update_is_refused(steps: int):
    with pytest.raises(ValueError, match=r"random_steps is 10000.*never learn"):
        RunConfig(steps=steps)
    RunConfig(steps=steps + 1, random_steps=steps)


def test_options_of_runs_and_agents_have_different_names():
    run = {field.name for field in dataclasses.fields(RunConfig)}
    for name in agents.AGENTS:
        assert not run & {field.name for field in dataclasses.fields(agents.config_class(name))}
