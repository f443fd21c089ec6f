"""qsm-clean with weighted chains: what its draws, target, statistics and temperature are; with real critics."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agents
from agents.parts import measure, score
from agents.parts.paths import plain, weights
from agents.parts.paths.options import PATH_FLOATS
from tests.agents.analytic import (
    distance,
    initial,
    small_agent,
    small_batch,
    update,
    with_hyperparameters,
    with_values,
)
from tests.keys import check_keys

weighted_agent = functools.partial(small_agent, "qsm-clean", target="weighted", chains_per_state=4)
FULL = weighted_agent(temperature="entropy", critic_target="soft", target_samples=2)
FLOORS = ("target_entropy_per_action", "effective_floor")
DOCS = Path(__file__).parents[2] / "docs" / "qsm-clean.md"


# ---- Options ------------------------------------------------------------------------------------------------------


def test_chains_must_divide_the_batch():
    with pytest.raises(ValueError, match="chains_per_state is 3; it must divide batch_size, 256"):
        agents.make_agent("qsm-clean", 3, 1, target="weighted", chains_per_state=3)
    agents.make_agent("qsm-clean", 3, 1, chains_per_state=3)  # not read


@pytest.mark.parametrize(("option", "value"), [("temperature", "entropy"), ("critic_target", "soft")])
def test_what_needs_weights_is_refused_without_them(option: str, value: str):
    with pytest.raises(
        ValueError, match=f"{option} is '{value}', which needs target 'weighted'; target is 'clean'"
    ):
        small_agent("qsm-clean", **{option: value})


@pytest.mark.parametrize(
    "options", [{"temperature": "entropy"}, {"temperature": "spread"}, {"critic_target": "entropy"}]
)
def test_an_infinite_temperature_is_refused_where_it_is_learned_or_counted(options: dict[str, str]):
    """It would give no number: log(inf), and inf times an entropy. Elsewhere it is the uniform policy."""
    with pytest.raises(ValueError, match=f"{next(iter(options))} is '.*needs inverse_temperature above 0"):
        weighted_agent(**options, inverse_temperature=0)
    weighted_agent(inverse_temperature=0)


def test_its_floats_are_hyperparameters_where_chains_are_weighted():
    bare, weighted = (agent.config.hyperparameters() for agent in (small_agent("qsm-clean"), FULL))
    assert set(weighted) - set(bare) == set(PATH_FLOATS)


# ---- What every agent owes the loop -------------------------------------------------------------------------------


@pytest.mark.slow
def test_everything_stays_finite_and_of_its_shape():
    state = initial(FULL)
    for step in range(3):
        new_state, metrics = update(FULL, state, step=step, seed=step)
        assert jax.tree.map(jnp.shape, new_state) == jax.tree.map(jnp.shape, state)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((new_state, metrics)))
        state = new_state


@pytest.mark.slow
def test_no_key_is_used_twice():
    check_keys(FULL.update, initial(FULL), small_batch(0), jax.random.key(1), jnp.asarray(1))


@pytest.mark.slow
def test_every_hyperparameter_is_read_from_the_state():
    state, _ = update(FULL, step=0)
    observation = small_batch(0).observation
    act = jax.jit(functools.partial(FULL.act, mode="explore"))

    def outcome(state: Any) -> Any:
        new_state, metrics = update(FULL, state, step=1)
        return new_state._replace(hyperparameters=()), metrics, act(state, observation, jax.random.key(2))

    usual = outcome(state)
    others = set(state.hyperparameters) - {"discount", "inverse_temperature", *FLOORS}
    for option in others:
        value = 0.99 if option == "tempering_share" else 0.1 * float(state.hyperparameters[option]) + 0.05
        assert distance(outcome(with_hyperparameters(state, **{option: value})), usual) > 0.0, option
    # A floor moves the temperature where it is the nearer one.
    for option, other in zip(FLOORS, reversed(FLOORS), strict=True):
        far = with_hyperparameters(state, **{other: -50.0})
        moved = with_hyperparameters(far, **{option: 0.37})
        assert distance(outcome(far)[0].paths, outcome(moved)[0].paths) > 0.0, option
    # A tuned temperature starts from what an agent is built with.
    other = initial(weighted_agent(temperature="entropy", inverse_temperature=2.0))
    assert float(other.paths.log_temperature.params) == pytest.approx(-np.log(2.0))


@pytest.mark.slow
def test_a_metric_for_every_name_of_the_docs_and_none_beyond():
    named = set(re.findall(r"^\| `(path/[a-z_]+)` \|", DOCS.read_text(), re.MULTILINE))
    assert named == set(update(FULL, step=0)[1]) - set(update(small_agent("qsm-clean"), step=0)[1])


# ---- Draws and target ---------------------------------------------------------------------------------------------


def test_chains_of_a_state_stand_together_and_come_from_the_slow_network():
    agent = weighted_agent(action_noise=0.0)
    state = initial(agent)._replace(average=initial(agent, seed=9).score.params)
    batch, key, hyper = small_batch(0), jax.random.key(3), initial(agent).hyperparameters
    drawn = jax.jit(agent.draw)(state, batch, key)
    # One pass over s' and over the first 8 / 4 states, each four times.
    here = np.repeat(np.asarray(batch.observation[:2]), 4, axis=0)
    np.testing.assert_array_equal(agent.chains.states(batch.observation), here)
    both = jnp.concatenate([batch.next_observation, here])
    draw_key = jax.random.split(jax.random.split(key)[0])[0]
    paths = jax.jit(agent.chains.paths)(state.paths, state.average, both, draw_key, hyper)
    np.testing.assert_allclose(drawn.action, np.tanh(paths.unsquashed[:8]), atol=1e-5)
    np.testing.assert_allclose(drawn.unsquashed, paths.unsquashed[8:], atol=1e-4)
    np.testing.assert_allclose(drawn.ell, paths.ell[8:], rtol=1e-3, atol=1e-3)
    assert drawn.bonus is None


@pytest.mark.parametrize("act_with_chain", [True, False])
def test_acting_draws_chains_or_samples_plainly(act_with_chain: bool):
    agent = weighted_agent(act_with_chain=act_with_chain)
    state, observation, key = initial(agent), small_batch(0).observation, jax.random.key(3)
    found = jax.jit(agent.sample)(state, observation, key)
    clip, params = state.hyperparameters["sample_clip"], state.average
    if act_with_chain:
        chains = agent.chains.paths(state.paths, params, observation, key, state.hyperparameters)
        expected = chains.unsquashed
    else:
        expected = agent.denoiser.sample(params, observation, key, clip_clean=clip)
    np.testing.assert_allclose(found, np.tanh(expected), atol=1e-4)


def value(params: Any, observation: jax.Array, action: jax.Array) -> jax.Array:
    """Two critics, linear in the first component and quadratic in the second, times `params`."""
    first = action[:, 0] - jnp.square(action[:, 1])
    return params * jnp.stack([first, 3 * first])


def target_of(factor: float = 1.0, size: float = 2.0, **options: Any) -> Any:
    """Score target, gradient size and metrics at 16 u_0 of four states, and what they came from."""
    bare = weighted_agent(**options)
    agent, state = with_values(bare, value), initial(bare)
    state = state._replace(
        gradient_size=jnp.asarray(factor * size),
        paths=state.paths._replace(spread=jnp.array([0.2, 0.5]), residual=state.paths.residual / 3),
    )
    rng = np.random.default_rng(0)
    unsquashed, ell = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((16, 2), 16))
    found = agent.score_target(state, factor, jnp.zeros((16, 3)), unsquashed, jax.random.key(1), ell)
    return found, (unsquashed, ell)


def test_each_sample_weighs_by_its_chain():
    (target, size, metrics), (unsquashed, ell) = target_of(tempering_share=0.5)
    action = np.tanh(np.asarray(unsquashed, np.float64))
    q = 2 * (action[:, 0] - action[:, 1] ** 2)
    log_weight = (q * 10 / float(size) + np.asarray(ell)).reshape(4, 4)
    eta = float(metrics["path/tempering"].total)
    assert 0 < eta < 1
    powers = np.exp(eta * (log_weight - log_weight.max(axis=1, keepdims=True)))
    np.testing.assert_allclose(
        target.weight, (4 * powers / powers.sum(axis=1, keepdims=True)).reshape(-1), rtol=1e-3, atol=1e-6
    )
    effective = weights.effective(jnp.asarray(log_weight)).mean() / 4
    assert float(metrics["path/effective_share"].total) == pytest.approx(float(effective), rel=1e-4)
    assert float(metrics["path/entropy_per_action"].total) == pytest.approx(float(ell.mean()) / 2, rel=1e-4)


def test_the_mixture_is_fitted_and_unit_is_the_clean_target():
    bare = small_agent("qsm-clean")
    (unit, _, _), (unsquashed, _) = target_of(target_fit="unit")
    state = initial(bare)._replace(gradient_size=jnp.asarray(2.0))
    clean = with_values(bare, value).score_target(
        state, 1.0, jnp.zeros((16, 3)), unsquashed, jax.random.key(1)
    )
    np.testing.assert_allclose(unit.noise, clean[0].noise, rtol=1e-5, atol=1e-6)
    assert clean[0].weight is None
    for fitted in ("spread", "residual"):
        (target, _, _), _ = target_of(target_fit=fitted)
        schedule = bare.denoiser.schedule
        sigma2, index = schedule.sigma**2, np.asarray(unit.level) - 1
        variance = np.array([0.2, 0.5])
        c = sigma2[:, None] * variance / (schedule.abar[:, None] * variance + sigma2[:, None])
        c = c if fitted == "spread" else sigma2[:, None] / 3
        share = (1 - (schedule.abar / sigma2)[:, None] * c)[index]
        # Both terms from two mixtures of them: the clean target's and eps itself.
        root = np.sqrt(schedule.abar)[index][:, None]
        eps = (np.asarray(unit.noised) - root * np.asarray(unsquashed)) / np.sqrt(sigma2)[index][:, None]
        own = sigma2[index][:, None]
        gradient = (np.asarray(unit.noise) - own * eps) / (1 - own)
        np.testing.assert_allclose(target.noise, share * eps + (1 - share) * gradient, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("temperature", ["gradient", "entropy"])
def test_values_times_ten_change_nothing_but_the_temperature(temperature: str):
    (one, size, metrics), _ = target_of(temperature=temperature)
    (ten, ten_size, ten_metrics), _ = target_of(10.0, temperature=temperature)
    np.testing.assert_allclose(ten.noise, one.noise, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ten.weight, one.weight, rtol=1e-3, atol=1e-5)
    assert float(ten_size) == pytest.approx(10 * float(size), rel=1e-5)
    of_tau = "score/temperature"
    assert float(ten_metrics[of_tau].total) == pytest.approx(10 * float(metrics[of_tau].total), rel=1e-5)
    for name in ("path/effective_share", "path/entropy_per_action", "path/log_normalizer"):
        assert float(ten_metrics[name].total) == pytest.approx(float(metrics[name].total), rel=1e-3)


@pytest.mark.parametrize(
    ("entropy", "share", "falls"), [(0.5, 0.6, True), (-0.7, 0.6, False), (0.5, 0.3, False)]
)
def test_the_temperature_follows_what_was_measured_without_tempering(
    entropy: float, share: float, falls: bool
):
    agent = weighted_agent(temperature="entropy")
    state, batch = initial(agent), small_batch(0)
    values = {"path/entropy_per_action": entropy, "path/effective_share": share, "path/tempering": 1.0}
    measured = {name: measure.mean(jnp.float32(value)) for name, value in values.items()}
    unsquashed = jnp.full((8, 2), 0.5)
    noised = agent.denoiser.add_noise(unsquashed, jax.random.key(0))
    target = score.ScoreTarget(noised.action, noised.level, noised.noise)
    paths, _ = agent.chains.follow(
        state.paths,
        state.average,
        batch.observation,
        plain.Drawn(unsquashed, unsquashed),
        target,
        measured,
        state.hyperparameters,
    )
    moved = float(paths.log_temperature.params - state.paths.log_temperature.params)
    assert moved == pytest.approx(-3e-4 if falls else 3e-4, rel=1e-2)
    # Equal chains have no spread: the running mean moves by its rate.
    np.testing.assert_allclose(paths.spread, 0.99, rtol=1e-5)
