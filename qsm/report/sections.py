"""`qsm report`: one HTML page that opens from disk, its figures as PNG and SVG, and the CSV behind each."""

from __future__ import annotations

import datetime
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from envs.tasks import GRIDWORLD_RETURN, full_return
from qsm.base.errors import UserError
from qsm.base.text import count
from qsm.base.version import __version__
from qsm.record.run_folder import now
from qsm.report import run_sections, score_sections
from qsm.report import settings as agent_settings
from qsm.report.intervals import RESAMPLES
from qsm.report.page import Page, described, explain, items, note
from qsm.report.reference import Reference, read_reference
from qsm.report.results import Comparison, Result, gather
from qsm.report.run_sections import Film
from qsm.report.styles import collisions

ENOUGH_SEEDS = 5
"""Seeds of an agent on a task from which on intervals say something."""
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
                page.add(run_sections.videos(page.folder("videos"), comparison, film))
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
    title = f"{count(len(agents), 'agent')} on {count(len(tasks), 'task')}" if len(results) > 1 else "One run"
    collected = datetime.datetime.fromisoformat(now()).strftime("%Y-%m-%d %H:%M %Z")
    return title, (
        f"<p>{count(len(results), 'run')}, collected {html.escape(collected)} by qsm {__version__}. Returns are "
        f"undiscounted means over the episodes of an evaluation; an episode yields at most {_most(tasks)}. Bands and "
        f"intervals are percentile intervals (95 %) of the bootstrap over seeds, stratified by task ({RESAMPLES:,} "
        "resamples). Over tasks, every task weighs the same, however many seeds it has: a run of a task with "
        "n seeds has the weight 1/n.</p>"
    )


def _most(tasks: Iterable[str]) -> str:
    """The most that an episode yields, of each kind of task."""
    kinds = {
        task: "in a gridworld" if full_return(task) == GRIDWORLD_RETURN else "in the suite" for task in tasks
    }
    most = {kind: f"{full_return(task):,.0f}" for task, kind in kinds.items()}
    if len(most) == 1:
        return next(iter(most.values()))
    return " and ".join(f"{number} {kind}" for kind, number in sorted(most.items(), reverse=True))


def _section(page: Page, comparison: Comparison, published: Sequence[Reference] | None) -> None:
    """All of one backend."""
    backend = comparison.backend
    page.add(f"<h2>Simulator: {html.escape(backend)}</h2>")
    _warn(page, comparison)
    page.add("<h3>Learning curves</h3>")
    page.add(score_sections.curves(page, comparison, published))
    page.add(f"<h3>Return at step {comparison.step:,}</h3>")
    page.add(score_sections.scores(page, comparison))
    # The simulators' scores are not comparable: what is published was played in dm_control.
    if published is not None and backend == "dm_control":
        page.add("<h3>Compared with what is published</h3>")
        page.add(score_sections.floors(page, comparison, published))
    tasks = comparison.common_tasks()
    if tasks:
        page.add(f"<h3>Over {count(len(tasks), 'task')}</h3>")
        page.add(
            f"<p>Of tasks on which every agent compared has a score: {html.escape(', '.join(tasks))}.</p>"
        )
        page.add(score_sections.aggregates(page, comparison))
    else:
        page.add("<p>No task has a score of every agent yet, so nothing is put together over tasks.</p>")
    page.add("<h3>Speed</h3>")
    page.add(run_sections.speed(page, comparison))
    page.add("<h3>Protocol</h3>")
    page.add(run_sections.protocol(comparison))
    page.add("<h3>Where it was run</h3>")
    page.add(described(agent_settings.provenance(comparison)))


def _warn(page: Page, comparison: Comparison) -> None:
    """What keeps the figures from being read as they are."""
    if missing := comparison.missing():
        total = len(comparison.tasks) * len(comparison.agents) * len(comparison.seeds)
        has, is_ = ("has", "is") if len(missing) == 1 else ("have", "are")
        text = f"{len(missing)} of {count(total, 'run')} {has} no evaluation at step {comparison.step:,} and {is_} "
        page.add(note(text + "missing from tables and aggregates.", missing))
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
    if few := comparison.few(ENOUGH_SEEDS):
        page.add(
            note(
                "Some agents have fewer than five seeds on a task. Intervals of so few are too narrow to rank agents "
                "by: read these figures as a first look.",
                few,
                "Which, and how many seeds",
            )
        )
    if none := comparison.without_scores():
        page.add(
            note(f"Some agents have no seed on a task at step {comparison.step:,}, and no place there.", none)
        )
    if same := collisions(comparison.agents):
        page.add(note(" ".join(same)))
