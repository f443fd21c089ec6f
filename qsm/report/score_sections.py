"""What the runs of a comparison have reached: curves, returns, published scores beside them, aggregates over tasks."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from envs.tasks import full_return
from qsm.report import figures
from qsm.report.page import MISSING, Page, table
from qsm.report.reference import COUNTERPARTS, FLOOR_STEP, SEEDS, Reference, beside, floor_of, has_points
from qsm.report.results import Comparison


def curves(page: Page, comparison: Comparison, published: Sequence[Reference] | None) -> str:
    """The learning curves of every task."""
    drawn = []
    for task in comparison.tasks:
        last = comparison.last_step(task)
        runs = {
            agent: [one for one in comparison.of(task, agent) if one.returns] for agent in comparison.agents
        }
        counts = [f"{agent} {len(found)}" for agent, found in runs.items() if found]
        if not counts:
            continue  # no evaluation yet
        caption = (
            f"{task}: interquartile mean over seeds ({', '.join(counts)}) with its 95 % band; faint lines are single "
            "seeds. A curve ends where the first of its seeds ends."
        )
        if ones := [agent for agent, found in runs.items() if len(found) == 1]:
            caption += f" One seed, no band: {', '.join(ones)}."
        shown: dict[str, list[Reference]] = {}
        if published is not None and comparison.backend == "dm_control":
            shown = beside(published, task, last)
            caption += _published(shown, last)
        sources = [f"{name}: {one}" for name, found in shown.items() for one in sorted(found, key=str)]
        name = f"{comparison.backend}_{task}"
        drawn.append(page.figure(name, figures.learning_curves(comparison, task, shown), caption, sources))
    return f'<div class="figures">{"".join(drawn)}</div>'


def _published(shown: dict[str, list[Reference]], last: int) -> str:
    """The sentence on what is drawn beside our curves."""
    if not shown:
        return f" Nothing published up to step {last:,} by sources of {SEEDS} seeds or more."
    return (
        " Published, in grey, from the lowest mean - std to the highest mean + std of the sources (std: sample "
        f"standard deviation over a source's seeds): {', '.join(shown)}."
    )


def scores(page: Page, comparison: Comparison) -> str:
    """Mean and standard deviation over seeds of every agent and task, and each seed's in the CSV."""
    expected = len(comparison.seeds)
    rows: list[list[str]] = []
    for task in comparison.tasks:
        cells = [task]
        for agent in comparison.agents:
            scores = comparison.scores(task, agent)
            number = f"{len(scores)}" if len(scores) == expected else f"{len(scores)} of {expected}"
            cells.append(
                f"{_mean(scores, task)} ({number})" if len(scores) else f"{MISSING} (0 of {expected})"
            )
        rows.append(cells)
    raw = [
        {"task": one.task, "agent": one.agent, "seed": one.seed, "step": step, "return": value}
        for one in comparison.results
        for step, value in sorted(one.returns.items())
    ]
    text = "Mean ± sample standard deviation over seeds (number of seeds). Every evaluation of every seed:"
    link = page.table(f"{comparison.backend}_evaluations", raw)
    return table(["task", *comparison.agents], rows) + f"<p>{text} {link}</p>"


def _mean(scores: np.ndarray, task: str) -> str:
    decimals = 0 if full_return(task) >= 100 else 2
    mean = f"{np.mean(scores):.{decimals}f}"
    return f"{mean} ± {np.std(scores, ddof=1):.{decimals}f}" if len(scores) > 1 else mean


def floors(page: Page, comparison: Comparison, published: Sequence[Reference]) -> str:
    """Our baselines against the lowest published mean - std, at 100,000 steps and where else we compare."""
    steps = {FLOOR_STEP} | ({comparison.step} if has_points(published, comparison.step) else set())
    rows: list[list[str]] = []
    numbers: figures.Rows = []
    agents = [agent for agent in comparison.agents if agent.partition("@")[0] in COUNTERPARTS]
    for step, task, agent in ((s, t, a) for s in sorted(steps) for t in comparison.tasks for a in agents):
        ours = np.array([one.returns[step] for one in comparison.of(task, agent) if step in one.returns])
        floor = floor_of(published, agent.partition("@")[0], task, step)
        number: dict[str, Any] = {"task": task, "agent": agent, "step": step, "seeds": len(ours)}
        number["mean"] = float(np.mean(ours)) if len(ours) else np.nan
        number["std"] = float(np.std(ours, ddof=1)) if len(ours) > 1 else np.nan
        if floor is None:
            verdict, low, source = "none published", "", ""
        else:
            low = f"{floor.value:.1f}"
            point, one = floor.point, floor.reference._replace(points={step: floor.point})
            source = f"{point.mean:.1f} - {point.std:.1f}: {one.algorithm} of {one}"
            verdict = (
                "above" if number["mean"] >= floor.value else "below" if len(ours) else "ours not there yet"
            )
            number |= {"floor": floor.value, "source": one.source, "algorithm": one.algorithm}
            number |= {"published_mean": point.mean, "published_std": point.std}
            number |= {"published_seeds": point.seeds, "action_repeat": one.action_repeat}
        numbers.append(number | {"verdict": verdict})
        there = (
            f"{_mean(ours, task)} ({len(ours)} of {len(comparison.seeds)})" if len(ours) else f"{MISSING} (0)"
        )
        rows.append([task, agent, f"{step:,}", there, low, verdict, source])
    if not rows:
        return f"<p>Neither {' nor '.join(COUNTERPARTS)} is among the agents.</p>"
    text = (
        f"The floor is the lowest mean - std (sample standard deviation over seeds) among the published sources of "
        f"{SEEDS} seeds or more at that step: of those at action repeat 1, or of the others where there are none. "
        "“None published” means that no such source has the task at that step. Where an agent's mean is below its "
        "floor, look for the cause."
    )
    link = page.table(f"{comparison.backend}_floors", numbers)
    head = ["task", "agent", "step", "ours (seeds)", "floor", "ours is", "source of the floor"]
    return table(head, rows, kind="words") + f"<p>{html.escape(text)} {link}</p>"


def aggregates(page: Page, comparison: Comparison) -> str:
    """Figures over all common tasks."""
    counts = [f"{agent} {_num_scores(comparison, agent)}" for agent in comparison.compared]
    runs = f"Runs: {', '.join(counts)}."
    hollow = " Hollow: no interval, for want of seeds." if comparison.alone() else ""
    parts: list[tuple[str, Callable[[Comparison], Any], str]] = [
        (
            "aggregates",
            figures.aggregates,
            "Aggregates over the runs of these tasks with 95 % intervals: interquartile mean and optimality gap over "
            "runs, each task weighing the same; mean and median over tasks of the tasks' means. "
            f"{runs}{hollow}",
        ),
        (
            "sample_efficiency",
            figures.sample_efficiency,
            "Interquartile mean over runs, each task weighing the same, against environment steps, with 95 % bands. "
            f"{runs} A curve ends where the first of its runs ends.",
        ),
        (
            "profile",
            figures.profile,
            f"Performance profile: share of runs above each score, mean over tasks, with 95 % bands. {runs}",
        ),
    ]
    if len(comparison.compared) > 1:
        caption = (
            "Probability that a run of the first agent scores higher than one of the second, mean over tasks, with "
            f"95 % intervals.{hollow}"
        )
        parts.append(("improvement", figures.improvement, caption))
    drawn = [
        page.figure(f"{comparison.backend}_{name}", draw(comparison), text) for name, draw, text in parts
    ]
    return f'<div class="figures">{"".join(drawn)}</div>'


def _num_scores(comparison: Comparison, agent: str) -> int:
    return sum(len(scores) for scores in comparison.normalized(agent).values())
