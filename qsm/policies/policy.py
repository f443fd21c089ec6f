"""`qsm export` and `qsm.load_policy`: a trained policy as one small file, apart from everything that training needs."""

from __future__ import annotations

import functools
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any, NamedTuple, get_origin, get_type_hints

import jax
import numpy as np

import agents
from agents.api import Agent
from envs.api import EnvSpec
from qsm.base.errors import UserError, first_line
from qsm.base.files import replace_file
from qsm.checkpoints import checkpoint
from qsm.checkpoints.arrays import DAMAGED_ARCHIVE
from qsm.checkpoints.leaves import acting_leaves, filled, named_leaves
from qsm.learning.learner import Learner
from qsm.options.saved import agent_options, check_run_options
from qsm.record.find import load_run
from qsm.record.run_folder import RunDir

FORMAT = 2
"""Version of the file; a reader refuses any other. Format 1 named parameters by their position."""
DESCRIPTION = "description"
LARGEST_SIZE = 2**20
"""Of observations and actions: a larger one is a damaged number, and would fill the memory before that is noticed."""


class Description(NamedTuple):
    """What the file says of its policy."""

    format: int
    agent: str
    agent_config: dict[str, Any]
    task: str
    backend: str
    observation_size: int
    action_size: int
    action_repeat: int
    step: int  # environment steps it was trained for
    leaves: list[str]  # names of the arrays that are kept: those of the learned state that acting reads


class Policy:
    """A function from observations to actions, as in evaluation.

    Observations are the entries of the task's dictionary, flattened in its order, as `envs` gives them. Actions are in
    [-1, 1]. A policy that samples draws anew at every call; the same seed and calls give the same actions.

    Attributes:
      description: agent, task, simulator and sizes.
    """

    def __init__(self, description: Description, agent: Agent, state: Any, seed: int = 0) -> None:
        self.description = description
        self._state = state
        self._act = jax.jit(functools.partial(_act, agent))
        self.reset(seed)

    def reset(self, seed: int = 0) -> None:
        """Begins the draws anew."""
        self._key = jax.random.key(seed)
        self._calls = 0

    def __call__(self, observation: Any) -> np.ndarray:
        """Actions `[A]` or `[B, A]` for observations `[O]` or `[B, O]`.

        Raises:
          ValueError: the observation has another size.
        """
        observation = np.asarray(observation, np.float32)
        size = self.description.observation_size
        if observation.ndim not in (1, 2) or observation.shape[-1] != size:
            raise ValueError(
                f"observations have shape {observation.shape}; this policy takes [{size}] or [B, {size}]"
            )
        batch = observation.reshape(-1, size)
        action = np.asarray(self._act(self._state, batch, self._key, np.uint32(self._calls)))
        self._calls += 1
        return action.reshape(*observation.shape[:-1], -1)


def _act(agent: Agent, state: Any, observation: jax.Array, key: jax.Array, call: jax.Array) -> jax.Array:
    return agent.act(state, observation, jax.random.fold_in(key, call), mode="evaluate")


def export(run_dir: Path, output: Path | None = None) -> tuple[Path, int]:
    """Writes the newest policy of a run, by default to `policy.npz` in its folder.

    Returns:
      The file, and its bytes.

    Raises:
      UserError: no run, no checkpoint, or a place that cannot be written or holds something else.
    """
    run = load_run(run_dir)
    output = output or run.path / "policy.npz"
    _check_output(output, run)
    spec, agent = _built(run)
    state, step = checkpoint.restore_agent(run.checkpoints, Learner(agent, spec, 0, capacity=1))
    config = run.config
    leaves = named_leaves(state)
    arrays = {name: np.asarray(leaves[name]) for name in acting_leaves(agent, state, spec.observation_size)}
    description = Description(
        FORMAT,
        config["agent"],
        config["agent_config"],
        config["task"],
        config["backend"],
        spec.observation_size,
        spec.action_size,
        spec.action_repeat,
        step,
        list(arrays),
    )
    text = json.dumps(description._asdict()).encode()
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **{DESCRIPTION: np.frombuffer(text, np.uint8)}, **arrays)  # type: ignore[arg-type]
    try:
        replace_file(output, file.getvalue())
    except OSError as error:
        raise UserError(
            f"Cannot write {output}: {first_line(error)}. Name a file that can be written with --output"
        ) from error
    return output, len(file.getvalue())


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


def load_policy(path: str | Path, seed: int = 0) -> Policy:
    """The policy that `qsm export` wrote; nothing in the file is executed.

    Raises:
      UserError: the file is no such policy, is damaged, or was written by a newer version.
    """
    try:
        # Every byte of the archive is checked against its checksum as it is read.
        with np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        description = _description(path, json.loads(arrays.pop(DESCRIPTION).tobytes()))
        if sorted(arrays) != sorted(description.leaves):
            raise ValueError("arrays are missing")
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except DAMAGED_ARCHIVE as error:
        raise UserError(f"{path} is no policy, or is damaged; write it anew with: qsm export RUN") from error
    try:
        options = agent_options(description.agent, description.agent_config)
        agent: Agent = agents.build(
            description.agent, options, description.observation_size, description.action_size
        )
        template = jax.eval_shape(lambda: agent.init(jax.random.key(0)))
        state = filled(template, arrays)
        for name in acting_leaves(agent, state, description.observation_size):
            if name not in arrays:
                raise ValueError(f"{name} is absent there")
    except (ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        raise UserError(
            f"{path} does not fit this version of {description.agent}: {first_line(error)}"
        ) from error
    return Policy(description, agent, state, seed)


def _description(path: str | Path, values: Any) -> Description:
    """What the file says of itself, held to its types; raises ValueError, or UserError where a newer qsm says it."""
    found = values.get("format") if isinstance(values, dict) else None
    if type(found) is not int or found < 1:
        raise ValueError("no format")
    if found > FORMAT:
        raise UserError(
            f"{path} was written by a newer qsm (format {found}; this one reads {FORMAT}); update qsm."
        )
    if found < FORMAT:
        raise UserError(
            f"{path} was written by an earlier qsm (format {found}; this one reads {FORMAT}); export it anew with: "
            "qsm export RUN. Where the run is of that version too, load it with the version that wrote it (the commit "
            f"in the run's provenance.json, or {checkpoint.LAST_BEFORE})"
        )
    description = Description(**values)
    for name, kind in get_type_hints(Description).items():
        value = getattr(description, name)
        # By its exact type: to Python True is a whole number.
        if type(value) is not (get_origin(kind) or kind):
            raise ValueError(f"{name} is of the wrong type")
        if kind is int and not (0 if name == "step" else 1) <= value <= (
            LARGEST_SIZE if name.endswith("size") else 2**63
        ):
            raise ValueError(f"{name} is {value}")
    if not all(isinstance(name, str) for name in description.leaves):
        raise ValueError("leaves are no names")
    return description


def _built(run: RunDir) -> tuple[EnvSpec, Agent]:
    """Sizes of the run's task, and its agent."""
    config = run.config
    try:
        check_run_options(config["run_config"])
        task, repeat = config["task"], config["run_config"].get("action_repeat", 1)
        if config["backend"] == "mjx":
            from envs import mjx

            spec = mjx.make_env(task, repeat).spec
        else:
            from envs import dmc

            spec = dmc.make_env(task, config["run_config"].get("seed", 0), repeat).spec
        options = agent_options(config["agent"], config["agent_config"])
        return spec, agents.build(config["agent"], options, spec.observation_size, spec.action_size)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{run.path}: {error}") from error
