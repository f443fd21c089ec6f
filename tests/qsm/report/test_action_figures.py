"""The figure of `qsm actions` shows what was asked, over the right axes, and its rows the numbers of all components."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest

from qsm.base.errors import UserError
from qsm.report.action_figures import MOST_PANELS, Drawn, action_figure, choose, landscape, numbers


def drawn(samples: np.ndarray, weights: tuple[float, ...] | None = None, agent: str = "qsm") -> Drawn:
    """With Q(s, a) = weights a, or without a critic."""
    value = None if weights is None else lambda actions: actions @ np.array(weights)
    return Drawn(
        agent, f"{agent}, seed 0, step 10", 10, "start, seed 0", samples, value, "reward", "no critic"
    )


def spread(*stds: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (300, len(stds))).clip(-2, 2) * np.array(stds) / 2


def test_the_components_that_spread_most_on_average_are_shown():
    one, other = drawn(spread(0.9, 0.5, 0.1, 0.1)), drawn(spread(0.1, 0.5, 0.1, 0.8))
    assert choose([[one]], None, "t") == [(0, 1)]
    assert choose([[other]], None, "t") == [(1, 3)]
    assert choose([[one], [other]], None, "t") == [(0, 1)]  # 1, 1, 0.2 and 0.9
    assert choose([[drawn(spread(0.1))]], None, "t") == [(0,)]
    assert choose([[one]], (2,), "t") == [(2,)]
    assert choose([[one]], (3, 0, 2), "t") == [(3, 0), (3, 2), (0, 2)]


def test_a_component_that_there_is_not_is_named():
    with pytest.raises(UserError, match=r"--components names 2; an action of walk has components 0 to 1$"):
        choose([[drawn(spread(1, 1))]], (0, 2), "walk")
    with pytest.raises(UserError, match="an action of walk has one component, 0"):
        choose([[drawn(spread(1))]], (1,), "walk")


def test_the_landscape_is_over_the_components_shown_with_the_others_at_their_mean():
    samples = np.array([[0.0, 0.5, 0.2], [0.0, 0.1, 0.4]])
    one = drawn(samples, (1.0, 10.0, 100.0))
    found = landscape(one, (2, 0))
    assert found is not None
    others = 10 * 0.3
    expected = 100 * found.points[:, None] + found.points[None, :] + others
    np.testing.assert_allclose(found.values, expected, atol=1e-9)
    np.testing.assert_allclose(found.points[[0, -1]], [-1, 1])
    of_one = landscape(one, (1,))
    assert of_one is not None
    np.testing.assert_allclose(of_one.values, 10 * of_one.points + 100 * 0.3, atol=1e-9)
    assert landscape(drawn(samples), (0, 1)) is None


def test_numbers_are_of_every_component():
    samples = np.stack([np.repeat([-1.0, 1.0], [60, 40]), np.zeros(100)], axis=1)
    rows, found = numbers(drawn(samples, (1.0, 2.0)))
    assert [row["component"] for row in rows] == [0, 1] and len(found) == 2
    assert (rows[0]["modes"], rows[0]["at_low"], rows[0]["at_high"]) == (2, 0.6, 0.4)
    assert (rows[1]["modes"], rows[1]["at_low"], rows[1]["std"]) == (1, 0.0, 0.0)
    for row in rows:
        assert (row["joint_modes"], row["joint_share"], row["samples"]) == (2, 1.0, 100)
        assert row["value_mean"] == pytest.approx(-0.2)
    assert math.isnan(numbers(drawn(samples))[0][0]["value_mean"])


def test_one_component_is_a_histogram_over_its_critic():
    samples = np.repeat([[-1.0], [0.5]], [30, 70], axis=0)
    with_critic, without = drawn(samples, (2.0,)), drawn(samples, agent="sac")
    figure, rows = action_figure([[with_critic, with_critic], [without, without]], [(0,)])
    assert len(rows) == 4 and len(figure.axes) == 8
    above, below = figure.axes[:2]
    heights = above.patches[0].get_data().values  # pyright: ignore[reportAttributeAccessIssue]
    assert heights[0] == pytest.approx(30) and heights.sum() == pytest.approx(100)
    assert "2 modes; 30.0% at -1, 0.0% at 1" in above.get_title()
    [line] = below.get_lines()
    np.testing.assert_allclose(line.get_ydata(), 2 * np.asarray(line.get_xdata()))
    assert (below.get_xlabel(), below.get_ylabel()) == ("action, in [-1, 1]", "Q(s, a)\n[reward]")
    assert above.get_xlim() == below.get_xlim() and above.get_xlim()[0] < -1
    assert [text.get_text() for text in figure.axes[5].texts] == ["no critic"]
    assert not figure.axes[5].get_lines()
    figure.savefig(io.BytesIO(), format="svg")


def test_policies_of_one_panel_stand_side_by_side():
    one = drawn(np.zeros((10, 1)), (1.0,))
    figure, rows = action_figure([[one]] * 5, [(0,)])
    assert len(rows) == 5
    places = [axes.get_subplotspec().get_topmost_subplotspec() for axes in figure.axes[::2]]  # type: ignore[union-attr]
    assert [(place.rowspan.start, place.colspan.start) for place in places] == [
        *((0, column) for column in range(4)),
        (1, 0),
    ]


def test_two_components_are_a_density_beside_the_critic():
    samples = np.zeros((100, 3))
    samples[:, 0], samples[:30, 2] = -0.99, 0.99
    figure, rows = action_figure([[drawn(samples, (1.0, 0.0, 5.0))]], [(0, 2)])
    assert [row["component"] for row in rows] == [0, 1, 2]
    left, right = (axes for axes in figure.axes if axes.get_xlabel())
    [image] = left.collections
    percent = np.ma.filled(np.ma.asarray(image.get_array()), 0).reshape(40, 40)
    # Rows are of the vertical axis, the second component: its top, and its middle.
    assert percent[39, 0] == pytest.approx(30) and percent[20, 0] == pytest.approx(70)
    for axes in (left, right):
        assert axes.get_xlabel().startswith("component 0") and "component 2" in axes.get_ylabel()
    assert "others at the samples' mean" in right.get_title()
    [dots] = right.get_lines()
    np.testing.assert_allclose(dots.get_xdata(), -0.99)
    figure.savefig(io.BytesIO(), format="svg")


def test_more_panels_than_can_be_read_are_refused():
    one = drawn(spread(1, 1), (1.0, 1.0))
    with pytest.raises(UserError, match=rf"{MOST_PANELS + 1} panels .* {MOST_PANELS} at most"):
        action_figure([[one]] * (MOST_PANELS + 1), [(0, 1)])
