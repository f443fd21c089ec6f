"""Presets: what each sets, that every agent takes it, and what wins over it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import pytest

import agents

NAMES = list(agents.AGENTS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("preset", agents.PRESETS)
def test_every_agent_takes_every_preset(name: str, preset: agents.PresetName):
    config = agents.config_of(name, preset)
    assert config.preset == preset
    agent = agents.build(name, config, 3, 2)
    jax.eval_shape(agent.init, jax.random.key(0))


def test_every_option_of_a_preset_is_one_of_some_agent_and_no_default_of_all():
    known: dict[str, list[Any]] = {}
    for name in NAMES:
        for field in dataclasses.fields(agents.config_class(name)):
            known.setdefault(field.name, []).append(field.default)
    for preset in agents.PRESETS.values():
        for options in (preset.options, *preset.of.values()):
            assert set(options) <= set(known)
            assert all(set(known[option]) != {value} for option, value in options.items())
        assert set(preset.of) <= {entry.family for entry in agents.AGENTS.values()} | set(NAMES)
        for name in set(preset.of) & set(NAMES):
            fields = {field.name for field in dataclasses.fields(agents.config_class(name))}
            assert set(preset.of[name]) <= fields


def test_an_agent_is_set_before_its_family_and_that_before_all(monkeypatch: pytest.MonkeyPatch):
    of = {"diffusion": {"discount": 0.98, "target_rate": 0.1}, "qsm": {"target_rate": 0.2}}
    preset = agents.PRESETS["paper"]._replace(options={"discount": 0.9, "batch_size": 64}, of=of)
    monkeypatch.setitem(agents.PRESETS, "paper", preset)
    for name, expected in {
        "sac": (64, 0.9, 0.005),
        "qsm-clean": (64, 0.98, 0.1),
        "qsm": (64, 0.98, 0.2),
    }.items():
        options = agents.preset_options(name, "paper")
        found = (options["batch_size"], options["discount"], options.get("target_rate", 0.005))
        assert found == expected


def test_the_plain_one_is_the_defaults():
    assert agents.PLAIN == "paper"
    for name in NAMES:
        assert agents.config_of(name) == agents.config_of(name, "paper") == agents.config_class(name)()


def test_what_is_given_wins():
    config = agents.config_of("td3", "crossq", policy_delay=5, critic_torso="mlp")
    assert (config.policy_delay, config.critic_torso) == (5, "mlp")
    assert config.critic_hidden_sizes == (2048, 2048)
    agent: Any = agents.make_agent("sac", 3, 2, preset="simbav2", num_atoms=11)
    assert agent.config.critic_torso == "simbav2" and agent.head.output_size == 11
    assert agents.config_of("qsm", "simbav2").actor_torso == "simba"  # of the family before that of all


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="preset is 'weak'; it must be one of paper, strong"):
        agents.config_of("sac", "weak")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="preset is 'weak'; it must be one of paper, strong"):
        agents.config_class("sac")(preset="weak")
