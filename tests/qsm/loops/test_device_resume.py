"""A run of the device loop goes on from the disk bit for bit, whatever ended it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import agents
from agents.sac import SACConfig
from envs import mjx
from envs.api import DeviceState
from qsm.checkpoints.checkpoint import Checkpoints
from qsm.data import replay
from qsm.learning.learner import Learner
from qsm.loops.schedule import Counters
from qsm.options.run import LaunchOptions, RunConfig
from qsm.record.tables import read_csv
from qsm.training.group import members
from qsm.training.session import Session
from qsm.training.train import Outcome, train
from tests.probe_device_environments import Terminating

SAC = SACConfig(hidden_sizes=(8,), batch_size=8)


class Errand(Terminating):
    """Terminates after one to four steps, so that the rings of its environments fill at different rates.

    Rewards what is close to the number that the start drew.
    """

    def __init__(self) -> None:
        super().__init__(longest=4)

    def _reward(self, state: DeviceState, action: jax.Array) -> jax.Array:
        return 1.0 - (action - state.physics.draw) ** 2


def trained(root: Path, at_step: Callable[[int], None] = lambda step: None) -> Outcome:
    """`train` of two seeds for 300 ticks of four environments, whose rings of 250 rows wrap.

    Args:
      at_step: called after each dispatch, events among them at multiples of 200 and 300.
    """
    on_step = Session.on_step

    def watch(session: Session, step: int) -> None:
        on_step(session, step)
        at_step(step)

    config = RunConfig(
        steps=1200,
        random_steps=100,
        replay_ratio="1/16",
        replay_capacity=1000,
        num_envs=4,
        eval_interval=600,
        eval_episodes=2,
        log_interval=200,
        checkpoint_interval=300,
        wandb="disabled",
    )
    launch = LaunchOptions(backend="mjx", num_seeds=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "on_step", watch)
        patch.setattr(mjx, "make_env", lambda task, action_repeat: Errand())
        return train("sac", "errand", members("sac", "errand", SAC, config, launch, root=root), launch)


def left(run: Path) -> tuple[Any, ...]:
    """All that the last checkpoint of a run holds."""
    spec = Errand().spec
    agent = agents.build("sac", SAC, spec.observation_size, spec.action_size)
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        found, counters = checkpoints.restore(Learner(agent, spec, 0, 1000, num_envs=4), 1200)
    shapes = replay.create(250, 4, spec.observation_size, spec.action_size)
    return found.agent, replay.from_rows(shapes, found.replay), found.metrics, found.environment, counters


def table(file: Path) -> list[dict[str, float]]:
    """The rows of a CSV without what a clock wrote."""
    return [{name: x for name, x in row.items() if "second" not in name} for row in read_csv(file)]


@pytest.mark.slow
def test_a_run_that_was_stopped_and_one_that_failed_go_on_from_the_disk_bit_for_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert trained(whole) == "finished"

    def stop(step: int) -> None:
        if step == 400:
            signal.raise_signal(signal.SIGINT)

    def fail(step: int) -> None:
        if step == 1000:
            raise RuntimeError("the machine is gone")

    assert trained(parts, stop) == "interrupted"
    run = parts / "mjx" / "errand" / "sac" / "seed_1"
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"]) == ("interrupted", 400)
    with pytest.raises(RuntimeError, match="gone"):
        trained(parts, fail)
    assert "resuming at step 400" in capsys.readouterr().out
    assert trained(parts) == "finished"
    assert "resuming at step 900" in capsys.readouterr().out

    for seed in (0, 1):
        one, other = (root / "mjx" / "errand" / "sac" / f"seed_{seed}" for root in (parts, whole))
        assert json.loads((one / "config.json").read_text()) == json.loads(
            (other / "config.json").read_text()
        )
        assert table(one / "train.csv") == table(other / "train.csv")
        assert [row["step"] for row in table(one / "train.csv")] == [200, 400, 600, 800, 1000, 1200]
        assert table(one / "eval.csv") == table(other / "eval.csv")
        assert [row["step"] for row in table(one / "eval.csv")] == [0, 600, 1200]
        jax.tree.map(np.testing.assert_array_equal, left(one), left(other))
    agent, buffer, _, _, counters = left(run)
    assert (
        counters == Counters(1200, (1200 - 100) // 16) == Counters(1200, agent.critic.online.optimizer.count)
    )
    # Each of the 300 ticks is a row, and so is the start of each episode.
    assert (buffer.written > 300).all() and np.unique(buffer.written).size > 1
