"""What every agent owes the loop, whatever it learns: one test for each clause, over all of the registry."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agents
from agents.parts import normalizer
from agents.parts.types import Transition
from envs.api import StepType, TimeStep
from tests.agents.analytic import (
    ACTION_SIZE,
    OBSERVATION_SIZE,
    VARIANTS,
    compiled_update,
    distance,
    initial,
    small_agent,
    small_batch,
    update,
    with_hyperparameters,
)
from tests.keys import check_keys

NAMES = list(agents.AGENTS)
MODES = ("explore", "evaluate")
DOCS = Path(__file__).parents[2] / "docs"
every_agent = pytest.mark.parametrize("name", NAMES)


def some(*names: str, slow: Iterable[str] = ()) -> Any:
    """A test of `names`; of those in `slow` where slow tests are asked for: what they add takes long to compile."""
    marked = [pytest.param(name, marks=pytest.mark.slow) for name in slow]
    return pytest.mark.parametrize("name", [*names, *marked])


every_kind = some(*NAMES, slow=VARIANTS)
DEAR = ("diffusion-ql", "diffusion-pg", "langevin")
"""Agents whose updates take long to compile: what compiles another one for them is slow."""


@functools.cache
def act(agent: Any, mode: str) -> Any:
    return jax.jit(functools.partial(agent.act, mode=mode))


# ---- Values -------------------------------------------------------------------------------------------------------


@some(*[name for name in NAMES if name not in DEAR], slow=DEAR)
@pytest.mark.parametrize(
    ("observation_size", "action_size"),
    [(OBSERVATION_SIZE, ACTION_SIZE), pytest.param(1, 1, marks=pytest.mark.slow)],
)
def test_actions_have_the_shape_of_the_spec_and_stay_in_the_box(
    name: str, observation_size: int, action_size: int
):
    plain = small_agent(name)
    agent = type(plain)(plain.config, observation_size, action_size)
    state = initial(agent)
    observation = 10 * jax.random.normal(jax.random.key(1), (9, observation_size))
    for mode in MODES:
        action = act(agent, mode)(state, observation, jax.random.key(2))
        assert action.shape == (9, action_size) and action.dtype == jnp.float32
        assert float(jnp.abs(action).max()) <= 1.0


@some(*[name for name in NAMES if name not in DEAR], slow=[*DEAR, *VARIANTS])
def test_everything_stays_finite_and_of_its_shape(name: str):
    agent = small_agent(name)
    state = initial(agent)
    for step in range(3):
        new_state, metrics = update(agent, state, step=step, seed=step)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), new_state) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), state
        )
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((new_state, metrics)))
        assert {float(mean.count) for mean in metrics.values()} <= {0.0, 1.0}
        # What was skipped adds nothing, neither zero nor NaN.
        assert all(float(mean.total) == 0.0 for mean in metrics.values() if not mean.count)
        state = new_state
    assert distance(state, initial(agent)) > 0.0


@every_agent
def test_the_family_is_one_of_those_that_tables_and_presets_know(name: str):
    assert agents.AGENTS[name].family in get_args(agents.Family)


@every_agent
def test_a_metric_for_every_name_of_the_docs_page_and_none_beyond(name: str):
    page = DOCS / f"{name}.md"
    assert page.exists(), (
        f"an agent has a page: write docs/{name}.md, with a table of its metrics below ## Metrics"
    )
    _, table = page.read_text().split("## Metrics")
    named = re.findall(r"^\| `([a-z_]+/[a-z_]+)` \|", table, re.MULTILINE)
    assert len(named) == len(set(named))
    of_the_loop = {metric for metric in named if metric.startswith(("loop/", "checkpoint/", "simulator/"))}
    assert set(update(small_agent(name), step=0)[1]) == set(named) - of_the_loop


# ---- What figures ask ---------------------------------------------------------------------------------------------


@some(*[name for name in NAMES if name not in DEAR], slow=DEAR)
def test_a_policy_is_drawn_as_exploring_without_its_noise(name: str):
    agent = small_agent(name)
    state, observation, key = initial(agent), small_batch(0).observation, jax.random.key(2)
    sample = jax.jit(agent.sample_policy)
    drawn = sample(state, observation, key)
    if "action_noise" not in state.hyperparameters:
        np.testing.assert_array_equal(drawn, act(agent, "explore")(state, observation, key))
        return
    quiet, loud = (with_hyperparameters(state, action_noise=std) for std in (0.0, 0.3))
    np.testing.assert_allclose(drawn, act(agent, "explore")(quiet, observation, key), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(drawn, sample(loud, observation, key), rtol=1e-4, atol=1e-5)
    assert distance(drawn, act(agent, "explore")(loud, observation, key)) > 0.01


@every_agent
def test_actions_are_valued_by_the_critics_that_learn(name: str):
    agent = small_agent(name)
    state, batch = initial(agent), small_batch(0)
    state = state._replace(critic=initial(agent, seed=3).critic._replace(target=state.critic.target))
    value = agent.action_value(state, batch.observation, batch.action)
    members = agent.critic.value(state.critic.online.params, batch.observation, batch.action)
    assert members.shape == (2, 8) and value.shape == (8,)
    np.testing.assert_allclose(value, members.min(axis=0), rtol=1e-5)


def test_an_agent_without_critics_values_nothing():
    class Bare(NamedTuple):
        hyperparameters: dict[str, jax.Array]

    batch = small_batch(0)
    assert small_agent("td3").action_value(Bare({}), batch.observation, batch.action) is None


# ---- Purity -------------------------------------------------------------------------------------------------------


@every_kind
def test_functions_are_pure(name: str):
    agent = small_agent(name)
    state = initial(agent)
    copies = [np.array(leaf) for leaf in jax.tree.leaves(state)]
    observation = small_batch(0).observation
    first, again, other = update(agent), update(agent), update(agent, seed=2)
    assert distance(first, again) == 0.0
    # It draws: to act and for its targets, if it learns from any.
    explored = [act(agent, "explore")(state, observation, jax.random.key(seed)) for seed in (3, 3, 4)]
    assert distance(explored[0], explored[1]) == 0.0 < distance(explored[0], explored[2])
    assert distance(first[0], other[0]) > 0.0
    for leaf, copy in zip(jax.tree.leaves(state), copies, strict=True):
        np.testing.assert_array_equal(leaf, copy)


@some("td3", slow=[name for name in NAMES if name != "td3"])
def test_jit_changes_nothing(name: str):
    agent = small_agent(name)
    state, observation = initial(agent), small_batch(0).observation
    plain = agent.update(state, small_batch(0), jax.random.key(1), jnp.asarray(1))
    for got, expected in zip(jax.tree.leaves(plain), jax.tree.leaves(update(agent)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
    for mode in MODES:
        acted = agent.act(state, observation, jax.random.key(2), mode=mode)
        jitted = act(agent, mode)(state, observation, jax.random.key(2))
        np.testing.assert_allclose(acted, jitted, rtol=1e-4, atol=1e-5)


@every_kind
def test_no_key_is_used_twice(name: str):
    agent = small_agent(name)
    state, batch, key = initial(agent), small_batch(0), jax.random.key(1)
    check_keys(agent.init, key)
    check_keys(agent.update, state, batch, key, jnp.asarray(1))
    for mode in MODES:
        check_keys(functools.partial(agent.act, mode=mode), state, batch.observation, key)


def test_a_key_that_an_agent_uses_twice_is_found():
    class Twice(type(small_agent("sac"))):
        def act(self, state: Any, observation: jax.Array, key: jax.Array, *, mode: Any) -> jax.Array:
            again = jax.random.normal(key, (observation.shape[0], 1))
            return super().act(state, observation, key, mode=mode) + again

    agent = Twice(small_agent("sac").config, OBSERVATION_SIZE, ACTION_SIZE)
    act = functools.partial(agent.act, mode="explore")
    with pytest.raises(jax.errors.KeyReuseError):
        check_keys(act, initial(agent), small_batch(0).observation, jax.random.key(0))


# ---- Hyperparameters ----------------------------------------------------------------------------------------------


@every_kind
def test_every_hyperparameter_is_read_from_the_state(name: str):
    """One that is read from the options alone would be the same for every value of a sweep."""
    agent = small_agent(name)
    state, _ = update(agent, step=0)  # some are only read once there is something to follow
    observation = small_batch(0).observation

    def outcome(state: Any) -> Any:
        new_state, metrics = update(agent, state, step=1)
        acted = [act(agent, mode)(state, observation, jax.random.key(2)) for mode in MODES]
        return new_state._replace(hyperparameters=()), metrics, acted

    usual = outcome(state)
    for option, value in state.hyperparameters.items():
        changed = with_hyperparameters(state, **{option: 0.1 * float(value) + 0.05})
        is_read = distance(outcome(changed), usual) > 0.0
        assert is_read != (option == "discount" or option in agent.config.initial), option
        if option == "discount":
            assert float(agent.discount(changed)) == pytest.approx(0.1 * float(value) + 0.05)


@every_agent
def test_values_of_the_start_change_the_start(name: str):
    for option in small_agent(name).config.initial:
        default = getattr(small_agent(name).config, option)
        assert distance(initial(small_agent(name, **{option: default / 2})), initial(small_agent(name))) > 0.0


@some("sac", "td3", slow=[name for name in NAMES if name not in ("sac", "td3")])
def test_each_seed_of_the_axis_learns_what_it_would_alone(name: str):
    assert jax.config.jax_numpy_rank_promotion == "raise"  # type: ignore[attr-defined]
    agent, batch = small_agent(name), small_batch(0, lead=(2,))
    # On the host, where each new shape costs no program.
    states = jax.tree.map(
        lambda *leaves: np.stack(leaves), *jax.device_get((initial(agent), initial(agent, seed=9)))
    )
    over_seeds = jax.vmap(agent.update, in_axes=(0, 0, 0, None))
    new_states, metrics = jax.jit(over_seeds)(states, batch, two_keys(1), jnp.asarray(1))
    assert all(leaf.shape == (2,) for leaf in jax.tree.leaves(metrics))

    def second(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[1], jax.device_get(tree))

    alone = compiled_update(agent).call(second(states), second(batch), two_keys(1)[1], jnp.asarray(1))
    for got, expected in zip(
        jax.tree.leaves((second(new_states), second(metrics))), jax.tree.leaves(alone), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def two_keys(seed: int) -> jax.Array:
    """Keys of two seeds; asking twice gives equal keys that do not count as one used twice."""
    return jax.random.split(jax.random.key(seed), 2)


# ---- Learning -----------------------------------------------------------------------------------------------------


@some(*[name for name in NAMES if name not in DEAR], slow=[*DEAR, *VARIANTS])
def test_the_policy_improves_through_its_learned_critic(name: str):
    """A reward of observation times action, at observations -1 and 1: only the critic is told of it.

    Its optimum lies at the bounds, where published QSM goes; uniform actions yield 0, the best ones 1.
    """
    plain = small_agent(name, batch_size=64)
    agent = type(plain)(plain.config, 1, 1)
    state = jax.jit(agent.init)(jax.random.key(0))
    rates = {
        option: 5e-3 if option.endswith("learning_rate") else 0.05
        for option in state.hyperparameters
        if "rate" in option
    }
    state = with_hyperparameters(state, **rates)

    def learn(index: jax.Array, state: Any) -> Any:
        side_key, action_key, update_key = jax.random.split(jax.random.fold_in(jax.random.key(1), index), 3)
        observation = jax.random.rademacher(side_key, (64, 1), jnp.float32)
        action = jax.random.uniform(action_key, (64, 1), minval=-1.0)
        reward = (observation * action)[:, 0]
        batch = Transition(observation, action, reward, jnp.zeros(64), observation)
        return agent.update(state, batch, update_key, index)[0]

    def score(state: Any) -> float:
        observation = jnp.tile(jnp.array([[-1.0], [1.0]]), (64, 1))
        return float((observation * act(agent, "evaluate")(state, observation, jax.random.key(2))).mean())

    learned = jax.jit(lambda state: jax.lax.fori_loop(0, 400, learn, state))(state)
    assert abs(score(state)) < 0.5
    assert score(learned) > 0.75


# ---- Observations -------------------------------------------------------------------------------------------------


def arrival(observation: jax.Array) -> TimeStep:
    number = observation.shape[0]
    ones: Any = jnp.ones(number)
    return TimeStep(jnp.full(number, StepType.MID, jnp.int8), ones, ones, observation)  # type: ignore[arg-type]


@every_agent
def test_without_a_normalizer_nothing_is_observed(name: str):
    agent = small_agent(name)
    state = initial(agent)
    seen = agent.observe(state, arrival(small_batch(0).observation), jnp.ones(8, bool))
    assert seen is state and state.normalizer == ()


@some("sac", slow=[name for name in NAMES if name != "sac"])
def test_a_normalizer_changes_nothing_but_what_is_seen(name: str):
    """As if the plain agent were given standard observations: in acting and in an update."""
    plain, agent = small_agent(name), small_agent(name, normalize_observations=True)
    batch = small_batch(0)
    wide = 5.0 + 3.0 * batch.observation
    state = jax.jit(agent.observe)(initial(agent), arrival(wide), jnp.ones(8, bool))
    assert distance(state.normalizer, normalizer.init(OBSERVATION_SIZE)) > 1.0

    def standard(observation: jax.Array) -> jax.Array:
        return (observation - wide.mean(axis=0)[None]) / wide.std(axis=0)[None]

    bare = state._replace(normalizer=())
    for mode in MODES:
        acted = act(agent, mode)(state, wide, jax.random.key(2))
        np.testing.assert_allclose(
            acted, act(plain, mode)(bare, standard(wide), jax.random.key(2)), rtol=1e-3, atol=1e-4
        )
    value = agent.action_value(state, wide, batch.action)
    np.testing.assert_allclose(
        value, plain.action_value(bare, standard(wide), batch.action), rtol=1e-3, atol=1e-4
    )
    raw = batch._replace(observation=wide, next_observation=wide[::-1])
    seen = raw._replace(observation=standard(wide), next_observation=standard(wide[::-1]))
    got, expected = update(agent, state, batch=raw), update(plain, bare, batch=seen)
    assert distance(got[0]._replace(normalizer=()), expected[0]) < 1e-3
    assert distance(got[0].normalizer, state.normalizer) == 0.0
    assert distance(got[1], expected[1]) < 1e-2
