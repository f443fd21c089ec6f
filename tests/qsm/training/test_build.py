"""The group's loop: built for all its members at once, or refused in one line before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agents.sac import SAC, SACConfig
from qsm.base.errors import UserError
from qsm.learning.build import Simulators
from qsm.loops.device_loop import DeviceLoop
from qsm.loops.host_loop import HostLoop
from qsm.options.run import Backend, LaunchOptions, RunConfig
from qsm.training.build import build_loop, check_counts
from qsm.training.group import Member, members
from tests.probe_device_environments import Counter
from tests.probe_environments import TruncatedReward


def member(agent: dict[str, Any] | None = None, **options: Any) -> Member:
    defaults: dict[str, Any] = {"steps": 100, "random_steps": 10, "replay_capacity": 1000}
    return Member(SACConfig(**(agent or {})), RunConfig(**(defaults | options)), Path("run"))


@pytest.mark.parametrize(
    ("agent", "options", "backend", "message"),
    [
        ({}, {"num_envs": 2}, "dm_control", "--num-envs is 2; dm_control steps one environment for each seed"),
        ({}, {"random_elapsed": True}, "dm_control", "--random-elapsed is on; dm_control's episodes begin at"),
        ({"n_step": 5}, {"num_envs": 20}, "mjx", "20 environments take 100 steps before the first update"),
        ({}, {"steps": 2**31 - 1, "replay_ratio": "1024"}, "mjx", r"more than 2\^31 updates"),
        ({}, {"steps": 2**31 - 1, "num_envs": 2}, "mjx", "which 2 steps at a time come to 2147483648"),
        ({}, {"num_envs": 400, "steps": 2000}, "mjx", "400 environments need 1200 or more"),
        (
            {"batch_size": 1001}, {}, "dm_control",
            "--batch-size is 1001, more than all that is remembered: --replay-capacity is 1000. "
            "Lower --batch-size or raise --replay-capacity",
        ),
    ],
)  # fmt: skip
def test_counts_that_cannot_learn_together_are_refused(
    agent: dict[str, Any], options: dict[str, Any], backend: Backend, message: str
):
    with pytest.raises(ValueError, match=message):
        check_counts(member(agent, **options), backend)


@pytest.mark.parametrize(
    ("agent", "options", "backend"),
    [
        ({"batch_size": 1000}, {}, "dm_control"),
        ({"n_step": 5}, {"num_envs": 19}, "mjx"),
        ({"n_step": 5, "batch_size": 1}, {"num_envs": 142, "steps": 2000}, "mjx"),
    ],
)
def test_counts_at_the_edge_are_taken(agent: dict[str, Any], options: dict[str, Any], backend: Backend):
    check_counts(member(agent, **options), backend)


def test_every_member_has_its_agent_and_its_environments():
    made: list[int] = []

    def host(task: str, seed: int, action_repeat: int) -> TruncatedReward:
        made.append(seed)
        return TruncatedReward(seed)

    launch = LaunchOptions(num_seeds=2, sweep="discount=0.5,0.9")
    config = RunConfig(steps=100, random_steps=10, replay_capacity=1000, eval_episodes=3, seed=4)
    group = members("sac", "probe", SACConfig(hidden_sizes=(8,)), config, launch)
    built = build_loop("sac", "probe", group, launch, Simulators(host))
    loop, learner = built.loop, built.loop.learner
    assert isinstance(loop, HostLoop)
    assert learner.seeds == (4, 5, 4, 5)
    assert [agent.config.discount for agent in learner.members if isinstance(agent, SAC)] == [
        0.5,
        0.5,
        0.9,
        0.9,
    ]
    assert len(loop.environments) == 4 and len({id(one) for one in loop.environments}) == 4
    assert [len(row) for row in loop.evaluation_environments] == [3] * 4
    # Each seed's own, of which lqr draws its system; none is made for nothing.
    assert sorted(made) == [4] * 8 + [5] * 8
    assert built.memory.startswith("replay ") and built.devices == "cpu"


def test_the_device_loop_takes_one_environment_for_all_seeds():
    made: list[str] = []

    def device(task: str, action_repeat: int) -> Counter:
        made.append(task)
        return Counter()

    launch = LaunchOptions(backend="mjx", num_seeds=2)
    config = RunConfig(steps=100, random_steps=10, replay_capacity=1000, num_envs=4)
    group = members("sac", "probe", SACConfig(hidden_sizes=(8,)), config, launch)
    built = build_loop("sac", "probe", group, launch, Simulators(device=device))
    assert isinstance(built.loop, DeviceLoop) and built.loop.environment.num_envs == 4
    assert made == ["probe"]
    assert ", environments " in built.memory


def test_a_refusal_is_one_line_for_the_user_and_no_simulator_is_loaded():
    def host(task: str, seed: int, action_repeat: int) -> TruncatedReward:
        raise AssertionError("loaded")

    with pytest.raises(UserError, match="--batch-size is 100000, more than all"):
        build_loop("sac", "probe", [member({"batch_size": 100_000})], LaunchOptions(), Simulators(host))
