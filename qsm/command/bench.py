"""`qsm bench`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qsm.base.errors import UserError
from qsm.command.output import complain
from qsm.command.start import check_task
from qsm.command.versions import check_versions
from qsm.devices import environment_variables
from qsm.options.commands import BenchOptions, ClusterOptions, ProtocolOptions
from qsm.options.parser import Parser, Positional
from qsm.options.run import run_config_class

if TYPE_CHECKING:
    from qsm.bench.engines import Engine


def bench(arguments: Sequence[str]) -> int:
    """`qsm bench SUITE|TASK... [options]`."""
    from qsm.bench.suites import SUITES, tasks_of

    parser = _parser()
    given = parser.parse(arguments)
    options: BenchOptions = given["bench"]
    protocol: ProtocolOptions = given["protocol"]
    check_versions()
    environment_variables.check(os.environ)  # said here, and not by every training of the grid
    tasks = tasks_of(given["tasks"])
    for task in tasks:
        check_task(task, options.backend, f"Suites: {', '.join(SUITES)}.")
    from rich.console import Console

    from qsm.bench.fill import fill
    from qsm.bench.grid import make_grid, parse_agent

    specs = [parse_agent(text, options.preset) for text in options.agents]
    for spec in specs:
        for line in spec.warnings:
            complain(f"warning: {spec.agent}@{spec.name}: {line}")
    of_all = {"steps": options.steps, "wandb": options.wandb} | protocol.given()
    run_config = parser.instance(run_config_class(options.backend), of_all)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out is '{options.out}', which is a file; name a folder")
    # Ray's workers have working folders of their own.
    out = options.out.absolute() if options.engine == "ray" else options.out
    grid = make_grid(specs, tasks, seeds, run_config, out, options.backend)
    console = Console(width=None if sys.stdout.isatty() else 160)
    engine = _engine(options, given["cluster"])
    return fill(grid, engine, console, options.seeds_together, options.dry_run)


def _parser() -> Parser:
    from qsm.bench.suites import SUITES

    named = "; ".join(f"{name} ({suite.summary})" for name, suite in SUITES.items())
    return Parser(
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
