"""One home for building a task's environment and its agent."""

from __future__ import annotations

from typing import Any

import pytest

from agents.sac import SAC, SACConfig
from qsm.learning.build import Simulators, Task, build
from qsm.options.run import MjxRunConfig, RunConfig
from qsm.record.config_file import resolved_config
from tests.probe_device_environments import Counter
from tests.probe_environments import ProbeEnvironment, TruncatedReward


class Probes:
    """Simulators that note what they are asked for."""

    def __init__(self) -> None:
        self.hosts: list[tuple[str, int, int]] = []
        self.devices: list[tuple[str, int]] = []

    def host(self, task: str, seed: int, action_repeat: int) -> ProbeEnvironment:
        self.hosts.append((task, seed, action_repeat))
        return TruncatedReward(seed)

    def device(self, task: str, action_repeat: int) -> Counter:
        self.devices.append((task, action_repeat))
        return Counter(action_repeat=action_repeat)

    @property
    def simulators(self) -> Simulators:
        return Simulators(self.host, self.device)


def config(backend: str = "dm_control", **options: Any) -> dict[str, Any]:
    kind = MjxRunConfig if backend == "mjx" else RunConfig
    return resolved_config("sac", "probe", backend, SACConfig(hidden_sizes=(8,)), kind(**options))


def test_a_run_is_built_from_what_its_config_says():
    probes = Probes()
    built = build(config(seed=3, action_repeat=2), simulators=probes.simulators, discount=0.5)
    assert probes.hosts == [("probe", 3, 2)]
    assert built.spec.observation_size == built.spec.action_size == 1
    assert isinstance(built.agent, SAC)
    assert built.agent.config == SACConfig(hidden_sizes=(8,), discount=0.5)


def test_a_run_is_built_on_another_simulator():
    probes = Probes()
    built = build(config(action_repeat=2), "mjx", probes.simulators)
    assert (probes.hosts, probes.devices) == ([], [("probe", 2)])
    assert built.task.vector(3).num_envs == 3
    assert built.spec.observation_size == 2
    assert len(probes.devices) == 1  # one environment does for all


def test_every_environment_has_one_owner_and_none_is_made_for_nothing():
    probes = Probes()
    task = Task("probe", "dm_control", 1, 5, probes.simulators)
    assert probes.hosts == []
    assert task.spec == task.spec
    made = [task.host(), task.host(), task.host(6), task.host(5)]
    assert [seed for _, seed, _ in probes.hosts] == [5, 5, 6, 5]
    assert len({id(one) for one in made}) == 4


def test_the_spare_environment_is_not_given_for_another_seed():
    probes = Probes()
    task = Task("probe", "dm_control", 1, 5, probes.simulators)
    assert task.spec.action_size == 1
    task.host(6)
    task.host(5)
    assert [seed for _, seed, _ in probes.hosts] == [5, 6]


def test_a_run_of_a_former_version_has_the_defaults_of_options_that_it_lacks():
    probes = Probes()
    build(config() | {"run_config": {}}, simulators=probes.simulators)
    assert probes.hosts == [("probe", 0, 1)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "brax"}, "unknown backend 'brax'; it must be one of: dm_control, mjx"),
        ({"agent": "ppo"}, "unknown agent 'ppo'"),
        ({"agent_config": {"discount": "high"}}, r"agent_config\.discount is 'high'"),
        (
            {"agent_config": {"dicount": 0.5}},
            r"agent_config\.dicount is no option of sac\. Did you mean 'discount'",
        ),
        ({"run_config": {"action_repeat": True}}, r"run_config\.action_repeat is True"),
    ],
)
def test_what_this_version_does_not_have_is_named(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        build(config() | changes, simulators=Probes().simulators)


@pytest.mark.parametrize("backend", ["dm_control", "mjx"])
def test_a_task_that_there_is_not_is_named(backend: Any):
    with pytest.raises(ValueError, match="Unknown task 'cheeta-run'"):
        assert Task("cheeta-run", backend).spec


def test_a_gridworld_is_a_task_like_any_other():
    task = Task("gridworld-rooms", "dm_control", action_repeat=2, seed=4)
    assert task.spec.task == "gridworld-rooms"
    assert (task.spec.observation_size, task.spec.action_size, task.spec.action_repeat) == (40, 2, 2)
    assert task.host(4).reset().observation.sum() == 1
