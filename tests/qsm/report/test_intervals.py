"""Statistics against closed forms, against loops written down plainly, and against numbers of rliable."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsm.report.intervals import (
    Estimate,
    Scores,
    aggregate_iqm,
    aggregate_mean,
    aggregate_median,
    bootstrap,
    common_curve,
    interquartile_mean,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
)


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ([3.0], 3.0),
        ([1.0, 2.0, 6.0], 3.0),  # too few to cut any off
        ([0.0, 1.0, 3.0, 100.0], 2.0),
        ([9.0, 1.0, 2.0, 3.0, -50.0], 2.0),  # one of five at each end
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 1000.0], 4.5),
    ],
)
def test_interquartile_mean_of_few_numbers(values: list[float], mean: float) -> None:
    assert interquartile_mean(np.array(values)) == mean
    assert (interquartile_mean(np.array([values, values]).T) == [mean, mean]).all()


def test_interquartile_mean_of_nothing_is_nan() -> None:
    assert np.isnan(interquartile_mean(np.zeros((0, 2)))).all()


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_interquartile_mean_lies_between_the_quartiles_and_ignores_the_order(values: list[float]) -> None:
    ordered = sorted(values)
    cut = len(values) // 4
    middle = ordered[cut : len(values) - cut]
    found = float(interquartile_mean(np.array(values)))
    assert found == pytest.approx(sum(middle) / len(middle), abs=1e-6)
    assert found == pytest.approx(float(interquartile_mean(np.array(ordered[::-1]))), abs=1e-6)


def test_improvement_counts_pairs_and_halves_ties() -> None:
    x = {"a": np.array([1.0, 2.0]), "b": np.array([5.0])}
    y = {"a": np.array([1.0, 0.0, 3.0]), "b": np.array([9.0, 9.0]), "only y": np.array([0.0])}
    in_a = (0.5 + 1 + 0 + 1 + 1 + 0) / 6
    assert probability_of_improvement(x, y) == pytest.approx((in_a + 0) / 2)
    assert probability_of_improvement(y, x) == pytest.approx((1 - in_a + 1) / 2)
    with pytest.raises(ValueError, match="no task"):
        probability_of_improvement({"a": np.ones(2)}, {"b": np.ones(2)})


def test_profile_gives_every_task_the_same_weight() -> None:
    found = performance_profile(
        {"a": np.array([0.2, 0.6]), "b": np.array([0.4])}, np.array([0.0, 0.2, 0.5, 0.9])
    )
    assert found.tolist() == [1.0, 0.75, 0.25, 0.0]


def test_optimality_gap_does_not_reward_what_exceeds_the_best() -> None:
    assert optimality_gap({"a": np.array([0.5, 1.0, 7.0])}) == pytest.approx(0.5 / 3)


def test_every_task_weighs_the_same_however_many_seeds_it_has() -> None:
    few, many = np.array([0.2, 0.4]), np.array([0.9, 0.9, 0.9, 0.9, 1.5, 0.3, 0.9, 0.9])
    found = {"few": few, "many": many}
    assert aggregate_mean(found) == pytest.approx((0.3 + many.mean()) / 2)
    assert aggregate_median(found | {"third": np.array([0.5])}) == pytest.approx(0.5)
    assert optimality_gap(found) == pytest.approx((0.7 + (1 - (0.9 * 6 + 1 + 0.3) / 8)) / 2)
    # Of ten runs two are cut off at each end, a fifth of the weight: most of 0.2, which weighs a quarter.
    kept = 0.05 * 0.2 + 1 / 16 * 0.3 + 0.25 * 0.4 + (0.6 - 0.05 - 1 / 16 - 0.25) * 0.9
    assert aggregate_iqm(found) == pytest.approx(kept / 0.6)
    both = {task: np.stack([values, values[::-1]], axis=1) for task, values in found.items()}
    assert aggregate_iqm(both) == pytest.approx([kept / 0.6] * 2)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30), st.floats(0.01, 100))
def test_equal_weights_are_none(values: list[float], weight: float) -> None:
    found = interquartile_mean(np.array(values), np.full(len(values), weight))
    assert found == pytest.approx(interquartile_mean(np.array(values)), abs=1e-6)


def test_bootstrap_of_a_mean_has_the_spread_of_the_central_limit_theorem() -> None:
    # Strata with different means: a bootstrap across them would be ten times as wide.
    rng = np.random.default_rng(0)
    data = {"low": rng.normal(0, 1, 400), "high": rng.normal(100, 1, 400)}
    found = bootstrap(lambda s: np.mean([s["low"].mean(), s["high"].mean()]), data)
    error = np.sqrt(data["low"].var() / 400 + data["high"].var() / 400) / 2
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.2 * error)


def test_bootstrap_repeats_itself_and_keeps_curves_whole() -> None:
    curves = {"a": np.array([[0.0, 1.0, 2.0], [10.0, 11.0, 12.0], [20.0, 21.0, 22.0]])}

    def differences(sample: dict[str, np.ndarray]) -> np.ndarray:
        assert (np.diff(sample["a"], axis=1) == 1).all()
        return aggregate_iqm(sample)

    first = bootstrap(differences, curves, resamples=50)
    again = bootstrap(differences, curves, resamples=50)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (np.diff(first.value) == 1).all()
    assert (first.low <= first.value).all() and (first.value <= first.high).all()


def test_a_task_with_one_seed_leaves_no_interval() -> None:
    many = np.array([1.0, 2.0, 3.0])
    found = bootstrap(aggregate_iqm, {"a": np.array([7.0]), "b": many}, resamples=20)
    assert found.value == pytest.approx(aggregate_iqm({"a": np.array([7.0]), "b": many}))
    assert np.isnan([found.low, found.high]).all() and not found.has_interval
    pair = bootstrap(probability_of_improvement, {"b": many}, {"b": many[:1]}, resamples=20)
    assert pair.value == pytest.approx(5 / 6) and not pair.has_interval
    curve = bootstrap(aggregate_iqm, {"a": np.ones((1, 4))}, resamples=20)
    assert curve.low.shape == (4,) and not curve.has_interval
    assert bootstrap(aggregate_iqm, {"b": many}, resamples=20).has_interval


def test_a_curve_ends_where_a_seed_ends_and_misses_what_a_seed_misses() -> None:
    steps, values = common_curve([{0: 1.0, 10: 2.0, 20: 3.0, 30: 4.0}, {0: 5.0, 20: 6.0}])
    assert steps.tolist() == [0, 20] and values.tolist() == [[1.0, 3.0], [5.0, 6.0]]
    steps, values = common_curve([])
    assert steps.shape == (0,) and values.shape == (0, 0)
    steps, values = common_curve([{0: 1.0}, {5: 1.0}])
    assert steps.shape == (0,) and values.shape == (2, 0)


RLIABLE = json.loads((Path(__file__).parent / "data" / "rliable.json").read_text())
"""Made by the lines in data/README.md."""
THRESHOLDS = np.array([0.1, 0.25, 0.5, 0.75, 0.9])
AGGREGATES: dict[str, Callable[[Scores], Any]] = {
    "iqm": aggregate_iqm,
    "mean": aggregate_mean,
    "median": aggregate_median,
    "optimality_gap": lambda s: optimality_gap({task: 1.25 * values for task, values in s.items()}),
}


def scores(counts: list[int], shift: int) -> dict[str, np.ndarray]:
    """Of as many seeds of each task; whole numbers until the division, so that they are the same everywhere."""
    return {
        f"task {j}": np.array([(173 * i + 271 * j + 59 * i * j + shift) % 997 / 997 for i in range(count)])
        for j, count in enumerate(counts)
    }


def agree(found: Estimate, expected: dict[str, list[float]], step: float = 0.0) -> None:
    """The same value, and the same interval as far as resampling tells, or within a `step` of a discrete statistic."""
    assert np.atleast_1d(found.value) == pytest.approx(expected["value"], abs=1e-6)
    for ours, theirs in ((found.low, expected["low"]), (found.high, expected["high"])):
        width = np.subtract(expected["high"], expected["low"])
        assert (np.abs(np.atleast_1d(ours) - theirs) <= np.maximum(0.08 * width, step + 1e-6)).all()


@pytest.mark.parametrize("name", AGGREGATES)
def test_aggregates_and_their_intervals_are_those_of_rliable(name: str) -> None:
    found = bootstrap(AGGREGATES[name], scores([6, 6, 6], 31), resamples=5_000)
    agree(found, RLIABLE["equal"][name])


@pytest.mark.parametrize("name", AGGREGATES)
def test_unequal_seed_counts_are_as_runs_repeated_until_they_are_equal(name: str) -> None:
    assert AGGREGATES[name](scores([2, 4, 6], 31)) == pytest.approx(RLIABLE["unequal"][name], abs=1e-6)


def test_profile_and_improvement_are_those_of_rliable() -> None:
    x, y = scores([6, 6, 6], 31), scores([5, 5, 5], 500)
    profile = bootstrap(lambda s: performance_profile(s, THRESHOLDS), x, resamples=5_000)
    agree(profile, RLIABLE["profile"], step=1 / 18)
    improvement = bootstrap(probability_of_improvement, x, y, resamples=5_000)
    agree(improvement, RLIABLE["improvement"], step=1 / 90)
