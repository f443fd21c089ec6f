"""How agents look in every figure of `qsm report`: told apart in print and by color-blind readers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from agents import AGENTS, Style

WIDTH = 5.2
"""Inches of a figure: text of 10 points stays readable where the figure is as wide as a phone."""
RC: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "qsm",  # the same file for the same numbers
}


# Variants of agents: lines differ in dashes as well, and points in their form.
COLORS = ("#882255", "#117733", "#777777", "#8C8C00", "#7F3C8D", "#8B4A2B")
DASHES = ((0, (8, 1.5)), (0, (2, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (10, 2, 2, 2, 2, 2)), (0, (4, 4)))
MARKERS = ("v", "P", "X", "<", ">", "p")


def style_of(agent: str) -> Style:
    """The style of `agent`, which depends on its label only: the same in every figure and every report.

    Variants take theirs by a hash of the label, so two of them may have one color (`collisions`).
    """
    if agent in AGENTS:
        return AGENTS[agent].style
    drawn = hashlib.sha256(agent.encode()).digest()
    return Style(
        COLORS[drawn[0] % len(COLORS)], DASHES[drawn[1] % len(DASHES)], MARKERS[drawn[2] % len(MARKERS)]
    )


def line_of(style: Style) -> dict[str, Any]:
    """Arguments of `Axes.plot` for a curve."""
    return {"color": style.color, "linestyle": style.dashes, "linewidth": 2}


def collisions(agents: Sequence[str]) -> list[str]:
    """A sentence on each pair of `agents` with the same color, and what tells them apart."""
    lines = []
    for i, one in enumerate(agents):
        for other in agents[i + 1 :]:
            a, b = style_of(one), style_of(other)
            if a.color != b.color:
                continue
            apart = [
                name
                for name, differs in (("dashes", a.dashes != b.dashes), ("markers", a.marker != b.marker))
                if differs
            ]
            told = (
                f"{' and '.join(apart)} tell them apart" if apart else "nothing tells them apart: rename one"
            )
            lines.append(f"{one} and {other} have the same color; {told}.")
    return lines


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """`draw` with the style of the report."""

    def inside(*arguments: Any, **options: Any) -> Any:
        with matplotlib.rc_context(RC):
            return draw(*arguments, **options)

    return inside


def new_figure(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    """A figure of one panel, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def step_axis(axes: Axes, last: float) -> None:
    """Environment steps from 0 to `last`, in thousands where there are some."""
    last = max(last, 1)
    axes.set_xlim(-0.015 * last, 1.015 * last)  # so that no marker is cut off
    in_thousands = last >= 2_000
    axes.xaxis.set_major_formatter(
        lambda value, _: f"{value / 1000:g}k" if value and in_thousands else f"{value:g}"
    )
    axes.set_xlabel("environment steps")


def mean_and_range(axes: Axes, steps: np.ndarray, returns: np.ndarray, label: str, **line: Any) -> None:
    """The mean over seeds of `returns` `[n, K]` at `steps` `[K]`, and from two seeds on their lowest and highest as a
    band; nothing where there is no step. `line` is for `Axes.plot`.
    """
    if not len(steps):
        return
    every = max(1, len(steps) // 5)
    axes.plot(steps, returns.mean(axis=0), label=label, markersize=5, markevery=every, **line)
    if len(returns) > 1:
        low, high = returns.min(axis=0), returns.max(axis=0)
        axes.fill_between(steps, low, high, color=line["color"], alpha=0.15, linewidth=0)


def legend_below(figure: Figure, ours: Sequence[Any], published: Sequence[Any] = ()) -> None:
    """A legend under the panel, where it covers no curve: our agents, and in a column of its own what is published."""
    if not ours and not published:
        return
    columns = 2 if published or len(ours) > 1 else 1
    handles = list(ours)
    if published:
        # Filled column by column: the shorter one is filled up with nothing.
        rows = max(len(ours), len(published))
        nothing = Line2D([], [], linestyle="none", label=" ")
        handles += [nothing] * (rows - len(ours)) + list(published) + [nothing] * (rows - len(published))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=9, handlelength=3)
