"""The runs that are trained together: which they are, where they lie, and from which step they go on."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import agents
from qsm.base.errors import UserError, nearest
from qsm.options.run import LaunchOptions, RunConfig
from qsm.record.run_folder import RunDir
from qsm.record.run_id import RunId
from qsm.record.status import State

if TYPE_CHECKING:
    from qsm.checkpoints.checkpoint import Checkpoints  # brings JAX, which the command line asks for later


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a group, described as if it were alone."""

    agent_config: Any
    config: RunConfig
    path: Path
    variant: str = ""  # the values of a sweep: `score_scale=10`

    @property
    def label(self) -> str:
        """What tells it from the others: `seed 3`, `score_scale=10 seed 3`."""
        return f"{self.variant} seed {self.config.seed}".strip()


@dataclasses.dataclass
class Group:
    """The runs that are trained together, with their folders open: the same index in every list."""

    members: Sequence[Member]
    runs: Sequence[RunDir]
    checkpoints: Sequence[Checkpoints]
    is_writer: bool = True  # one process of several writes

    def __post_init__(self) -> None:
        self.last_returns: list[float | None] = [run.status().last_return for run in self.runs]
        self.frozen: dict[int, str] = {}
        """Why the runs that learn no more do not, by their index."""

    @property
    def config(self) -> RunConfig:
        """The options that all share; of the seed, those of the first."""
        return self.members[0].config

    @property
    def active_runs(self) -> list[int]:
        """The indices of the runs that are not frozen."""
        return [i for i in range(len(self.runs)) if i not in self.frozen]

    @property
    def newest_step(self) -> int | None:
        """The step of the newest checkpoint of the active runs, which all of them have; None where there is none."""
        return self.checkpoints[self.active_runs[0]].latest_step

    def returns(self) -> dict[str, list[float]]:
        """Of the last evaluation of the active runs, one a seed, by the values of a sweep."""
        found: dict[str, list[float]] = {}
        for i in self.active_runs:
            value = self.last_returns[i]
            if value is not None:
                found.setdefault(self.members[i].variant, []).append(value)
        return found

    def write_status(self, state: State, step: int, message: str = "", index: int | None = None) -> None:
        """Writes the status of run `index`, of every active run by default; nothing unless this process writes."""
        for i in (self.active_runs if index is None else [index]) if self.is_writer else ():
            self.runs[i].write_status(state, step, self.config.steps, self.last_returns[i], message)


def members(
    agent: str,
    task: str,
    agent_config: Any,
    config: RunConfig,
    launch: LaunchOptions,
    name: str | None = None,
    root: Path = Path("runs"),
    run_dir: Path | None = None,
) -> list[Member]:
    """The runs that `launch` asks for: every combination of the sweep's values with every seed.

    Raises:
      UserError: the sweep names no hyperparameter, a value that it cannot take, or `run_dir` is one for many runs.
    """
    try:
        name = name or agents.label_of(agent_config.preset)
        variants = _variants(agent, agent_config, config, launch, name)
        runs = [
            (label, variant, variant_name, dataclasses.replace(config, seed=config.seed + i))
            for variant_name, variant, label in variants
            for i in range(launch.num_seeds)
        ]
    except ValueError as error:
        raise UserError(str(error)) from error
    if len({variant_name for _, _, variant_name, _ in runs}) * launch.num_seeds < len(runs):
        raise UserError(f"--sweep is {launch.sweep!r}; it names a value twice (compared to twelve digits)")
    if run_dir is not None and len(runs) > 1:
        raise UserError(f"--run-dir is one folder, but there are {len(runs)} runs; give --runs and --name")
    return [
        Member(
            variant,
            run_config,
            run_dir or RunId(launch.backend, task, agent, variant_name, run_config.seed).path(root),
            label,
        )
        for label, variant, variant_name, run_config in runs
    ]


def _variants(
    agent: str, agent_config: Any, config: RunConfig, launch: LaunchOptions, name: str | None
) -> list[tuple[str | None, Any, str]]:
    """Name, options and label of each combination of the sweep's values."""
    allowed = agent_config.hyperparameters()
    for option in launch.sweep_values:
        if option in allowed:
            continue
        if option in {field.name for field in dataclasses.fields(agent_config)}:
            raise UserError(
                f"--sweep names {option}, which shapes the compiled program; start a run for each of its values"
            )
        if option == "seed":
            raise UserError("--sweep names seed; give --seed for the first and --num-seeds for how many")
        if option in {field.name for field in dataclasses.fields(config)}:
            raise UserError(
                f"--sweep names {option}, which is the run's and not the agent's; start a run for each of its values"
            )
        raise UserError(
            f"--sweep names {option!r}, which agent {agent!r} does not have.{nearest(option, allowed)} "
            f"It may be one of: {', '.join(allowed)}"
        )
    variants = []
    for values in itertools.product(*launch.sweep_values.values()):
        chosen = dict(zip(launch.sweep_values, values, strict=True))
        label = ",".join(f"{option}={value:.12g}" for option, value in chosen.items())
        full = ",".join(part for part in (name, label) if part) or None
        try:
            variants.append((full, dataclasses.replace(agent_config, **chosen), label))
        except ValueError as error:
            option = next((option for option in chosen if str(error).startswith(option)), "")
            raise ValueError(f"--{str(error).replace(option, option.replace('_', '-'), 1)}") from error
    return variants
