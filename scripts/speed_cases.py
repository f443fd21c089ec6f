"""What `scripts/speed.py` times: each case starts as it is made, and is then run in blocks.

Simulators, and the loops with what they need, are imported by the cases that have them: updates alone need none.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from speed_limits import SPEC, full_replay, full_replay_on_host, gflop_per_update, program_bytes, still
from speed_starts import Start, watch_compiler

import agents
from agents.parts.types import Transition
from envs.api import Arrival, DeviceEnvironment, EnvSpec, HostEnvironment
from envs.vector import VectorEnvironment
from qsm.learning.host_loop import HostLoop
from qsm.learning.learner import Learner
from qsm.learning.schedule import Counters
from qsm.options.run import MatmulPrecision, RunConfig

if TYPE_CHECKING:
    from qsm.learning.device_loop import DeviceLoop

# What other scripts take from here.
__all__ = ["SPEC", "BareUpdate", "Case", "DeviceCase", "HostCase", "LearnCase", "Sizes", "full_replay"]


class Sizes(NamedTuple):
    """What the cases have in common."""

    agent: str
    task: str  # of dm_control
    capacity: int
    hidden_sizes: tuple[int, ...]
    batch_size: int

    def make_agent(self, observation_size: int, action_size: int) -> Any:
        """The agent at its defaults but for layers and batch."""
        options = {"hidden_sizes": self.hidden_sizes, "batch_size": self.batch_size}
        return agents.make_agent(self.agent, observation_size, action_size, **options)

    def import_agent(self) -> None:
        """Imports what the agent needs: it does so when first used, which would be counted as the first case's."""
        agent = self.make_agent(SPEC.observation_size, SPEC.action_size)
        jax.eval_shape(lambda: agent.init(jax.random.key(0)))


class Case(Protocol):
    """Something to be timed."""

    name: str
    start: Start
    least: int  # units of one block, so that dispatch runs ahead
    most: int
    updates_per_unit: float  # summed over seeds
    env_steps_per_unit: float  # summed over seeds

    def run(self, units: int) -> float:
        """Seconds per unit."""
        ...

    def gflop_per_update(self) -> float:
        """Operations; 0 where the compiler does not tell."""
        ...

    def program_bytes(self) -> int | None:
        """What the largest program takes while it runs: arguments, results and temporary arrays."""
        ...


class _Timed:
    """Times its own set-up and first unit."""

    least = 4
    agent: Any
    spec: EnvSpec
    start: Start

    def _first(self, set_up: Callable[[], None]) -> None:
        began = time.perf_counter()
        with watch_compiler() as self.start:
            set_up()
            self.run(1)
        self.start.first_step_seconds = time.perf_counter() - began

    def run(self, units: int) -> float:
        raise NotImplementedError

    def gflop_per_update(self) -> float:
        return gflop_per_update(self.agent, self.spec.observation_size, self.spec.action_size)


class BareUpdate(_Timed):
    """An agent's update on a fixed batch, nothing else."""

    most, updates_per_unit, env_steps_per_unit = 10**6, 1.0, 0.0

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

        def set_up() -> None:
            self.state = jax.jit(self.agent.init)(jax.random.key(0))

        self._first(set_up)

    def _update(self, state: Any, batch: Transition, count: jax.Array) -> Any:
        return self.agent.update(state, batch, jax.random.fold_in(self.stream, count), count)

    def run(self, units: int) -> float:
        began = time.perf_counter()
        for _ in range(units):
            self.state, metrics = self.update(self.state, self.batch, np.int32(1))
        jax.block_until_ready(metrics)
        return (time.perf_counter() - began) / units

    def program_bytes(self) -> int | None:
        return program_bytes(self.update, self.state, self.batch, np.int32(1))


class LearnCase(_Timed):
    """Updates of S seeds in one program, many a dispatch, from full replay buffers; a unit is one of each seed."""

    learner: Learner
    least, most, env_steps_per_unit = 1, 10**6, 0.0

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

    def program_bytes(self) -> int | None:
        learner, number = self.learner, np.int32(1)
        # A program of the ambient precision would be another one.
        with jax.default_matmul_precision(self.precision):
            return program_bytes(
                learner._learn,
                self.state,
                learner.streams,
                self.action,
                self.arrival,
                number,
                number,
                learner.active,
            )


def make_host_env(task: str, seed: int) -> HostEnvironment:
    """An environment of dm_control.

    Raises:
      ImportError: it is not installed.
    """
    return importlib.import_module("envs.dmc").make_env(task, seed=seed)


class HostCase(_Timed):
    """The whole host loop of S seeds, one update a step; a unit is one step of each."""

    learner: Learner
    loop: HostLoop
    most = 10**6

    def __init__(self, name: str, sizes: Sizes, num_seeds: int) -> None:
        self.name = name
        self.updates_per_unit = self.env_steps_per_unit = float(num_seeds)
        environments = [make_host_env(sizes.task, seed=seed) for seed in range(num_seeds)]
        self.spec = spec = environments[0].spec
        self.agent = sizes.make_agent(spec.observation_size, spec.action_size)
        self.state: Any = None
        self.counters = Counters(0, 0)

        def set_up() -> None:
            self.learner = Learner(self.agent, spec, range(num_seeds), sizes.capacity)
            self.loop = HostLoop(self.learner, environments, [], RunConfig())
            self.state = self.loop.begin()

        self._first(set_up)

    def run(self, units: int) -> float:
        end = self.counters.step + units
        schedule = self.loop.schedule = self.loop.schedule._replace(steps=end, random_steps=1)
        began = time.perf_counter()
        while self.counters.step < end:
            before = self.counters.step
            self.state, self.counters = self.loop.advance(
                self.state, self.counters, schedule.next_event(before)
            )
            if "metrics" in schedule.due(before, self.counters.step):  # only they are fetched, as in training
                self.state, _ = self.learner.drain(self.state)
        jax.block_until_ready(self.state)
        return (time.perf_counter() - began) / units

    def program_bytes(self) -> int | None:
        learner, spec = self.learner, self.learner.spec
        one = jax.tree.map(lambda leaf: np.stack([leaf] * learner.num_seeds), still(spec.observation_size, 1))
        yes = np.ones((learner.num_seeds, 1), bool)
        action = np.zeros((learner.num_seeds, 1, spec.action_size), np.float32)
        number = np.int32(1)
        arrival = Arrival(one, yes, one, ~yes)
        return program_bytes(
            learner._learn, self.state, learner.streams, action, arrival, number, number, learner.active
        )


def mjx_environment(task: str) -> DeviceEnvironment:
    """Loaded once for all cases.

    Raises:
      ImportError: a package that it needs is not installed.
    """
    for package in ("mujoco.mjx", "mujoco_playground"):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return importlib.import_module("envs.mjx").make_env(task)


class DeviceCase(_Timed):
    """The device loop of S seeds with N environments each; a unit is one tick: a step of every environment."""

    learner: Learner
    loop: DeviceLoop

    def __init__(
        self,
        name: str,
        sizes: Sizes,
        num_seeds: int,
        num_envs: int,
        replay_ratio: str,
        environment: DeviceEnvironment,
    ) -> None:
        device_loop: Any = importlib.import_module("qsm.learning.device_loop")  # brings psutil and filelock
        self.name, self.most = name, device_loop.CHUNK
        vector = VectorEnvironment(environment, num_envs)
        self.spec = spec = vector.spec
        self.agent = sizes.make_agent(spec.observation_size, spec.action_size)
        capacity = max(sizes.capacity, 4 * num_envs)
        config = RunConfig(
            steps=2**31 - 1, random_steps=2 * num_envs, num_envs=num_envs, replay_ratio=replay_ratio
        )
        self.env_steps_per_unit = float(num_seeds * num_envs)
        self.updates_per_unit = float(num_seeds * num_envs * config.updates_per_step)
        self.counters = Counters(0, 0)
        self.state: Any = None

        def set_up() -> None:
            self.learner = Learner(self.agent, spec, range(num_seeds), capacity, num_envs)
            self.loop = device_loop.DeviceLoop(self.learner, vector, config)
            self.state = self.loop.begin()

        self._first(set_up)

    @classmethod
    def without_updates(cls, name: str, other: DeviceCase) -> DeviceCase:
        """The same program with no update due, on a state of its own."""
        case = cls.__new__(cls)
        case.__dict__.update(other.__dict__, name=name, updates_per_unit=0.0, counters=Counters(0, 0))
        case.state = case.loop.begin()
        return case

    def run(self, units: int) -> float:
        began = time.perf_counter()
        schedule = self.loop.schedule
        if not self.updates_per_unit:
            # Acting as the agent does, not at random, and learning nothing.
            self.loop.schedule = schedule._replace(random_steps=0, ratio=schedule.ratio * 0)
        self.state, self.counters = self.loop.tick(self.state, self.counters, units)
        self.loop.schedule = schedule
        jax.block_until_ready(self.state)
        return (time.perf_counter() - began) / units

    def program_bytes(self) -> int | None:
        number = np.int32(1)
        learner = self.learner
        return program_bytes(
            self.loop._advance,
            self.state,
            learner.streams,
            number,
            number,
            number,
            np.zeros(self.most, np.int32),
            number,
            learner.active,
        )
