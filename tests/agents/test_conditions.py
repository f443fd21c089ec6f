"""Options that are read only where others allow it: elsewhere nothing depends on them, and a person is told."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agents
from agents.conditions import Condition, above, is_off, is_on, left_out, never, one_of, other_than
from envs.api import StepType, TimeStep
from qsm.options import effects
from tests.agents.analytic import SMALL, small_agent, small_batch

NAMES = list(agents.AGENTS)
every_agent = pytest.mark.parametrize("name", NAMES)
Scene = dict[str, Any]
"""Options that make some conditions false."""


def conditions(name: str) -> dict[str, Condition]:
    return agents.config_class(name).conditions


@functools.cache
def hints(name: str) -> dict[str, Any]:
    return get_type_hints(agents.config_class(name))


def values_of(name: str, option: str) -> list[Any]:
    """Some values of an option: all choices, and of what is counted a small and a larger number."""
    hint = hints(name)[option]
    if get_origin(hint) is Literal:
        return [*get_args(hint)]
    if hint is bool:
        return [False, True]
    if hint is int:
        low = int(agents.config_class(name).limits[option][0])
        return [SMALL[option], SMALL[option] // 2] if option in SMALL else [low, low + 2]
    if hint is float:
        default = getattr(agents.config_class(name)(), option)
        return [default, 0.5 * default + 0.13]
    return [None, (8, 8)] if type(None) in get_args(hint) else [(16, 16), (24, 24)]


def config_of(name: str, **options: Any) -> Any:
    """The options of a small agent; None where they do not go together."""
    try:
        return small_agent(name, **options).config
    except ValueError:
        return None


def false_scenes(name: str, option: str) -> Iterator[Scene]:
    """Every way, among `values_of`, in which the condition of `option` does not hold."""
    condition = conditions(name)[option]
    for values in itertools.product(*(values_of(name, asked) for asked in condition.options)):
        scene = dict(zip(condition.options, values, strict=True))
        config = config_of(name, **scene)
        if config is not None and not condition.holds(config):
            yield scene


def merged_scenes(name: str) -> list[Scene]:
    """Few scenes in which each option has each of its `false_scenes`."""
    merged: list[Scene] = []
    for option in conditions(name):
        for scene in false_scenes(name, option):
            for one in merged:
                agrees = all(one.get(key, value) == value for key, value in scene.items())
                if agrees and option not in one and config_of(name, **one | scene) is not None:
                    one |= scene
                    break
            else:
                merged.append(dict(scene))
    return merged


# ---- What conditions say ------------------------------------------------------------------------------------------


@every_agent
def test_conditions_are_of_options_and_name_options(name: str) -> None:
    fields = {field.name for field in dataclasses.fields(agents.config_class(name))}
    for option, condition in conditions(name).items():
        assert {option, *condition.options} <= fields and option not in condition.options
        assert next(false_scenes(name, option), None) is not None, f"{option} is always read"


@every_agent
def test_every_condition_can_be_met_unless_it_says_why_not(name: str) -> None:
    for option, condition in conditions(name).items():
        asked = [values_of(name, other) for other in condition.options]
        configs = [
            config_of(name, **dict(zip(condition.options, values, strict=True)))
            for values in itertools.product(*asked)
        ]
        met = any(config is not None and condition.holds(config) for config in configs)
        assert met == bool(condition.options), option


def test_conditions_hold_as_their_words_say() -> None:
    @dataclasses.dataclass
    class Options:
        number: int = 1
        kind: str = "a"
        switch: bool = True
        widths: tuple[int, ...] | None = None

    config = Options()
    for condition, words in {
        one_of("kind", "a", "b", "c"): "{kind} is a, b or c",
        other_than("kind", "b"): "{kind} is not b",
        above("number", 0): "{number} is above 0",
        is_on("switch"): "{switch} is on",
        left_out("widths"): "{widths} is left out",
        one_of("kind", "a") & is_on("switch"): "{kind} is a and {switch} is on",
        one_of("kind", "b") | is_on("switch"): "{kind} is b, or {switch} is on",
    }.items():
        assert condition.holds(config) and condition.words == words
    for condition in (
        one_of("kind", "b"),
        other_than("kind", "a"),
        above("number", 1),
        is_off("switch"),
        one_of("kind", "b") & is_on("switch"),
        one_of("kind", "a") & is_off("switch"),
        one_of("kind", "b") | is_off("switch"),
        never("it has none"),
    ):
        assert not condition.holds(config)
    assert not is_on("switch").holds(Options(switch=False))
    assert not left_out("widths").holds(Options(widths=(8,)))
    both = one_of("kind", "b") | (is_on("switch") & above("number", 3) & one_of("kind", "a"))
    assert both.options == ("kind", "switch", "number") and never("it has none").options == ()


# ---- What is read -------------------------------------------------------------------------------------------------


def traces(agent: Any, left_out: set[str]) -> list[Any]:
    """The programs of an agent as texts, each with its constants, without the hyperparameters `left_out`.

    One that a program computes with all the same is a TypeError.
    """
    key, batch = jax.random.key(0), small_batch(0)
    state = jax.eval_shape(agent.init, key)
    nothing = {name: object() for name in left_out & set(state.hyperparameters)}
    kept = {name: value for name, value in state.hyperparameters.items() if name not in nothing}
    state = state._replace(hyperparameters=kept)

    def update(state: Any, *inputs: Any) -> Any:
        new_state, metrics = agent.update(
            state._replace(hyperparameters=state.hyperparameters | nothing), *inputs
        )
        return new_state._replace(hyperparameters=()), metrics

    ones = jnp.ones(8)
    arrival: Any = TimeStep(jnp.full(8, StepType.MID, jnp.int8), ones, ones, batch.observation)  # type: ignore[arg-type]

    def programs() -> Iterator[Any]:
        yield jax.make_jaxpr(lambda key: agent.init(key)._replace(hyperparameters=()))(key)
        yield jax.make_jaxpr(update)(state, batch, key, jnp.asarray(1))
        yield jax.make_jaxpr(agent.observe)(state, arrival, jnp.ones(8, bool))
        for mode in ("explore", "evaluate"):
            yield jax.make_jaxpr(functools.partial(agent.act, mode=mode))(state, batch.observation, key)

    return [
        (re.sub(r"0x[0-9a-f]+", "", str(program)), [np.asarray(constant) for constant in program.consts])
        for program in programs()
    ]


def differ(first: list[Any], second: list[Any]) -> bool:
    """Whether two lists of `traces` are of other programs."""
    return any(
        text != other or len(constants) != len(others) or not all(map(np.array_equal, constants, others))
        for (text, constants), (other, others) in zip(first, second, strict=True)
    )


def unread_in(name: str, scene: Scene) -> Scene:
    """Another value for each option that nothing reads in `scene`, itself apart."""
    config = config_of(name, **scene)
    names = set(conditions(name)) - set(scene)
    return {
        option: next(value for value in values_of(name, option) if value != getattr(config, option))
        for option in agents.without_effect(config, names)
    }


def check_scene(name: str, scene: Scene) -> None:
    """Returns where all options that nothing reads in `scene` can be changed without changing a program."""
    changed = unread_in(name, scene)
    names, usual = set(changed), small_agent(name, **scene)
    other = small_agent(name, **scene | changed)
    assert set(agents.without_effect(other.config, names)) == names
    assert not differ(traces(usual, names), traces(other, names)), (scene, changed)


def test_nothing_reads_an_option_without_its_condition() -> None:
    scene: Scene = {}  # what they are where nothing is said
    assert {"num_atoms", "critic_weight_norm", "last_learning_rate"} <= set(unread_in("td3", scene))
    check_scene("td3", scene)


@pytest.mark.slow
@every_agent
def test_nothing_reads_an_option_in_any_scene_without_its_condition(name: str) -> None:
    for scene in merged_scenes(name):
        check_scene(name, scene)


@pytest.mark.slow
def test_an_option_that_is_read_is_found() -> None:
    usual = small_agent("td3")
    for option, value in {"num_critics": 3, "adam_beta1": 0.5, "policy_delay": 3}.items():
        assert differ(traces(usual, set()), traces(small_agent("td3", **{option: value}), set())), option
    with pytest.raises(TypeError, match="object"):
        traces(small_agent("sac"), {"target_rate"})


# ---- What is told -------------------------------------------------------------------------------------------------


def told(name: str, **options: Any) -> list[str]:
    return effects.of_agent(name, agents.config_of(name, **options), set(options))


def test_what_has_no_effect_is_told_with_its_condition_and_what_to_do() -> None:
    assert told("qsm-clean", chains_per_state=16, act_with_chain=False, discount=0.9) == [
        "--chains-per-state 16 has no effect: read only where --target is weighted; change that, or leave it out",
        "--no-act-with-chain has no effect: read only where --target is fitted or weighted and --acting-sampler is "
        "ancestral and --acting-steps is 0 or --denoising-steps; change that, or leave it out",
    ]
    assert told("qsm-clean", step_fit="unit", fit_rate=0.5) == [
        "--step-fit unit and --fit-rate 0.5 have no effect: read only where --target is fitted or weighted; change "
        "that, or leave them out"
    ]
    assert told("langevin", actor_torso="simba") == [
        "--actor-torso simba has no effect: its actions come from the critics, without an actor network; leave it out"
    ]


def test_what_is_read_or_changes_nothing_by_itself_is_not_told() -> None:
    assert told("qsm-clean", chains_per_state=16, target="weighted") == []
    assert told("qsm", num_atoms=101, discount=0.9) == []  # as if nothing had been said
    assert told("qsm", num_atoms=51, critic_head="c51") == []
    assert told("td3", target_rate=0.1, critic_torso="batchnorm") == []
    assert len(told("sac", target_rate=0.1, critic_torso="batchnorm")) == 1


@every_agent
@pytest.mark.parametrize("preset", agents.PRESETS)
def test_no_preset_is_told_of(name: str, preset: agents.PresetName) -> None:
    assert effects.of_agent(name, agents.config_of(name, preset), {"preset"}) == []
    # What the line takes back of a preset is not told of either, but what it adds is.
    config = agents.config_of(name, preset, critic_head="scalar", num_atoms=51)
    assert len(effects.of_agent(name, config, {"critic_head", "num_atoms"})) == 1
