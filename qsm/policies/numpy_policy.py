"""A policy that `qsm export` wrote, read and run with NumPy alone.

Imports nothing but NumPy, the standard library and the operations beside it: `pip install --no-deps qsm` and NumPy are
all it takes, or a copy of qsm/policies/numpy_policy.py and numpy_operations.py in a folder of these names.

    policy = load_policy("policy.npz")
    action = policy(observation)  # [A] for [O], or [B, A] for [B, O], in [-1, 1]
    environment.step(policy.scale(action))

Nothing in the file is executed as Python: it holds arrays and, as JSON, a list of operations (docs/policies.md).
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from qsm.policies.numpy_operations import PROGRAM_VERSION, Plan, at_batch

FORMAT = 2
"""Version of the file; a reader refuses any other. Format 1 named parameters by their position."""
DESCRIPTION = "description"
"""The array of the file that holds the description, as the bytes of its JSON."""
LARGEST_SIZE = 2**20
"""Of observations and actions: a larger one is a damaged number, and would fill the memory before that is noticed."""
MOST_PLANS = 8
"""Batch sizes for which a program is held ready."""
DAMAGE = (
    *(
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
    ),
    *(struct.error, zipfile.BadZipFile, zlib.error),
)
"""What reading or running a damaged file may raise."""


class PolicyError(ValueError):
    """A file that is no policy, or one that this version cannot run; one line says what to do."""


class Description(NamedTuple):
    """What the file says of its policy."""

    format: int
    agent: str
    agent_config: dict
    task: str
    backend: str
    observation_size: int
    action_size: int
    action_repeat: int
    step: int  # environment steps it was trained for
    leaves: list  # names of the learned parameters that acting reads
    observation: (
        list  # [name, size] of each entry of the task's observation, in their order; [] where it has none
    )
    action_low: list  # bounds of the simulator's actions [A], which -1 and 1 stand for
    action_high: list
    return_mean: float | None  # of the evaluation that it was kept for; None where it is not known
    program: dict | None  # what `NumpyPolicy` runs; None where acting does something that it cannot do
    problem: str  # why there is no program

    def __repr__(self) -> str:
        """One field a line, of the program only how long it is."""
        length = len(self.program["block"]["steps"]) if self.program else 0
        shown = self._asdict() | {"program": f"<{length} operations>" if self.program else None}
        return "\n".join(f"{name}: {value}" for name, value in shown.items())


# ---- The file ----------------------------------------------------------------------------------------------------


def read_policy(path: Any) -> tuple[Description, dict[str, np.ndarray]]:
    """Description and arrays of a policy's file; every byte is checked against its checksum.

    Raises:
      PolicyError: the file cannot be read, is no policy, is damaged, or is of another format.
    """
    try:
        with open(path, "rb") as file, np.load(io.BytesIO(file.read()), allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        values = json.loads(arrays.pop(DESCRIPTION).tobytes())
        found = values["format"]
        if type(found) is int and found >= 1 and found != FORMAT:
            raise PolicyError(_other_format(path, found))
        return Description(**values), arrays
    except PolicyError:
        raise
    except OSError as error:
        raise PolicyError(f"Cannot read {path}: {error.strerror or error}.") from error
    except DAMAGE as error:
        raise PolicyError(
            f"{path} is no policy, or is damaged; write it anew with: qsm export RUN"
        ) from error


def _other_format(path: Any, found: int) -> str:
    if found > FORMAT:
        return f"{path} was written by a newer qsm (format {found}; this one reads {FORMAT}); update qsm."
    return (
        f"{path} was written by an earlier qsm (format {found}; this one reads {FORMAT}); export it anew with: qsm "
        "export RUN. Where the run is of that version too, load it with the version that wrote it (the commit in the "
        "run's provenance.json, or 5b8e0bd)"
    )


# ---- The policy --------------------------------------------------------------------------------------------------


class BasePolicy:
    """A function from observations to actions, as in evaluation.

    A policy that samples draws anew at every call; the same seed and calls give the same actions.

    Attributes:
      description: agent, task, simulator, sizes, names of the observation's entries.
      action_low, action_high: `[A]`, what the simulator takes for -1 and 1.
    """

    def __init__(self, description: Description, seed: int = 0) -> None:
        self.description = description
        self.action_low = np.array(description.action_low, np.float64).reshape(description.action_size)
        self.action_high = np.array(description.action_high, np.float64).reshape(description.action_size)
        self.reset(seed)

    def reset(self, seed: int = 0) -> None:
        """Begins the draws anew."""
        self._seed, self._calls = seed, 0

    def __call__(self, observation: Any) -> np.ndarray:
        """Actions `[A]` or `[B, A]` float32 in [-1, 1] for observations `[O]` or `[B, O]`, or for a dictionary.

        Raises:
          ValueError: the observation is none of these, has another size, or is not finite.
        """
        flat = self.flatten(observation)
        actions = self._act(flat.reshape(-1, flat.shape[-1]), self._calls)
        self._calls += 1
        return actions.reshape(*flat.shape[:-1], -1)

    def scale(self, action: Any) -> np.ndarray:
        """Actions `[..., A]` in [-1, 1] as the simulator takes them, from `action_low` to `action_high`."""
        share = (np.clip(np.asarray(action, np.float64), -1, 1) + 1) / 2
        return self.action_low + share * (self.action_high - self.action_low)

    def flatten(self, observation: Any) -> np.ndarray:
        """Observations `[O]` or `[B, O]` float32; of dm_control's dictionary, its entries in the order of training.

        Raises:
          ValueError: as `__call__` says.
        """
        size = self.description.observation_size
        if isinstance(observation, Mapping):
            observation = self._joined(observation)
        try:
            flat = np.asarray(observation)
            if flat.dtype.kind not in "fiub":
                raise ValueError
            flat = flat.astype(np.float32)
        except (ValueError, TypeError):
            raise ValueError(
                f"the observation is a {type(observation).__name__} that is no array of numbers; this policy takes "
                f"[{size}] or [B, {size}], or the dictionary of {self.description.task}"
            ) from None
        if flat.ndim not in (1, 2) or flat.shape[-1] != size:
            raise ValueError(
                f"observations have shape {flat.shape}; this policy takes [{size}] or [B, {size}]"
            )
        if not np.isfinite(flat).all():
            raise ValueError("the observation has NaN or infinite entries; no action follows from it")
        return flat

    def _joined(self, observation: Mapping) -> np.ndarray:
        entries: dict[str, int] = dict(self.description.observation)
        if set(entries) != set(observation):
            names = ", ".join(entries) or "none: it takes an array"
            raise ValueError(
                f"the observation has the entries {', '.join(map(str, observation))}; this policy takes {names}"
            )
        parts = [np.ravel(observation[name]) for name in entries]
        for (name, size), part in zip(entries.items(), parts, strict=True):
            if part.size != size:
                raise ValueError(
                    f"{name} has {part.size} numbers; this policy takes {size}, of one observation"
                )
        return np.concatenate(parts)

    def _act(self, observation: np.ndarray, call: int) -> np.ndarray:
        """Actions `[B, A]` for observations `[B, O]`; `call` counts earlier calls since `reset`."""
        raise NotImplementedError


class NumpyPolicy(BasePolicy):
    """A policy run by NumPy.

    Raises:
      PolicyError: the file holds no program, or one of another version.
    """

    def __init__(self, description: Description, arrays: Mapping[str, np.ndarray], seed: int = 0) -> None:
        super().__init__(description, seed)
        program = description.program
        if program is None:
            raise PolicyError(f"this policy needs JAX: {description.problem}. Load it with qsm.load_policy")
        if program["version"] != PROGRAM_VERSION:
            raise PolicyError(
                f"this policy's operations are of version {program['version']}, and those here of version "
                f"{PROGRAM_VERSION}; take numpy_policy.py and numpy_operations.py from the qsm that exported it"
            )
        self._block = program["block"]
        self._known = {3 + i: arrays[name] for i, name in enumerate(program["parameters"])}
        self._plans: dict[int, Plan] = {}

    def _act(self, observation: np.ndarray, call: int) -> np.ndarray:
        batch = len(observation)
        if batch not in self._plans:
            if len(self._plans) == MOST_PLANS:
                self._plans.clear()
            self._plans[batch] = Plan(at_batch(self._block, batch), self._known)
        key = np.uint64(self._seed & 0xFFFFFFFF)
        (actions,) = self._plans[batch]([observation, key, np.uint32(call & 0xFFFFFFFF)])
        if actions.shape != (batch, self.description.action_size):
            raise PolicyError(f"this policy's program gives actions {actions.shape}; the file is damaged")
        return np.array(actions, np.float32)


def load_policy(path: Any, seed: int = 0) -> NumpyPolicy:
    """The policy that `qsm export` wrote, run by NumPy alone.

    Raises:
      PolicyError: the file is no policy, is damaged, of another format, or holds one that needs JAX.
    """
    description, arrays = read_policy(path)
    try:
        policy = NumpyPolicy(description, arrays, seed)
        if not 0 < description.observation_size <= LARGEST_SIZE:
            raise ValueError
        policy(np.zeros(description.observation_size, np.float32))
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from error
    except DAMAGE as error:
        raise PolicyError(f"{path} is damaged; write it anew with: qsm export RUN") from error
    policy.reset(seed)
    return policy
