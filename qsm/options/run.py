"""The options of a run, apart from those of its agent. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import math
import re
from fractions import Fraction
from typing import ClassVar, Literal

from agents.config import INFINITY, Limits, check_choices, check_limits

WandbMode = Literal["offline", "online", "disabled"]
Backend = Literal["dm_control", "mjx"]
MatmulPrecision = Literal["float32", "tensorfloat32", "bfloat16"]


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
    """Time steps the replay buffer holds, over all environments, before it overwrites the oldest."""
    num_envs: int = 1
    """Environments stepped together for each seed; one on dm_control."""
    action_repeat: int = 1
    """Control steps for which each action is repeated."""
    random_elapsed: bool = False
    """Begin the first episodes of mjx's environments part-way, at random; dm_control's begin at their beginning."""
    eval_interval: int = 5_000
    """Environment steps between evaluations; one more is made before the first step."""
    eval_episodes: int = 10
    """Episodes in an evaluation."""
    log_interval: int = 1_000
    """Environment steps between rows of training metrics."""
    checkpoint_interval: int = 25_000
    """Environment steps between checkpoints; one more is made at the end."""
    matmul_precision: MatmulPrecision = "float32"
    """Precision of matrix products on an accelerator; the CPU always takes float32."""
    wandb: WandbMode = "offline"
    """Weights & Biases: recorded in the run's folder, streamed to your account, or off."""
    wandb_project: str = "qsm"
    """Weights & Biases project."""

    limits: ClassVar[Limits] = {
        "seed": (0, 2**31 - 1),
        "steps": (1, 2**31 - 1),  # counted in int32 on the device
        "random_steps": (1, INFINITY),
        "replay_capacity": (1000, INFINITY),
        "num_envs": (1, 2**20),
        "action_repeat": (1, 1000),
        "eval_interval": (1, INFINITY),
        "eval_episodes": (1, 10_000),
        "log_interval": (1, INFINITY),
        "checkpoint_interval": (1, INFINITY),
    }

    former: ClassVar[dict[str, bool | int | float | str]] = {}
    """What options meant before they were there, where that is not their default: for the runs of former versions."""

    def __post_init__(self) -> None:
        check_limits(self, self.limits)
        self.updates_per_step  # noqa: B018  (parsed here so that a bad value is answered at once)
        check_choices(self)
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


@dataclasses.dataclass(frozen=True)
class MjxRunConfig(RunConfig):
    """The options of a run on `--backend mjx`, whose defaults suit many environments at a time."""

    steps: int = 1_000_000
    """Environment steps to train for, over all environments (control steps, whatever the action repeat)."""
    replay_ratio: str = "1/16"
    """Updates per environment step: a whole number, fraction or decimal (2, 1/4, 0.5)."""
    num_envs: int = 128
    """Environments stepped together for each seed."""
    random_elapsed: bool = True
    """Begin the first episodes part-way, at random, so that the environments do not all end theirs together."""
    eval_interval: int = 50_000
    """Environment steps between evaluations; one more is made before the first step."""
    log_interval: int = 10_000
    """Environment steps between rows of training metrics."""
    checkpoint_interval: int = 250_000
    """Environment steps between checkpoints; one more is made at the end."""

    former: ClassVar[dict[str, bool | int | float | str]] = RunConfig.former | {"random_elapsed": False}


def run_config_class(backend: str) -> type[RunConfig]:
    """The class of a run's options on `backend`."""
    return MjxRunConfig if backend == "mjx" else RunConfig


SWEEP_FORM = "it must be an option and its values, such as discount=0.9,0.99, or several with blanks between"


@dataclasses.dataclass(frozen=True)
class LaunchOptions:
    """How many runs are trained together, and on what. The runs themselves do not depend on it."""

    backend: Backend = "dm_control"
    """Simulator: dm_control on the CPU, or mjx on the device (needs the extra packages of qsm[mjx])."""
    num_seeds: int = 1
    """Seeds trained together in one program: --seed and those after it, each a run of its own."""
    sweep: str | None = None
    """One hyperparameter and its values, a labelled run for each: score_scale=1,10,50. Several, in quotes, are every
    combination: "score_scale=1,10 action_noise=0,0.1"."""
    num_devices: int | None = None
    """Devices to divide the seeds, or else the environments and batches, over; none: one."""

    overwrite: bool = False
    """Remove what the run folders hold and begin anew."""
    extend_steps: bool = False
    """Go on with runs that had fewer steps, up to --steps."""

    limits: ClassVar[Limits] = {"num_seeds": (1, 4096), "num_devices": (1, 2**20)}

    def __post_init__(self) -> None:
        check_limits(self, self.limits)
        self.sweep_values  # noqa: B018  (a bad value is answered at once)
        if self.overwrite and self.extend_steps:
            raise ValueError("overwrite removes the run that extend_steps would go on with; give one of them")

    @property
    def sweep_values(self) -> dict[str, tuple[float, ...]]:
        """The swept options and their values; none of them without a sweep.

        Raises:
          ValueError: `sweep` is not of the form NAME=VALUE,VALUE, or several of it with blanks between.
        """
        if self.sweep is None:
            return {}
        pairs = [self._swept(word) for word in self.sweep.split()]
        values = dict(pairs)
        if not values:
            raise ValueError(f"sweep is {self.sweep!r}; {SWEEP_FORM}")
        if len(values) < len(pairs):
            raise ValueError(f"sweep is {self.sweep!r}; it names an option twice")
        return values

    def _swept(self, word: str) -> tuple[str, tuple[float, ...]]:
        name, equals, values = word.partition("=")
        try:
            numbers = tuple(float(value) for value in values.split(","))
        except ValueError:
            numbers = ()
        name = name.strip().lstrip("-").replace("-", "_")
        if not equals or not name.isidentifier() or not numbers or not all(map(math.isfinite, numbers)):
            raise ValueError(f"sweep is {self.sweep!r}; {SWEEP_FORM}")
        return name, numbers
