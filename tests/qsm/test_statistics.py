"""Statistics against closed forms, against loops written down plainly, and against rliable where it is installed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsm.statistics import (
    bootstrap,
    common_curve,
    interquartile_mean,
    optimality_gap,
    performance_profile,
    pooled,
    probability_of_improvement,
)


def scores(seed: int, counts: dict[str, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    # Of one decimal, so that there are ties.
    return {task: rng.uniform(0, 1, count).round(1) for task, count in counts.items()}


UNEQUAL = {"a": 5, "b": 3, "c": 7}


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
    assert optimality_gap(np.array([0.5, 1.0, 7.0])) == pytest.approx(0.5 / 3)


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
        return interquartile_mean(pooled(sample))

    first = bootstrap(differences, curves, resamples=50)
    again = bootstrap(differences, curves, resamples=50)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (np.diff(first.value) == 1).all()
    assert (first.low <= first.value).all() and (first.value <= first.high).all()


def test_one_seed_has_an_interval_of_no_width() -> None:
    found = bootstrap(lambda s: interquartile_mean(pooled(s)), {"a": np.array([7.0])}, resamples=20)
    assert found.value == found.low == found.high == 7.0


def test_a_curve_ends_where_a_seed_ends_and_misses_what_a_seed_misses() -> None:
    steps, values = common_curve([{0: 1.0, 10: 2.0, 20: 3.0, 30: 4.0}, {0: 5.0, 20: 6.0}])
    assert steps.tolist() == [0, 20] and values.tolist() == [[1.0, 3.0], [5.0, 6.0]]
    steps, values = common_curve([])
    assert steps.shape == (0,) and values.shape == (0, 0)
    steps, values = common_curve([{0: 1.0}, {5: 1.0}])
    assert steps.shape == (0,) and values.shape == (2, 0)


@pytest.mark.parametrize("counts", [UNEQUAL, {"a": 8, "b": 8, "c": 8}])
def test_against_rliable(counts: dict[str, int]) -> None:
    metrics = pytest.importorskip("rliable.metrics", reason="compared where rliable is installed")
    x, y = scores(0, counts), scores(1, {"a": 4, "b": 6, "c": 5})
    by_task = [(x[task][:, None], y[task][:, None]) for task in counts]
    expected = np.mean([metrics.probability_of_improvement(a, b) for a, b in by_task])
    assert probability_of_improvement(x, y) == pytest.approx(expected)
    assert interquartile_mean(pooled(x)) == pytest.approx(metrics.aggregate_iqm(pooled(x)))
    assert optimality_gap(pooled(x)) == pytest.approx(metrics.aggregate_optimality_gap(pooled(x)[:, None]))
    if len(set(counts.values())) == 1:
        library = pytest.importorskip("rliable.library")
        matrix = np.stack(list(x.values()), axis=1)
        thresholds = np.linspace(0, 1, 11)
        profile = [library.run_score_deviation(matrix, threshold) for threshold in thresholds]
        assert performance_profile(x, thresholds) == pytest.approx(profile)
