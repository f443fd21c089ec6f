"""What `scripts/speed.py` times: each case is set up once and then run in blocks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

import agents
from agents.api import Transition
from envs.api import Arrival, DeviceEnvironment, EnvSpec, StepType, TimeStep
from envs.vector import VectorEnvironment
from qsm import replay
from qsm.config import MatmulPrecision, RunConfig
from qsm.device_loop import CHUNK, DeviceLoop
from qsm.host_loop import HostLoop
from qsm.learner import Learner, TrainState
from qsm.loop import Counters, Hooks

SPEC = EnvSpec("cheetah-run", observation_size=17, action_size=6, episode_steps=1000, action_repeat=1)
"""Of the cases that simulate nothing: they run where no simulator is installed."""


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


class Case(Protocol):
    """Something to be timed."""

    name: str
    least: int  # units of one block, so that dispatch runs ahead
    most: int
    updates_per_unit: float  # summed over seeds
    env_steps_per_unit: float  # summed over seeds
    gflop_per_update: float
    compile_seconds: float
    first_step_seconds: float

    def run(self, units: int) -> float:
        """Seconds per unit."""
        ...

    def program_bytes(self) -> int | None:
        """What the largest program takes while it runs: arguments, results and temporary arrays."""
        ...


@contextlib.contextmanager
def compile_timer() -> Iterator[list[float]]:
    """Collects the seconds of every compilation."""
    seconds: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        # Of the compiler alone: tracing is told for inner functions too, and would count twice.
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


class _Timed:
    """Times its own set-up and first unit."""

    compile_seconds = first_step_seconds = 0.0
    least = 4

    def _first(self, set_up: Callable[[], None]) -> None:
        began = time.perf_counter()
        with compile_timer() as seconds:
            set_up()
            self.run(1)
        self.compile_seconds, self.first_step_seconds = sum(seconds), time.perf_counter() - began

    def run(self, units: int) -> float:
        raise NotImplementedError


def peak_bytes(program: Any, *arguments: Any) -> int | None:
    """Of a jitted program, as its compiler counts it."""
    found = program.lower(*arguments).compile().memory_analysis()
    if found is None:
        return None
    sizes = (found.argument_size_in_bytes, found.output_size_in_bytes, found.temp_size_in_bytes)
    return int(sum(sizes) - found.alias_size_in_bytes)


def matmul_rates(batch: int, width: int, blocks: int) -> dict[str, float]:
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
        chain = jax.jit(lambda x, w, length=length: jax.lax.fori_loop(0, length, lambda _, y: y @ w, x))
        x, w = jnp.ones((rows, columns)), jnp.eye(columns)
        chain(x, w).block_until_ready()
        times = []
        for _ in range(blocks):
            began = time.perf_counter()
            chain(x, w).block_until_ready()
            times.append(time.perf_counter() - began)
        rates[f"[{rows}, {columns}] x [{columns}, {columns}]"] = (
            length * operations / float(np.median(times)) / 1e9
        )
    return rates


def replay_milliseconds(capacity: int, blocks: int, batch_size: int) -> float:
    """One insert and one sample of `batch_size` transitions, from a full buffer."""
    buffer = jax.jit(lambda: full_replay(capacity))()
    sampling = agents.config_class("sac")(batch_size=batch_size).sampling

    def program(
        buffer: replay.Replay, action: Any, time_step: TimeStep, key: Any
    ) -> tuple[replay.Replay, Transition]:
        buffer = replay.insert(buffer, action, time_step)
        return buffer, replay.sample(buffer, sampling, 0.99, key)

    step = jax.jit(program, donate_argnums=0)
    action = np.zeros((1, SPEC.action_size), np.float32)
    time_step = still(SPEC.observation_size, 1)
    keys = [jax.random.key(i) for i in range(200)]
    buffer, _ = step(buffer, action, time_step, keys[0])
    times = []
    for _ in range(blocks):
        began = time.perf_counter()
        for key in keys:
            buffer, batch = step(buffer, action, time_step, key)
        jax.block_until_ready(batch)
        times.append((time.perf_counter() - began) / len(keys))
    return 1e3 * float(np.median(times))


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


def still(observation_size: int, num_envs: int) -> TimeStep:
    """A MID time step `[N, ...]` of ones."""
    one = np.ones(num_envs, np.float32)
    step_type = np.full(num_envs, StepType.MID, np.int8)
    return TimeStep(step_type, one, one, np.ones((num_envs, observation_size), np.float32))


class BareUpdate(_Timed):
    """An agent's update on a fixed batch, nothing else."""

    most, updates_per_unit, env_steps_per_unit = 10**6, 1.0, 0.0

    def __init__(self, name: str, sizes: Sizes) -> None:
        self.name, spec = name, SPEC
        self.agent = sizes.make_agent(spec.observation_size, spec.action_size)
        batch = sizes.batch_size
        rng = np.random.RandomState(0)
        shapes = ((batch, spec.observation_size), (batch, spec.action_size), (batch,), (batch,))
        values = [jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32) for shape in (*shapes, shapes[0])]
        self.batch = Transition(*values)
        self.stream = jax.random.key(1)
        self.update = jax.jit(self._update, donate_argnums=0)
        self.state: Any = None

        def set_up() -> None:
            self.state = jax.jit(self.agent.init)(jax.random.key(0))

        self._first(set_up)
        self.gflop_per_update = gflop_per_update(self.agent, self.state, self.batch)

    def _update(self, state: Any, batch: Transition, count: jax.Array) -> Any:
        return self.agent.update(state, batch, jax.random.fold_in(self.stream, count), count)

    def run(self, units: int) -> float:
        began = time.perf_counter()
        for _ in range(units):
            self.state, metrics = self.update(self.state, self.batch, np.int32(1))
        jax.block_until_ready(metrics)
        return (time.perf_counter() - began) / units

    def program_bytes(self) -> int | None:
        return peak_bytes(self.update, self.state, self.batch, np.int32(1))


def gflop_per_update(agent: Any, state: Any, batch: Transition) -> float:
    """As XLA counts it in the compiled update, averaged over two updates in a row.

    The count is a constant here, so that a branch not taken (TD3's delay, the spread of diffusion policies) is not
    counted.
    """

    def flops(count: int) -> float:
        def program(state: Any, batch: Transition) -> Any:
            return agent.update(state, batch, jax.random.key(0), jnp.asarray(count, jnp.int32))

        return float(jax.jit(program).lower(state, batch).compile().cost_analysis()["flops"])  # type: ignore[index]

    return (flops(1) + flops(2)) / 2e9


def _gflop_of(learner: Learner, sizes: Sizes) -> float:
    spec, batch = learner.spec, sizes.batch_size
    observation, action = jnp.zeros((batch, spec.observation_size)), jnp.zeros((batch, spec.action_size))
    ones = jnp.ones(batch)
    return gflop_per_update(
        learner.agent,
        learner.agent_template(),
        Transition(observation, action, ones, ones, observation),
    )


class LearnCase(_Timed):
    """Updates of S seeds in one program, many a dispatch, from full replay buffers; a unit is one of each seed."""

    least, most, env_steps_per_unit = 1, 10**6, 0.0

    def __init__(
        self, name: str, sizes: Sizes, num_seeds: int, precision: MatmulPrecision = "float32"
    ) -> None:
        self.name = name
        self.precision = precision
        self.updates_per_unit = float(num_seeds)
        spec = SPEC
        agent = sizes.make_agent(spec.observation_size, spec.action_size)
        self.learner = Learner(agent, spec, range(num_seeds), sizes.capacity)
        self.action = np.zeros((num_seeds, 1, spec.action_size), np.float32)
        one = jax.tree.map(lambda leaf: np.stack([leaf] * num_seeds), still(spec.observation_size, 1))
        yes, no = np.ones((num_seeds, 1), bool), np.zeros((num_seeds, 1), bool)
        self.arrival = Arrival(one, yes, one, no)
        self.state: Any = None
        self.count = 0

        def set_up() -> None:
            self.state = self.learner.init()
            fill = jax.jit(
                lambda: jax.tree.map(
                    lambda leaf: jnp.stack([leaf] * num_seeds),
                    full_replay(sizes.capacity),
                )
            )
            self.state = self.state._replace(replay=fill())

        self._first(set_up)
        self.gflop_per_update = _gflop_of(self.learner, sizes)

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
        learner = self.learner
        return peak_bytes(
            learner._learn,
            self.state,
            learner.streams,
            self.action,
            self.arrival,
            np.int32(0),
            np.int32(1),
            learner.active,
        )


def quiet_hooks(learner: Learner) -> Hooks:
    """Only metrics are fetched, as in training."""

    def log(step: int, state: TrainState, num_updates: int) -> TrainState:
        return learner.drain(state)[0]

    return Hooks(
        lambda step: None, lambda step, state: None, log, lambda state, counters: None, lambda: False
    )


class HostCase(_Timed):
    """The whole host loop of S seeds, one update a step; a unit is one step of each."""

    most = 10**6

    def __init__(self, name: str, sizes: Sizes, num_seeds: int) -> None:
        from envs import dmc

        self.name = name
        self.updates_per_unit = self.env_steps_per_unit = float(num_seeds)
        environments = [dmc.make_env(sizes.task, seed=seed) for seed in range(num_seeds)]
        spec = environments[0].spec
        agent = sizes.make_agent(spec.observation_size, spec.action_size)
        self.learner = Learner(agent, spec, range(num_seeds), sizes.capacity)
        self.loop = HostLoop(self.learner, environments, [], RunConfig())
        self.state: Any = None
        self.counters = Counters(0, 0)

        def set_up() -> None:
            self.state = self.loop.begin()

        self._first(set_up)
        self.gflop_per_update = _gflop_of(self.learner, sizes)

    def run(self, units: int) -> float:
        end = self.counters.step + units
        self.loop.schedule = self.loop.schedule._replace(steps=end, random_steps=1)
        began = time.perf_counter()
        self.state, self.counters = self.loop.run(self.state, self.counters, quiet_hooks(self.learner))
        jax.block_until_ready(self.state)
        return (time.perf_counter() - began) / units

    def program_bytes(self) -> int | None:
        learner, spec = self.learner, self.learner.spec
        one = jax.tree.map(lambda leaf: np.stack([leaf] * learner.num_seeds), still(spec.observation_size, 1))
        yes = np.ones((learner.num_seeds, 1), bool)
        action = np.zeros((learner.num_seeds, 1, spec.action_size), np.float32)
        number = np.int32(1)
        arrival = Arrival(one, yes, one, ~yes)
        return peak_bytes(
            learner._learn, self.state, learner.streams, action, arrival, number, number, learner.active
        )


def mjx_environment(task: str) -> DeviceEnvironment:
    """Loaded once for all cases."""
    from envs import mjx

    return mjx.make_env(task)


class DeviceCase(_Timed):
    """The device loop of S seeds with N environments each; a unit is one tick: a step of every environment."""

    most = CHUNK

    def __init__(
        self,
        name: str,
        sizes: Sizes,
        num_seeds: int,
        num_envs: int,
        replay_ratio: str,
        environment: DeviceEnvironment,
    ) -> None:
        self.name = name
        vector = VectorEnvironment(environment, num_envs)
        spec = vector.spec
        agent = sizes.make_agent(spec.observation_size, spec.action_size)
        capacity = max(sizes.capacity, 4 * num_envs)
        self.learner = Learner(agent, spec, range(num_seeds), capacity, num_envs)
        config = RunConfig(
            steps=2**31 - 1, random_steps=2 * num_envs, num_envs=num_envs, replay_ratio=replay_ratio
        )
        self.loop = DeviceLoop(self.learner, vector, config)
        self.env_steps_per_unit = float(num_seeds * num_envs)
        self.updates_per_unit = float(num_seeds * num_envs * config.updates_per_step)
        self.counters = Counters(0, 0)
        self.state: Any = None

        def set_up() -> None:
            self.state = self.loop.begin()

        self._first(set_up)
        self.gflop_per_update = _gflop_of(self.learner, sizes)

    @classmethod
    def without_updates(cls, name: str, other: DeviceCase) -> DeviceCase:
        """The same program with no update due, on a state of its own."""
        case = cls.__new__(cls)
        case.__dict__.update(other.__dict__, name=name, updates_per_unit=0.0, counters=Counters(0, 0))
        case.state = case.loop.begin()
        return case

    def run(self, units: int) -> float:
        step, num_updates = self.counters
        began = time.perf_counter()
        schedule = self.loop.schedule
        if not self.updates_per_unit:
            # Acting as the agent does, not at random, and learning nothing.
            self.loop.schedule = schedule._replace(random_steps=0, ratio=schedule.ratio * 0)
        self.state, num_updates = self.loop.advance(self.state, step, num_updates, units)
        self.loop.schedule = schedule
        jax.block_until_ready(self.state)
        seconds = time.perf_counter() - began
        self.counters = Counters(step + units * self.loop.steps_per_tick, num_updates)
        return seconds / units

    def program_bytes(self) -> int | None:
        number = np.int32(1)
        learner = self.learner
        return peak_bytes(
            self.loop._advance,
            self.state,
            learner.streams,
            number,
            number,
            number,
            np.zeros(CHUNK, np.int32),
            number,
            learner.active,
        )
