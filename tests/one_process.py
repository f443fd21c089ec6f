"""One of the processes that train together on probe environments: `python -m tests.one_process BACKEND ROOT STOP_STEP`.

Process 1 sends itself SIGTERM at STOP_STEP, 0 for never: all of them must then stop, at the same step.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import jax

from agents.sac import SACConfig
from envs import dmc, mjx
from qsm.options.run import Backend, LaunchOptions, RunConfig
from qsm.training.group import members
from qsm.training.session import Session
from qsm.training.train import Outcome, train
from tests.probe_device_environments import ActionReward
from tests.probe_environments import ObservationReward

STEPS = 240
# Where seeds are divided, and where environments and batches are.
NUM_SEEDS: dict[Backend, int] = {"dm_control": 2, "mjx": 1}


def make_host(task: str, seed: int, action_repeat: int) -> Any:
    return ObservationReward(seed)


def make_device(task: str, action_repeat: int) -> Any:
    return ActionReward(episode_steps=3)


def run(backend: Backend, root: Path) -> Outcome:
    """The same training, however many processes make it."""
    dmc.make_env, mjx.make_env = make_host, make_device
    config = RunConfig(
        steps=STEPS,
        random_steps=24,
        replay_capacity=1000,
        eval_interval=120,
        eval_episodes=2,
        log_interval=48,
        checkpoint_interval=1000,
        wandb="disabled",
        num_envs=1 if backend == "dm_control" else 4,
        replay_ratio="1/4",
    )
    launch = LaunchOptions(backend=backend, num_seeds=NUM_SEEDS[backend])
    agent_config = SACConfig(hidden_sizes=(8,), batch_size=8)
    return train("sac", "probe", members("sac", "probe", agent_config, config, launch, root=root), launch)


def main() -> None:
    backend, root, stop_step = sys.argv[1:]
    on_step, told = Session.on_step, []

    def stop_at(session: Session, step: int) -> None:
        # The device loop is heard of at events only.
        if 0 < int(stop_step) <= step and jax.process_index() == 1 and not told:
            told.append(step)
            os.kill(os.getpid(), signal.SIGTERM)
        on_step(session, step)

    Session.on_step = stop_at  # type: ignore[method-assign]
    assert backend in ("dm_control", "mjx")
    print(f"outcome {run(backend, Path(root))}")


if __name__ == "__main__":
    main()
