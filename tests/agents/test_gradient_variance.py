"""What scripts/gradient_variance.py makes of gradients, where their mean and variance are known."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from scripts import gradient_variance


def test_the_squared_mean_is_without_its_own_noise():
    draws, mean = np.random.default_rng(0), np.array([0.3, -0.1, 0.0, 0.2])
    squares = []
    for _ in range(400):
        gradients = mean + 0.5 * draws.normal(size=(10, 4))
        squares.append(gradient_variance.squared_mean_of(gradients))
    error = np.std(squares) / np.sqrt(400)
    assert np.mean(squares) == pytest.approx(0.14, abs=4 * error) and error < 0.01  # as it is, 0.1 more
    gradients = mean + 0.5 * draws.normal(size=(100_000, 4))
    assert gradient_variance.variance_of(gradients) == pytest.approx(1.0, rel=0.02)


@pytest.mark.slow
def test_a_line_for_every_way_and_number_of_levels(tmp_path: Path):
    file = tmp_path / "table.csv"
    options = gradient_variance.Options(
        levels=(1, 2), batch_size=16, batches=4, actions=1, width=8, output=file
    )
    gradient_variance.main(options)
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    names = [*gradient_variance.NAMES, "diffusion-pg, no baseline"]
    assert [(row["gradient"], row["levels"]) for row in rows] == [(n, t) for t in "12" for n in names]
    assert all(float(row["variance"]) > 0 for row in rows)
    assert (tmp_path / "table.png").stat().st_size > 1000
