"""The commands that show or pass on what there is: runs, tasks, agents, policies, reports."""

from __future__ import annotations

import contextlib
import functools
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import agents
from qsm.base.errors import UserError
from qsm.base.text import decimal
from qsm.command.output import complain
from qsm.command.start import start_jax
from qsm.command.train import agent_table, preset_table
from qsm.command.versions import check_versions
from qsm.options import effects
from qsm.options.commands import (
    AgentsOptions,
    DashboardOptions,
    EvalOptions,
    ExportOptions,
    ReportOptions,
    SamplerOptions,
    TasksOptions,
)
from qsm.options.parser import Parser, Positional
from qsm.options.saved import agent_options
from qsm.record.find import load_run
from qsm.record.run_folder import RunDir


def evaluate(arguments: Sequence[str]) -> int:
    """`qsm eval RUN [options]`."""
    example = "runs/dm_control/cartpole-swingup/qsm/seed_0"
    parser = Parser(
        "qsm eval",
        "Evaluate a policy of a run: the newest checkpoint's, unless --best or --step names another.",
        groups={"evaluation": EvalOptions, "sampler": SamplerOptions},
        positionals=[Positional("run", f"Folder of the run, such as {example}.", Path)],
    )
    given = parser.parse(arguments)
    run, options = given["run"], given["evaluation"]
    overrides = given["sampler"].given()
    if options.eval_samples is not None:
        overrides["eval_samples"] = options.eval_samples
    _warn(load_run(run), overrides)  # a path that is no run is told before JAX is loaded
    start_jax()
    from qsm.checkpoints.selection import Which
    from qsm.policies.play import play

    which = Which(options.best, options.step)
    result = play(run, options.episodes, options.seed, overrides, options.video, options.backend, which)
    width = max(map(len, result), default=0)
    for name, value in result.items():
        print(f"{name:{width}}  {decimal(value) if isinstance(value, float) else value}")
    return 0


def export(arguments: Sequence[str]) -> int:
    """`qsm export RUN [options]`."""
    parser = Parser(
        "qsm export",
        "Write a policy of a run, and nothing else of it, to one small file for qsm.load_policy.",
        groups={"export": ExportOptions, "sampler": SamplerOptions},
        positionals=[Positional("run", "Folder of the run.", Path)],
    )
    given = parser.parse(arguments)
    options, overrides = given["export"], given["sampler"].given()
    run = load_run(given["run"])
    _warn(run, overrides)
    start_jax()
    from qsm.checkpoints.selection import Which
    from qsm.policies.export import export as write

    which = Which(options.best, options.step)
    written = write(given["run"], options.output, which, overrides)
    file = str(written.path)
    print(f"{file} ({written.num_bytes:,} bytes). Use it with: policy = qsm.load_policy({file!r})")
    state = run.status().state
    ended = "" if state == "finished" else f": the run is {state}, not finished"
    print(
        f"It is the policy of step {written.description.step:,} of {run.config['run_config']['steps']:,}{ended}"
    )
    if written.description.program is None:
        print(f"NumPy alone cannot run it: {written.description.problem}")
    else:
        print("With NumPy alone: from qsm.policies.numpy_policy import load_policy")
    return 0


def _warn(run: RunDir, overrides: Mapping[str, Any]) -> None:
    """Says which of `overrides` change nothing; those that `run` cannot take are told where they are taken."""
    with contextlib.suppress(ValueError):
        usual = agent_options(run.config["agent"], run.config["agent_config"])
        for line in effects.without_effect(agents.override(usual, **overrides), usual, overrides):
            complain(f"warning: {line}")


def runs(arguments: Sequence[str]) -> int:
    """`qsm runs [DIR]`: a table for a person, or with tabs between the columns for a program."""
    parser = Parser(
        "qsm runs",
        "List the runs below a folder.",
        positionals=[Positional("folder", "Folder of the runs.", Path, Path("runs"))],
    )
    folder = parser.parse(arguments)["folder"]
    if not folder.is_dir():
        raise UserError(f"No folder '{folder}'. Name the folder of your runs: qsm runs FOLDER")
    from qsm.record.listing import Row
    from qsm.record.listing import rows as list_rows

    found = list_rows(folder)
    if not found:
        raise UserError(f"No run below '{folder}'; train one with: qsm train AGENT TASK")
    title = Row(*(name.replace("_", " ") for name in Row._fields))
    if not sys.stdout.isatty():
        print(*("\t".join(row) for row in (title, *found)), sep="\n")
        return 0
    widths = [max(map(len, column)) for column in zip(title, *found, strict=True)]
    for row in (title, *found):
        print("  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
    return 0


def tasks(arguments: Sequence[str]) -> int:
    """`qsm tasks`: of both backends with a mark on those that one lacks; one backend's alone, or for a pipe, bare."""
    groups = {"tasks": TasksOptions}
    backend = Parser("qsm tasks", "List the tasks.", groups).parse(arguments)["tasks"].backend
    check_versions()
    from envs.tasks import task_names

    if not sys.stdout.isatty():
        print(*task_names(backend or "dm_control"), sep="\n")  # for other programs
        return 0
    host, device = task_names("dm_control"), task_names("mjx")
    names = (
        [*host, *(name for name in device if name not in host)] if backend is None else task_names(backend)
    )
    domains: dict[str, list[str]] = {}
    for name in names:
        mark = "" if backend else " *" if name not in device else " +" if name not in host else ""
        domains.setdefault(name.partition("-")[0], []).append(name + mark)
    width = max(len(name) for members in domains.values() for name in members) + 2
    columns = max(1, (shutil.get_terminal_size().columns - 2) // width)
    for domain, members in domains.items():
        print(domain)
        for start in range(0, len(members), columns):
            print("  " + "".join(f"{name:{width}}" for name in members[start : start + columns]).rstrip())
    if backend is None:
        print("\n* --backend dm_control only    + --backend mjx only")
    return 0


def report(arguments: Sequence[str]) -> int:
    """`qsm report FOLDER... [options]`."""
    parser = Parser(
        "qsm report",
        "Compare the runs below the folders: one page with curves, tables and intervals, its figures and their CSV.",
        groups={"report": ReportOptions},
        positionals=[Positional("folders", "Folders with runs below them.", tuple[Path, ...])],
    )
    given = parser.parse(arguments)
    folders, options = given["folders"], given["report"]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"No folder '{folder}'. Name the folder of your runs: qsm report FOLDER")
    from qsm.report.sections import report as write

    film = None
    if options.videos:
        from qsm.policies.videos import film
    page = write(folders, options.out, options.reference, options.at_step, film, options.seeds)
    print(f"{page} (open it in a browser; figures and their CSV files lie beside it)")
    return 0


def sync(arguments: Sequence[str]) -> int:
    """`qsm sync [FOLDER]`."""
    parser = Parser(
        "qsm sync",
        "Upload to Weights & Biases what the runs below a folder recorded offline. The same command again uploads only "
        "what is missing.",
        positionals=[Positional("folder", "Folder of the runs.", Path, Path("runs"))],
    )
    folder = parser.parse(arguments)["folder"]
    if not folder.is_dir():
        raise UserError(f"No folder '{folder}'. Name the folder of your runs: qsm sync FOLDER")
    from qsm.record.sync import sync as upload

    return upload(folder, functools.partial(print, flush=True))


def list_agents(arguments: Sequence[str]) -> int:
    """`qsm agents [--presets]`."""
    groups = {"agents": AgentsOptions}
    options = Parser("qsm agents", "List the agents, and named sets of their options.", groups).parse(
        arguments
    )
    print(agent_table())
    print("\nOptions of an agent: qsm train AGENT --help")
    print(preset_table() if options["agents"].presets else "Named sets of options: qsm agents --presets")
    return 0


def dashboard(arguments: Sequence[str]) -> int:
    """`qsm dashboard [RUNS] [options]`: this process becomes TensorBoard, so that signals reach it."""
    parser = Parser(
        "qsm dashboard",
        "Show learning curves in the browser (TensorBoard, reachable from this machine only).",
        groups={"dashboard": DashboardOptions},
        positionals=[Positional("runs", "Folder of the runs to show.", Path, Path("runs"))],
    )
    given = parser.parse(arguments)
    from qsm.command.dashboard import serve

    serve(given["runs"], given["dashboard"].port)
    return 0  # only where a test replaces execv
