"""The options of a run, apart from those of its agent. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction
from typing import ClassVar, Literal, get_args

from agents.config import INFINITY, Limits, check_limits

WandbMode = Literal["offline", "online", "disabled"]


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How an agent is trained, evaluated and recorded. Every step count is in environment steps."""

    seed: int = 0
    """Seed of the agent, the environments and every random draw."""
    steps: int = 100_000
    """Environment steps to train for (control steps, whatever the action repeat)."""
    random_steps: int = 10_000
    """Environment steps of uniform random actions before the first update."""
    replay_ratio: str = "1"
    """Updates per environment step: a whole number, fraction or decimal (2, 1/4, 0.5)."""
    replay_capacity: int = 1_000_000
    """Time steps the replay buffer holds before it overwrites the oldest."""
    action_repeat: int = 1
    """Control steps for which each action is held."""
    eval_interval: int = 5_000
    """Environment steps between evaluations; one more is made before the first step."""
    eval_episodes: int = 10
    """Episodes in an evaluation."""
    log_interval: int = 1_000
    """Environment steps between rows of training metrics."""
    checkpoint_interval: int = 25_000
    """Environment steps between checkpoints; one more is made at the end."""
    wandb: WandbMode = "offline"
    """Weights & Biases: recorded in the run's folder, streamed to your account, or off."""
    wandb_project: str = "qsm"
    """Weights & Biases project."""

    limits: ClassVar[Limits] = {
        "seed": (0, 2**31 - 1),
        "steps": (1, INFINITY),
        "random_steps": (1, INFINITY),
        "replay_capacity": (1000, INFINITY),
        "action_repeat": (1, 1000),
        "eval_interval": (1, INFINITY),
        "eval_episodes": (1, 10_000),
        "log_interval": (1, INFINITY),
        "checkpoint_interval": (1, INFINITY),
    }

    def __post_init__(self) -> None:
        check_limits(self, self.limits)
        self.updates_per_step  # noqa: B018  (parsed here so that a bad value is answered at once)
        if self.wandb not in get_args(WandbMode):
            raise ValueError(f"wandb is {self.wandb!r}; it must be one of {', '.join(get_args(WandbMode))}")
        if self.random_steps >= self.steps:
            raise ValueError(
                f"random_steps is {self.random_steps}, but the run has only {self.steps} steps and would "
                "never learn; lower random_steps or train for longer"
            )

    @property
    def updates_per_step(self) -> Fraction:
        """`replay_ratio` as an exact fraction p/q: floor(k p/q) updates are due by step k."""
        try:
            # No exponents, and few digits: Fraction would work for minutes on '1e999999999'.
            if not re.fullmatch(r"[0-9./]{1,32}", self.replay_ratio):
                raise ValueError
            ratio = Fraction(self.replay_ratio)
        except (ValueError, ZeroDivisionError):
            raise ValueError(
                f"replay_ratio is {self.replay_ratio!r}; it must be a number or a fraction such as 1/4"
            ) from None
        if not 0 < ratio <= 1024:
            raise ValueError(f"replay_ratio is {self.replay_ratio}; it must be above 0 and at most 1024")
        return ratio
