"""`qsm export`: a policy of a run as one small file, apart from everything that training needs."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.api import Agent
from envs.api import EnvSpec
from envs.tasks import SAME_OBSERVATIONS
from qsm.base.errors import UserError, first_line
from qsm.base.files import replace_file
from qsm.checkpoints.arrays import DAMAGED_ARCHIVE
from qsm.checkpoints.leaves import acting_leaves, named_leaves
from qsm.checkpoints.selection import NEWEST, Restored, Which, restore_policy
from qsm.learning.build import SIMULATORS, Simulators, Task, build
from qsm.learning.learner import Learner
from qsm.policies import program
from qsm.policies.numpy_policy import DAMAGE, DESCRIPTION, FORMAT, Description, NumpyPolicy
from qsm.policies.policy import Policy
from qsm.record.find import load_run
from qsm.record.run_folder import RunDir
from qsm.record.tables import read_csv

TOLERANCE = 1e-4
"""Largest difference between actions of JAX and of NumPy at export; more than rounding explains is no such program."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    num_bytes: int
    description: Description


def export(
    run_dir: Path,
    output: Path | None = None,
    which: Which = NEWEST,
    overrides: Mapping[str, Any] | None = None,
    simulators: Simulators = SIMULATORS,
) -> Exported:
    """Writes a policy of a run, by default to `policy.npz` in its folder.

    Args:
      which: the newest checkpoint's policy, the best evaluated one, or that of a step.
      overrides: options of the agent to be replaced.

    Raises:
      UserError: no run, no such policy, an option that cannot be, or a place that cannot be written or holds something
        else.
    """
    run = load_run(run_dir)
    output = output or run.path / "policy.npz"
    _check_output(output, run)
    overrides = overrides or {}
    config = run.config | {"agent_config": run.config["agent_config"] | overrides}
    try:
        built = build(run.config, simulators=simulators, **overrides)
        spec, agent = built.spec, built.agent
        entries = _observation_entries(built.task, simulators)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{run.path}: {error}") from error
    restored = restore_policy(run.path, Learner(agent, spec, 0, capacity=1), *which)
    if overrides:
        restored = restored._replace(return_mean=None)  # it would be of the run's own options
    elif restored.return_mean is None:
        restored = restored._replace(return_mean=_return_at(run, restored.step))
    data, description = policy_file(config, spec, agent, restored, entries)
    try:
        replace_file(output, data)
    except OSError as error:
        raise UserError(
            f"Cannot write {output}: {first_line(error)}. Name a file that can be written with --output"
        ) from error
    return Exported(output, len(data), description)


def policy_file(
    config: Mapping[str, Any],
    spec: EnvSpec,
    agent: Agent,
    restored: Restored,
    entries: Sequence[tuple[str, int]],
) -> tuple[bytes, Description]:
    """The content of the file, and what it says of itself.

    Args:
      config: of the run: agent, agent_config, task and backend.
      entries: names and sizes of what the observation is joined from; empty where it has no parts.
    """
    leaves = named_leaves(restored.agent)
    names = acting_leaves(agent, restored.agent, spec.observation_size)
    arrays = {name: np.asarray(leaves[name]) for name in names}
    description = Description(
        format=FORMAT,
        agent=config["agent"],
        agent_config=config["agent_config"],
        task=config["task"],
        backend=config["backend"],
        observation_size=spec.observation_size,
        action_size=spec.action_size,
        action_repeat=spec.action_repeat,
        step=restored.step,
        leaves=list(arrays),
        observation=[list(entry) for entry in entries],
        action_low=list(spec.action_low),
        action_high=list(spec.action_high),
        return_mean=restored.return_mean,
        program=None,
        problem="",
    )
    description, arrays = _with_program(description, agent, restored.agent, arrays)
    text = json.dumps(description._asdict(), allow_nan=False).encode()
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **{DESCRIPTION: np.frombuffer(text, np.uint8)}, **arrays)  # type: ignore[arg-type]
    return file.getvalue(), description


def _with_program(
    description: Description, agent: Agent, state: Any, arrays: dict[str, np.ndarray]
) -> tuple[Description, dict[str, np.ndarray]]:
    """Description and arrays with the program that NumPy runs, or why there is none."""
    try:
        traced = program.trace(program.act_once(agent), state, description.observation_size)
    except program.UnsupportedError as error:
        return description._replace(problem=str(error)), arrays
    extended = arrays | traced.constants
    described = description._replace(program=json.loads(json.dumps(traced.description)))
    try:
        difference = _difference(Policy(description, agent, state), NumpyPolicy(described, extended))
    except DAMAGE as error:
        return description._replace(problem=f"NumPy cannot run it ({first_line(error)})"), arrays
    if not difference <= TOLERANCE:
        return description._replace(problem=f"NumPy's actions differ by {difference:.1g}"), arrays
    return described, extended


def _difference(one: Policy, other: NumpyPolicy) -> float:
    """The largest difference between their actions at a few observations, the same draws given."""
    observations = np.random.default_rng(0).normal(size=(3, one.description.observation_size))
    return max(float(np.abs(one(given) - other(given)).max()) for given in (observations[0], observations))


def _observation_entries(task: Task, simulators: Simulators) -> tuple[tuple[str, int], ...]:
    """Names and sizes of the task's observation as dm_control gives it; none where the policy sees something else."""
    if task.backend == "mjx" and task.name in SAME_OBSERVATIONS:
        entries = Task(task.name, "dm_control", simulators=simulators).spec.observation_entries
        return entries if sum(size for _, size in entries) == task.spec.observation_size else ()
    return task.spec.observation_entries


def _return_at(run: RunDir, step: int) -> float | None:
    """Mean return of the evaluation at `step`; None where there was none."""
    try:
        rows = read_csv(run.eval_csv) if run.eval_csv.exists() else []
    except UserError:
        return None
    values = [row["return_mean"] for row in rows if row.get("step") == step and "return_mean" in row]
    return values[-1] if values and math.isfinite(values[-1]) else None


def _check_output(output: Path, run: RunDir) -> None:
    """Raises UserError where writing `output` would destroy anything but a former policy."""
    mend = "name another file with --output"
    # os.path answers False where Path would raise.
    if os.path.isdir(output):
        raise UserError(f"--output is '{output}', which is a folder; name a file in it")
    if os.path.exists(output) and not os.path.isfile(output):
        raise UserError(f"--output is '{output}', which is a device or a pipe and no file; {mend}")
    folder, place = os.path.realpath(run.path), os.path.realpath(output)
    is_inside = os.path.commonpath([folder, place]) == folder
    if is_inside and (os.path.dirname(place) != folder or not place.endswith(".npz")):
        raise UserError(
            f"--output is '{output}', in a place for the run's own files; in the run's folder itself, name it NAME.npz"
        )
    # An empty file is a place kept free, as by mktemp.
    if os.path.isfile(output) and os.path.getsize(output) and not _is_policy(output):
        raise UserError(f"--output is '{output}', which exists and is no policy; remove it first, or {mend}")


def _is_policy(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return f"{DESCRIPTION}.npy" in archive.namelist()
    except (OSError, *DAMAGED_ARCHIVE):
        return False
