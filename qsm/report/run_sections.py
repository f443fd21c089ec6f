"""How the runs of a comparison were trained: their speed, their settings, and videos of what came of it."""

from __future__ import annotations

import html
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from qsm.base.errors import UserError
from qsm.base.text import duration
from qsm.report import figures
from qsm.report import settings as agent_settings
from qsm.report.page import MISSING, Page, note, table
from qsm.report.results import Comparison

Film = Callable[[Path, Path], str]
"""Writes a video of the run at the first path to the second, and says in a few words what is seen."""


def speed(page: Page, comparison: Comparison) -> str:
    """Steps per second and hours of each agent on each kind of hardware, and returns against hours."""
    figure, numbers = figures.speed(comparison)
    if not numbers:
        return "<p>No run has recorded its speed.</p>"
    rows = []
    for row in numbers:
        median, shortest, longest = (show_hours(row[name]) for name in ("hours", "shortest", "longest"))
        spread = f" ({shortest} to {longest})" if row["timed"] > 1 else ""
        spent = f"{median}{spread}" if row["timed"] else MISSING
        rows.append(
            [row["agent"], row["hardware"], str(row["runs"]), f"{row['steps_per_second']:.0f}", spent]
        )
    head = ["agent", "hardware", "runs", "steps/s", f"time to step {comparison.step:,}"]
    kinds = sorted({row["hardware"] for row in numbers})
    on = f" On {kinds[0]}." if len(kinds) == 1 else ""
    caption = (
        f"Environment steps per second of training: points are medians of runs, bars medians over them.{on}"
    )
    drawn = [page.figure(f"{comparison.backend}_speed", (figure, numbers), caption)]
    text = (
        "Medians over runs (shortest to longest). Speeds are those of each machine as loaded as it was while the runs "
        "were trained; what ran beside them is not recorded. Times are of training and evaluation, without starting up "
        "and without what was made again after a resume; seeds trained in one program share theirs."
    )
    timed, numbers = figures.time_efficiency(comparison)
    if not numbers:
        text += " Returns are not drawn against time: the runs that are compared have no times in common."
    elif len(kinds) > 1:
        text += " Returns are not drawn against time, for they are of several kinds of hardware."
    else:
        caption = (
            "Interquartile mean over runs, each task weighing the same, against the time that they took up to there "
            f"in the mean, with 95 % bands.{on}"
        )
        drawn.append(page.figure(f"{comparison.backend}_time_efficiency", (timed, numbers), caption))
    return table(head, rows) + f'<p>{html.escape(text)}</p><div class="figures">{"".join(drawn)}</div>'


def show_hours(hours: float) -> str:
    """Hours in the unit that suits them: `1.3 s`, `12 min` or `3 h 20 min`; `nan` for none."""
    seconds = 3600 * hours
    return duration(seconds) if seconds >= 10 else f"{seconds:.1f} s"


def videos(folder: Path, comparison: Comparison, film: Film) -> str:
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


def protocol(comparison: Comparison) -> str:
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
