"""The loop of a group of runs. Made before any folder, so that impossible options leave nothing behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from agents.api import Agent
from envs.api import EnvSpec, HostEnvironment
from qsm.base.errors import UserError
from qsm.devices import processes, runtime
from qsm.learning import memory
from qsm.learning.build import SIMULATORS, Simulators, Task
from qsm.learning.device_loop import DeviceLoop
from qsm.learning.host_loop import HostLoop
from qsm.learning.learner import Learner
from qsm.learning.loop import Loop
from qsm.learning.placement import Placement
from qsm.learning.schedule import Schedule
from qsm.options.run import LaunchOptions, RunConfig
from qsm.training.group import Member


class GroupLoop(NamedTuple):
    """A loop, and what a person is shown of it."""

    loop: Loop
    devices: str
    memory: str


class LoopBuilder:
    """The task and the agents of a group, of which loops are made: for all members, or for those that are left.

    Raises:
      UserError: an option that the task, the agent or the devices here cannot take.
    """

    @processes.barrier()
    def __init__(
        self,
        agent_name: str,
        task: str,
        members: Sequence[Member],
        launch: LaunchOptions,
        simulators: Simulators = SIMULATORS,
    ) -> None:
        config = members[0].config
        runtime.set_precision(config.matmul_precision)
        self._num_devices = launch.num_devices
        try:
            # All environments are made with the training seed, for it draws the system itself in lqr; episodes are
            # reseeded.
            self._task = Task(task, launch.backend, config.action_repeat, config.seed, simulators)
            spec = self._task.spec
            self._agents: dict[Path, Agent] = {
                member.path: self._task.agent(agent_name, member.agent_config) for member in members
            }
            self._placement(members)
            check_counts(members[0], launch, spec)
        except ValueError as error:
            raise UserError(str(error)) from error

    @processes.barrier()
    def build(self, members: Sequence[Member]) -> GroupLoop:
        """The loop of `members`.

        Raises:
          UserError: they do not fit in memory, or divide over the devices.
        """
        config, task = members[0].config, self._task
        try:
            placement = self._placement(members)
        except ValueError as error:
            raise UserError(str(error)) from error
        learner = Learner(
            [self._agents[member.path] for member in members],
            task.spec,
            [member.config.seed for member in members],
            config.replay_capacity,
            config.num_envs,
            placement,
        )
        if task.backend == "mjx":
            loop = DeviceLoop(learner, task.vector(config.num_envs), config)
            return GroupLoop(loop, placement.describe(), memory.check(learner, loop.nbytes()))
        needed = memory.check(learner, 0)
        training = [task.host(member.config.seed) for member in members]
        evaluation = [self._evaluation_environments(member.config) for member in members]
        return GroupLoop(HostLoop(learner, training, evaluation, config), placement.describe(), needed)

    def _placement(self, members: Sequence[Member]) -> Placement:
        batch_size = members[0].agent_config.batch_size
        return Placement(self._num_devices, len(members), members[0].config.num_envs, batch_size)

    def _evaluation_environments(self, config: RunConfig) -> list[HostEnvironment]:
        return [self._task.host(config.seed) for _ in range(config.eval_episodes)]


def check_counts(member: Member, launch: LaunchOptions, spec: EnvSpec) -> None:
    """Raises ValueError for counts of which each is possible and that cannot learn together."""
    config, agent = member.config, member.agent_config
    if launch.backend == "dm_control" and config.num_envs > 1:
        raise ValueError(
            f"num_envs is {config.num_envs}; dm_control steps one environment for each seed. Take "
            "--num-seeds for more seeds, or --backend mjx for more environments"
        )
    schedule = Schedule.of(config, spec.action_repeat, agent.n_step)
    if schedule.random_steps >= config.steps:
        raise ValueError(
            f"steps is {config.steps}, but {config.num_envs} environments take {schedule.random_steps} steps before "
            "the first update; train for longer or with fewer environments"
        )
    if schedule.updates_due(config.steps) >= 2**31:
        raise ValueError(
            f"replay_ratio is {config.replay_ratio}; over {config.steps} steps that is more than 2^31 updates"
        )
    smallest = memory.least_capacity(config.num_envs, agent.n_step)
    if config.replay_capacity < smallest:
        raise ValueError(
            f"replay_capacity is {config.replay_capacity}; {config.num_envs} environments need {smallest} or more"
        )
    if agent.batch_size > config.replay_capacity:
        raise ValueError(
            f"batch_size is {agent.batch_size}, more than all that is remembered: replay_capacity is "
            f"{config.replay_capacity}. Lower --batch-size or raise --replay-capacity"
        )
