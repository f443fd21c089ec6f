"""Ways of stepping several environments of dm_control: in turn, in threads, in processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from envs import dmc
from envs.api import StepType
from qsm.speed.cases import LearnCase, Sizes


def step(environment: Any, action: np.ndarray) -> Any:
    """One step, and a reset where the episode is over."""
    arrived = environment.step(action)
    return environment.reset() if arrived.step_type == StepType.LAST else arrived


def measure(task: str, number: int, blocks: int, block_steps: int, has_update: bool) -> dict[str, float]:
    """Median milliseconds in which all of `number` environments make a step, by the way they are stepped.

    Args:
      blocks: of each way, in turn.
      block_steps: steps of every environment in a block.
      has_update: whether one update of as many seeds is timed beside them.
    """
    environments = [dmc.make_env(task, seed) for seed in range(number)]
    for environment in environments:
        environment.reset()
    actions = np.random.default_rng(0).uniform(-1, 1, (number, environments[0].spec.action_size))
    size = Sizes("qsm", task, 10_000, (256, 256), 256)
    with (
        _in_processes(task, actions) as step_in_processes,
        ThreadPoolExecutor(min(number, os.cpu_count() or 1)) as pool,
    ):
        learning = LearnCase("update", size, number) if has_update else None
        ways: dict[str, Callable[[], Any]] = {
            "in turn": lambda: [step(*pair) for pair in zip(environments, actions, strict=True)],
            "threads": lambda: list(pool.map(step, environments, actions)),
            "processes": step_in_processes,
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(blocks):
            for name, way in ways.items():
                began = time.perf_counter()
                for _ in range(block_steps):
                    way()
                times[name].append((time.perf_counter() - began) / block_steps)
            if learning is not None:
                times.setdefault("update of qsm", []).append(learning.run(4))
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


@contextlib.contextmanager
def _in_processes(task: str, actions: np.ndarray) -> Iterator[Callable[[], None]]:
    """A function that steps one environment in a process for each of `actions`; the processes end with the block."""
    context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    pipes, processes = [], []
    for seed in range(len(actions)):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, task, seed), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()

    def step_all() -> None:
        for pipe, action in zip(pipes, actions, strict=True):
            pipe.send(action)
        for pipe in pipes:
            pipe.recv()

    yield step_all
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()


def _serve(pipe: Connection, task: str, seed: int) -> None:
    """Steps an environment with every action that comes, until None does."""
    environment = dmc.make_env(task, seed)
    environment.reset()
    pipe.send(None)
    while (action := pipe.recv()) is not None:
        pipe.send(step(environment, action))
