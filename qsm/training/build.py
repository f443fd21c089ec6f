"""The loop of a group of runs. Made before any folder, so that impossible options leave nothing behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from agents.api import Agent
from qsm.base.errors import UserError
from qsm.devices import processes
from qsm.learning import footprint, memory
from qsm.learning.build import SIMULATORS, Simulators, Task
from qsm.learning.learner import Learner
from qsm.learning.placement import Placement
from qsm.loops.device_loop import DeviceLoop
from qsm.loops.host_loop import HostLoop
from qsm.loops.loop import Loop
from qsm.loops.schedule import Schedule
from qsm.options.run import Backend, LaunchOptions
from qsm.training.group import Member


class GroupLoop(NamedTuple):
    """A loop, and what a person is shown of it."""

    loop: Loop
    devices: str
    memory: str


@processes.barrier()
def build_loop(
    agent_name: str,
    task_name: str,
    members: Sequence[Member],
    launch: LaunchOptions,
    simulators: Simulators = SIMULATORS,
) -> GroupLoop:
    """The loop of `members`, their environments and their agents.

    Raises:
      UserError: an option that the task, the agent or the devices here cannot take, or too little memory.
    """
    config, agent_config = members[0].config, members[0].agent_config
    seeds = [member.config.seed for member in members]
    task, agents = build_agents(agent_name, task_name, members, launch, simulators)
    try:
        placement = Placement(launch.num_devices, len(members), config.num_envs, agent_config.batch_size)
    except ValueError as error:
        raise UserError(str(error)) from error
    learner = Learner(agents, task.spec, seeds, config.replay_capacity, config.num_envs, placement)
    if launch.backend == "mjx":
        loop = DeviceLoop(learner, task.vector(config.num_envs), config)
        return GroupLoop(loop, placement.describe(), memory.check(learner, loop.nbytes()))
    needed = memory.check(learner, 0)
    training = [task.host(seed) for seed in seeds]
    evaluation = [[task.host(seed) for _ in range(config.eval_episodes)] for seed in seeds]
    return GroupLoop(HostLoop(learner, training, evaluation, config), placement.describe(), needed)


def build_agents(
    agent_name: str,
    task_name: str,
    members: Sequence[Member],
    launch: LaunchOptions,
    simulators: Simulators = SIMULATORS,
) -> tuple[Task, list[Agent]]:
    """The task of `members`, and the agent of each.

    Raises:
      UserError: an option that the task or the agent cannot take.
    """
    config = members[0].config
    try:
        check_counts(members[0], launch.backend)
        # All environments are made with the training seed, for it draws the system itself in lqr; episodes are
        # reseeded.
        task = Task(task_name, launch.backend, config.action_repeat, config.seed, simulators)
        return task, [task.agent(agent_name, member.agent_config) for member in members]
    except ValueError as error:
        raise UserError(str(error)) from error


def predict_arrays(
    agent_name: str,
    task_name: str,
    members: Sequence[Member],
    launch: LaunchOptions,
    simulators: Simulators = SIMULATORS,
) -> str:
    """A line on the bytes of what `build_loop` would make, environments apart; starts no device.

    Raises:
      UserError: an option that the task or the agent cannot take.
    """
    task, agents = build_agents(agent_name, task_name, members, launch, simulators)
    config = members[0].config
    return footprint.predict(
        agents[0], task.spec, len(members), config.replay_capacity, config.num_envs
    ).describe()


def check_counts(member: Member, backend: Backend) -> None:
    """Raises ValueError for counts of which each is possible and that cannot learn together."""
    config, agent = member.config, member.agent_config
    if backend == "dm_control" and config.num_envs > 1:
        raise ValueError(
            f"--num-envs is {config.num_envs}; dm_control steps one environment for each seed. Take "
            "--num-seeds for more seeds, or --backend mjx for more environments"
        )
    if backend == "dm_control" and config.random_elapsed:
        raise ValueError(
            "--random-elapsed is on; dm_control's episodes begin at their beginning. Leave it out, or add --backend mjx"
        )
    schedule = Schedule.of(config, config.action_repeat, agent.n_step)
    if schedule.random_steps >= config.steps:
        raise ValueError(
            f"--steps is {config.steps}, but {config.num_envs} environments take {schedule.random_steps} steps before "
            "the first update; train for longer or with fewer environments"
        )
    last_step = schedule.in_ticks(config.steps)
    if last_step >= 2**31:
        raise ValueError(
            f"--steps is {config.steps}, which {schedule.increment} steps at a time come to {last_step}; at most "
            f"{2**31 - 1} can be counted"
        )
    if schedule.updates_due(last_step) >= 2**31:
        raise ValueError(
            f"--replay-ratio is {config.replay_ratio}; over {config.steps} steps that is more than 2^31 updates"
        )
    smallest = memory.min_capacity(config.num_envs, agent.n_step)
    if config.replay_capacity < smallest:
        raise ValueError(
            f"--replay-capacity is {config.replay_capacity}; {config.num_envs} environments need {smallest} or more"
        )
    if agent.batch_size > config.replay_capacity:
        raise ValueError(
            f"--batch-size is {agent.batch_size}, more than all that is remembered: --replay-capacity is "
            f"{config.replay_capacity}. Lower --batch-size or raise --replay-capacity"
        )
