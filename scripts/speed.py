"""How fast training runs, against two limits measured in the same run: its own bare update and matrix multiplication.

    python scripts/speed.py [--task cheetah-run] [--agents qsm qsm-clean sac td3] [--output speed.json]

For each agent, blocks of the whole host loop (environment, replay, updates, logging; evaluation apart) take turns with
blocks of the bare update on a fixed batch, so that a drift of the machine's speed touches both alike. Quote medians
and ratios.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import agents
from agents.api import Transition
from envs import dmc
from envs.api import StepType, TimeStep
from qsm import replay
from qsm.config import RunConfig
from qsm.host_loop import HostLoop
from qsm.learner import Learner, TrainState
from qsm.loop import Counters, Hooks
from qsm.rundir import package_versions


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure training speed."""

    task: str = "cheetah-run"
    """Task to train on."""
    agents: tuple[str, ...] = ("qsm", "qsm-clean", "sac", "td3")
    """Agents to measure, at their defaults."""
    blocks: int = 9
    """Blocks of each kind, in turn."""
    block_steps: int = 200
    """Environment steps, or updates, in a block."""
    capacity: int = 1_000_000
    """Rows of the replay buffer."""
    output: Path | None = None
    """JSON file to write beside the printed table."""


def seconds_per_call(call: Callable[[], Any], calls: int) -> float:
    """Mean time of `calls` calls that need not wait for one another, waited for at the end."""
    began = time.perf_counter()
    result = None
    for _ in range(calls):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - began) / calls


def matmul_rate(batch: int, width: int, blocks: int) -> float:
    """GFLOP/s of a chain of `[batch, width] x [width, width]` products, the shape of an update's work."""
    chain = jax.jit(lambda x, w: jax.lax.fori_loop(0, 50, lambda _, y: y @ w, x))
    x, w = jnp.ones((batch, width)), jnp.eye(width)
    chain(x, w).block_until_ready()
    times = [seconds_per_call(lambda: chain(x, w), 4) for _ in range(blocks)]
    return 50 * 2 * batch * width**2 / float(np.median(times)) / 1e9


def replay_milliseconds(
    capacity: int, observation_size: int, action_size: int, blocks: int, width: int
) -> float:
    """One insert and one sample of `width` transitions, from a full buffer."""
    buffer = jax.jit(lambda: replay.create(capacity, 1, observation_size, action_size))()
    buffer = buffer._replace(
        size=jnp.full(1, capacity, jnp.int32), step_type=jnp.full((capacity, 1), StepType.MID, jnp.int8)
    )
    sampling = agents.config_class("sac")(batch_size=width).sampling

    def program(
        buffer: replay.Replay, action: Any, time_step: TimeStep, key: Any
    ) -> tuple[replay.Replay, Transition]:
        buffer = replay.insert(buffer, action, time_step)
        return buffer, replay.sample(buffer, sampling, 0.99, key)

    step = jax.jit(program, donate_argnums=0)
    observation, action = np.zeros((1, observation_size), np.float32), np.zeros((1, action_size), np.float32)
    one = np.ones(1, np.float32)
    time_step = TimeStep(np.full(1, StepType.MID, np.int8), one, one, observation)
    keys = jax.random.split(jax.random.key(0), 1 + 200 * blocks)
    buffer, _ = step(buffer, action, time_step, keys[0])
    times = []
    for block in range(blocks):
        chosen = [keys[1 + 200 * block + i] for i in range(200)]
        jax.block_until_ready(chosen)
        began = time.perf_counter()
        for key in chosen:
            buffer, batch = step(buffer, action, time_step, key)
        jax.block_until_ready(batch)
        times.append((time.perf_counter() - began) / 200)
    return 1e3 * float(np.median(times))


class Bench:
    """One agent's whole loop and bare update."""

    def __init__(self, name: str, options: Options) -> None:
        self.environment = dmc.make_env(options.task, seed=0)
        spec = self.environment.spec
        self.agent = agents.make_agent(name, spec.observation_size, spec.action_size)
        self.learner = Learner(self.agent, spec, 0, options.capacity)
        self.host_loop = HostLoop(self.learner, [self.environment], [], RunConfig())
        self.state = self.host_loop.begin()
        self.counters = Counters(0, 0)
        batch = self.agent.sampling.batch_size
        rng = np.random.RandomState(0)
        shapes = ((batch, spec.observation_size), (batch, spec.action_size), (batch,), (batch,))
        values = [jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32) for shape in (*shapes, shapes[0])]
        self.batch = Transition(*values)
        self.agent_state = self.agent.init(jax.random.key(0))
        self.stream = jax.random.key(1)
        self.update = jax.jit(self._update, donate_argnums=0)

    def _update(self, state: Any, batch: Transition, count: jax.Array) -> Any:
        key = jax.random.fold_in(self.stream, count)
        return self.agent.update(state, batch, key, count)

    def loop(self, steps: int) -> float:
        """Seconds per environment step of the whole loop, one update a step, logging every 1,000."""
        end = self.counters.step + steps
        self.host_loop.schedule = self.host_loop.schedule._replace(steps=end, random_steps=1)

        def log(step: int, state: TrainState, num_updates: int) -> TrainState:
            return self.learner.drain(state)[0]

        hooks = Hooks(
            lambda step: None, lambda step, state: None, log, lambda state, counters: None, lambda: False
        )
        began = time.perf_counter()
        self.state, self.counters = self.host_loop.run(self.state, self.counters, hooks)
        jax.block_until_ready(self.state)
        return (time.perf_counter() - began) / steps

    def bare(self, updates: int) -> float:
        """Seconds per update on a fixed batch, nothing else."""

        def once() -> Any:
            self.agent_state, metrics = self.update(self.agent_state, self.batch, np.int32(1))
            return metrics

        return seconds_per_call(once, updates)

    def gflop_per_update(self) -> float:
        """As XLA counts it in the compiled update, averaged over two updates in a row.

        The count is a constant here, so that a branch not taken (TD3's delay, the spread of diffusion policies) is
        not counted.
        """

        def flops(count: int) -> float:
            program = jax.jit(lambda state, batch: self._update(state, batch, jnp.asarray(count, jnp.int32)))
            return float(program.lower(self.agent_state, self.batch).compile().cost_analysis()["flops"])  # type: ignore[index]

        return (flops(1) + flops(2)) / 2e9


def measure(name: str, options: Options, rate: float) -> dict[str, float]:
    """Medians over blocks, and the median of the paired ratios."""
    bench = Bench(name, options)
    bench.loop(20)
    bench.bare(20)
    pairs = [
        (bench.loop(options.block_steps), bench.bare(options.block_steps)) for _ in range(options.blocks)
    ]
    loop, bare = np.median(pairs, axis=0)
    gflop = bench.gflop_per_update()
    return {
        "steps_per_second": 1 / loop,
        "updates_per_second": 1 / bare,
        "loop_to_bare_time": float(np.median([a / b for a, b in pairs])),
        "gflop_per_update": gflop,
        "gflop_per_second": gflop / bare,
        "share_of_matmul_rate": gflop / bare / rate,
    }


def main() -> None:
    """Measures, prints the table, writes the JSON."""
    options = tyro.cli(Options, description=__doc__)
    spec = dmc.make_env(options.task, seed=0).spec
    rate = matmul_rate(256, 256, options.blocks)
    cost = replay_milliseconds(options.capacity, spec.observation_size, spec.action_size, options.blocks, 256)
    results = {name: measure(name, options, rate) for name in options.agents}

    console = Console()
    console.print(
        f"{options.task}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}"
    )
    console.print(f"matrix multiply [256, 256] x [256, 256]: {rate:.0f} GFLOP/s")
    console.print(f"replay, {options.capacity:,} rows, insert + sample of 256: {cost:.3f} ms")
    table = Table(
        "agent", "steps/s", "updates/s", "loop / bare time", "GFLOP/update", "GFLOP/s", "of matmul rate"
    )
    for name, r in results.items():
        table.add_row(
            name,
            f"{r['steps_per_second']:.0f}",
            f"{r['updates_per_second']:.0f}",
            f"{r['loop_to_bare_time']:.2f}",
            f"{r['gflop_per_update']:.2f}",
            f"{r['gflop_per_second']:.0f}",
            f"{r['share_of_matmul_rate']:.0%}",
        )
    console.print(table)
    if options.output is not None:
        report = {
            "task": options.task,
            "device": jax.devices()[0].device_kind,
            "machine": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "packages": package_versions(),
            "matmul_gflop_per_second": rate,
            "replay_milliseconds": cost,
            "agents": results,
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=2) + "\n")
        console.print(f"written to {options.output}")


if __name__ == "__main__":
    main()
