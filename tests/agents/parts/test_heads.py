"""What critics that learn distributions are regressed onto, by hand for a few atoms."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.parts.heads import Categorical, Reduction, Scalar, Spread

FIVE = Categorical(5, 2.0)  # atoms -2 -1 0 1 2
SPREADS: list[Spread] = ["c51", "two_hot", "hl_gauss"]


def head(spread: Spread, size: int = 5, bound: float = 2.0, **options: Any) -> Categorical:
    return Categorical(size, bound, spread, **options)


def logits(probabilities: Any) -> jax.Array:
    return jnp.log(jnp.asarray(probabilities) + 1e-30)


@functools.cache
def compiled(head: Any) -> Any:
    return jax.jit(head.target)


def one_target(head: Any, reward: float, discount: float, next_out: Any, bonus: float | None = None) -> Any:
    extra = None if bonus is None else jnp.array([bonus])
    return np.asarray(
        compiled(head)(jnp.array([reward]), jnp.array([discount]), jnp.asarray(next_out), extra)
    )[0]


def member(*probabilities: float) -> jax.Array:
    """One member, one transition."""
    return logits([[probabilities]])


# ---- Distributions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reward", "discount", "bonus", "expected"),
    [
        # Atoms 0 and 1 of mass .4 and .6 go to .5 and 1: halves, and a whole.
        (0.5, 0.5, None, [0, 0, 0.2, 0.8, 0]),
        # A whole step up; what lies on the last atom stays there, and what would lie beyond it does too.
        (1.0, 1.0, None, [0, 0, 0, 0.4, 0.6]),
        (1.5, 1.0, None, [0, 0, 0, 0.2, 0.8]),
        (100.0, 1.0, None, [0, 0, 0, 0, 1]),
        (-100.0, 1.0, None, [1, 0, 0, 0, 0]),
        # At a true end only the reward counts, between two atoms.
        (-1.25, 0.0, None, [0.25, 0.75, 0, 0, 0]),
        (-1.25, 0.0, 7.0, [0.25, 0.75, 0, 0, 0]),
        # The bonus moves the atoms before the discount: 0.5 * (z - 1).
        (0.0, 0.5, -1.0, [0, 0.2, 0.8, 0, 0]),
    ],
)
def test_the_projection_by_hand(reward: float, discount: float, bonus: float | None, expected: list[float]):
    got = one_target(FIVE, reward, discount, member(0, 0, 0.4, 0.6, 0), bonus)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert float(FIVE.target_value(jnp.asarray(expected))) == pytest.approx(
        np.dot(expected, [-2, -1, 0, 1, 2])
    )


def test_both_forms_of_the_projection_are_the_same():
    """One runs on a CPU, the other elsewhere; on atoms, between them and beyond the bounds."""
    mass = jax.nn.softmax(jax.random.normal(jax.random.key(0), (7, 9)))
    value = jnp.concatenate(
        [2.5 * jax.random.normal(jax.random.key(1), (6, 9)), jnp.linspace(-2.0, 2.0, 9)[None]]
    )
    one = head("c51", 9)
    np.testing.assert_allclose(one.scattered(mass, value), one.gathered(mass, value), atol=1e-6)


@pytest.mark.parametrize("spread", SPREADS)
def test_targets_are_distributions_and_keep_the_mean_inside_the_bounds(spread: Spread):
    wide = head(spread, 41, 2.0)
    reward = jnp.linspace(-1.2, 1.2, 13)
    out = jax.random.normal(jax.random.key(0), (2, 13, 41))
    target = compiled(wide)(reward, jnp.full(13, 0.3), out, None)
    np.testing.assert_allclose(target.sum(axis=1), 1.0, atol=1e-5)
    assert float(target.min()) >= 0.0
    expected = reward + 0.3 * wide.value(out).min(axis=0)
    np.testing.assert_allclose(wide.target_value(target), expected, atol=1e-3)


def test_two_hot_spreads_the_mean_over_its_neighbours():
    next_out = member(0.5, 0, 0, 0, 0.5)  # mean 0, of which nothing is left of the two ends
    np.testing.assert_allclose(
        one_target(head("two_hot"), 0.3, 1.0, next_out), [0, 0, 0.7, 0.3, 0], atol=1e-6
    )
    np.testing.assert_allclose(one_target(head("two_hot"), 9.0, 1.0, next_out), [0, 0, 0, 0, 1], atol=1e-6)
    # The distribution itself is moved as it is.
    np.testing.assert_allclose(one_target(FIVE, 0.0, 1.0, next_out), [0.5, 0, 0, 0, 0.5], atol=1e-6)


def test_hl_gauss_is_the_mass_of_a_gaussian_in_each_cell():
    smooth = head("hl_gauss", smoothing=0.5)
    got = one_target(smooth, 0.25, 0.0, member(0.2, 0.2, 0.2, 0.2, 0.2))

    def below(x: float) -> float:
        return 0.5 * math.erfc(-(x - 0.25) / (0.5 * math.sqrt(2)))

    edges = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]
    whole = below(2.5) - below(-2.5)
    expected = [(below(b) - below(a)) / whole for a, b in itertools.pairwise(edges)]
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_the_smaller_member_gives_its_distribution():
    low, high = [0.5, 0, 0, 0.5, 0], [0, 0, 1, 0, 0]  # means -.5 and 0
    for members in ([low, high], [high, low]):
        out = logits(members)[:, None]
        np.testing.assert_allclose(one_target(FIVE, 0.0, 1.0, out), low, atol=1e-6)


def test_the_mean_of_members_is_the_mixture_and_may_be_lowered():
    out = logits([[0, 0, 1, 0, 0], [0, 0, 0, 0, 1]])[:, None]  # values 0 and 2: mean 1, std 1
    mean = head("c51", reduction=Reduction("mean"))
    lowered = head("c51", reduction=Reduction("mean_std", 0.5))
    np.testing.assert_allclose(one_target(mean, 0.0, 1.0, out), [0, 0, 0.5, 0, 0.5], atol=1e-6)
    np.testing.assert_allclose(one_target(lowered, 0.0, 1.0, out), [0, 0.25, 0.25, 0.25, 0.25], atol=1e-5)


def test_the_error_is_a_cross_entropy_and_smallest_at_the_target():
    target = jnp.array([[0.1, 0.2, 0.4, 0.2, 0.1]])
    uniform = FIVE.errors(jnp.zeros((2, 1, 5)), target)
    np.testing.assert_allclose(uniform, math.log(5), rtol=1e-6)
    at_target = FIVE.errors(logits(target)[None], target)
    assert float(at_target[0, 0]) == pytest.approx(-float((target * jnp.log(target)).sum()), rel=1e-5)
    gradient = jax.grad(lambda out: FIVE.errors(out, target).sum())(logits(target)[None])
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_the_value_is_the_mean_of_the_atoms():
    out = logits([[[0, 0.5, 0, 0, 0.5]]])
    assert float(FIVE.value(out)[0, 0]) == pytest.approx(0.5, abs=1e-6)


# ---- Reductions ---------------------------------------------------------------------------------------------------


def test_reductions_by_hand():
    values = jnp.array([[1.0, 4.0], [3.0, 4.0], [8.0, 4.0]])
    std = math.sqrt((9 + 1 + 16) / 3)
    np.testing.assert_allclose(Reduction()(values), [1.0, 4.0])
    np.testing.assert_allclose(Reduction("mean")(values), [4.0, 4.0])
    np.testing.assert_allclose(Reduction("mean_std", 0.5)(values), [4.0 - 0.5 * std, 4.0], atol=1e-5)
    # Of two members, the mean less one standard deviation is the smaller.
    np.testing.assert_allclose(Reduction("mean_std")(values[:2]), values[:2].min(axis=0), atol=1e-5)
    gradient = jax.grad(lambda values: Reduction("mean_std")(values).sum())(jnp.ones((2, 1)))
    assert np.isfinite(gradient).all()


def test_a_scalar_target_is_of_the_reduced_value():
    out = jnp.array([[[1.0]], [[3.0]]])
    assert one_target(Scalar(reduction=Reduction("mean")), 0.5, 0.5, out, 1.0) == pytest.approx(
        0.5 + 0.5 * 3.0
    )
