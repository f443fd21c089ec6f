from __future__ import annotations

import functools
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.parts import diffusion
from tests.agents.exact_chain import Chain

SCHEDULES = ["vp", "cosine", "linear", "geometric"]

slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def exact_predictor(schedule: diffusion.Schedule, mean: float, std: float) -> Any:
    """Noise prediction that is exact for a_0 ~ N(mean, std^2)."""
    total = schedule.abar * std**2 + schedule.sigma**2
    slope = jnp.asarray(schedule.sigma / total, jnp.float32)
    center = jnp.asarray(np.sqrt(schedule.abar) * mean, jnp.float32)
    return lambda index, noised: slope[index] * (noised - center[index])


def draw_gaussian(
    num_levels: int, mean: float, step_variance: diffusion.StepVariance, num_samples: int = 200_000
) -> np.ndarray:
    schedule = diffusion.make_schedule("vp", num_levels)
    predict = exact_predictor(schedule, mean, 0.5)
    sample = jax.jit(
        lambda key: diffusion.sample(schedule, predict, key, (num_samples, 1), step_variance=step_variance)
    )
    return np.asarray(sample(jax.random.key(num_levels)), np.float64)


# ---- Schedules ----------------------------------------------------------------------------------------------------


def test_vp_at_five_levels_has_the_known_products():
    np.testing.assert_allclose(
        diffusion.make_schedule("vp", 5).abar, [0.804, 0.435, 0.159, 0.039, 0.006], atol=5e-4
    )


@pytest.mark.parametrize("num_levels", [1, 5, 20])
def test_vp_follows_its_equation(num_levels: int):
    schedule, chain = diffusion.make_schedule("vp", num_levels), Chain(num_levels)
    np.testing.assert_allclose(schedule.alpha, chain.alpha)
    np.testing.assert_allclose(schedule.abar, chain.abar)
    # Whatever T is, the last level holds the same noise.
    assert schedule.abar[-1] == pytest.approx(np.exp(-5.05))


@hypothesis.given(name=st.sampled_from(SCHEDULES), num_levels=st.integers(1, 1000))
@hypothesis.settings(max_examples=150)
def test_every_schedule_only_adds_noise(name: Any, num_levels: int):
    schedule = diffusion.make_schedule(name, num_levels)
    assert schedule.num_levels == num_levels
    assert ((schedule.alpha > 0) & (schedule.alpha < 1)).all()
    assert (np.diff(np.append(1.0, schedule.abar)) < 0).all() and (schedule.abar > 0).all()
    np.testing.assert_allclose(np.square(schedule.sigma) + schedule.abar, 1.0)
    np.testing.assert_allclose(schedule.abar_previous * schedule.alpha, schedule.abar)
    np.testing.assert_allclose(schedule.beta, 1 - schedule.alpha)
    assert schedule.posterior_variance[0] == 0.0
    # Equal at most, to rounding: at many levels the two differ by less than float64 shows.
    assert (schedule.posterior_variance[1:] > 0).all()
    assert (schedule.posterior_variance <= schedule.beta).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_last_level_of_a_long_chain_is_nearly_pure_noise(name: Any):
    assert diffusion.make_schedule(name, 100).abar[-1] < 0.01


def test_linear_at_a_thousand_levels_is_that_of_ho_et_al():
    np.testing.assert_allclose(diffusion.make_schedule("linear", 1000).beta, np.linspace(1e-4, 0.02, 1000))


def test_cosine_follows_its_curve():
    steps = np.arange(51) / 50
    curve = np.cos((steps + 0.008) / 1.008 * np.pi / 2) ** 2
    # The last betas are clipped to 0.999.
    np.testing.assert_allclose(diffusion.make_schedule("cosine", 50).abar[:-1], (curve / curve[0])[1:-1])


def test_geometric_grows_by_one_factor():
    schedule = diffusion.make_schedule("geometric", 20)
    ratio = schedule.sigma / np.sqrt(schedule.abar)
    np.testing.assert_allclose(ratio, np.geomspace(0.04, 10.0, 20))
    assert diffusion.make_schedule("geometric", 1).abar[0] == pytest.approx(1 / 101)


def test_bad_schedules_are_refused():
    with pytest.raises(
        ValueError, match="unknown schedule 'vq'; schedules are vp, cosine, linear and geometric"
    ):
        diffusion.make_schedule("vq", 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1 level; given 0"):
        diffusion.make_schedule("vp", 0)


# ---- Forward process ----------------------------------------------------------------------------------------------


def test_add_noise_by_hand():
    schedule = diffusion.make_schedule("vp", 5)
    action, noise = jnp.array([[0.5, -1.0], [0.25, 0.0]]), jnp.array([[1.0, 2.0], [-1.0, 0.5]])
    level = jnp.array([1, 5])
    abar = np.exp([-0.1 / 5 - 9.9 / 50, -5.05])[:, None]
    expected = np.sqrt(abar) * np.asarray(action) + np.sqrt(1 - abar) * np.asarray(noise)
    np.testing.assert_allclose(diffusion.add_noise(schedule, action, level, noise), expected, rtol=1e-5)
    jitted = jax.jit(lambda *inputs: diffusion.add_noise(schedule, *inputs))
    np.testing.assert_allclose(jitted(action, level, noise), expected, rtol=1e-5)


def test_add_noise_moments_at_every_level():
    schedule = diffusion.make_schedule("vp", 5)
    level = jnp.repeat(jnp.arange(1, 6), 100_000)
    noise = jax.random.normal(jax.random.key(0), (500_000, 1))
    noised = np.asarray(diffusion.add_noise(schedule, jnp.full((500_000, 1), 0.7), level, noise)).reshape(
        5, -1
    )
    np.testing.assert_allclose(noised.mean(axis=1), 0.7 * np.sqrt(schedule.abar), atol=0.015)
    np.testing.assert_allclose(noised.std(axis=1), schedule.sigma, rtol=0.01)


# ---- Reverse sampler ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_levels", "std"), [(5, 0.4435), (20, 0.5144), pytest.param(100, 0.5046, marks=pytest.mark.slow)]
)
def test_sampler_agrees_with_the_variance_recursion(num_levels: int, std: float):
    chain = Chain(num_levels)
    mean, variance = chain.run(*chain.exact_score(0.0, 0.25))
    assert (mean, variance**0.5) == (0.0, pytest.approx(std, abs=1e-4))
    actions = draw_gaussian(num_levels, 0.0, "beta")
    assert actions.std() == pytest.approx(std, rel=0.01)
    assert actions.mean() == pytest.approx(0.0, abs=0.005)


@pytest.mark.parametrize(
    ("num_levels", "std"), [(5, 0.30), (20, 0.41), pytest.param(100, 0.48, marks=pytest.mark.slow)]
)
def test_the_posterior_variance_loses_spread_at_few_levels(num_levels: int, std: float):
    chain = Chain(num_levels, "posterior")
    _, variance = chain.run(*chain.exact_score(0.0, 0.25))
    assert variance**0.5 == pytest.approx(std, abs=0.006)
    assert draw_gaussian(num_levels, 0.0, "posterior").std() == pytest.approx(variance**0.5, rel=0.01)


@pytest.mark.parametrize("step_variance", ["beta", "posterior"])
def test_sampler_reaches_a_mean_away_from_zero(step_variance: diffusion.StepVariance):
    chain = Chain(5, step_variance)
    mean, variance = chain.run(*chain.exact_score(0.8, 0.25))
    assert mean == pytest.approx(0.8, rel=0.01)
    actions = draw_gaussian(5, 0.8, step_variance)
    assert actions.mean() == pytest.approx(mean, abs=0.005)
    assert actions.std() == pytest.approx(variance**0.5, rel=0.01)


def test_no_noise_is_added_in_the_last_step():
    schedule = diffusion.make_schedule("vp", 1)
    constant = diffusion.sample(
        schedule, lambda index, noised: noised / schedule.sigma[0], jax.random.key(0), (1000, 1)
    )
    # The prediction explains a_1 wholly by noise, so a_0 is zero: any spread would be added noise.
    np.testing.assert_allclose(constant, 0.0, atol=1e-5)


@pytest.mark.parametrize("bound", [1.0, 0.3])
def test_clip_bounds_every_step(bound: float):
    schedule = diffusion.make_schedule("vp", 5)
    largest = []

    def predict(index: jax.Array, noised: jax.Array) -> jax.Array:
        jax.debug.callback(lambda i, x: largest.append((int(i), float(np.abs(x).max()))), index, noised)
        return -noised

    actions = diffusion.sample(schedule, predict, jax.random.key(0), (500, 2), clip=bound)
    jax.effects_barrier()
    assert float(jnp.abs(actions).max()) == pytest.approx(bound)
    sizes = dict(largest)
    assert set(sizes) == {0, 1, 2, 3, 4}
    assert sizes[4] > 2.0, "a_T is drawn without a bound"
    assert all(sizes[index] <= bound + 1e-6 for index in range(4))


def test_clip_clean_bounds_the_implied_action():
    schedule = diffusion.make_schedule("vp", 5)
    runaway = lambda index, noised: -10.0 * noised  # noqa: E731
    free = diffusion.sample(schedule, runaway, jax.random.key(0), (500, 2))
    held = diffusion.sample(schedule, runaway, jax.random.key(0), (500, 2), clip_clean=1.5)
    assert float(jnp.abs(free).max()) > 100
    # The last step returns the implied clean action itself.
    assert float(jnp.abs(held).max()) == pytest.approx(1.5)


def test_clip_clean_far_out_changes_nothing():
    schedule = diffusion.make_schedule("vp", 5)
    predict = exact_predictor(schedule, 0.2, 0.5)
    free = diffusion.sample(schedule, predict, jax.random.key(0), (500, 2))
    held = diffusion.sample(schedule, predict, jax.random.key(0), (500, 2), clip_clean=50.0)
    np.testing.assert_array_equal(free, held)


def test_looped_and_unrolled_chains_agree(monkeypatch: pytest.MonkeyPatch):
    schedule = diffusion.make_schedule("vp", 8)
    predict = exact_predictor(schedule, 0.2, 0.5)

    def draw(key: jax.Array) -> jax.Array:
        return diffusion.sample(schedule, predict, key, (64, 2), clip=1.0)

    unrolled = jax.jit(lambda key: draw(key))(jax.random.key(0))
    plain = draw(jax.random.key(0))
    monkeypatch.setattr(diffusion, "UNROLLED_LEVELS", 0)
    looped = jax.jit(lambda key: draw(key))(jax.random.key(0))
    np.testing.assert_allclose(looped, unrolled, atol=1e-5)
    np.testing.assert_allclose(plain, unrolled, atol=1e-5)


def num_operations(num_levels: int) -> int:
    schedule = diffusion.make_schedule("vp", num_levels)
    predict = exact_predictor(schedule, 0.0, 0.5)
    draw = jax.jit(lambda key: diffusion.sample(schedule, predict, key, (4, 2)))
    return draw.lower(jax.random.key(0)).as_text().count(" = stablehlo.")


def test_long_chains_compile_as_a_loop():
    assert num_operations(20) > 1.3 * num_operations(10), "short chains are unrolled"
    assert num_operations(21) < num_operations(20)
    assert num_operations(1000) == num_operations(21)


def test_what_is_clipped_keeps_the_gradient_that_leads_back():
    x = jnp.array([-2.0, -2.0, 0.5, 0.5, 2.0, 2.0])
    slope = jnp.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    value, gradient = jax.value_and_grad(lambda x: (slope * diffusion.clip_inward(x, -1.0, 1.5)).sum())(x)
    assert float(value) == pytest.approx(float((slope * jnp.clip(x, -1.0, 1.5)).sum()))
    # A descent moves against the gradient: below the box it must be negative, above it positive.
    np.testing.assert_array_equal(gradient, [0.0, -1.0, 1.0, -1.0, 1.0, 0.0])
