"""`qsm report`: one HTML page that opens from disk, its figures as PNG and SVG, and the CSV behind each."""

from __future__ import annotations

import html
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import qsm
from qsm.base.errors import UserError
from qsm.record.run_folder import now
from qsm.report import figures
from qsm.report import settings as agent_settings
from qsm.report.intervals import RESAMPLES
from qsm.report.page import MISSING, Page, described, explain, items, note, table
from qsm.report.reference import (
    COUNTERPARTS,
    FLOOR_STEP,
    SEEDS,
    Reference,
    beside,
    floor_of,
    has_points,
    read_reference,
)
from qsm.report.results import Comparison, Result, gather
from qsm.report.styles import collisions

Film = Callable[[Path, Path], str]
"""Writes a video of the run at the first path to the second, and says in a few words what is seen."""
SHOWN_STEPS = 12
"""Steps named in a message; of more, the first and the last."""


def report(
    folders: Sequence[Path],
    out: Path,
    reference: Path | None = None,
    step: int | None = None,
    film: Film | None = None,
    seeds: int | None = None,
) -> Path:
    """Writes the page of the runs at and below `folders`; its path.

    Args:
      out: folder of the page, of `figures/` and of `data/`.
      reference: published curves, see `qsm.report.reference.read_reference`.
      step: at which runs are compared; None: as `qsm.report.results.Comparison` chooses.
      film: writes a video of an episode of each agent and task into `videos/`; None: no videos.
      seeds: expected of each agent on each task, so that those that were never begun are missing; None: those found.

    Raises:
      UserError: there is no run with an evaluation, or none at `step`, or the folder cannot be written.
    """
    published = read_reference(reference) if reference is not None else None
    results, problems = gather(folders)
    if not any(one.returns for one in results):
        where = ", ".join(map(str, folders))
        raise UserError(f"no evaluated run below {where}; train some with: qsm bench easy")
    if step is not None and not any(step in one.returns for one in results):
        raise UserError(
            f"--at-step is {step}, where no run has an evaluation; there are some at {_steps(results)}"
        )
    page = Page(out)
    try:
        for backend in dict.fromkeys(one.backend for one in results):
            comparison = Comparison([one for one in results if one.backend == backend], step, seeds)
            _section(page, comparison, published)
            if film is not None:
                page.add(_videos(page.folder("videos"), comparison, film))
        if problems:
            page.add("<h2>Left out</h2>" + items(problems))
        return page.write(*_head(results))
    except OSError as error:
        raise explain(out, error) from error


def _steps(results: Sequence[Result]) -> str:
    steps = [f"{step:,}" for step in sorted({step for one in results for step in one.returns})]
    if len(steps) > SHOWN_STEPS:
        half = SHOWN_STEPS // 2
        steps = [*steps[:half], "...", *steps[-half:]]
    return "; ".join(steps)


def _head(results: Sequence[Result]) -> tuple[str, str]:
    tasks, agents = {one.task for one in results}, {one.agent for one in results}
    title = f"{len(agents)} agents on {len(tasks)} tasks" if len(results) > 1 else "One run"
    return title, (
        f"<p>{len(results)} runs, collected {html.escape(now())} by qsm {qsm.__version__}. Returns are undiscounted "
        "means over the episodes of an evaluation; an episode yields at most 1,000. Bands and intervals are percentile "
        f"intervals (95 %) of the bootstrap over seeds, stratified by task ({RESAMPLES:,} resamples). Over tasks, "
        "every task weighs the same, however many seeds it has: a run of a task with n seeds has the weight 1/n.</p>"
    )


def _section(page: Page, comparison: Comparison, published: Sequence[Reference] | None) -> None:
    """All of one backend."""
    backend = comparison.backend
    page.add(f"<h2>Simulator: {html.escape(backend)}</h2>")
    _warn(page, comparison)
    page.add("<h3>Learning curves</h3>")
    page.add(_curves(page, comparison, published))
    page.add(f"<h3>Return at step {comparison.step:,}</h3>")
    page.add(_scores(page, comparison))
    # The simulators' scores are not comparable: what is published was played in dm_control.
    if published is not None and backend == "dm_control":
        page.add("<h3>Held against what is published</h3>")
        page.add(_floors(page, comparison, published))
    tasks = comparison.common_tasks()
    if tasks:
        page.add(f"<h3>Over {len(tasks)} task{'s' if len(tasks) > 1 else ''}</h3>")
        page.add(
            f"<p>Of tasks on which every agent compared has a score: {html.escape(', '.join(tasks))}.</p>"
        )
        page.add(_together(page, comparison))
    else:
        page.add("<p>No task has a score of every agent yet, so nothing is put together over tasks.</p>")
    page.add("<h3>Speed</h3>")
    page.add(_speed(page, comparison))
    page.add("<h3>Protocol</h3>")
    page.add(_protocol(comparison))
    page.add("<h3>Where it was run</h3>")
    page.add(described(agent_settings.provenance(comparison)))


def _warn(page: Page, comparison: Comparison) -> None:
    """What keeps the figures from being read as they are."""
    if missing := comparison.missing():
        total = len(comparison.tasks) * len(comparison.agents) * len(comparison.seeds)
        text = f"{len(missing)} of {total} runs have no evaluation at step {comparison.step:,} and are missing from "
        page.add(note(text + "tables and aggregates.", missing))
    if len(comparison.lengths) > 1:
        lengths = ", ".join(f"{steps:,}" for steps in comparison.lengths)
        page.add(
            note(
                f"Runs are of several lengths ({lengths} steps). Curves are drawn to their own ends; tables and "
                f"aggregates compare at step {comparison.step:,}, and at another with --at-step."
            )
        )
    if alone := comparison.alone():
        page.add(
            note(
                "One seed says nothing of others: agents with a single seed on a task have no interval there, nor in "
                "what is put together over tasks, and hollow markers.",
                alone,
            )
        )
    few = min(len(comparison.scores(t, a)) for t in comparison.tasks for a in comparison.agents)
    if few < 5:
        page.add(
            note(
                "Some agents have fewer than five seeds on a task. Intervals of so few are too narrow to rank agents "
                "by: read these figures as a first look."
            )
        )
    if same := collisions(comparison.agents):
        page.add(note(" ".join(same)))


def _curves(page: Page, comparison: Comparison, published: Sequence[Reference] | None) -> str:
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
        name = f"{comparison.backend}_{task}"
        drawn.append(page.figure(name, figures.learning_curves(comparison, task, shown), caption))
    return f'<div class="figures">{"".join(drawn)}</div>'


def _published(shown: dict[str, list[Reference]], last: int) -> str:
    """The sentence on what is drawn beside our curves."""
    if not shown:
        return f" Nothing published up to step {last:,} by sources of {SEEDS} seeds or more."
    parts = [f"{name}: {'; '.join(sorted(map(str, curves)))}" for name, curves in shown.items()]
    return (
        " Published, in grey, from the lowest mean - std to the highest mean + std of the sources (std: sample "
        f"standard deviation over a source's seeds). {'. '.join(parts)}."
    )


def _scores(page: Page, comparison: Comparison) -> str:
    """Mean and standard deviation over seeds of every agent and task, and each seed's in the CSV."""
    expected = len(comparison.seeds)
    rows: list[list[str]] = []
    for task in comparison.tasks:
        cells = [task]
        for agent in comparison.agents:
            scores = comparison.scores(task, agent)
            number = f"{len(scores)}" if len(scores) == expected else f"{len(scores)} of {expected}"
            cells.append(f"{_mean(scores)} ({number})" if len(scores) else f"{MISSING} (0 of {expected})")
        rows.append(cells)
    raw = [
        {"task": one.task, "agent": one.agent, "seed": one.seed, "step": step, "return": value}
        for one in comparison.results
        for step, value in sorted(one.returns.items())
    ]
    text = "Mean ± sample standard deviation over seeds (number of seeds). Every evaluation of every seed:"
    link = page.table(f"{comparison.backend}_evaluations", raw)
    return table(["task", *comparison.agents], rows) + f"<p>{text} {link}</p>"


def _mean(scores: np.ndarray) -> str:
    return f"{np.mean(scores):.0f}" + (f" ± {np.std(scores, ddof=1):.0f}" if len(scores) > 1 else "")


def _floors(page: Page, comparison: Comparison, published: Sequence[Reference]) -> str:
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
        there = f"{_mean(ours)} ({len(ours)} of {len(comparison.seeds)})" if len(ours) else f"{MISSING} (0)"
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


def _together(page: Page, comparison: Comparison) -> str:
    counts = [f"{agent} {_count(comparison, agent)}" for agent in comparison.compared]
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


def _count(comparison: Comparison, agent: str) -> int:
    return sum(len(scores) for scores in comparison.normalised(agent).values())


def _speed(page: Page, comparison: Comparison) -> str:
    """Steps per second and hours of each agent on each kind of hardware, and returns against hours."""
    figure, numbers = figures.speed(comparison)
    if not numbers:
        return "<p>No run has recorded its speed.</p>"
    rows = []
    for row in numbers:
        hours = (
            f"{row['hours']:.2f} ({row['shortest']:.2f} to {row['longest']:.2f})" if row["timed"] else MISSING
        )
        rows.append(
            [row["agent"], row["hardware"], str(row["runs"]), f"{row['steps_per_second']:.0f}", hours]
        )
    head = ["agent", "hardware", "runs", "steps/s", f"hours to step {comparison.step:,}"]
    kinds = sorted({row["hardware"] for row in numbers})
    on = f" On {kinds[0]}." if len(kinds) == 1 else ""
    caption = (
        f"Environment steps per second of training: points are medians of runs, bars medians over them.{on}"
    )
    drawn = [page.figure(f"{comparison.backend}_speed", (figure, numbers), caption)]
    text = (
        "Medians over runs (shortest to longest). Speeds are those of each machine as loaded as it was while the runs "
        "were trained; what ran beside them is not recorded. Hours are of training and evaluation, without starting up "
        "and without what was made again after a resume; seeds trained in one program share theirs."
    )
    timed, numbers = figures.time_efficiency(comparison)
    if not numbers:
        text += " Returns are not drawn against hours: the runs that are compared have no times in common."
    elif len(kinds) > 1:
        text += " Returns are not drawn against hours, for they are of several kinds of hardware."
    else:
        caption = (
            "Interquartile mean over runs, each task weighing the same, against the hours that they took up to there "
            f"in the mean, with 95 % bands.{on}"
        )
        drawn.append(page.figure(f"{comparison.backend}_time_efficiency", (timed, numbers), caption))
    return table(head, rows) + f'<p>{html.escape(text)}</p><div class="figures">{"".join(drawn)}</div>'


def _videos(folder: Path, comparison: Comparison, film: Film) -> str:
    """An episode of each agent on each task, of the seed with the median score; they lie beside the page."""
    drawn = []
    for task in comparison.tasks:
        for agent in comparison.agents:
            run = comparison.median(task, agent)
            if run is None:
                continue
            file = folder / f"{comparison.backend}_{task}_{agent}.mp4"
            try:
                said = film(run.path, file)
            except UserError as error:
                drawn.append(f"<p>No video of {html.escape(agent)} on {task}: {html.escape(str(error))}</p>")
                continue
            source = html.escape(f"{folder.name}/{urllib.parse.quote(file.name)}")
            caption = html.escape(f"{task}, {agent}, seed {run.seed}: {said}")
            drawn.append(
                f'<figure><video controls muted loop preload="metadata" src="{source}"></video>'
                f"<figcaption>{caption}</figcaption></figure>"
            )
    return f'<h3>Videos</h3><div class="figures">{"".join(drawn)}</div>'


def _protocol(comparison: Comparison) -> str:
    """What the agents have in common, where they differ, and all that is not a default."""
    settings = agent_settings.shared_settings(comparison)
    rows = [[one.name, *one.values] for one in settings]
    parts = [table(["setting", *comparison.agents], rows, [one.differs for one in settings])]
    parts.append(f"<p>Seeds {html.escape(', '.join(map(str, comparison.seeds)))}.</p>")
    if differing := [one.name for one in settings if one.differs]:
        text = f"Marked rows differ between agents or runs: {', '.join(differing)}. "
        if differing == ["steps"]:
            text += f"All runs are compared at step {comparison.step:,}."
        else:
            text += "The comparison is not like for like."
        parts.append(note(text))
    varied = [
        f"{agent}: {line}"
        for agent in comparison.agents
        for line in agent_settings.varying(comparison, agent)
    ]
    if varied:
        text = "Settings are to be an agent's own, on every task and seed alike. These vary within an agent:"
        parts.append(note(text, varied))
    changed = {agent: agent_settings.not_default(comparison, agent) for agent in comparison.agents}
    parts.append("<p>Options that are not the defaults of the agent or of qsm train; all others are:</p>")
    rows = [[agent, "; ".join(options) or "none"] for agent, options in changed.items()]
    parts.append(table(["agent", "options"], rows, kind="words"))
    return "".join(parts)
