"""Stepping environments in turn, in threads and in processes, with nothing timed in the verdict."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest

from envs import dmc
from envs.api import StepType
from qsm.speed import environments


@pytest.mark.slow
def test_every_way_is_measured_and_no_process_is_left() -> None:
    found = environments.measure("cartpole-swingup", 2, blocks=1, block_steps=1, has_update=False)
    assert list(found) == ["in turn", "threads", "processes"]
    assert all(milliseconds > 0 for milliseconds in found.values())
    assert multiprocessing.active_children() == []


def test_an_episode_that_is_over_is_followed_by_another() -> None:
    environment = dmc.make_env("cartpole-swingup", 0)
    environment.reset()
    action = np.zeros(environment.spec.action_size)
    types = [environments.step(environment, action).step_type for _ in range(1002)]
    assert types[998:1001] == [StepType.MID, StepType.FIRST, StepType.MID]
