from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import pytest

import agents
from agents.parts.types import Sampling
from tests.agents.analytic import small_agent

ROOT = Path(__file__).parents[2]
NAMES = list(agents.AGENTS)
NUMERIC = ("int", "float", "tuple[int, ...]", "tuple[int, ...] | None")


def numeric_options(name: str) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(agents.config_class(name)) if field.type in NUMERIC]


OPTIONS = [(name, field.name) for name in NAMES for field in numeric_options(name)]


def outside(kind: Any, low: float, high: float) -> st.SearchStrategy:
    """Numbers of a field's `kind` that lie outside its inclusive limits."""
    if kind == "float":
        below = st.floats(max_value=low, exclude_max=True) if low > -math.inf else st.nothing()
        above = st.floats(min_value=high, exclude_min=True) if high < math.inf else st.nothing()
        return st.one_of(below, above, st.sampled_from([math.nan, math.inf, -math.inf]))
    below = st.integers(max_value=int(low) - 1)
    return below if high == math.inf else st.one_of(below, st.integers(min_value=int(high) + 1))


# ---- Options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_limits_and_every_limit_a_number(name: str):
    assert {field.name for field in numeric_options(name)} == set(agents.config_class(name).limits)


@pytest.mark.parametrize(("name", "option"), OPTIONS)
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=15)
def test_numbers_outside_their_limits_are_refused_by_name(name: str, option: str, data: st.DataObject):
    config = agents.config_class(name)
    kind = next(field.type for field in numeric_options(name) if field.name == option)
    value = data.draw(outside(kind, *config.limits[option]))
    with pytest.raises(ValueError, match=rf"^{option} is .*; it must be (at least|from) "):
        config(**{option: (8, value) if str(kind).startswith("tuple") else value})


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_the_limits_themselves_are_allowed(name: str, option: str):
    config = agents.config_class(name)
    kind = next(field.type for field in numeric_options(name) if field.name == option)
    for limit in config.limits[option]:
        if math.isfinite(limit):
            value: Any = limit if kind == "float" else int(limit)
            beside: dict[str, Any] = {"denoising_steps": value} if option == "acting_steps" and value else {}
            if "chains_per_state" in config.limits and option in ("batch_size", "chains_per_state"):
                beside = {"batch_size": 2**20, "chains_per_state": 2} | {option: value}
                beside.pop(option)
            config(**{option: (value,) if str(kind).startswith("tuple") else value}, **beside)


def test_an_empty_network_is_refused():
    for option in ("hidden_sizes", "critic_hidden_sizes", "actor_hidden_sizes"):
        with pytest.raises(ValueError, match=f"^{option} is empty"):
            agents.make_agent("sac", 3, 1, **{option: ()})


@pytest.mark.parametrize("part", ["critic", "actor"])
def test_blocks_of_different_widths_are_refused(part: str):
    unequal: dict[str, Any] = {f"{part}_torso": "simba", f"{part}_hidden_sizes": (8, 4)}
    with pytest.raises(ValueError, match=rf"^{part}_hidden_sizes is \(8, 4\); it must hold equal widths"):
        agents.make_agent("sac", 3, 1, **unequal)
    with pytest.raises(ValueError, match=r"^hidden_sizes is \(8, 4\); it must hold equal widths"):
        agents.make_agent("sac", 3, 1, **{f"{part}_torso": "simba", "hidden_sizes": (8, 4)})
    agents.make_agent("sac", 3, 1, **unequal | {f"{part}_torso": "mlp"})


@pytest.mark.parametrize(
    "plain", [agents.config_of("diffusion-pg"), agents.config_of("qsm-clean", target="weighted")]
)
def test_an_update_learns_from_two_states_or_more(plain: Any):
    two = agents.override(plain, batch_size=32, chains_per_state=16)
    for options in ({"batch_size": 16}, {"chains_per_state": 32}):
        with pytest.raises(ValueError, match=r"^chains_per_state is \d+; ") as caught:
            agents.override(two, **options)
    line = "chains_per_state is 32; batch_size, 32, must hold the chains of 2 states or more: raise batch_size to 64, "
    assert str(caught.value) == line + "or lower chains_per_state to 16"
    agents.override(two, batch_size=64, chains_per_state=32)
    if plain.limits["batch_size"][0] < 4:  # two chains at two states
        with pytest.raises(ValueError, match=r"raise batch_size to 4$"):
            agents.override(two, batch_size=2, chains_per_state=2)


def test_a_score_network_has_no_sphere():
    with pytest.raises(ValueError, match=r"^actor_torso is 'simbav2'; it must be one of mlp, simba$"):
        agents.make_agent("qsm", 3, 1, actor_torso="simbav2")


def test_sampling_follows_the_options():
    agent = small_agent("qsm", n_step=3)
    assert agent.sampling == Sampling(batch_size=8, n_step=3)


@pytest.mark.parametrize("name", NAMES)
def test_every_float_is_a_hyperparameter_in_the_state(name: str):
    agent = small_agent(name)
    state = jax.eval_shape(agent.init, jax.random.key(0))
    floats = {field.name for field in numeric_options(name) if field.type == "float"}
    assert set(state.hyperparameters) == floats - set(agent.config.constants)
    assert {(x.shape, x.dtype) for x in state.hyperparameters.values()} == {((), jnp.dtype("float32"))}


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_number_serves_for_a_float(name: str):
    limits = agents.config_class(name).limits
    floats = {field.name for field in numeric_options(name) if field.type == "float"}
    config = agents.config_class(name)(**{option: 1 if limits[option][1] >= 1 else 0 for option in floats})
    hyperparameters = config.hyperparameters()
    assert hyperparameters == dict.fromkeys(floats - set(config.constants), 1.0)
    assert {type(value) for value in hyperparameters.values()} == {float}


@pytest.mark.parametrize("option", ["schedule", "step_variance"])
def test_an_unknown_choice_is_refused_by_name(option: str):
    with pytest.raises(ValueError, match=rf"^{option} is 'betas'; it must be one of "):
        agents.config_class("qsm")(**{option: "betas"})


def test_an_odd_time_embedding_is_refused():
    with pytest.raises(ValueError, match="time_embedding_size is 7; it must be even"):
        small_agent("qsm", time_embedding_size=7)


# ---- Registry -----------------------------------------------------------------------------------------------------


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown agent 'sca'; agents are: qsm, qsm-clean, sac, td3"):
        agents.make_agent("sca", 3, 1)
    with pytest.raises(TypeError, match="score_scale"):
        agents.make_agent("sac", 3, 1, score_scale=1.0)
    with pytest.raises(ValueError, match="--score-scale is no option of this agent; leave it out"):
        agents.override(agents.config_class("sac")(), score_scale=1.0)


@pytest.mark.parametrize("name", NAMES)
def test_options_survive_a_dictionary(name: str):
    config = agents.config_class(name)(hidden_sizes=(8, 4))
    values = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(config).items()}
    assert agents.config_from_dict(name, values) == config
    assert agents.override(config, batch_size=16).batch_size == 16


@pytest.mark.parametrize("name", NAMES)
def test_agents_are_hashable_values(name: str):
    assert small_agent(name) == small_agent(name)
    assert hash(small_agent(name)) == hash(small_agent(name))
    assert small_agent(name) != small_agent(name, discount=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        small_agent(name).config = None


def test_reading_options_imports_no_jax():
    modules = sorted({entry.module for entry in agents.AGENTS.values()})
    code = f"""
import sys, agents, agents.api, agents.config, {", ".join(modules)}
for name in agents.AGENTS:
    agents.config_class(name)()
heavy = {{"jax", "jaxlib", "flax", "optax", "numpy"}} & set(sys.modules)
sys.exit(f"imported {{sorted(heavy)}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
