"""A training of SBX (Stable Baselines in JAX) on a task of the control suite; run by compare.py with SBX's interpreter.

    python sbx_training.py sac|td3 TASK STEPS RANDOM_STEPS LOG_INTERVAL

Prints environment steps per second of each log interval, one a line, as `qsm train` records them. Networks, batch,
replay and updates per step are those of `qsm train`; everything else is SBX's own.
"""

from __future__ import annotations

import importlib
import sys
import time
from typing import Any

import numpy as np
from dm_control import suite

# Not among this project's dependencies, and so not to be seen by its type checker.
gymnasium = importlib.import_module("gymnasium")
sbx = importlib.import_module("sbx")
callbacks = importlib.import_module("stable_baselines3.common.callbacks")


class Task(gymnasium.Env):
    """A control task with flat observations and no termination but by time, as the tasks measured here are."""

    def __init__(self, name: str) -> None:
        domain, task = name.split("-")
        self._task = suite.load(domain, task, task_kwargs={"random": 0})
        bounds = self._task.action_spec()
        low, high = bounds.minimum.astype(np.float32), bounds.maximum.astype(np.float32)
        self.action_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        size = self._flat(self._task.reset()).size
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self._flat(self._task.reset()), {}

    def step(self, action: np.ndarray) -> Any:
        arrived = self._task.step(action)
        return self._flat(arrived), arrived.reward, False, arrived.last(), {}

    @staticmethod
    def _flat(time_step: Any) -> np.ndarray:
        values = [np.asarray(value, np.float32).ravel() for value in time_step.observation.values()]
        return np.concatenate(values)


class Rates(callbacks.BaseCallback):
    """Prints the rate of every `interval` steps."""

    def __init__(self, interval: int) -> None:
        super().__init__()
        self._interval = interval
        self._last = time.perf_counter()

    def _on_step(self) -> bool:
        if self.num_timesteps % self._interval == 0:
            now = time.perf_counter()
            print(self._interval / (now - self._last), flush=True)
            self._last = now
        return True


def main(agent: str, task: str, steps: int, random_steps: int, interval: int) -> None:
    """Trains `agent` and prints its rates."""
    kind = {"sac": sbx.SAC, "td3": sbx.TD3}[agent]
    model = kind(
        "MlpPolicy",
        Task(task),
        learning_starts=random_steps,
        batch_size=256,
        buffer_size=1_000_000,
        train_freq=1,
        gradient_steps=1,
        policy_kwargs={"net_arch": [256, 256]},
    )
    model.learn(steps, callback=Rates(interval))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
