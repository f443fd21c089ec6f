"""The `qsm` command. Commands import what they need when they run, so that help and slips answer at once."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import agents
import qsm
from qsm.base.errors import UserError, check_words, first_line, nearest
from qsm.command import output
from qsm.command.versions import check_versions
from qsm.devices import environment_variables
from qsm.options.commands import (
    BenchOptions,
    ClusterOptions,
    DashboardOptions,
    EvalOptions,
    ExportOptions,
    OutputOptions,
    ProtocolOptions,
    ReportOptions,
    TasksOptions,
)
from qsm.options.parser import Parser, Positional, flag_of, show_options
from qsm.options.run import Backend, LaunchOptions, MjxRunConfig, RunConfig
from qsm.record.status import EXIT_STATUS, MISTAKE

if TYPE_CHECKING:
    from qsm.bench.engines import Engine

BROKEN_PIPE = 141  # 128 + SIGPIPE


def train(arguments: Sequence[str]) -> int:
    """`qsm train AGENT TASK [options]`."""
    usage = "qsm train AGENT TASK [options]"
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: {usage}\n\nTrain AGENT on TASK. Running the same command again resumes.\n")
        print(_agent_table())
        print("\nOptions of an agent and of its run: qsm train AGENT --help\nTasks: qsm tasks")
        print("\nexample: qsm train qsm cheetah-run --seed 3 --steps 1e6 --score-scale 120")
        return 0
    if not arguments or arguments[0].startswith("-"):
        raise UserError(f"AGENT is missing. Usage: {usage}. Agents: {', '.join(agents.AGENTS)}")
    agent = arguments[0]
    if agent not in agents.AGENTS:
        raise UserError(
            f"Unknown agent '{agent}'.{nearest(agent, agents.AGENTS)} List agents with: qsm agents"
        )
    backend = _backend_of(arguments[1:])
    parser = Parser(
        f"qsm train {agent}",
        f"Train {agent} on TASK: {agents.AGENTS[agent].summary}. The same command again resumes.",
        groups={
            "agent": agents.config_class(agent),
            "run": MjxRunConfig if backend == "mjx" else RunConfig,
            "launch": LaunchOptions,
            "output": OutputOptions,
        },
        positionals=[Positional("task", "Task, such as cheetah-run.", hint=". List tasks with: qsm tasks")],
        subject=f"agent {agent!r}",
        foreign=_options_of_others(agent),
    )
    given = parser.parse(arguments[1:])
    task, agent_config, config, launch, output = (
        given[name] for name in ("task", "agent", "run", "launch", "output")
    )
    _check_task(task, launch.backend)
    from qsm.training.group import members

    runs = members(agent, task, agent_config, config, launch, output.name, output.runs, output.run_dir)
    if output.dry_run:
        print(f"qsm train {agent} {task}")
        for title, options in (("agent", agent_config), ("run", config), ("launch", launch)):
            print(f"\n{title} options", *show_options(options), sep="\n  ")
        print(f"\nrun folder{'s' if len(runs) > 1 else ''}", *(run.path for run in runs), sep="\n  ")
        return 0
    environment_variables.load(os.environ, launch.backend)
    from qsm.training.train import train as run_training

    return EXIT_STATUS[run_training(agent, task, runs, launch, ["qsm", "train", *arguments])]


def _backend_of(arguments: Sequence[str]) -> Backend:
    """The backend that `arguments` name, whose defaults the parser then takes; a wrong one is the parser's to tell."""
    for word, following in itertools.pairwise([*arguments, ""]):
        flag, _, value = word.partition("=")
        if flag.lower() == "--backend" and (value or following) == "mjx":
            return "mjx"
    return "dm_control"


def evaluate(arguments: Sequence[str]) -> int:
    """`qsm eval RUN [options]`."""
    example = "runs/dm_control/cartpole-swingup/qsm/seed_0"
    parser = Parser(
        "qsm eval",
        "Evaluate a policy of a run: the newest checkpoint's, unless --best or --step names another.",
        groups={"evaluation": EvalOptions},
        positionals=[Positional("run", f"Folder of the run, such as {example}.", Path)],
    )
    given = parser.parse(arguments)
    run, options = given["run"], given["evaluation"]
    if not run.is_dir():
        raise UserError(f"No run in '{run}'. Give the folder of a run, such as {example}")
    _start_jax()
    from qsm.checkpoints.selection import Which
    from qsm.policies.play import play

    which = Which(options.best, options.step)
    result = play(
        run, options.episodes, options.seed, options.eval_samples, options.video, options.backend, which
    )
    width = max(map(len, result), default=0)
    for name, value in result.items():
        print(f"{name:{width}}  {f'{value:.1f}' if isinstance(value, float) else value}")
    return 0


def export(arguments: Sequence[str]) -> int:
    """`qsm export RUN [options]`."""
    parser = Parser(
        "qsm export",
        "Write a policy of a run, and nothing else of it, to one small file for qsm.load_policy.",
        groups={"export": ExportOptions},
        positionals=[Positional("run", "Folder of the run.", Path)],
    )
    given = parser.parse(arguments)
    _start_jax()
    from qsm.checkpoints.selection import Which
    from qsm.policies.export import export as write

    options = given["export"]
    written = write(given["run"], options.output, Which(options.best, options.step))
    file = str(written.path)
    print(f"{file} ({written.num_bytes:,} bytes). Use it with: policy = qsm.load_policy({file!r})")
    if written.description.program is None:
        print(f"NumPy alone cannot run it: {written.description.problem}")
    else:
        print("With NumPy alone: from qsm.policies.numpy_policy import load_policy")
    return 0


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


def bench(arguments: Sequence[str]) -> int:
    """`qsm bench SUITE|TASK... [options]`."""
    from qsm.bench.suites import SUITES, tasks_of

    named = "; ".join(f"{name} ({suite.summary})" for name, suite in SUITES.items())
    parser = Parser(
        "qsm bench",
        "Train agents on tasks over seeds, as many at a time as there are cores. The same command again trains only "
        f"what is missing. Suites: {named}.",
        groups={"bench": BenchOptions, "protocol": ProtocolOptions, "cluster": ClusterOptions},
        positionals=[
            Positional(
                "tasks", "Suites and tasks.", tuple[str, ...], hint=". List them with: qsm bench --help"
            )
        ],
    )
    given = parser.parse(arguments)
    options: BenchOptions = given["bench"]
    protocol: ProtocolOptions = given["protocol"]
    check_versions()
    environment_variables.check(os.environ)  # told here, and not by every training of the grid
    tasks = tasks_of(given["tasks"])
    for task in tasks:
        _check_task(task, options.backend, f"Suites: {', '.join(SUITES)}.")
    from rich.console import Console

    from qsm.bench.fill import fill
    from qsm.bench.grid import Grid, parse_agent

    specs = [parse_agent(text) for text in options.agents]
    try:
        defaults = MjxRunConfig if options.backend == "mjx" else RunConfig
        defaults(steps=options.steps, **protocol.given())  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(parser.with_flags(str(error))) from error
    shared = [f"{flag_of(name)}={value}" for name, value in protocol.given().items()]
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    shared.append(f"--wandb={options.wandb}")
    # Ray's workers have working folders of their own.
    out = options.out.absolute() if options.engine == "ray" else options.out
    grid = Grid(specs, tasks, seeds, options.steps, out, options.backend, shared)
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out is '{options.out}', which is a file; name a folder")
    console = Console(width=None if sys.stdout.isatty() else 160)
    engine = _engine(options, given["cluster"])
    return fill(grid, engine, console, options.seeds_together, options.dry_run)


def _engine(options: BenchOptions, cluster: ClusterOptions) -> Engine:
    if options.engine == "ray" and not options.dry_run:
        from qsm.bench.ray_engine import RayEngine

        return RayEngine(cluster.ray_address, options.jobs, cluster.ray_cpus, cluster.ray_gpus)
    if options.engine == "local" and cluster != ClusterOptions():
        raise UserError(
            "--ray-address, --ray-cpus and --ray-gpus are of --engine ray; add that, or leave them out"
        )
    from qsm.bench.engines import LocalEngine

    # The device loop has many environments in one program, which takes the whole device, or all cores.
    return LocalEngine(options.jobs or (1 if options.backend == "mjx" else None))


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
    """`qsm agents`."""
    Parser("qsm agents", "List the agents.").parse(arguments)
    print(_agent_table())
    print("\nOptions of an agent: qsm train AGENT --help")
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


class Command(NamedTuple):
    """A command of `qsm`, with its usage and a line on what it does."""

    run: Callable[[Sequence[str]], int]
    usage: str
    summary: str


COMMANDS = {
    "train": Command(train, "AGENT TASK [options]", "train an agent on a task, or resume"),
    "eval": Command(evaluate, "RUN [options]", "evaluate a trained agent, or film it"),
    "export": Command(export, "RUN [options]", "write a trained policy to one small file"),
    "runs": Command(runs, "[FOLDER]", "list the runs: how far, how good, why they stopped"),
    "bench": Command(
        bench, "SUITE|TASK... [options]", "train agents x tasks x seeds; again: what is missing"
    ),
    "report": Command(report, "FOLDER... [options]", "compare runs: one page with figures, and their CSV"),
    "sync": Command(sync, "[FOLDER]", "upload to wandb what was recorded offline"),
    "tasks": Command(tasks, "[options]", "list the tasks"),
    "agents": Command(list_agents, "", "list the agents"),
    "dashboard": Command(dashboard, "[RUNS] [options]", "show learning curves in the browser"),
}


def run(arguments: Sequence[str]) -> int:
    """Runs the command that `arguments` name; raises UserError for a mistake in them."""
    check_words(arguments)
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        print("usage: qsm COMMAND ...\n\nOnline reinforcement learning of diffusion policies.\n")
        for command, entry in COMMANDS.items():
            print(f"  qsm {command + ' ' + entry.usage:32}  {entry.summary}")
        print(f"\n  {'qsm COMMAND --help':36}  options of a command\n  qsm --version")
        print("\nexample: qsm train qsm cheetah-run --seed 3 --steps 1e6")
        return 0
    if name == "--version":
        print(f"qsm {qsm.__version__}")
        return 0
    if name not in COMMANDS:
        if name in agents.AGENTS:
            raise UserError(f"Unknown command '{name}'. Did you mean 'qsm train {' '.join(arguments)}'?")
        what = "option" if name.startswith("-") else "command"
        meant = nearest(name, [*COMMANDS, "--help", "--version"])
        raise UserError(f"Unknown {what} '{name}'.{meant} Commands: {', '.join(COMMANDS)}")
    return COMMANDS[name].run(arguments[1:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `qsm` and returns its exit status: 2 for a mistake, told in one line. Bugs keep their traceback."""
    output.prepare()
    try:
        try:
            status = run(sys.argv[1:] if arguments is None else arguments)
        except SystemExit:  # after --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # a closed pipe or a full disk shows here and not at interpreter exit
        return status
    except UserError as error:
        output.complain(f"error: {error}")
        return MISTAKE
    except KeyboardInterrupt:
        output.complain("interrupted")
        return EXIT_STATUS["interrupted"]
    except BrokenPipeError:
        output.discard()  # as `qsm tasks | head`: nobody reads on
        return BROKEN_PIPE
    except OSError as error:
        if not output.is_lost():
            raise
        output.discard()
        output.complain(f"error: standard output cannot be written: {first_line(error)}")
        return 1
    except Exception as error:
        envs = sys.modules.get("envs.api")  # not imported for this: it brings NumPy
        if envs is None or not isinstance(error, envs.SimulationError):
            raise
        output.complain(f"error: {error}")
        return 1


def _start_jax() -> None:
    check_versions()
    environment_variables.load(os.environ)
    from qsm.devices.runtime import find_devices

    find_devices()


def _agent_table() -> str:
    width = max(map(len, agents.AGENTS))
    return "\n".join(f"  {name:{width}}  {entry.summary}" for name, entry in agents.AGENTS.items())


def _options_of_others(agent: str) -> dict[str, str]:
    """Flags of the agents, and one agent that has each: for a flag that `agent` lacks."""
    return {
        flag_of(field.name): f"agent {other!r}"
        for other in agents.AGENTS
        if other != agent
        for field in dataclasses.fields(agents.config_class(other))
    }


def _check_task(task: str, backend: Backend, hint: str = "") -> None:
    from envs.tasks import check_task

    check_versions()  # the simulator may be loaded for the names of its tasks, and this may say that it cannot be
    try:
        check_task(task, backend)
    except ValueError as error:
        raise UserError(f"{error}. {hint}".replace("..", ".").strip(". ") if hint else str(error)) from error
