"""What speed is compared with: rates of matrix products, operations of an update, cost of replay."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import agents
from agents.parts.diffusion import UNROLLED_LEVELS
from agents.parts.types import Transition
from envs.api import EnvSpec, StepType, TimeStep
from qsm.data import replay
from qsm.data.sampling import sample
from qsm.options.run import MatmulPrecision

SPEC = EnvSpec("cheetah-run", observation_size=17, action_size=6, episode_steps=1000, action_repeat=1)
"""Of the cases that simulate nothing: they run where no simulator is installed."""


def matmul_rates(batch: int, width: int, blocks: int, precision: MatmulPrecision) -> dict[str, float]:
    """GFLOP/s of chains of `[rows, width] x [width, width]` products: the shape of an update's work, and a large one.

    Small products of one seed leave an accelerator, or some of a processor's threads, waiting; the large one is what
    the device can do.
    """
    on_cpu = jax.default_backend() == "cpu"
    large = 1024 if on_cpu else 8192
    budget = 1e9 if on_cpu else 2e11  # operations of a block, some milliseconds
    rates = {}
    for rows, columns in ((batch, width), (large, large)):
        operations = 2 * rows * columns**2
        length = max(int(budget / operations), 1)

        def product(x: jax.Array, w: jax.Array, length: int = length) -> jax.Array:
            return jax.lax.fori_loop(0, length, lambda _, y: y @ w, x)

        x, w = _operands(rows, columns)
        with jax.default_matmul_precision(precision):
            times = _times(blocks, functools.partial(jax.jit(product), x, w))
        rates[f"[{rows}, {columns}] x [{columns}, {columns}]"] = (
            length * operations / float(np.median(times)) / 1e9
        )
    return rates


def _operands(rows: int, columns: int) -> tuple[jax.Array, jax.Array]:
    """Random rows, and a matrix that is orthogonal, so that a long chain of products neither grows nor vanishes.

    It is dense: products with zeros draw less power, and an accelerator clocks higher for them.
    """
    rng = np.random.RandomState(0)
    vector = rng.normal(size=(columns, 1)).astype(np.float32)
    rotation = np.eye(columns, dtype=np.float32) - 2 * vector * vector.T / np.sum(vector**2)
    # Repeated where there are many: to draw them all would take longer than to multiply them.
    values = np.resize(rng.normal(size=2**16 + 1).astype(np.float32), (rows, columns))
    return jax.device_put(values), jax.device_put(rotation)


def _times(blocks: int, program: Callable[[], Any]) -> list[float]:
    """Seconds of each block, after one that compiles."""
    jax.block_until_ready(program())
    times = []
    for _ in range(blocks):
        began = time.perf_counter()
        jax.block_until_ready(program())
        times.append(time.perf_counter() - began)
    return times


def replay_milliseconds(capacity: int, blocks: int, batch_size: int) -> float:
    """One insert and one sample of `batch_size` transitions, from a full buffer."""
    sampling = agents.config_class("sac")(batch_size=batch_size).sampling

    def program(
        buffer: replay.Replay, action: Any, time_step: TimeStep, count: Any
    ) -> tuple[replay.Replay, Transition]:
        buffer = replay.insert(buffer, action, time_step)
        return buffer, sample(buffer, sampling, 0.99, jax.random.fold_in(jax.random.key(0), count))

    step = jax.jit(program, donate_argnums=0)
    action = np.zeros((1, SPEC.action_size), np.float32)
    time_step = still(SPEC.observation_size, 1)
    number = 200  # of a block
    buffer = jax.device_put(full_replay_on_host(capacity))

    def block() -> Transition:
        nonlocal buffer
        for count in range(number):
            buffer, batch = step(buffer, action, time_step, np.int32(count))
        return batch

    return 1e3 * float(np.median(_times(blocks, block))) / number


def action_milliseconds(agent: agents.Agent, repeats: int = 500) -> float:
    """One action in evaluation at one observation of `SPEC`; the fastest of `repeats`, for others may be at work."""
    observation = jnp.zeros((1, SPEC.observation_size))
    state = jax.jit(agent.init)(jax.random.key(0))
    act = jax.jit(functools.partial(agent.act, mode="evaluate"))
    keys = iter(jax.random.split(jax.random.key(1), repeats + 1))
    return 1e3 * min(_times(repeats, lambda: act(state, observation, next(keys))))


def full_replay(capacity: int) -> replay.Replay:
    """Random rows of one endless episode."""
    empty = replay.create(capacity, 1, SPEC.observation_size, SPEC.action_size)
    keys = jax.random.split(jax.random.key(0), 3)

    def uniform(key: jax.Array, like: jax.Array) -> jax.Array:
        return jax.random.uniform(key, like.shape, minval=-1.0, maxval=1.0)

    return empty._replace(
        observation=uniform(keys[0], empty.observation),
        action=uniform(keys[1], empty.action),
        reward=uniform(keys[2], empty.reward),
        discount=jnp.ones_like(empty.discount),
        step_type=jnp.full_like(empty.step_type, StepType.MID),
        written=jnp.full_like(empty.written, capacity),
    )


@functools.cache
def full_replay_on_host(capacity: int) -> replay.Replay:
    """The same in NumPy arrays, made once for all cases: a training starts with an empty buffer."""
    return jax.device_get(jax.jit(lambda: full_replay(capacity))())


def still(observation_size: int, num_envs: int) -> TimeStep:
    """A MID time step `[N, ...]` of ones."""
    one = np.ones(num_envs, np.float32)
    step_type = np.full(num_envs, StepType.MID, np.int8)
    return TimeStep(step_type, one, one, np.ones((num_envs, observation_size), np.float32))


@functools.cache
def with_length(agent: Any, denoising_steps: int) -> Any:
    """`agent` with a chain of so many levels."""
    return dataclasses.replace(agent, config=agents.override(agent.config, denoising_steps=denoising_steps))


def gflop_per_update(agent: Any, observation_size: int, action_size: int) -> float:
    """As XLA counts it in the compiled update, averaged over two updates in a row.

    The count is a constant here, so that a branch not taken (TD3's delay, the spread of diffusion policies) is not
    counted. XLA counts the body of a loop once: of a chain that runs as one, whose arithmetic is a line in its length,
    two shorter ones are counted. 0 where the compiler does not count.
    """
    length = getattr(agent.config, "denoising_steps", 0)
    if length > UNROLLED_LEVELS:
        short, long = (
            gflop_per_update(with_length(agent, number), observation_size, action_size)
            for number in (UNROLLED_LEVELS // 2, UNROLLED_LEVELS)
        )
        return long + (length - UNROLLED_LEVELS) * (long - short) / (UNROLLED_LEVELS - UNROLLED_LEVELS // 2)
    batch = agent.sampling.batch_size
    shapes = ((batch, observation_size), (batch, action_size), (batch,), (batch,), (batch, observation_size))
    arrays: Any = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    transition = Transition(*arrays)
    state = jax.eval_shape(lambda: agent.init(jax.random.key(0)))

    def flops(count: int) -> float:
        def program(state: Any, batch: Transition) -> Any:
            return agent.update(state, batch, jax.random.key(0), jnp.asarray(count, jnp.int32))

        found: Any = jax.jit(program).lower(state, transition).compile().cost_analysis()
        return float((found or {}).get("flops", 0.0))

    return (flops(1) + flops(2)) / 2e9


def program_bytes(program: Any, *arguments: Any) -> int | None:
    """`compiled_bytes` of a jitted program."""
    return compiled_bytes(program.lower(*arguments).compile())


def compiled_bytes(compiled: Any) -> int | None:
    """What a program takes while it runs, as its compiler counts it: arguments, results, temporary arrays."""
    found = compiled.memory_analysis()
    if found is None:
        return None
    sizes = (found.argument_size_in_bytes, found.output_size_in_bytes, found.temp_size_in_bytes)
    return int(sum(sizes) - found.alias_size_in_bytes)


def peak_bytes_of_process() -> int | None:
    """The most that this process has held on the device since it began; None where the backend does not count it."""
    stats = jax.local_devices()[0].memory_stats()
    return (stats or {}).get("peak_bytes_in_use")
