"""Modes and mass at the bounds of mixtures that are known, at every seed that is tried."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from qsm.report.modes import BANDWIDTH, LEAST_SHARE, component, joint

Draw = Callable[[np.random.Generator, int], np.ndarray]


def gaussian(mean: float, std: float) -> Draw:
    return lambda rng, number: np.clip(rng.normal(mean, std, number), -1, 1)


def point(at: float) -> Draw:
    return lambda rng, number: np.full(number, at)


def uniform(low: float = -1, high: float = 1) -> Draw:
    return lambda rng, number: rng.uniform(low, high, number)


def mixture(*parts: tuple[float, Draw]) -> Draw:
    """Exactly these shares of the samples from each part."""

    def draw(rng: np.random.Generator, number: int) -> np.ndarray:
        return np.concatenate([part(rng, round(share * number)) for share, part in parts])

    return draw


KNOWN: dict[str, tuple[Draw, list[float]]] = {
    "one Gaussian": (gaussian(0.2, 0.3), [0.2]),
    "a narrow Gaussian": (gaussian(0.2, 0.002), [0.2]),
    "a point mass": (point(-0.5), [-0.5]),
    "a point mass at a bound": (point(1.0), [1.0]),
    "most at a bound, the rest anywhere": (mixture((0.6, point(-1.0)), (0.4, uniform())), [-1.0]),
    "two far": (mixture((0.5, gaussian(-0.6, 0.1)), (0.5, gaussian(0.6, 0.1))), [-0.6, 0.6]),
    "two far, unequal": (mixture((0.9, gaussian(-0.6, 0.1)), (0.1, gaussian(0.6, 0.1))), [-0.6, 0.6]),
    "two at a distance of five std": (
        mixture((0.5, gaussian(-0.25, 0.1)), (0.5, gaussian(0.25, 0.1))),
        [-0.25, 0.25],
    ),
    "two near": (mixture((0.5, gaussian(-0.1, 0.1)), (0.5, gaussian(0.1, 0.1))), [0.0]),
    "two points within the bandwidth": (mixture((0.5, point(0.0)), (0.5, point(0.08))), [0.04]),
    "both bounds": (mixture((0.3, point(-1.0)), (0.7, point(1.0))), [-1.0, 1.0]),
    "both bounds and the middle": (
        mixture((0.3, point(-1.0)), (0.3, gaussian(0.0, 0.1)), (0.4, point(1.0))),
        [-1.0, 0.0, 1.0],
    ),
    "too few to be a mode": (mixture((0.97, gaussian(-0.6, 0.1)), (0.03, gaussian(0.6, 0.1))), [-0.6]),
}


@pytest.mark.parametrize("name", KNOWN)
def test_modes_of_known_mixtures(name: str):
    draw, expected = KNOWN[name]
    for seed in range(10):
        found = component(draw(np.random.default_rng(seed), 1000))
        np.testing.assert_allclose(found.modes, expected, atol=0.15, err_msg=f"seed {seed}")
        assert len(found.cuts) == len(expected) - 1
        assert all(a < cut < b for a, cut, b in zip(found.modes, found.cuts, found.modes[1:], strict=False))


@pytest.mark.parametrize(
    "draw", [uniform(), uniform(-0.4, 0.9), gaussian(0, 0.25)], ids=["box", "part", "bell"]
)
@pytest.mark.parametrize("number", [100, 1000, 20_000])
def test_what_has_one_mode_is_not_split_by_chance(draw: Draw, number: int):
    for seed in range(15):
        assert len(component(draw(np.random.default_rng(seed), number)).modes) == 1


def test_more_samples_show_what_a_few_leave_open():
    draw = mixture((0.5, gaussian(-0.2, 0.1)), (0.5, gaussian(0.2, 0.1)))
    counts = {
        number: np.mean(
            [len(component(draw(np.random.default_rng(seed), number)).modes) for seed in range(20)]
        )
        for number in (100, 10_000)
    }
    assert counts[100] < 1.5 and counts[10_000] == 2


@pytest.mark.parametrize("share", [0.9 * LEAST_SHARE, 1.5 * LEAST_SHARE])
def test_a_mode_holds_a_share_of_the_samples(share: float):
    draw = mixture((1 - share, point(-0.5)), (share, point(0.7)))
    assert len(component(draw(np.random.default_rng(0), 1000)).modes) == (2 if share > LEAST_SHARE else 1)


def test_a_small_group_goes_to_the_neighbor_of_the_higher_valley():
    # Between two points, a few samples nearer to the right one: the lower valley is on their left.
    few = mixture((0.04, gaussian(0.33, 0.03)), (0.48, gaussian(-0.7, 0.03)), (0.48, gaussian(0.7, 0.07)))
    found = component(few(np.random.default_rng(0), 1000))
    assert len(found.modes) == 2 and -0.6 < found.cuts[0] < 0.2


def test_mass_at_the_bounds_is_that_of_the_outer_hundredths():
    samples = np.array([-1.0, -0.981, -0.979, 0.0, 0.5, 0.979, 0.981, 0.99, 1.0, 1.0])
    found = component(samples)
    assert (found.at_low, found.at_high) == (0.2, 0.4)
    assert (found.mean, found.std) == (samples.mean(), samples.std())


def test_entropy_of_a_histogram():
    # 40 bins of width 0.05: uniform over all, over eight of them, and all in one.
    whole = np.linspace(-1, 1, 4000, endpoint=False) + 1 / 4000
    assert component(whole).entropy == pytest.approx(math.log(2))
    assert component(whole[:800]).entropy == pytest.approx(math.log(0.4))
    assert component(np.ones(100)).entropy == pytest.approx(math.log(0.05))


def together(samples: np.ndarray) -> tuple[int, float]:
    return tuple(joint(samples, [component(column) for column in samples.T]))  # pyright: ignore[reportReturnType]


def test_joint_modes_are_combinations_that_occur():
    rng = np.random.default_rng(0)
    side = np.where(rng.uniform(size=(1000, 2)) < 0.5, -0.7, 0.7)
    noise = rng.normal(0, 0.1, (1000, 2))
    assert together(side + noise) == (4, 1.0)
    on_the_diagonal = side[:, :1] + noise
    number, share = together(on_the_diagonal)
    assert number == 2 and share > 0.99
    assert together(rng.uniform(-1, 1, (1000, 3))) == (1, 1.0)
    # Three corners of the square, one of them rare.
    corner = np.repeat([[-0.7, -0.7], [0.7, 0.7], [-0.7, 0.7]], [480, 480, 40], axis=0)
    assert together(corner + noise) == (2, 0.96)


def test_of_too_many_combinations_none_is_a_mode():
    corners = np.sign(np.random.default_rng(0).uniform(-1, 1, (1000, 12)))
    assert together(corners) == (0, 0.0)


def test_density_at_a_bound_is_as_high_as_it_would_be_inside():
    # Even in the last tenth of the range: highest at the bound, and not in the middle of the tenth.
    assert component(np.linspace(0.8, 1, 400)).modes == pytest.approx([1.0], abs=0.02)


def test_the_kernel_is_narrower_than_what_it_separates():
    # What the docs say: modes nearer than about 0.2 are one.
    for distance, expected in ((3 * BANDWIDTH, 1), (4 * BANDWIDTH, 2)):
        found = component(np.repeat([-distance / 2, distance / 2], 500))
        assert len(found.modes) == expected
