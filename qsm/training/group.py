"""The runs that are trained together: which they are, where they lie, and from which step they go on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qsm.base.errors import UserError, nearest
from qsm.options.run import LaunchOptions, RunConfig
from qsm.record.run_id import RunId


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a group, described as if it were alone."""

    agent_config: Any
    config: RunConfig
    path: Path
    label: str  # what tells it from the others: `seed 3`, `score_scale=10 seed 3`


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
    """The runs that `launch` asks for: every value of the sweep with every seed.

    Raises:
      UserError: the sweep names no hyperparameter, a value that it cannot take, or `run_dir` is one for many runs.
    """
    try:
        variants = _variants(agent, agent_config, launch, name)
        runs = [
            (label, variant, variant_name, dataclasses.replace(config, seed=config.seed + i))
            for variant_name, variant, label in variants
            for i in range(launch.num_seeds)
        ]
    except ValueError as error:
        raise UserError(str(error)) from error
    if len({variant_name for _, _, variant_name, _ in runs}) * launch.num_seeds < len(runs):
        raise UserError(f"--sweep is {launch.sweep!r}; two of its values are the same to twelve digits")
    if run_dir is not None and len(runs) > 1:
        raise UserError(f"--run-dir is one folder, but there are {len(runs)} runs; give --runs and --name")
    return [
        Member(
            variant,
            run_config,
            run_dir or RunId(launch.backend, task, agent, variant_name, run_config.seed).path(root),
            f"{label} seed {run_config.seed}".strip(),
        )
        for label, variant, variant_name, run_config in runs
    ]


def _variants(
    agent: str, agent_config: Any, launch: LaunchOptions, name: str | None
) -> list[tuple[str | None, Any, str]]:
    """Name, options and label of each value of the sweep."""
    sweep = launch.sweep_values
    if sweep is None:
        return [(name, agent_config, "")]
    option, values = sweep
    allowed = agent_config.hyperparameters()
    if option not in allowed:
        if option in {field.name for field in dataclasses.fields(agent_config)}:
            raise UserError(
                f"--sweep names {option}, which shapes the compiled program; start a run for each of its values"
            )
        raise UserError(
            f"--sweep names {option!r}, which agent {agent!r} does not have.{nearest(option, allowed)} "
            f"It may be one of: {', '.join(allowed)}"
        )
    variants = []
    for value in values:
        label = f"{option}={value:.12g}"
        full = f"{name},{label}" if name else label
        try:
            variants.append((full, dataclasses.replace(agent_config, **{option: value}), label))
        except ValueError as error:
            raise ValueError(f"--{str(error).replace(option, option.replace('_', '-'), 1)}") from error
    return variants


def common_step(steps: Sequence[Sequence[int]], labels: Sequence[str]) -> int | None:
    """The newest checkpoint that every run has; None where none has any.

    Args:
      steps: for each run the steps of its checkpoints.

    Raises:
      UserError: the runs have no step in common.
    """
    if not any(steps):
        return None
    shared = set(steps[0]).intersection(*steps[1:])
    if shared:
        return max(shared)
    reached = ", ".join(
        f"{label} at {max(have):,}" if have else f"{label} at the beginning"
        for label, have in zip(labels, steps, strict=True)
    )
    raise UserError(
        f"These runs have no checkpoint of the same step ({reached}). Go on with each alone: leave out --num-seeds "
        "and --sweep, and give its --seed"
    )
