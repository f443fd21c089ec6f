"""What is timed: each case starts as it is made, and is then run in blocks. Here those that need no simulator."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

import agents
from agents.parts.types import Transition
from envs.api import Arrival, EnvSpec
from qsm.learning.learner import Learner
from qsm.options.run import MatmulPrecision
from qsm.speed.limits import (
    SPEC,
    compiled_bytes,
    full_replay_on_host,
    gflop_per_update,
    program_bytes,
    still,
)
from qsm.speed.starts import Start, watch_compiler


class Sizes(NamedTuple):
    """What the cases have in common."""

    agent: str
    task: str  # of dm_control
    capacity: int
    hidden_sizes: tuple[int, ...]
    batch_size: int
    options: Mapping[str, Any] = {}  # of the agent, besides

    def make_agent(self, observation_size: int, action_size: int) -> Any:
        """The agent at its defaults but for layers, batch and `options`."""
        options = {"hidden_sizes": self.hidden_sizes, "batch_size": self.batch_size, **self.options}
        return agents.make_agent(self.agent, observation_size, action_size, **options)

    def import_agent(self) -> None:
        """Imports what the agent needs: it does so when first used, which would be counted as the first case's."""
        agent = self.make_agent(SPEC.observation_size, SPEC.action_size)
        jax.eval_shape(lambda: agent.init(jax.random.key(0)))


class Case(Protocol):
    """Something to be timed."""

    name: str
    start: Start
    min_units: int  # units of one block, so that dispatch runs ahead
    max_units: int
    updates_per_unit: float  # summed over seeds
    env_steps_per_unit: float  # summed over seeds

    def run(self, units: int) -> float:
        """Seconds per unit."""
        ...

    def gflop_per_update(self) -> float:
        """Operations; 0 where the compiler does not count."""
        ...

    def program_bytes(self) -> int | None:
        """What the largest program takes while it runs: arguments, results and temporary arrays."""
        ...


class TimedCase:
    """Times its own set-up and first unit that learns."""

    min_units = 4
    first_units = 1  # until something has been learned
    agent: Any
    spec: EnvSpec
    start: Start

    def _first(self, set_up: Callable[[], None]) -> None:
        began = time.perf_counter()
        with watch_compiler() as self.start:
            set_up()
            self.run(self.first_units)
        self.start.first_step_seconds = time.perf_counter() - began

    def run(self, units: int) -> float:
        raise NotImplementedError

    def gflop_per_update(self) -> float:
        return gflop_per_update(self.agent, self.spec.observation_size, self.spec.action_size)


class BareUpdate(TimedCase):
    """An agent's update on a fixed batch, nothing else."""

    max_units, updates_per_unit, env_steps_per_unit = 10**6, 1.0, 0.0

    def __init__(self, name: str, sizes: Sizes) -> None:
        self.name = name
        self.spec = spec = SPEC
        self.agent = sizes.make_agent(spec.observation_size, spec.action_size)
        batch = sizes.batch_size
        rng = np.random.RandomState(0)
        shapes = ((batch, spec.observation_size), (batch, spec.action_size), (batch,), (batch,))
        observation, action, reward, discount, next_observation = (
            jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32) for shape in (*shapes, shapes[0])
        )
        self.batch = Transition(observation, action, reward, discount, next_observation)
        self.stream = jax.random.key(1)
        self.update = jax.jit(self._update, donate_argnums=0)
        self.state: Any = None
        self.count = 0  # counted up: some updates are made every other time

        def set_up() -> None:
            self.state = jax.jit(self.agent.init)(jax.random.key(0))

        self._first(set_up)

    def _update(self, state: Any, batch: Transition, count: jax.Array) -> Any:
        return self.agent.update(state, batch, jax.random.fold_in(self.stream, count), count)

    def run(self, units: int) -> float:
        began = time.perf_counter()
        for _ in range(units):
            self.state, metrics = self.update(self.state, self.batch, np.int32(self.count))
            self.count += 1
        jax.block_until_ready(metrics)
        return (time.perf_counter() - began) / units

    def program_bytes(self) -> int | None:
        return program_bytes(self.update, self.state, self.batch, np.int32(1))


class LearnCase(TimedCase):
    """Updates of S seeds in one program, many a dispatch, from full replay buffers; a unit is one of each seed."""

    learner: Learner
    min_units, max_units, env_steps_per_unit = 1, 10**6, 0.0

    def __init__(
        self, name: str, sizes: Sizes, num_seeds: int, precision: MatmulPrecision = "float32"
    ) -> None:
        self.name = name
        self.precision = precision
        self.updates_per_unit = float(num_seeds)
        self.spec = spec = SPEC
        self.agent = sizes.make_agent(spec.observation_size, spec.action_size)
        self.action = np.zeros((num_seeds, 1, spec.action_size), np.float32)
        one = jax.tree.map(lambda leaf: np.stack([leaf] * num_seeds), still(spec.observation_size, 1))
        yes, no = np.ones((num_seeds, 1), bool), np.zeros((num_seeds, 1), bool)
        self.arrival = Arrival(one, yes, one, no)
        on_host = full_replay_on_host(sizes.capacity)
        full = jax.device_put(jax.tree.map(lambda leaf: np.stack([leaf] * num_seeds), on_host))
        self.state: Any = None
        self.count = 0

        def set_up() -> None:
            self.learner = Learner(self.agent, spec, range(num_seeds), sizes.capacity)
            self.state = self.learner.init()
            self.state = self.state._replace(replay=full)

        self._first(set_up)

    def run(self, units: int) -> float:
        began = time.perf_counter()
        with jax.default_matmul_precision(self.precision):
            self.state = self.learner.learn(
                self.state, self.action, self.arrival, np.int32(self.count), np.int32(units)
            )
        jax.block_until_ready(self.state)
        self.count += units
        return (time.perf_counter() - began) / units

    def compiled(self) -> Any:
        """The program that learns."""
        # A program of the ambient precision would be another one.
        with jax.default_matmul_precision(self.precision):
            return self.learner.compiled.learn.lower(*self.learner.learn_shapes()).compile()

    def program_bytes(self) -> int | None:
        return compiled_bytes(self.compiled())
