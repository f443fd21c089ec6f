"""qsm-clean with fitted variances: its draws, its target and its residuals; and cold policies stay off the bounds."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agents
from agents.parts import boltzmann, critic, measure, optimizer
from agents.parts.paths.options import PATH_FLOATS
from agents.parts.types import Transition
from tests.agents.analytic import LONG_RUN, initial, small_agent, small_batch, with_hyperparameters, with_part
from tests.agents.analytic import with_gradient as analytic
from tests.agents.exact_chain import FittedChain

fitted_agent = functools.partial(small_agent, "qsm-clean", target="fitted")


@pytest.mark.parametrize("option", ["step_fit", "target_fit"])
def test_a_spread_within_states_needs_several_chains_of_each(option: str):
    with pytest.raises(ValueError, match="is 'spread', which needs target 'weighted'; target is 'fitted'"):
        fitted_agent(**{option: "spread"})


def test_its_hyperparameters_are_those_that_it_reads():
    bare = small_agent("qsm-clean").config.hyperparameters()
    found = fitted_agent().config.hyperparameters()
    assert set(found) - set(bare) == {"fit_rate", "drift_limit"}
    held = fitted_agent(temperature="spread").config.hyperparameters()
    assert set(held) - set(found) == {"target_spread", "temperature_learning_rate"}
    weighted = small_agent("qsm-clean", target="weighted", temperature="spread").config.hyperparameters()
    assert set(weighted) - set(bare) == {*PATH_FLOATS, "target_spread"}


def test_a_spread_is_not_held_by_a_target_that_overshoots():
    with pytest.raises(ValueError, match="needs target 'fitted' or 'weighted'; target is 'clean'"):
        small_agent("qsm-clean", temperature="spread")


@pytest.mark.parametrize(
    ("target", "temperature"), [("clean", "gradient"), ("fitted", "gradient"), ("fitted", "spread")]
)
def test_second_actions_are_drawn_at_the_same_states(target: str, temperature: str):
    # To learn, chains are drawn with their fitted variances however the agent acts.
    more = {} if target == "clean" else {"act_with_chain": False}
    agent = small_agent("qsm-clean", target=target, temperature=temperature, **more)
    state = initial(agent)._replace(average=initial(agent, seed=9).score.params)
    batch, key = small_batch(0), jax.random.key(3)
    drawn = jax.jit(agent.draw)(state, batch, key)
    again = batch.observation if temperature == "spread" else batch.observation[:0]
    observations = jnp.concatenate([batch.next_observation, batch.observation, again])
    sample = jax.jit(agent.chains.sample_to_learn)
    sample_key = jax.random.split(key)[0]
    expected = sample(state.paths, state.average, observations, sample_key, state.hyperparameters)
    np.testing.assert_allclose(drawn.action, np.tanh(expected[:8]), atol=1e-5)
    np.testing.assert_allclose(drawn.unsquashed, expected[8:16], atol=1e-4)
    if temperature == "gradient":
        assert drawn.alike is None
        return
    np.testing.assert_allclose(drawn.alike[:, 0], np.tanh(expected[8:16]), atol=1e-5)
    np.testing.assert_allclose(drawn.alike[:, 1], np.tanh(expected[16:]), atol=1e-5)


def target_of(factor: float = 1.0, limit: float = 1e6, **options: Any) -> Any:
    """Target, size and metrics at 400 u_0 of grad_a Q = factor (0.5 - a), and the chains' state."""
    plain = small_agent("qsm-clean", temperature="fixed", inverse_temperature=3.0, **options)
    agent, state = analytic(plain, lambda action: factor * (0.5 - action)), initial(plain)
    if options.get("target") == "fitted":
        state = with_hyperparameters(state, drift_limit=limit)
    unsquashed = jnp.asarray(np.random.default_rng(0).normal(size=(400, 2)), jnp.float32)
    found = agent.score_target(state, (), jnp.zeros((400, 3)), unsquashed, jax.random.key(1))
    return *found, state


def test_before_anything_is_known_the_target_is_the_clean_one():
    clean, fitted = target_of()[0], target_of(target="fitted")[0]
    np.testing.assert_allclose(fitted.noise, clean.noise, rtol=1e-4, atol=1e-5)
    assert fitted.weight is None


def test_a_drift_beyond_its_limit_is_that_of_a_higher_temperature():
    """Q's part of c_t grad_u is drift_limit sqrt(c_t) then, root mean square; the Jacobian's part stays as it is."""
    found, _, metrics, state = target_of(20.0, 1.5, target="fitted")
    free_metrics = target_of(20.0, target="fitted")[2]
    level = np.asarray(found.level) - 1
    unsquashed = np.random.default_rng(0).normal(size=(400, 2))
    squashed = np.tanh(unsquashed)
    pull, volume = (1 - squashed**2) * 20.0 * (0.5 - squashed) * 3.0, -2 * squashed
    # Residuals are those of unit spread in the beginning: sigma_t^2, of which sigma_t^2 / abar_t is never exceeded.
    sigma = np.asarray(state.paths.residual)[level] ** 0.5
    drift = np.sqrt(np.mean(sigma**2 * pull**2))
    assert drift > 4.0
    assert float(metrics["score/drift"].total) == pytest.approx(drift, rel=1e-4)
    assert float(metrics["score/drift_share"].total) == pytest.approx(1.5 / drift, rel=1e-4)
    assert float(free_metrics["score/drift_share"].total) == 1.0
    root_abar = np.sqrt(1 - sigma**2)
    noise = (np.asarray(found.noised) - root_abar * unsquashed) / sigma
    expected = sigma**2 * noise - sigma * root_abar * (1.5 / drift * pull + volume)
    np.testing.assert_allclose(found.noise, expected, rtol=1e-3, atol=2e-3)


def test_a_drift_counts_no_more_variance_than_the_noise_leaves():
    """u_0 is open to sigma_t^2 / abar_t at most, whatever the residual says."""
    agent = fitted_agent(temperature="fixed")
    schedule, state = agent.denoiser.schedule, initial(agent)
    paths = state.paths._replace(residual=jnp.full_like(state.paths.residual, 1e6))
    noised = agent.denoiser.add_noise(jnp.zeros((400, 2)), jax.random.key(0))
    ones = boltzmann.Score(jnp.ones((400, 2)), jnp.zeros((400, 2)))
    _, metrics = agent.chains.target(paths, noised, ones, None, jnp.zeros(400), state.hyperparameters)
    most = (schedule.sigma**2 / schedule.abar)[np.asarray(noised.level) - 1]
    assert float(metrics["score/drift"].total) == pytest.approx(np.sqrt(most.mean()), rel=1e-4)


def of_drift(drift: float) -> dict[str, Any]:
    return {"score/drift": measure.mean(jnp.float32(drift))}


@pytest.mark.parametrize(
    ("std", "drift", "asked", "falls"),
    [
        (0.3, 1.7, 0.2, True),
        (0.3, 1.8, 0.2, False),
        (0.1, 1.7, 0.2, False),
        (0.1, 1.8, 0.2, False),
        (0.3, 1.7, 0.4, False),
    ],
)
def test_a_tuned_temperature_falls_only_while_the_policy_follows(
    std: float, drift: float, asked: float, falls: bool
):
    agent = fitted_agent(temperature="spread")
    state, batch = with_hyperparameters(initial(agent), target_spread=asked), small_batch(0)
    drawn = agent.draw(state, batch, jax.random.key(0))
    pairs = jnp.tile(jnp.array([[[std], [-std]]]) / jnp.sqrt(2.0), (8, 1, 2))
    noised = agent.denoiser.add_noise(drawn.unsquashed, jax.random.key(0))
    target = agent.chains.mixed(state.paths, noised, jnp.zeros((8, 2)))
    paths, metrics = agent.chains.follow(
        state.paths,
        state.average,
        batch.observation,
        drawn._replace(alike=pairs),
        target,
        of_drift(drift),
        state.hyperparameters,
    )
    assert float(metrics["score/spread"].total) == pytest.approx(std, rel=1e-5)
    moved = float(paths.log_temperature.params - state.paths.log_temperature.params)
    assert moved == pytest.approx(-3e-4 if falls else 3e-4, rel=1e-2)


def test_residuals_follow_what_the_network_leaves_open():
    agent = fitted_agent(fit_rate=1.0)
    state = initial(agent)
    unsquashed = jnp.asarray(np.random.default_rng(0).normal(size=(4000, 2)), jnp.float32)
    observation = jnp.zeros((4000, 3))
    noised = agent.denoiser.add_noise(unsquashed, jax.random.key(0))
    target = agent.chains.mixed(state.paths, noised, jnp.zeros_like(unsquashed))
    drawn = agent.draw(state, small_batch(0), jax.random.key(1))._replace(unsquashed=unsquashed)
    paths, metrics = agent.chains.follow(
        state.paths, state.average, observation, drawn, target, of_drift(1.0), state.hyperparameters
    )
    assert metrics == {}
    predicted = agent.denoiser.apply(state.average, observation, target.noised, target.level)
    schedule, level = agent.denoiser.schedule, np.asarray(target.level) - 1
    sigma, root = schedule.sigma[level][:, None], np.sqrt(schedule.abar)[level][:, None]
    implied = np.clip((np.asarray(target.noised) - sigma * np.asarray(predicted)) / root, -3, 3)
    square = (np.asarray(unsquashed) - implied) ** 2
    for t in range(3):
        share = 3 * (level == t).sum() / 4000  # how far a level moves by its share of the batch
        expected = square[level == t].mean(axis=0)
        before = np.asarray(state.paths.residual)[t]
        np.testing.assert_allclose(paths.residual[t], before + min(share, 1) * (expected - before), rtol=0.05)


# ---- Cold policies ------------------------------------------------------------------------------------------------


class Quadratic(critic.Critic):
    """Q = -|a - 0.3|^2 / 2."""

    def action_gradient(self, params: Any, observation: jax.Array, action: jax.Array) -> Any:
        distance = action - 0.3
        return -0.5 * jnp.square(distance).sum(axis=-1), -distance


def course(target: str, std: float, action_size: int, num_updates: int) -> np.ndarray:
    """Mean, std and share at the bounds of the actions of on-policy updates towards N(0.3, std^2), `[U, 3]`."""
    plain: Any = agents.make_agent(
        "qsm-clean",
        1,
        action_size,
        batch_size=128,
        hidden_sizes=(32, 32),
        time_embedding_size=16,
        time_hidden_sizes=(16,),
        target=target,
        temperature="fixed",
        inverse_temperature=std**-2,
        draw_rate=0.01,
    )
    agent: Any = with_part(plain, critic=Quadratic(plain.critic.network, plain.critic.head))
    observation, zeros = jnp.zeros((128, 1)), jnp.zeros(128)
    batch = Transition(observation, jnp.zeros((128, action_size)), zeros, zeros, observation)

    def step(state: Any, index: jax.Array) -> tuple[Any, jax.Array]:
        draw_key, target_key = jax.random.split(jax.random.fold_in(jax.random.key(1), index))
        drawn = agent.draw(state, batch, draw_key)
        target, size, metrics = agent.score_target(state, (), observation, drawn.unsquashed, target_key)
        paths, _ = agent.chains.follow(
            state.paths, state.average, observation, drawn, target, metrics, state.hyperparameters
        )
        learned, _ = optimizer.descend(agent.denoiser.loss, state.score, 2e-3, observation, target)
        average = optimizer.polyak(state.average, learned.params, state.hyperparameters["draw_rate"])
        state = state._replace(score=learned, average=average, gradient_size=size, paths=paths)
        action = jnp.tanh(drawn.unsquashed)
        spread, is_bound = jnp.sqrt(action.var(axis=0).mean()), jnp.abs(action) > 0.99
        return state, jnp.stack([action.mean(), spread, is_bound.mean()])

    run = functools.partial(jax.lax.scan, step, agent.init(jax.random.key(0)), jnp.arange(num_updates))
    return np.asarray(jax.jit(run, compiler_options=LONG_RUN)()[1], np.float64)


def test_a_drift_limit_below_two_narrows_and_one_above_widens():
    """Exactly: of a policy far narrower than sigma_1 an update aims at 2 - L times its own width.

    At L = 2 the network implies one action whatever it sees, and what is left is the last step's own noise: any width
    stays. Beyond, what it implies is mirrored, and the policy widens itself.
    """
    default = fitted_agent().config.drift_limit
    chain = FittedChain(10, [default, 1.5, 2.0, 2.2], std=0.05, start=0.5)
    course = []
    for _ in range(12_000):
        chain.update()
        course.append(np.sqrt(chain.variance()))
    earlier, end = course[6000], course[-1]
    assert end[:2] == pytest.approx([0.05, 0.05], rel=0.01)
    assert end[2] > 0.08 and end[2] == pytest.approx(earlier[2], rel=1e-3)
    assert end[3] > 0.2


def test_a_cold_policy_ends_inside_and_not_at_the_bounds():
    """A mode of std 0.02; without the fit, ten levels hold still none below 0.1 or so."""
    found = course("fitted", 0.02, 2, 3000)
    mean, std, at_bounds = found[-100:].mean(axis=0)
    assert mean == pytest.approx(0.3, abs=0.03)
    assert std < 0.12 and at_bounds == 0.0
    # It narrows all the time, from a start that is everywhere, and is never thrown back.
    by_part = found[:, 1].reshape(-1, 500).mean(axis=1)
    assert (np.diff(by_part) < 0.0).all()


@pytest.mark.slow
def test_a_cold_policy_stays_there():
    """With a limit of 2 it is thrown back to 0.2 after 8,000 to 18,000 updates."""
    _, std, at_bounds = course("fitted", 0.02, 2, 20_000)[6000:].T
    assert std.reshape(-1, 100).mean(axis=1).max() < 0.08 and std[-100:].mean() < 0.05
    assert at_bounds.max() == 0.0


@pytest.mark.slow
def test_the_clean_target_throws_a_cold_policy_to_the_bounds():
    """Why there is another: with sigma_t^2 in the place of what is left open, every step overshoots."""
    _, std, at_bounds = course("clean", 0.02, 2, 2500)[-100:].mean(axis=0)
    assert std > 0.4 and at_bounds > 0.2
    # Warm ones are where they belong.
    mean, std, at_bounds = course("clean", 0.2, 2, 2500)[-100:].mean(axis=0)
    assert mean == pytest.approx(0.3, abs=0.03) and std == pytest.approx(0.2, rel=0.15) and at_bounds < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("std", [0.1, 0.2])
def test_fitted_policies_become_as_narrow_as_the_density(std: float):
    mean, found, at_bounds = course("fitted", std, 2, 6000)[-200:].mean(axis=0)
    assert mean == pytest.approx(0.3, abs=0.02)
    assert found == pytest.approx(std, rel=0.15) and at_bounds == 0.0
