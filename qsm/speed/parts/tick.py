"""Where a tick of the host loop goes, by part, and what handing arrays to a device and back costs by itself."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

import agents
from envs.api import Arrival
from qsm.learning.learner import Learner
from qsm.learning.placement import Placement
from qsm.learning.programs import TrainState
from qsm.loops.host_loop import HostLoop
from qsm.loops.schedule import Counters
from qsm.options.run import RunConfig
from qsm.speed.loop_cases import make_host_env

CAPACITY = 20_000
ENDLESS = 10**9
UNTIMED = 3
SMALL_ARRAYS = 13  # about what a tick hands over
LEAVES = 100  # about what the learned state of an agent has


@dataclasses.dataclass(frozen=True)
class Options:
    """Take a tick of the host loop apart."""

    agents: tuple[str, ...] = ("sac", "qsm-clean")
    """Agents, at their defaults."""
    seeds: tuple[int, ...] = (1, 4, 16)
    """Numbers of seeds in one program."""
    task: str = "cheetah-run"
    """Task of dm_control."""
    ticks: int = 300
    """Ticks that are timed, of random steps and of learning each."""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of actor and critics."""

    limits: ClassVar[dict[str, tuple[float, float]]] = {"ticks": (1, 10**6)}


class Clock:
    """Seconds by the name of what took them."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name].append(time.perf_counter() - began)

    def medians(self) -> dict[str, float]:
        """Milliseconds of each, and from now on none."""
        found = {name: 1e3 * statistics.median(seconds) for name, seconds in self.seconds.items()}
        self.seconds.clear()
        return found


class TimedPlacement(Placement):
    """Times the wait for actions."""

    clock: Clock

    def fetch(self, tree: Any) -> Any:
        with self.clock("wait for the action"):
            return super().fetch(tree)


class TimedLearner(Learner):
    """Times how long it takes to hand a program what it is to learn from."""

    clock: Clock

    def learn(
        self, state: TrainState, action: Any, arrival: Arrival, first_update: Any, num_updates: Any
    ) -> TrainState:
        with self.clock("dispatch learning"):
            return super().learn(state, action, arrival, first_update, num_updates)


class TimedLoop(HostLoop):
    """Times the environments, and how long it takes to ask for actions."""

    clock: Clock

    def _act(self, state: TrainState, observation: np.ndarray, step: int) -> Any:
        with self.clock("dispatch acting"):
            return super()._act(state, observation, step)

    def _step(self, actions: np.ndarray) -> Arrival:
        with self.clock("environments"):
            return super()._step(actions)


def ticks(name: str, num_seeds: int, options: Options) -> list[dict[str, Any]]:
    """Rows of one agent and number of seeds: milliseconds of each part of a tick, while acting at random and learning.

    Raises:
      ImportError: dm_control is not installed.
    """
    environments = [make_host_env(options.task, seed=seed) for seed in range(num_seeds)]
    spec, clock = environments[0].spec, Clock()
    sizes = spec.observation_size, spec.action_size
    agent = agents.make_agent(name, *sizes, hidden_sizes=options.hidden_sizes)
    placement = TimedPlacement()
    learner = TimedLearner(agent, spec, range(num_seeds), CAPACITY, placement=placement)
    loop = TimedLoop(learner, environments, [], RunConfig())
    placement.clock = learner.clock = loop.clock = clock
    state, at = loop.begin(), Counters(0, 0)
    rows = []
    # Learning first, so that nothing is compiled in the background of the other.
    for phase, random_steps in (("learning", 0), ("random", ENDLESS)):
        loop.schedule = loop.schedule._replace(steps=ENDLESS, random_steps=random_steps)
        at = Counters(at.step, loop.schedule.updates_due(at.step))  # one update a tick, or none
        for _ in range(UNTIMED):  # the first ones compile
            state, at = loop.advance(state, at, ENDLESS)
        jax.block_until_ready(state)
        clock.medians()
        began = time.perf_counter()
        for _ in range(options.ticks):
            state, at = loop.advance(state, at, ENDLESS)
        jax.block_until_ready(state)
        whole = 1e3 * (time.perf_counter() - began) / options.ticks
        parts = {"whole tick": whole, **clock.medians()}
        rows += [
            {"agent": name, "seeds": num_seeds, "phase": phase, "part": part, "milliseconds": round(took, 4)}
            for part, took in parts.items()
        ]
    return rows


def transfers(rounds: int) -> list[dict[str, Any]]:
    """Rows of what it costs to call a program with arrays of the host, to donate many to one, and to fetch."""
    small = [np.ones((1, 1, 8), np.float32) for _ in range(SMALL_ARRAYS)]
    one = np.ones((1, 1, 8 * SMALL_ARRAYS), np.float32)
    few, many = [jnp.ones((64, 64))], [jnp.ones((64, 64)) for _ in range(LEAVES)]
    add = jax.jit(lambda arrays: jax.tree.map(lambda leaf: leaf + 1, arrays))
    split = jax.jit(lambda array: [part + 1 for part in jnp.split(array, SMALL_ARRAYS, axis=2)])
    first_of = jax.jit(lambda arrays: [arrays[0] + 1, *arrays[1:]], donate_argnums=0)
    ready = jnp.ones(8)

    def donated(box: list[Any]) -> Callable[[], Any]:
        def call() -> Any:
            box[0] = first_of(box[0])
            return box[0]

        return call

    cases: dict[str, Callable[[], Any]] = {
        f"{SMALL_ARRAYS} small arrays handed over": lambda: add(small),
        "one array of as many numbers handed over": lambda: split(one),
        "a program that is donated one array": donated([few]),
        f"a program that is donated {LEAVES} arrays": donated([many]),
        "a small array fetched, after a program": lambda: np.asarray(add(ready)),
    }
    clock = Clock()
    for call in cases.values():
        jax.block_until_ready(call())
    for _ in range(rounds):
        for name, call in cases.items():  # in turn
            with clock(name):
                jax.block_until_ready(call())
    return [
        {"agent": "", "seeds": "", "phase": "", "part": name, "milliseconds": round(took, 4)}
        for name, took in clock.medians().items()
    ]
