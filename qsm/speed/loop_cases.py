"""The whole loops as cases: simulators, and what they need, are imported by the cases that have them."""

from __future__ import annotations

import importlib
import importlib.util
import time
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from envs.api import DeviceEnvironment, HostEnvironment
from envs.vector import VectorEnvironment
from qsm.learning.learner import Learner
from qsm.loops.host_loop import HostLoop
from qsm.loops.schedule import Counters
from qsm.options.run import RunConfig
from qsm.speed.cases import Sizes, TimedCase
from qsm.speed.limits import program_bytes

if TYPE_CHECKING:
    from qsm.loops.device_loop import DeviceLoop


def make_host_env(task: str, seed: int) -> HostEnvironment:
    """An environment of dm_control.

    Raises:
      ImportError: it is not installed.
    """
    return importlib.import_module("envs.dmc").make_env(task, seed=seed)


class HostCase(TimedCase):
    """The whole host loop of S seeds, one update a step; a unit is one step of each."""

    learner: Learner
    loop: HostLoop
    max_units = 10**6
    first_units = 2  # the first step is random, and its program waits for no other

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
        return program_bytes(self.learner.compiled.learn, *self.learner.learn_shapes())


def mjx_environment(task: str) -> DeviceEnvironment:
    """Loaded once for all cases.

    Raises:
      ImportError: a package that it needs is not installed.
    """
    for package in ("mujoco.mjx", "mujoco_playground"):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return importlib.import_module("envs.mjx").make_env(task)


class DeviceCase(TimedCase):
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
        device_loop: Any = importlib.import_module("qsm.loops.device_loop")  # brings psutil and filelock
        self.name, self.max_units = name, device_loop.CHUNK
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
            self.loop.compiled.advance,
            self.state,
            learner.streams,
            number,
            number,
            number,
            np.zeros(self.max_units, np.int32),
            number,
            learner.active,
        )
