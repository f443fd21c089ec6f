"""The figure of `qsm actions`: what policies draw at states, beside what their critics say of it; and its numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.ticker import MaxNLocator

from qsm.base.errors import UserError
from qsm.base.text import count
from qsm.report import modes
from qsm.report.figures import Rows
from qsm.report.modes import Component
from qsm.report.styles import style_of, styled

MOST_PANELS = 64
ACROSS = 4
"""Policies in a row of the figure, where each has one panel."""
BINS = {1: 50, 2: 40}
"""Of each component, by how many are drawn together."""
POINTS = {1: 201, 2: 61}
"""Of each component, where the critic is asked."""
SHOWN_POINTS = 300  # of the samples, over the critic's landscape
MARGIN = 1.04  # a bound is no end of a panel, so that what lies there is seen
INK = "#333333"


class Drawn(NamedTuple):
    """What one policy drew at one state."""

    agent: str  # with its variant: its style
    policy: str  # in words
    step: int
    state: str  # in words
    samples: np.ndarray  # [N, A] in [-1, 1]
    value: Callable[[np.ndarray], np.ndarray] | None  # of actions [G, A], [G]
    value_unit: str
    no_value: str = ""  # why there is none


class Landscape(NamedTuple):
    """The critic over the components shown, the others at the mean of the samples."""

    points: np.ndarray  # [P], of each component
    values: np.ndarray  # [P] or [P, P], the first component first


def choose(drawn: Sequence[Sequence[Drawn]], given: Sequence[int] | None, task: str) -> list[tuple[int, ...]]:
    """What is drawn together: one component, or pairs of them.

    Args:
      given: components; None for the two whose samples spread most, on average over all policies and states.

    Raises:
      UserError: a component that there is not.
    """
    size = drawn[0][0].samples.shape[1]
    if given is None:
        spread = np.mean([one.samples.std(axis=0) for row in drawn for one in row], axis=0)
        given = sorted(np.argsort(-spread, kind="stable")[:2].tolist())
    if absent := [index for index in given if index >= size]:
        there = "one component, 0" if size == 1 else f"components 0 to {size - 1}"
        raise UserError(f"--components names {absent[0]}; an action of {task} has {there}")
    return [tuple(given)] if len(given) == 1 else list(itertools.combinations(given, 2))


def landscape(one: Drawn, shown: Sequence[int]) -> Landscape | None:
    """The critic's values over `shown` components; None where there is no critic."""
    if one.value is None:
        return None
    points = np.linspace(-1, 1, POINTS[len(shown)])
    grid = np.meshgrid(*[points] * len(shown), indexing="ij")
    actions = np.repeat(one.samples.mean(axis=0)[None], grid[0].size, axis=0)
    for index, values in zip(shown, grid, strict=True):
        actions[:, index] = values.ravel()
    return Landscape(points, one.value(actions).reshape(grid[0].shape))


def numbers(one: Drawn) -> tuple[Rows, list[Component]]:
    """A row for each component, and what `modes` says of each."""
    found = [modes.component(samples) for samples in one.samples.T]
    together = modes.joint(one.samples, found)
    # Of the samples themselves, so that it is of the policy and no landscape.
    values = one.value(one.samples) if one.value is not None else np.array([np.nan])
    rows: Rows = []
    for index, of in enumerate(found):
        row: dict[str, Any] = {"policy": one.policy, "state": one.state, "step": one.step, "component": index}
        row |= {"modes": len(of.modes), "at_low": of.at_low, "at_high": of.at_high}
        row |= {"mean": of.mean, "std": of.std, "entropy": of.entropy}
        row |= {"joint_modes": together.num_modes, "joint_share": together.share}
        rows.append(row | {"samples": len(one.samples), "value_mean": float(values.mean())})
    return rows, found


@styled
def action_figure(drawn: Sequence[Sequence[Drawn]], shown: Sequence[tuple[int, ...]]) -> tuple[Figure, Rows]:
    """A row of panels for each policy; in it, for each state and each of `shown`, density and critic.

    Policies that have one narrow panel each stand side by side, `ACROSS` to a row.

    Args:
      drawn: `[policies][states]`.

    Raises:
      UserError: more panels than can be read.
    """
    columns = len(drawn[0]) * len(shown)
    number = len(drawn) * columns
    if number > MOST_PANELS:
        raise UserError(
            f"{number} panels would be drawn, and {MOST_PANELS} at most can be; take fewer policies, --states or "
            "--components"
        )
    is_flat = len(shown[0]) == 1
    width, height = (3.9, 3.4) if is_flat else (6.8, 2.9)
    across = min(len(drawn), ACROSS) if is_flat and columns == 1 else 1
    down = -(-len(drawn) // across)
    figure = Figure(figsize=(max(width * columns * across, 5.2), height * down), layout="constrained")
    grid = figure.add_gridspec(down, columns * across)
    draw = _one_component if is_flat else _two_components
    rows: Rows = []
    for i, policies in enumerate(drawn):
        for j, one in enumerate(policies):
            of_one, found = numbers(one)
            rows += of_one
            for k, components in enumerate(shown):
                place = grid[i // across, (i % across) * columns + j * len(shown) + k]
                draw(figure, place, one, components, found)
    return figure, rows


def _axis_label(index: int, found: Sequence[Component]) -> str:
    return "action, in [-1, 1]" if len(found) == 1 else f"component {index}, in [-1, 1]"


def _others(found: Sequence[Component], components: Sequence[int]) -> str:
    """What the landscape says nothing of, where there is more than is shown."""
    return "others at the samples' mean" if len(found) > len(components) else ""


def _no_value(axes: Axes, one: Drawn) -> None:
    axes.text(
        0.5, 0.5, one.no_value, transform=axes.transAxes, ha="center", va="center", color=INK, fontsize=9
    )
    axes.grid(visible=False)


def _one_component(
    figure: Figure, place: SubplotSpec, one: Drawn, components: tuple[int, ...], found: Sequence[Component]
) -> None:
    """Share of the samples in each bin, and below it the critic over the same axis."""
    [index] = components
    style, samples, of = style_of(one.agent), one.samples[:, index], found[index]
    parts = place.subgridspec(2, 1, height_ratios=(3, 2))
    above = figure.add_subplot(parts[0])
    below = figure.add_subplot(parts[1], sharex=above)
    shares, edges = np.histogram(np.clip(samples, -1, 1), BINS[1], (-1, 1))
    percent = 100 * shares / len(samples)
    above.stairs(percent, edges, fill=True, color=style.color, alpha=0.35)
    above.stairs(percent, edges, color=style.color, linewidth=1.2)
    top = percent.max()
    above.plot(of.modes, [1.08 * top] * len(of.modes), "v", color=INK, markersize=6)
    above.set_ylim(0, 1.18 * top)
    above.set_xlim(-MARGIN, MARGIN)
    above.set_ylabel("% of samples")
    above.tick_params(labelbottom=False)
    above.set_title(
        f"{one.policy}\n{one.state}\n{count(len(of.modes), 'mode')}; {of.at_low:.1%} at -1, {of.at_high:.1%} at 1",
        fontsize=9,
    )
    if (critic := landscape(one, components)) is None:
        _no_value(below, one)
        below.set_yticks([])
    else:
        below.plot(critic.points, critic.values, color=style.color, linewidth=2)
        below.set_ylabel(f"Q(s, a)\n[{one.value_unit}]", fontsize=9)
        below.set_title(_others(found, components), fontsize=9)
    below.set_xticks([-1, -0.5, 0, 0.5, 1])
    below.set_xlabel(_axis_label(index, found))


def _two_components(
    figure: Figure, place: SubplotSpec, one: Drawn, components: tuple[int, ...], found: Sequence[Component]
) -> None:
    """Density of the samples, and to the right the critic over the same two components with some of the samples."""
    first, second = components
    parts = place.subgridspec(1, 2)
    left, right = (figure.add_subplot(part) for part in parts)
    pair = np.clip(one.samples[:, components], -1, 1)
    counts, edges, _ = np.histogram2d(pair[:, 0], pair[:, 1], BINS[2], ((-1, 1), (-1, 1)))
    percent = np.ma.masked_equal(100 * counts / len(pair), 0)
    # From one sample to all: what is rare is seen beside a point mass, and colors mean the same in every panel.
    scale = LogNorm(100 / len(pair), 100)
    image = left.pcolormesh(edges, edges, percent.T, cmap="viridis_r", norm=scale)
    bar = figure.colorbar(image, ax=left, label="% of samples", shrink=0.7)
    bar.ax.yaxis.set_major_formatter("{x:g}")
    left.set_title(f"{one.policy}\n{one.state}", fontsize=9)
    if (critic := landscape(one, components)) is None:
        _no_value(right, one)
    else:
        drawn = right.contourf(critic.points, critic.points, critic.values.T, levels=20, cmap="cividis")
        label = f"Q(s, a) [{one.value_unit}]"
        figure.colorbar(drawn, ax=right, label=label, shrink=0.7, ticks=MaxNLocator(5))
        some = pair[:: max(1, len(pair) // SHOWN_POINTS)]
        right.plot(*some.T, ".", color="white", markeredgecolor="black", markeredgewidth=0.4, markersize=4)
        right.set_title(f"critic, with samples\n{_others(found, components)}", fontsize=9)
    for axes in (left, right):
        axes.set(xlim=(-MARGIN, MARGIN), ylim=(-MARGIN, MARGIN), aspect="equal")
        axes.set_xlabel(_axis_label(first, found))
        axes.set_ylabel(_axis_label(second, found))
        axes.set_xticks([-1, 0, 1])
        axes.set_yticks([-1, 0, 1])
