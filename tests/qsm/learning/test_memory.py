"""What does not fit in memory is told before anything is allocated, with a capacity that is accepted and does fit."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path

import pytest

from agents.sac import SACConfig
from envs import dmc, mjx
from envs.api import EnvSpec
from qsm.base.errors import UserError
from qsm.data import replay
from qsm.learning import memory
from qsm.learning.learner import Learner
from qsm.learning.placement import Placement
from qsm.options.run import Backend, LaunchOptions, RunConfig
from qsm.training.build import build_loop
from qsm.training.group import Member
from qsm.training.train import train
from tests.probe_device_environments import Counter
from tests.probe_environments import ConstantReward
from tests.tally_agent import TallyAgent

SPEC = EnvSpec("probe", observation_size=3, action_size=2, episode_steps=5, action_repeat=1)
ROW = replay.bytes_per_row(3, 2)  # 4 (3 + 2 + 2) + 1


def learner(capacity: int, seeds: int = 1, num_envs: int = 1, n_step: int = 1, devices: int = 1) -> Learner:
    agent = TallyAgent(action_size=2, n_step=n_step, batch_size=8)
    placement = Placement(devices, seeds, num_envs, agent.batch_size)
    return Learner(agent, SPEC, range(seeds), capacity, num_envs, placement)


def free(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Has every device own `number` bytes, of which `SHARE` may be taken."""
    monkeypatch.setattr(memory, "SHARE", 0.5)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 2 * number)


def refusal(learner: Learner, environment_bytes: int = 0) -> str:
    with pytest.raises(UserError) as error:
        memory.check(learner, environment_bytes)
    return str(error.value)


def suggested(message: str) -> int:
    found = re.search(r"The largest that would: --replay-capacity (\d+)$", message)
    assert found is not None, message
    return int(found[1])


def test_what_fits_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch):
    assert ROW == 29
    free(monkeypatch, 10**6)
    # Each seed's 2,000 rows, and 4 bytes for the count of each environment's.
    assert memory.check(learner(2000, seeds=3, num_envs=4), 0) == "replay 174 kB, of 2 MB free"
    line = memory.check(learner(2000), 123)
    assert line == "replay 58 kB, environments 123 B, of 2 MB free"


def test_to_the_byte(monkeypatch: pytest.MonkeyPatch):
    needed = 2000 * ROW + 4
    free(monkeypatch, needed + 100)
    memory.check(learner(2000), 100)
    assert suggested(refusal(learner(2000), 101)) == 1999


@pytest.mark.parametrize(
    ("seeds", "num_envs", "largest"),
    # Rows of 29 bytes that fit in 100,000 less the counts, of each seed, in whole rows of all environments.
    [(1, 1, 3448), (2, 1, 1724), (1, 7, 3444), (2, 100, 1700)],
)
def test_the_largest_capacity_that_would_fit_is_named(
    seeds: int, num_envs: int, largest: int, monkeypatch: pytest.MonkeyPatch
):
    free(monkeypatch, 100_000)
    message = refusal(learner(50_000, seeds, num_envs))
    assert message.startswith("This does not fit in memory (replay ")
    assert suggested(message) == largest
    memory.check(learner(largest, seeds, num_envs), 0)
    refusal(learner(largest + 1, seeds, num_envs))
    RunConfig(replay_capacity=largest, num_envs=num_envs)


def test_environments_take_their_part(monkeypatch: pytest.MonkeyPatch):
    free(monkeypatch, 100_000)
    message = refusal(learner(50_000), 40_000)
    assert "environments 40 kB, of 200 kB free" in message
    assert suggested(message) == (60_000 - 4) // ROW


@pytest.mark.parametrize(
    ("num_envs", "n_step", "least"),
    # Never below 1,000, which every run needs; else n + 2 rows of every environment.
    [(1, 1, 1000), (3, 1, 1000), (500, 1, 1500), (500, 3, 2500)],
)
def test_a_capacity_that_would_be_refused_is_not_named(
    num_envs: int, n_step: int, least: int, monkeypatch: pytest.MonkeyPatch
):
    # A capacity is rounded up to whole rows of all environments.
    fits = -(-least // num_envs) * num_envs * ROW + 4 * num_envs
    free(monkeypatch, fits)
    assert suggested(refusal(learner(50_000, 1, num_envs, n_step))) == -(-least // num_envs) * num_envs
    free(monkeypatch, fits - 1)
    message = refusal(learner(50_000, 1, num_envs, n_step))
    assert f"would not with the smallest --replay-capacity, {least}. " in message
    assert "The largest" not in message
    refusal(learner(least, 1, num_envs, n_step))


def test_what_is_to_be_lowered_is_what_can_be(monkeypatch: pytest.MonkeyPatch):
    free(monkeypatch, 1000)
    ways = {
        (1, 1): "Free some memory",
        (2, 1): "Train fewer seeds or values of --sweep together or free some memory",
        (1, 4): "Lower --num-envs or free some memory",
        (2, 4): "Lower --num-envs or train fewer seeds or values of --sweep together or free some memory",
    }
    for (seeds, num_envs), way in ways.items():
        assert refusal(learner(1000, seeds, num_envs)).endswith(f". {way}")
    # Also where the environments alone are too many.
    assert refusal(learner(1000, 1, 4), 10**6).endswith(". Lower --num-envs or free some memory")


@pytest.mark.parametrize(("seeds", "num_envs"), [(8, 1), (1, 8)], ids=["seeds", "environments"])
def test_devices_with_memory_of_their_own_share_what_is_divided(
    seeds: int, num_envs: int, monkeypatch: pytest.MonkeyPatch
):
    free(monkeypatch, 1_000_000)
    there = learner(10**6, seeds, num_envs, devices=4)
    # Of the CPU's devices, which have their host's memory between them; of the others, each its own.
    largest = {
        number: (number * 1_000_000 - 32) // (ROW * 8) * num_envs  # 8 counts of 4 bytes, rows of 8 in all
        for number in (1, 4)
    }
    assert suggested(refusal(there)) == largest[1]
    assert there.placement.mesh is not None

    class Device:
        platform = "gpu"
        process_index = 0

    class Mesh:
        devices = there.placement.mesh.devices.astype(object)

    Mesh.devices.fill(Device())
    monkeypatch.setattr(there.placement, "mesh", Mesh)
    message = refusal(there)
    assert suggested(message) == largest[4]
    assert "of 8 MB free" in message


def test_free_memory_is_the_device_s_or_the_host_s(monkeypatch: pytest.MonkeyPatch):
    class Device:
        def __init__(self, platform: str, stats: dict[str, int] | None) -> None:
            self.platform, self.stats = platform, stats

        def memory_stats(self) -> dict[str, int] | None:
            return self.stats

    class Memory:
        available = 77

    monkeypatch.setattr(memory.psutil, "virtual_memory", Memory)
    assert memory.available_bytes(Device("gpu", {"bytes_limit": 100, "bytes_in_use": 30})) == 70
    assert memory.available_bytes(Device("gpu", {"bytes_limit": 100})) == 100
    assert memory.available_bytes(Device("tpu", None)) == 77
    assert memory.available_bytes(Device("cpu", {"bytes_limit": 100})) == 77


@pytest.mark.parametrize(("backend", "num_envs", "n_step"), [("dm_control", 1, 1), ("mjx", 600, 3)])
def test_the_command_accepts_what_it_suggests_and_leaves_nothing_behind_when_it_refuses(
    backend: Backend, num_envs: int, n_step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dmc, "make_env", lambda task, seed, action_repeat: ConstantReward(seed))
    monkeypatch.setattr(mjx, "make_env", lambda task, action_repeat: Counter())
    launch = LaunchOptions(backend=backend)

    def members(capacity: int) -> list[Member]:
        config = RunConfig(replay_capacity=capacity, num_envs=num_envs, eval_episodes=1, wandb="disabled")
        return [Member(SACConfig(n_step=n_step), config, tmp_path / "run")]

    free(monkeypatch, 150_000)
    with pytest.raises(UserError) as error:
        train("sac", "probe", members(10**6), launch)
    assert list(tmp_path.iterdir()) == []
    asked = members(suggested(str(error.value)))
    built = build_loop("sac", "probe", asked, launch)
    assert built.memory.startswith("replay 1")
    with pytest.raises(UserError, match="does not fit in memory"):
        train("sac", "probe", members(asked[0].config.replay_capacity + 1), launch)


def test_the_least_capacity_is_that_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mjx, "make_env", lambda task, action_repeat: Counter())
    least = memory.min_capacity(num_envs=600, n_step=3)
    for capacity, is_refused in ((least - 1, True), (least, False)):
        config = RunConfig(replay_capacity=capacity, num_envs=600, wandb="disabled")
        members = [Member(SACConfig(n_step=3), config, tmp_path / "run")]
        refused = pytest.raises(UserError, match=f"need {least} or more") if is_refused else nullcontext()
        with refused:
            build_loop("sac", "probe", members, LaunchOptions(backend="mjx"))
