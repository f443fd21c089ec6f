"""Figures of `qsm report`: one colour an agent everywhere, told apart in print and by colour-blind readers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qsm.results import Comparison, Reference
from qsm.statistics import (
    Estimate,
    bootstrap,
    common_curve,
    interquartile_mean,
    optimality_gap,
    performance_profile,
    pooled,
    probability_of_improvement,
)

# Okabe and Ito's palette; lines differ in dashes as well, and points in their form.
COLOURS = {"qsm": "#0072B2", "qsm-clean": "#D55E00", "sac": "#009E73", "td3": "#CC79A7"}
OTHERS = ("#E69F00", "#56B4E9", "#000000", "#8C8C00", "#7F3C8D", "#666666")
DASHES = {"qsm": "-", "qsm-clean": "--", "sac": "-.", "td3": ":"}
MARKERS = {"qsm": "o", "qsm-clean": "s", "sac": "^", "td3": "D"}
FEW_SEEDS = 10
"""Below this many, every seed is drawn as a faint line."""
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "qsm",  # the same file for the same numbers
}

Rows = list[dict[str, Any]]
"""The numbers behind a figure, as a table."""


class Styles:
    """Colour, dashes and marker of each agent; those that are not known by name take the next of `OTHERS`."""

    def __init__(self, agents: Sequence[str]) -> None:
        others = [agent for agent in agents if agent not in COLOURS]
        self._colour = COLOURS | {agent: OTHERS[i % len(OTHERS)] for i, agent in enumerate(others)}

    def line(self, agent: str) -> dict[str, Any]:
        return {
            "color": self._colour[agent],
            "linestyle": DASHES.get(agent, (0, (5, 1, 1, 1))),
            "linewidth": 2,
        }

    def colour(self, agent: str) -> str:
        return self._colour[agent]

    def marker(self, agent: str) -> str:
        return MARKERS.get(agent, "v")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _step_axis(axes: Axes, last: int) -> None:
    axes.set_xlim(0, last)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
    axes.set_xlabel("environment steps")


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """`draw` with the style of the report."""

    def inside(*arguments: Any, **options: Any) -> Any:
        with matplotlib.rc_context(STYLE):
            return draw(*arguments, **options)

    return inside


@styled
def learning_curves(
    comparison: Comparison, task: str, references: Sequence[Reference] = ()
) -> tuple[Figure, Rows]:
    """Interquartile mean over seeds with its bootstrap band, over the steps that all seeds of an agent share."""
    styles, rows = Styles(comparison.agents), []
    figure, axes = _figure(6.4, 4.2)
    last = comparison.step
    for place, algorithm in enumerate(dict.fromkeys(one.algorithm for one in references)):
        _band(axes, [one for one in references if one.algorithm == algorithm], last, place)
    for agent in comparison.agents:
        runs = [one for one in comparison.of(task, agent) if one.returns]
        if not runs:
            continue
        colour = styles.colour(agent)
        if len(runs) < FEW_SEEDS:
            for one in runs:
                steps = sorted(step for step in one.returns if step <= last)
                axes.plot(
                    steps, [one.returns[step] for step in steps], color=colour, alpha=0.25, linewidth=0.8
                )
        steps, values = common_curve([one.returns for one in runs])
        steps, values = steps[steps <= last], values[:, steps <= last]
        if not len(steps):
            continue
        found = bootstrap(lambda s: interquartile_mean(s["task"]), {"task": values})
        axes.plot(steps, found.value, label=f"{agent} (n = {len(runs)})", **styles.line(agent))
        if len(runs) > 1:
            axes.fill_between(steps, found.low, found.high, color=colour, alpha=0.15, linewidth=0)
        for i, step in enumerate(steps):
            row = {"task": task, "agent": agent, "step": int(step), "seeds": len(runs)}
            rows.append(row | {"iqm": found.value[i], "low": found.low[i], "high": found.high[i]})
    axes.set(title=task, ylabel="return")
    axes.set_ylim(0, None)
    _step_axis(axes, last)
    axes.legend(loc="upper left", fontsize=8, handlelength=3)
    return figure, rows


PUBLISHED_LOOKS = {"SAC": ("//", "^"), "TD3(SpinningUp)": ("\\\\", "D"), "SimbaV2(utd2)": ("..", "*")}
"""Hatching and marker of published algorithms; the baselines have the markers of ours."""


def _band(axes: Axes, curves: Sequence[Reference], last: int, place: int) -> None:
    """Lowest mean - std to highest mean + std of the sources: hatched, or a bar to the right of a lone step."""
    steps = sorted({step for one in curves for step in one.points if step <= last})
    if not steps:
        return
    ends = [[one.points[step] for one in curves if step in one.points] for step in steps]
    low = [min(mean - (0 if np.isnan(std) else std) for mean, std in there) for there in ends]
    high = [max(mean + (0 if np.isnan(std) else std) for mean, std in there) for there in ends]
    number = sum(any(step in one.points for step in steps) for one in curves)
    name = f"published {curves[0].algorithm} ({number} source{'s' if number > 1 else ''})"
    hatch, marker = PUBLISHED_LOOKS.get(curves[0].algorithm, ("xx", "P"))
    if len(steps) > 1:
        axes.fill_between(
            steps, low, high, facecolor="none", edgecolor="#AAAAAA", hatch=hatch, linewidth=0.5, label=name
        )
        return
    x = steps[0] + last * (0.02 + 0.025 * place)
    means = [mean for mean, _ in ends[0]]
    look = {"color": "#666666", "clip_on": False}
    axes.plot([x, x], [low[0], high[0]], linewidth=1.5, **look)
    axes.plot([x] * len(means), means, marker=marker, markersize=5, linestyle="none", label=name, **look)


AGGREGATES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "IQM": interquartile_mean,
    "mean": lambda scores: np.mean(scores, axis=0),
    "median": lambda scores: np.median(scores, axis=0),
    "optimality gap": optimality_gap,
}


@styled
def aggregates(comparison: Comparison) -> tuple[Figure, Rows]:
    """Bars of the statistics over all common tasks, with 95 % intervals."""
    styles, rows = Styles(comparison.agents), []
    figure = Figure(figsize=(10, 0.9 + 0.42 * len(comparison.agents)), layout="constrained")
    panels = figure.subplots(1, len(AGGREGATES), sharey=True, squeeze=False)[0]
    for axes, (name, statistic) in zip(panels, AGGREGATES.items(), strict=True):
        for place, agent in enumerate(comparison.agents):
            found = bootstrap(
                lambda s, statistic=statistic: statistic(pooled(s)), comparison.normalised(agent)
            )
            axes.barh(place, found.value, color=styles.colour(agent), alpha=0.35, height=0.7)
            _interval(axes, place, found, styles.colour(agent), styles.marker(agent))
            rows.append({"agent": agent, "statistic": name} | _numbers(found))
        axes.set_title(name + (" (lower is better)" if name == "optimality gap" else ""), fontsize=10)
        axes.set_yticks(range(len(comparison.agents)), comparison.agents)
        axes.set_xlim(0, 1)
        axes.grid(visible=False, axis="y")
    panels[0].invert_yaxis()
    figure.supxlabel(f"return / 1000 at step {comparison.step:,}", fontsize=9)
    return figure, rows


def _interval(axes: Axes, place: float, found: Estimate, colour: str, marker: str) -> None:
    axes.plot([found.low, found.high], [place, place], color=colour, linewidth=2)
    axes.plot(found.value, place, color=colour, marker=marker, markersize=6)


def _numbers(found: Estimate) -> dict[str, float]:
    return {"value": float(found.value), "low": float(found.low), "high": float(found.high)}


@styled
def sample_efficiency(comparison: Comparison) -> tuple[Figure, Rows]:
    """Interquartile mean over all runs of the common tasks against steps."""
    styles, rows = Styles(comparison.agents), []
    figure, axes = _figure(6.4, 4.2)
    for agent in comparison.agents:
        steps, curves = comparison.normalised_curves(agent)
        if not len(steps):
            continue
        found = bootstrap(lambda s: interquartile_mean(pooled(s)), curves)
        axes.plot(steps, found.value, label=agent, **styles.line(agent))
        axes.fill_between(steps, found.low, found.high, color=styles.colour(agent), alpha=0.15, linewidth=0)
        for i, step in enumerate(steps):
            row = {"agent": agent, "step": int(step), "iqm": found.value[i], "low": found.low[i]}
            rows.append(row | {"high": found.high[i]})
    axes.set(ylabel="IQM of return / 1000")
    axes.set_ylim(0, 1)
    _step_axis(axes, comparison.step)
    axes.legend(loc="upper left", fontsize=8, handlelength=3)
    return figure, rows


@styled
def profile(comparison: Comparison) -> tuple[Figure, Rows]:
    """Share of runs above each score."""
    styles, rows = Styles(comparison.agents), []
    figure, axes = _figure(6.4, 4.2)
    thresholds = np.linspace(0, 1, 101)
    for agent in comparison.agents:
        found = bootstrap(lambda s: performance_profile(s, thresholds), comparison.normalised(agent))
        axes.step(thresholds, found.value, where="post", label=agent, **styles.line(agent))
        axes.fill_between(
            thresholds,
            found.low,
            found.high,
            step="post",
            color=styles.colour(agent),
            alpha=0.15,
            linewidth=0,
        )
        for i, threshold in enumerate(thresholds):
            row = {"agent": agent, "threshold": float(threshold), "share": found.value[i]}
            rows.append(row | {"low": found.low[i], "high": found.high[i]})
    axes.set(xlabel=f"score τ (return / 1000 at step {comparison.step:,})", ylabel="share of runs above τ")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.legend(loc="upper right", fontsize=8, handlelength=3)
    return figure, rows


@styled
def improvement(comparison: Comparison) -> tuple[Figure, Rows]:
    """Probability that a run of one agent beats one of another, for every pair."""
    pairs = [(a, b) for i, a in enumerate(comparison.agents) for b in comparison.agents[i + 1 :]]
    styles, rows = Styles(comparison.agents), []
    figure, axes = _figure(6.4, 0.9 + 0.42 * len(pairs))
    for place, (one, other) in enumerate(pairs):
        found = bootstrap(
            probability_of_improvement, comparison.normalised(one), comparison.normalised(other)
        )
        _interval(axes, place, found, styles.colour(one), styles.marker(one))
        rows.append({"agent": one, "over": other} | _numbers(found))
    axes.axvline(0.5, color="#777777", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(pairs)), [f"{one} over {other}" for one, other in pairs])
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("probability of improvement")
    return figure, rows


@styled
def speed(comparison: Comparison) -> tuple[Figure, Rows]:
    """Environment steps per second of each run, with the median of each agent."""
    styles, rows = Styles(comparison.agents), []
    figure, axes = _figure(6.4, 0.9 + 0.42 * len(comparison.agents))
    for place, agent in enumerate(comparison.agents):
        rates = [
            one.steps_per_second for one in comparison.results if one.agent == agent and one.steps_per_second
        ]
        if rates:
            axes.barh(place, float(np.median(rates)), color=styles.colour(agent), alpha=0.35, height=0.7)
            axes.plot(
                rates, [place] * len(rates), styles.marker(agent), color=styles.colour(agent), markersize=4
            )
            rows.append({"agent": agent, "runs": len(rates), "steps_per_second": float(np.median(rates))})
    axes.set_yticks(range(len(comparison.agents)), comparison.agents)
    axes.invert_yaxis()
    axes.set_xlim(0, None)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("environment steps per second of training (median over a run)")
    return figure, rows
