"""`qsm report`: one HTML page that opens from disk, its figures as PNG and SVG, and the CSV behind each."""

from __future__ import annotations

import base64
import csv
import html
import io
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import qsm
from qsm import figures
from qsm.errors import UserError
from qsm.files import replace_file
from qsm.results import Comparison, Reference, Result, gather, read_reference
from qsm.rundir import explain, flatten, now
from qsm.statistics import RESAMPLES

Film = Callable[[Path, Path], str]
"""Writes a video of the run at the first path to the second, and says in a few words what is seen."""
PUBLISHED = ("SAC", "TD3(SpinningUp)", "SimbaV2(utd2)")
"""Algorithms of the reference file that are drawn beside ours: the baselines, and a strong recent method."""
REFERENCE_SEEDS = 3
"""Published curves of fewer seeds are left out."""
SHARED = (
    "run_config.steps",
    "run_config.random_steps",
    "run_config.replay_ratio",
    "run_config.replay_capacity",
    "run_config.num_envs",
    "run_config.action_repeat",
    "run_config.eval_interval",
    "run_config.eval_episodes",
    "agent_config.hidden_sizes",
    "agent_config.batch_size",
)
"""Settings that a comparison is unfair without: shown for every agent, and marked where they differ."""

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; max-width: 72rem;
  padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; } figure.wide { grid-column: 1 / -1; } img, video { width: 100%; height: auto; }
figure:not(.wide) { max-width: 42rem; }
figcaption { font-size: .85rem; color: #444; } .table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } .differs { background: #fff2cc; }
.note { background: #f4f4f4; border-left: 4px solid #0072B2; padding: .5rem 1rem; } code { overflow-wrap: anywhere; }
@media print { a { color: inherit; } figure { break-inside: avoid; } }
"""


def report(
    folders: Sequence[Path],
    out: Path,
    reference: Path | None = None,
    step: int | None = None,
    film: Film | None = None,
) -> Path:
    """Writes the page of the runs at and below `folders`; its path.

    Args:
      out: folder of the page, of `figures/` and of `data/`.
      reference: published curves, see `qsm.results.read_reference`.
      step: at which runs are compared; None: the steps that most of them were to train for.
      film: writes a video of an episode of each agent and task into `videos/`; None: no videos.

    Raises:
      UserError: there is no run with an evaluation, or the folder cannot be written.
    """
    published = read_reference(reference) if reference is not None else []
    results, problems = gather(folders)
    results = [one for one in results if one.returns]
    if not results:
        where = ", ".join(map(str, folders))
        raise UserError(f"no evaluated run below {where}; train some with: qsm bench easy")
    try:
        page = _Page(out)
        for backend in dict.fromkeys(one.backend for one in results):
            comparison = Comparison([one for one in results if one.backend == backend], step)
            _section(page, comparison, published)
            if film is not None:
                page.add(_videos(page.folder("videos"), comparison, film))
        if problems:
            page.add("<h2>Left out</h2>" + _list(problems))
        return page.write(results)
    except OSError as error:
        raise explain(out, error) from error


class _Page:
    """Collects the page and writes what is beside it."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._parts: list[str] = []
        for name in ("figures", "data"):
            (out / name).mkdir(parents=True, exist_ok=True)

    def add(self, text: str) -> None:
        self._parts.append(text)

    def folder(self, name: str) -> Path:
        """A folder beside the page."""
        path = self._out / name
        path.mkdir(exist_ok=True)
        return path

    def table(self, name: str, rows: figures.Rows) -> str:
        """Writes `rows` as data/NAME.csv; a link that works without that file too."""
        text = io.StringIO()
        columns = list(dict.fromkeys(column for row in rows for column in row))
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{x:.6g}" if isinstance(x, float) else x for key, x in row.items()})
        data = text.getvalue().encode()
        replace_file(self._out / "data" / f"{name}.csv", data)
        inline = base64.b64encode(data).decode()
        return f'<a download="{name}.csv" href="data:text/csv;base64,{inline}">{name}.csv</a>'

    def figure(self, name: str, drawn: tuple[Figure, figures.Rows], caption: str, wide: bool = False) -> str:
        """Writes figures/NAME.png and .svg and data/NAME.csv; the figure for the page."""
        figure, rows = drawn
        images = {}
        for form in ("png", "svg"):
            file = io.BytesIO()
            figure.savefig(file, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
            images[form] = file.getvalue()
            replace_file(self._out / "figures" / f"{name}.{form}", images[form])
        source = base64.b64encode(images["svg"]).decode()
        return (
            f'<figure class="{"wide" if wide else ""}"><img alt="{html.escape(caption)}" '
            f'src="data:image/svg+xml;base64,{source}">'
            f"<figcaption>{html.escape(caption)} {self.table(name, rows)}</figcaption></figure>"
        )

    def write(self, results: Sequence[Result]) -> Path:
        """Writes the page itself, last."""
        tasks, agents = {one.task for one in results}, {one.agent for one in results}
        title = f"{len(agents)} agents on {len(tasks)} tasks" if len(results) > 1 else "One run"
        head = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>qsm: {title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>"
            f"<p>{len(results)} runs, collected {html.escape(now())} by qsm {qsm.__version__}. Returns are "
            "undiscounted means over the episodes of an evaluation; an episode yields at most 1,000. Bands and "
            f"intervals are percentile intervals (95 %) of the bootstrap over seeds, stratified by task "
            f"({RESAMPLES:,} resamples).</p>"
        )
        file = self._out / "index.html"
        replace_file(file, (head + "\n".join(self._parts) + "</body></html>\n").encode())
        return file


def _section(page: _Page, comparison: Comparison, published: Sequence[Reference]) -> None:
    """All of one backend."""
    backend = comparison.backend
    page.add(f"<h2>Simulator: {html.escape(backend)}</h2>")
    if missing := comparison.missing():
        shown = missing[:30] + ([f"and {len(missing) - 30} more"] if len(missing) > 30 else [])
        total = len(comparison.tasks) * len(comparison.agents) * len(comparison.seeds)
        page.add(
            f'<div class="note"><p>{len(missing)} of {total} runs have no evaluation at step {comparison.step:,} '
            "and are missing from tables and aggregates.</p>"
            f"<details><summary>Which</summary>{_list(shown)}</details></div>"
        )
    few = min((len(comparison.scores(t, a)) for t in comparison.tasks for a in comparison.agents), default=0)
    if few < 5:
        page.add(
            '<p class="note">Some agents have fewer than five seeds on a task. Intervals of so few are too narrow to '
            "rank agents by: read these figures as a first look.</p>"
        )
    page.add("<h3>Learning curves</h3>")
    page.add(_curves(page, comparison, published))
    page.add(f"<h3>Return at step {comparison.step:,}</h3>")
    page.add(_scores(page, comparison))
    tasks = comparison.common_tasks()
    if tasks:
        page.add(f"<h3>Over {len(tasks)} task{'s' if len(tasks) > 1 else ''}</h3>")
        page.add(f"<p>Of tasks on which every agent has a score: {html.escape(', '.join(tasks))}.</p>")
        page.add(_together(page, comparison))
    else:
        page.add("<p>No task has a score of every agent yet, so nothing is put together over tasks.</p>")
    page.add("<h3>Speed</h3>")
    caption = "Environment steps per second, evaluations left out; bars are medians over runs, points runs."
    page.add(
        f'<div class="figures">{page.figure(f"{backend}_speed", figures.speed(comparison), caption)}</div>'
    )
    page.add("<h3>Protocol</h3>")
    page.add(_protocol(comparison))
    page.add("<h3>Where it was run</h3>")
    page.add(_provenance(comparison))


def _curves(page: _Page, comparison: Comparison, published: Sequence[Reference]) -> str:
    drawn = []
    for task in comparison.tasks:
        # The simulators' scores are not comparable: what is published was played in dm_control.
        beside = [
            one
            for one in published
            if one.task == task
            and one.seeds >= REFERENCE_SEEDS
            and one.algorithm in PUBLISHED
            and comparison.backend == "dm_control"
        ]
        caption = f"{task}: interquartile mean over seeds with its 95 % band; faint lines are seeds."
        if beside:
            sources = sorted({f"{one.source} (action repeat {one.action_repeat})" for one in beside})
            caption += (
                f" Published, in grey: lowest mean - std to highest mean + std of {'; '.join(sources)}."
            )
        name = f"{comparison.backend}_{task}"
        drawn.append(page.figure(name, figures.learning_curves(comparison, task, beside), caption))
    return f'<div class="figures">{"".join(drawn)}</div>'


def _scores(page: _Page, comparison: Comparison) -> str:
    """Mean and standard deviation over seeds of every agent and task, and each seed's in the CSV."""
    rows: list[list[str]] = []
    for task in comparison.tasks:
        cells = [task]
        for agent in comparison.agents:
            scores = comparison.scores(task, agent)
            spread = f" ± {np.std(scores, ddof=1):.0f}" if len(scores) > 1 else ""
            cells.append(f"{np.mean(scores):.0f}{spread} ({len(scores)})" if len(scores) else "missing")
        rows.append(cells)
    raw = [
        {
            "task": one.task,
            "agent": one.agent,
            "seed": one.seed,
            "step": step,
            "return": value,
        }
        for one in comparison.results
        for step, value in sorted(one.returns.items())
    ]
    note = "Mean ± standard deviation over seeds (number of seeds). Every evaluation of every seed:"
    link = page.table(f"{comparison.backend}_evaluations", raw)
    return _table(["task", *comparison.agents], rows) + f"<p>{note} {link}</p>"


def _together(page: _Page, comparison: Comparison) -> str:
    backend = comparison.backend
    parts: list[tuple[str, Callable[[Comparison], Any], str, bool]] = [
        (
            "aggregates",
            figures.aggregates,
            "Aggregates over all runs of these tasks, with 95 % intervals.",
            True,
        ),
        (
            "sample_efficiency",
            figures.sample_efficiency,
            "Interquartile mean against environment steps.",
            False,
        ),
        (
            "profile",
            figures.profile,
            "Performance profile: share of runs above each score, mean over tasks.",
            False,
        ),
    ]
    if len(comparison.agents) > 1:
        caption = (
            "Probability that a run of the first agent scores higher than one of the second, mean over tasks."
        )
        parts.append(("improvement", figures.improvement, caption, False))
    drawn = [
        page.figure(f"{backend}_{name}", draw(comparison), text, wide) for name, draw, text, wide in parts
    ]
    return f'<div class="figures">{"".join(drawn)}</div>'


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
    """What the agents have in common, and where they differ."""
    settings = {agent: _settings(comparison, agent) for agent in comparison.agents}
    rows, marks = [], []
    for name in SHARED:
        values = [settings[agent].get(name, "") for agent in comparison.agents]
        rows.append([name.partition(".")[2].replace("_", " "), *values])
        marks.append(len(set(values)) > 1)
    seeds = ", ".join(map(str, comparison.seeds))
    differs = (
        ""
        if not any(marks)
        else " Marked rows differ between agents or runs: the comparison is not like for like."
    )
    return (
        _table(["setting", *comparison.agents], rows, marks)
        + f"<p>Seeds {html.escape(seeds)}. Settings are per agent; all others are the agents' defaults.{differs}</p>"
    )


def _settings(comparison: Comparison, agent: str) -> dict[str, str]:
    """Each setting of `agent`, with all of its values where its runs have several."""
    found: dict[str, dict[str, None]] = {}
    for one in comparison.results:
        if one.agent == agent:
            parts = {key: one.config[key] for key in ("run_config", "agent_config")}
            for name, value in flatten(parts).items():
                found.setdefault(name, {})[_show(value)] = None
    return {name: " / ".join(values) for name, values in found.items()}


def _show(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000:
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _provenance(comparison: Comparison) -> str:
    """Commits, versions and hardware, each with the number of runs."""
    counts: dict[tuple[str, str], int] = {}
    for one in comparison.results:
        for start in one.starts:
            packages = start.get("packages")
            versions = packages if isinstance(packages, Mapping) else {}
            hardware = [start.get("device"), start.get("processor"), start.get("platform")]
            cores = start.get("cores")
            facts = {
                "commit": start.get("commit") or "not from a checkout",
                "hardware": ", ".join(str(part) for part in hardware if part)
                + (f", {cores} core{'s' if cores != 1 else ''}" if cores else ""),
                "python": start.get("python"),
                "packages": ", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
            }
            for kind, value in facts.items():
                counts[kind, str(value)] = counts.get((kind, str(value)), 0) + 1
    items = [
        f"<b>{kind}</b>: <code>{html.escape(value)}</code> ({number} starts)"
        for (kind, value), number in counts.items()
    ]
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], marks: Sequence[bool] = ()) -> str:
    top = "".join(f"<th>{html.escape(text)}</th>" for text in head)
    lines = []
    for i, row in enumerate(rows):
        mark = ' class="differs"' if i < len(marks) and marks[i] else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{html.escape(str(text))}</td>" for text in row) + "</tr>")
    return f'<div class="table"><table><tr>{top}</tr>{"".join(lines)}</table></div>'


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"
