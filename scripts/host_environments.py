"""Stepping S dm_control environments in turn, in threads, or in processes: which is fastest?

    python scripts/host_environments.py [--task cheetah-run] [--seeds 1 4 16]

The three take turns in blocks. Beside them stands one update of S seeds, behind which the environments are stepped:
what takes less time than that costs nothing.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import speed_cases as cases  # beside this file
import tyro
from rich.console import Console
from rich.table import Table

from envs import dmc
from envs.api import StepType


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure ways of stepping environments."""

    task: str = "cheetah-run"
    """Task."""
    seeds: tuple[int, ...] = (1, 4, 16)
    """Numbers of environments."""
    blocks: int = 61
    """Blocks of each way, in turn; many short ones, for shared machines stand still for moments."""
    block_steps: int = 10
    """Steps of every environment in a block."""
    update: bool = True
    """Time an update beside them; its programs take minutes to compile."""


def step(environment: Any, action: np.ndarray) -> Any:
    """One step, and a reset where the episode is over."""
    arrived = environment.step(action)
    return environment.reset() if arrived.step_type == StepType.LAST else arrived


def serve(pipe: Connection, task: str, seed: int) -> None:
    """An environment in a process of its own."""
    environment = dmc.make_env(task, seed)
    environment.reset()
    pipe.send(None)
    while (action := pipe.recv()) is not None:
        pipe.send(step(environment, action))


def measure(options: Options, number: int) -> dict[str, float]:
    """Median milliseconds in which all of `number` environments make a step."""
    environments = [dmc.make_env(options.task, seed) for seed in range(number)]
    for environment in environments:
        environment.reset()
    actions = np.random.default_rng(0).uniform(-1, 1, (number, environments[0].spec.action_size))
    context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    pipes, processes = [], []
    for seed in range(number):
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, options.task, seed), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()

    def in_processes() -> None:
        for pipe, action in zip(pipes, actions, strict=True):
            pipe.send(action)
        for pipe in pipes:
            pipe.recv()

    size = cases.Sizes("qsm", options.task, 10_000, (256, 256), 256)
    learning = cases.LearnCase("update", size, number) if options.update else None
    with ThreadPoolExecutor(min(number, os.cpu_count() or 1)) as pool:
        ways = {
            "in turn": lambda: [step(*pair) for pair in zip(environments, actions, strict=True)],
            "threads": lambda: list(pool.map(step, environments, actions)),
            "processes": in_processes,
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.blocks):
            for name, way in ways.items():
                began = time.perf_counter()
                for _ in range(options.block_steps):
                    way()
                times[name].append((time.perf_counter() - began) / options.block_steps)
            if learning is not None:
                times.setdefault("update of qsm", []).append(learning.run(4))
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Measures and prints a table."""
    options = tyro.cli(Options, description=__doc__)
    rows = {number: measure(options, number) for number in options.seeds}
    names = list(next(iter(rows.values())))
    table = Table("environments", *names, title=f"{options.task}, milliseconds, {os.cpu_count()} cores")
    for number, row in rows.items():
        table.add_row(str(number), *(f"{row[name]:.2f}" for name in names))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
