"""A task on one of the simulators, and agents that fit it: the one place that turns their names into environments.

Training, `qsm eval` and `qsm export` all ask here. Tests give `Simulators` of their own.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import agents
from agents.api import Agent
from envs.api import DeviceEnvironment, EnvSpec, HostEnvironment
from envs.tasks import BACKENDS, GRIDWORLD_NAMES
from envs.vector import VectorEnvironment
from qsm.options import saved
from qsm.options.run import Backend


def _host(task: str, seed: int, action_repeat: int) -> HostEnvironment:
    if task in GRIDWORLD_NAMES:
        from envs import gridworld

        return gridworld.make_env(task, seed, action_repeat)
    if importlib.util.find_spec("dm_control") is None:
        raise ValueError(
            "--backend dm_control needs the package dm_control, which is not installed. Take --backend mjx, or install "
            "everything with: make setup"
        )
    from envs import dmc  # takes a second

    return dmc.make_env(task, seed, action_repeat)


def _mjx(task: str, action_repeat: int) -> DeviceEnvironment:
    from envs import mjx  # takes many

    return mjx.make_env(task, action_repeat)


class Simulators(NamedTuple):
    """Makes environments: the host's of a task, a seed and an action repeat, MJX's of a task and an action repeat."""

    host: Callable[[str, int, int], HostEnvironment] = _host
    device: Callable[[str, int], DeviceEnvironment] = _mjx


SIMULATORS = Simulators()


class Task:
    """A task on one simulator: its environments, their sizes, and the agents that fit them. Nothing is made at first.

    Args:
      seed: of the environment that `spec` is read from, and of `host` by default; lqr draws its system from it.

    Raises:
      ValueError: a backend that there is none of.
    """

    def __init__(
        self,
        name: str,
        backend: Backend,
        action_repeat: int = 1,
        seed: int = 0,
        simulators: Simulators = SIMULATORS,
    ) -> None:
        if backend not in BACKENDS:
            raise ValueError(f"unknown backend {backend!r}; it must be one of: {', '.join(BACKENDS)}")
        self.name, self.backend, self.action_repeat, self.seed = name, backend, action_repeat, seed
        self._simulators = simulators
        self._spare: HostEnvironment | None = None  # made for its spec, and not handed out yet

    @functools.cached_property
    def spec(self) -> EnvSpec:
        """Sizes and timing; makes an environment.

        Raises:
          ValueError: a task or an action repeat that there is not, or packages that are missing.
        """
        if self.backend == "mjx":
            return self.device.spec
        self._spare = self._simulators.host(self.name, self.seed, self.action_repeat)
        return self._spare.spec

    @functools.cached_property
    def device(self) -> DeviceEnvironment:
        """The environment of backend mjx: pure functions, so that one does for every run."""
        return self._simulators.device(self.name, self.action_repeat)

    def vector(self, num_envs: int) -> VectorEnvironment:
        """`num_envs` environments of backend mjx that step together."""
        return VectorEnvironment(self.device, num_envs)

    def host(self, seed: int | None = None) -> HostEnvironment:
        """An environment of backend dm_control that nobody else has; of the task's own seed by default."""
        seed = self.seed if seed is None else seed
        if self._spare is not None and seed == self.seed:
            spare, self._spare = self._spare, None
            return spare
        return self._simulators.host(self.name, seed, self.action_repeat)

    def agent(self, name: str, options: Any) -> Agent:
        """Agent `name` with `options`, for this task's sizes.

        Raises:
          ValueError: a value that the agent cannot take here.
        """
        return agents.build(name, options, self.spec.observation_size, self.spec.action_size)


class Built(NamedTuple):
    """What a run is made of."""

    task: Task
    agent: Agent

    @property
    def spec(self) -> EnvSpec:
        """Sizes and timing of the task."""
        return self.task.spec


def build(
    config: Mapping[str, Any],
    backend: Backend | None = None,
    simulators: Simulators = SIMULATORS,
    **overrides: Any,
) -> Built:
    """The task and the agent of a run.

    Args:
      config: content of its `config.json`; options of former versions that are missing there have their defaults.
      backend: another simulator than the run's own.
      overrides: options of the agent to be replaced.

    Raises:
      ValueError: a task, a backend, an agent, an option or a value that this version does not have, by name.
    """
    run_options = config["run_config"]
    saved.check_run_options(run_options)
    options = saved.agent_options(config["agent"], config["agent_config"])
    if overrides:
        options = agents.override(options, **overrides)
    task = Task(
        config["task"],
        backend or config["backend"],
        run_options.get("action_repeat", 1),
        run_options.get("seed", 0),
        simulators,
    )
    return Built(task, task.agent(config["agent"], options))
