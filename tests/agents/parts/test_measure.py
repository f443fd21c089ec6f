from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from agents.parts import measure
from agents.parts.types import Mean


def test_a_skipped_metric_adds_nothing_to_a_running_mean():
    updates = [measure.mean(jnp.array([1.0, 3.0])), measure.skipped(), measure.mean(jnp.array([5.0]))]
    total, count = (sum(float(entry) for entry in column) for column in zip(*updates, strict=True))
    assert total / count == pytest.approx((2.0 + 5.0) / 2)
    # Both branches of a `lax.cond` must agree in type.
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), entry) for entry in updates]
    assert isinstance(updates[1], Mean)
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("action", "share"),
    [([[-1.0, 1.0, 0.0]], 2 / 3), ([[0.995, -0.995], [0.985, -0.985]], 0.5), ([[0.0]], 0.0)],
)
def test_both_bounds_saturate(action: list[list[float]], share: float):
    found = measure.saturation(jnp.array(action))
    assert float(found.total) == pytest.approx(share) and float(found.count) == 1.0
