"""Figures of `qsm report`, each with the numbers that it shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agents import AGENTS, Style
from qsm.base.text import count
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
from qsm.report.reference import DRAWN, Reference
from qsm.report.results import Comparison
from qsm.report.styles import WIDTH, legend_below, line_of, new_figure, step_axis, style_of, styled

FEW_SEEDS = 10
"""Below this many, every seed is drawn as a faint line."""

Rows = list[dict[str, Any]]
"""The numbers behind a figure, as a table."""


def _curve(
    axes: Axes, x: np.ndarray, found: Estimate, style: Style, label: str, has_steps: bool = False
) -> Any:
    """A line, or a staircase, with the band of its interval, where it has one; the line."""
    line = line_of(style) | {"marker": style.marker, "markersize": 5, "markevery": max(1, len(x) // 5)}
    line |= {"drawstyle": "steps-post"} if has_steps else {}
    [drawn] = axes.plot(x, found.value, label=label, **line)
    if found.has_interval:
        band = {"color": style.color, "alpha": 0.15, "linewidth": 0, "step": "post" if has_steps else None}
        axes.fill_between(x, found.low, found.high, **band)
    return drawn


def _bottom(values: Iterable[float]) -> float:
    """Where an axis of returns begins: at 0, or lower where a value is (a maze has traps that cost 1)."""
    return min([0.0, *(value for value in values if np.isfinite(value))])


def _label(agent: str, found: Estimate) -> str:
    return agent if found.has_interval else f"{agent} (no interval)"


@styled
def learning_curves(
    comparison: Comparison, task: str, published: Mapping[str, Sequence[Reference]] | None = None
) -> tuple[Figure, Rows]:
    """Interquartile mean over seeds with its bootstrap band, over the steps that all seeds of an agent share.

    Args:
      published: what is drawn beside ours, by name (`qsm.report.reference.beside`).
    """
    rows: Rows = []
    figure, axes = new_figure(4.6)
    last, ours = comparison.last_step(task), []
    for agent in comparison.agents:
        runs = [one for one in comparison.of(task, agent) if one.returns]
        style = style_of(agent)
        if len(runs) < FEW_SEEDS:
            for one in runs:
                steps = sorted(one.returns)
                axes.plot(
                    steps, [one.returns[step] for step in steps], color=style.color, alpha=0.25, linewidth=0.8
                )
        steps, values = common_curve([one.returns for one in runs])
        if not len(steps):
            continue
        found = bootstrap(lambda s: interquartile_mean(s["task"]), {"task": values})
        ours.append(_curve(axes, steps, found, style, f"{agent} (n = {len(runs)})"))
        for i, step in enumerate(steps):
            row = {"task": task, "agent": agent, "step": int(step), "seeds": len(runs)}
            rows.append(row | {"iqm": found.value[i], "low": found.low[i], "high": found.high[i]})
    theirs = []
    for place, (name, curves) in enumerate((published or {}).items()):
        theirs.append(_published(axes, name, curves, last, place))
        rows += _published_rows(task, name, curves)
    axes.set(title=task, ylabel="return")
    axes.set_ylim(
        _bottom(r for one in comparison.results if one.task == task for r in one.returns.values()), None
    )
    step_axis(axes, last)
    legend_below(figure, ours, theirs)
    return figure, rows


HATCHES = ("//", "\\\\", "..", "xx", "++", "oo")
"""Of what is published, in its order."""


def published_marker(name: str) -> str:
    """The marker of our agent of that name, for a baseline; a star for any other method."""
    entry = AGENTS.get(name.lower())
    return entry.style.marker if entry is not None else "*"


def _steps(curves: Iterable[Reference]) -> list[int]:
    return sorted({step for one in curves for step in one.points})


def _ends(curves: Sequence[Reference], step: int) -> tuple[float, float]:
    """The lowest mean - std and the highest mean + std at `step`."""
    there = [one.points[step] for one in curves if step in one.points]
    return min(point.low for point in there), max(point.high for point in there)


def _published(axes: Axes, name: str, curves: Sequence[Reference], last: int, place: int) -> Any:
    """Lowest mean - std to highest mean + std: hatched, or a bar to the right of a lone step; for the legend."""
    steps = _steps(curves)
    low, high = zip(*(_ends(curves, step) for step in steps), strict=True)
    label = f"published {name} ({count(len(curves), 'source')})"
    hatch, marker = HATCHES[list(DRAWN).index(name) % len(HATCHES)], published_marker(name)
    if len(steps) > 1:
        return axes.fill_between(
            steps, low, high, facecolor="none", edgecolor="#AAAAAA", hatch=hatch, linewidth=0.5, label=label
        )
    x = steps[0] + last * (0.02 + 0.025 * place)
    style = {"color": "#666666", "clip_on": False}
    axes.plot([x, x], [low[0], high[0]], linewidth=1.5, **style)
    means = [one.points[steps[0]].mean for one in curves]
    [drawn] = axes.plot(
        [x] * len(means), means, marker=marker, markersize=5, linestyle="none", label=label, **style
    )
    return drawn


def _published_rows(task: str, name: str, curves: Sequence[Reference]) -> Rows:
    """Every point with its source, and the band that they make."""
    rows: Rows = []
    for step in _steps(curves):
        low, high = _ends(curves, step)
        for one in curves:
            if (point := one.points.get(step)) is None:
                continue
            row = {"task": task, "agent": f"published {name}", "step": step, "seeds": point.seeds}
            row |= {"low": low, "high": high, "mean": point.mean, "std": point.std, "source": one.source}
            rows.append(row | {"algorithm": one.algorithm, "action_repeat": one.action_repeat})
    return rows


AGGREGATES: dict[str, Callable[[Scores], np.ndarray]] = {
    "IQM": aggregate_iqm,
    "mean": aggregate_mean,
    "median": aggregate_median,
    "optimality gap": optimality_gap,
}


@styled
def aggregates(comparison: Comparison) -> tuple[Figure, Rows]:
    """Bars of the statistics over all common tasks, with 95 % intervals."""
    rows: Rows = []
    agents = comparison.compared
    figure = Figure(figsize=(WIDTH, 1.6 + 0.62 * len(agents)), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True).flat
    for axes, (name, statistic) in zip(panels, AGGREGATES.items(), strict=True):
        for place, agent in enumerate(agents):
            found, style = bootstrap(statistic, comparison.normalized(agent)), style_of(agent)
            axes.barh(place, found.value, color=style.color, alpha=0.35, height=0.7)
            _interval(axes, place, found, style)
            rows.append({"agent": agent, "statistic": name} | _numbers(found))
        axes.set_title(name + (" (lower is better)" if name == "optimality gap" else ""), fontsize=10)
        axes.set_yticks(range(len(agents)), agents)
        axes.set_xticks([0, 0.5, 1])
        axes.set_ylim(len(agents) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
    # All panels share it; the optimality gap is above 1 where scores are below 0.
    ends = [row[end] for row in rows for end in ("value", "low", "high") if np.isfinite(row[end])]
    axes.set_xlim(_bottom(ends), max([1.0, *ends]))
    figure.supxlabel(f"{comparison.score_name} at step {comparison.step:,}", fontsize=10)
    return figure, rows


def _interval(axes: Axes, place: float, found: Estimate, style: Style) -> None:
    """The value with its interval; hollow where it has none."""
    axes.plot([found.low, found.high], [place, place], color=style.color, linewidth=2)
    face = style.color if found.has_interval else "white"
    axes.plot(
        found.value,
        place,
        color=style.color,
        marker=style.marker,
        markersize=6,
        markerfacecolor=face,
        zorder=3,
        clip_on=False,  # a value at the end of the axis has a whole marker
    )


def _numbers(found: Estimate) -> dict[str, float]:
    return {"value": float(found.value), "low": float(found.low), "high": float(found.high)}


@styled
def sample_efficiency(comparison: Comparison) -> tuple[Figure, Rows]:
    """Interquartile mean over the runs of the common tasks against steps."""
    figure, axes = new_figure(4.6)
    rows, lines, last = [], [], 0
    for agent in comparison.compared:
        steps, curves = comparison.normalized_curves(agent)
        if not len(steps):
            continue
        found = bootstrap(aggregate_iqm, curves)
        lines.append(_curve(axes, steps, found, style_of(agent), _label(agent, found)))
        last = max(last, int(steps[-1]))
        for i, step in enumerate(steps):
            row = {"agent": agent, "step": int(step), "iqm": found.value[i], "low": found.low[i]}
            rows.append(row | {"high": found.high[i]})
    axes.set(ylabel=f"IQM of {comparison.score_name}")
    axes.set_ylim(_bottom(row[end] for row in rows for end in ("iqm", "low")), 1)
    step_axis(axes, last)
    legend_below(figure, lines)
    return figure, rows


def time_unit(hours: float) -> tuple[int, str]:
    """How many of the unit that suits `hours` make an hour, and its name."""
    return (1, "hours") if hours >= 2 else (60, "minutes") if 60 * hours >= 2 else (3600, "seconds")


@styled
def time_efficiency(comparison: Comparison) -> tuple[Figure, Rows]:
    """The same against time, the mean over tasks of the mean over runs at each step."""
    figure, axes = new_figure(4.6)
    rows, lines = [], []
    curves_of_hours = {agent: comparison.hours(agent) for agent in comparison.compared}
    all_hours = [values for _, hours in curves_of_hours.values() for values in hours.values()]
    per_hour, unit = time_unit(max((values.max() for values in all_hours if values.size), default=0))
    for agent in comparison.compared:
        steps, curves = comparison.normalized_curves(agent)
        timed, hours = curves_of_hours[agent]
        shared = np.intersect1d(steps, timed)
        if not len(shared):
            continue
        found = bootstrap(aggregate_iqm, {task: v[:, np.isin(steps, shared)] for task, v in curves.items()})
        spent = aggregate_mean({task: v[:, np.isin(timed, shared)] for task, v in hours.items()})
        lines.append(_curve(axes, spent * per_hour, found, style_of(agent), _label(agent, found)))
        for i, step in enumerate(shared):
            row = {"agent": agent, "step": int(step), "hours": spent[i], "iqm": found.value[i]}
            rows.append(row | {"low": found.low[i], "high": found.high[i]})
    axes.set(xlabel=f"{unit} of training and evaluation", ylabel=f"IQM of {comparison.score_name}")
    axes.set_xlim(0, None)
    axes.set_ylim(_bottom(row[end] for row in rows for end in ("iqm", "low")), 1)
    legend_below(figure, lines)
    return figure, rows


@styled
def profile(comparison: Comparison) -> tuple[Figure, Rows]:
    """Share of runs above each score."""
    figure, axes = new_figure(4.6)
    rows, lines = [], []
    thresholds = np.linspace(0, 1, 101)
    for agent in comparison.compared:
        found = bootstrap(lambda s: performance_profile(s, thresholds), comparison.normalized(agent))
        label = _label(agent, found)
        lines.append(_curve(axes, thresholds, found, style_of(agent), label, has_steps=True))
        for i, threshold in enumerate(thresholds):
            row = {"agent": agent, "threshold": float(threshold), "share": found.value[i]}
            rows.append(row | {"low": found.low[i], "high": found.high[i]})
    axes.set(
        xlabel=f"score τ ({comparison.score_name} at step {comparison.step:,})",
        ylabel="share of runs above τ",
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    legend_below(figure, lines)
    return figure, rows


@styled
def improvement(comparison: Comparison) -> tuple[Figure, Rows]:
    """Probability that a run of one agent beats one of another, for every pair."""
    agents = comparison.compared
    pairs = [(a, b) for i, a in enumerate(agents) for b in agents[i + 1 :]]
    rows: Rows = []
    figure, axes = new_figure(0.9 + 0.42 * len(pairs))
    for place, (one, other) in enumerate(pairs):
        found = bootstrap(
            probability_of_improvement, comparison.normalized(one), comparison.normalized(other)
        )
        _interval(axes, place, found, style_of(one))
        rows.append({"agent": one, "over": other} | _numbers(found))
    axes.axvline(0.5, color="#777777", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(pairs)), [f"{one} over {other}" for one, other in pairs])
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("probability of improvement")
    return figure, rows


@styled
def speed(comparison: Comparison) -> tuple[Figure, Rows]:
    """Environment steps per second of each run, with the median of each agent on each kind of hardware."""
    timed = [one for one in comparison.results if one.steps_per_second]
    kinds = sorted({one.hardware for one in timed})
    groups = [(agent, kind) for kind in kinds for agent in comparison.agents]
    groups = [group for group in groups if any((one.agent, one.hardware) == group for one in timed)]
    figure, axes = new_figure(0.9 + (0.42 if len(kinds) < 2 else 0.6) * len(groups))
    rows: Rows = []
    for place, (agent, kind) in enumerate(groups):
        runs = [one for one in timed if (one.agent, one.hardware) == (agent, kind)]
        rates = [one.steps_per_second for one in runs if one.steps_per_second]
        hours = [one.hours[comparison.step] for one in runs if comparison.step in one.hours]
        style = style_of(agent)
        axes.barh(place, float(np.median(rates)), color=style.color, alpha=0.35, height=0.7)
        axes.plot(rates, [place] * len(rates), style.marker, color=style.color, markersize=4)
        row = {"agent": agent, "hardware": kind, "runs": len(rates)}
        row |= {"steps_per_second": float(np.median(rates)), "step": comparison.step, "timed": len(hours)}
        # Without a run that was timed up to the step there are no hours to it.
        spread = [float(x) for x in np.quantile(hours, [0.5, 0, 1])] if hours else [np.nan] * 3
        rows.append(row | dict(zip(("hours", "shortest", "longest"), spread, strict=True)))
    axes.set_yticks(
        range(len(groups)), [agent if len(kinds) < 2 else f"{agent}\n{kind}" for agent, kind in groups]
    )
    axes.tick_params("y", labelsize=10 if len(kinds) < 2 else 8)
    axes.set_ylim(max(len(groups), 1) - 0.5, -0.5)
    axes.set_xlim(0, None)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("environment steps per second")
    return figure, rows
