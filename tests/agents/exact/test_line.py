"""Langevin steps on a line by quadrature: against the closed form of a Gaussian, and against the sampler's draws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.exact import line
from agents.parts import boltzmann

GRID = np.linspace(-4.0, 4.0, 801)
WELL = np.linspace(-2.8, 2.8, 561)


@pytest.mark.parametrize("step", [0.02, 0.2, 0.6])
def test_a_gaussian_has_the_variance_of_the_closed_form(step: float):
    mu, std = 0.3, 0.5
    found = line.stationary(lambda x: -(x - mu) / std**2, GRID, step)
    mean, variance = line.moments(found, GRID)
    assert mean == pytest.approx(mu, abs=1e-4)
    assert variance == pytest.approx(std**2 / (1 - step / (4 * std**2)), rel=1e-3)
    # It is a Gaussian again.
    shape = line.density(lambda x: -np.square(x - mean) / (2 * variance), GRID)
    assert line.total_variation(found, shape, GRID) < 1e-4


def test_densities_integrate_to_one_and_have_known_moments():
    gaussian = line.density(lambda x: -np.square(x - 0.5) / 0.32 + 7.0, GRID)
    assert gaussian.sum() * (GRID[1] - GRID[0]) == pytest.approx(1.0)
    assert gaussian.max() == pytest.approx(1 / np.sqrt(2 * np.pi * 0.16), rel=1e-6)
    assert line.moments(gaussian, GRID) == pytest.approx((0.5, 0.16), rel=1e-6)
    apart = line.density(lambda x: -np.square(x + 0.5) / 0.32, GRID)
    # Means 2.5 standard deviations apart: 1 - 2 P(N(0, 1) > 1.25).
    assert line.total_variation(gaussian, apart, GRID) == pytest.approx(1 - 2 * 0.105650, abs=1e-4)


def test_the_double_wells_gradient_is_its_own():
    x = np.linspace(-2, 2, 9)
    found = (line.double_well(x + 1e-5) - line.double_well(x - 1e-5)) / 2e-5
    np.testing.assert_allclose(line.double_well_gradient(x), found, atol=1e-8)
    assert line.double_well(np.array([-1.0, 0.0, 1.0])) == pytest.approx([-0.25, -1.0, 0.25])


@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_the_double_wells_error_is_of_first_order(alpha: float):
    exact = line.density(lambda x: alpha * line.double_well(x), WELL)
    steps = np.array([0.01, 0.005, 0.0025]) / alpha
    errors = [
        line.total_variation(
            line.stationary(lambda x: alpha * line.double_well_gradient(x), WELL, step), exact, WELL
        )
        for step in steps
    ]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(orders, 1.0, atol=0.05)


def test_the_sampler_draws_from_the_stationary_density():
    """`boltzmann.langevin` on the double well: in that density and not in exp(Q), by a step large enough to tell."""
    step, chains = 0.1, 20_000
    score = line.double_well_gradient
    found = line.stationary(score, WELL, step)
    exact = line.density(line.double_well, WELL)
    weights = found / found.sum()
    start = np.random.default_rng(0).choice(WELL, p=weights, size=(chains, 1))
    draw = jax.jit(lambda u, key: boltzmann.langevin(score, u, key, jnp.full(40, step), 2.8))  # type: ignore[arg-type]
    drawn = np.asarray(draw(jnp.asarray(start, jnp.float32), jax.random.key(0)))[:, 0]
    edges = np.array([-2.8, -1.2, -0.8, -0.3, 0.3, 0.8, 1.2, 2.8])
    cells = np.digitize(WELL, edges[1:-1])
    for density, agrees in ((found, True), (exact, False)):
        expected = np.bincount(cells, weights=density / density.sum())
        counts = np.histogram(drawn, edges)[0]
        chi_squared = np.sum(np.square(counts - chains * expected) / (chains * expected))
        assert (chi_squared < 30) == agrees  # six degrees of freedom: above 30 once in 25,000 times


def test_a_coarse_grid_is_refused():
    with pytest.raises(ValueError, match=r"the grid's spacing is 0\.01; it must be at most half of"):
        line.stationary(lambda x: -x, GRID, 1e-4)


def test_what_a_step_takes_beyond_the_ends_stays_there():
    """As the sampler's bound has it: shares of the chains at both ends of [-0.5, 0.5] under a drift to the right."""
    grid, step, chains = np.linspace(-0.5, 0.5, 101), 0.09, 20_000
    found = line.stationary(lambda x: 1.5 + 0 * x, grid, step)
    draw = jax.jit(lambda u, key: boltzmann.langevin(lambda u: 1.5 + 0 * u, u, key, jnp.full(60, step), 0.5))
    drawn = np.asarray(draw(jnp.zeros((chains, 1)), jax.random.key(0)))
    weights = found / found.sum()
    for end, expected in ((-0.5, weights[0]), (0.5, weights[-1])):
        assert 0.05 < expected < 0.6
        # Half a cell on the inner side of the end counts to it.
        share = (np.abs(drawn - end) <= 0.005).mean()
        assert share == pytest.approx(expected, abs=4 * np.sqrt(expected / chains))
