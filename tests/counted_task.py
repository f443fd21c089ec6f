"""A task that calls back at every step, and small options for runs on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from envs.api import TimeStep
from qsm.options.run import RunConfig
from tests.probe_environments import TruncatedReward

EPISODE_STEPS = 3


class Task(TruncatedReward):
    """Three steps an episode; calls `at_step` after each, with the number of steps made in all episodes."""

    def __init__(self, at_step: Callable[[int], None] = lambda step: None, action_repeat: int = 1) -> None:
        super().__init__(episode_steps=EPISODE_STEPS)
        self._spec = dataclasses.replace(super().spec, action_repeat=action_repeat)
        self.at_step = at_step
        self.num_steps = 0
        self.seeds: list[int] = []

    def reseed(self, seed: int) -> None:
        self.seeds.append(seed)
        self._steps = self._spec.episode_steps

    def step(self, action: np.ndarray) -> TimeStep:
        self.num_steps += 1
        self.at_step(self.num_steps)
        return super().step(action)


def options(**changes: Any) -> RunConfig:
    defaults: dict[str, Any] = {
        "steps": 10,
        "random_steps": 4,
        "replay_capacity": 1000,
        "eval_interval": 4,
        "eval_episodes": 2,
        "log_interval": 5,
        "checkpoint_interval": 6,
        "wandb": "disabled",
    }
    return RunConfig(**(defaults | changes))
