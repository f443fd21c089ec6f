"""What saving and restoring an environment takes: random states as arrays, and checks of what was saved.

Everything is kept as plain arrays of numbers and booleans, which any file format holds and nothing has to be
unpickled from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

RandomDict = dict[str, Any]
"""What `numpy.random.RandomState.get_state(legacy=False)` returns."""

_ARGUMENTS = ("task", "seed", "action_repeat")


def random_arrays(prefix: str, state: RandomDict) -> dict[str, np.ndarray]:
    """A random state as four arrays, whose names begin with `prefix`."""
    return {
        f"{prefix}_key": np.array(state["state"]["key"], np.uint32),
        f"{prefix}_position": np.array(state["state"]["pos"], np.int64),
        # The second normal number of a pair, which the next draw returns.
        f"{prefix}_has_gauss": np.array(state["has_gauss"], np.int64),
        f"{prefix}_gauss": np.array(state["gauss"], np.float64),
    }


def random_dict(saved: Mapping[str, np.ndarray], prefix: str) -> RandomDict:
    """The random state that `random_arrays` took apart, for `RandomState.set_state`.

    Raises:
        ValueError: its position or its flag cannot be.
    """
    key = saved[f"{prefix}_key"]
    # NumPy takes any position and would read beyond the key.
    check_range(saved, f"{prefix}_position", len(key))
    check_range(saved, f"{prefix}_has_gauss", 1)
    return {
        "bit_generator": "MT19937",
        "state": {"key": key, "pos": int(saved[f"{prefix}_position"])},
        "has_gauss": int(saved[f"{prefix}_has_gauss"]),
        "gauss": float(saved[f"{prefix}_gauss"]),
    }


def check(saved: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError unless `saved` fits `expected`, which the environment to restore saves itself.

    Those of task, seed and action repeat that are in `expected` must be equal, and come first: they explain
    why others differ. Of the rest, names, dtypes and shapes are compared.
    """
    for name, array in expected.items():
        if name not in saved:
            raise ValueError(f"The saved environment has no '{name}'.")
        if name in _ARGUMENTS and not np.array_equal(saved[name], array):
            made, here = (_text(value) for value in (saved[name], array))
            raise ValueError(f"The saved environment was made with {name} {made}, this one with {here}.")
    for name, value in saved.items():
        if name not in expected:
            raise ValueError(f"The saved environment has '{name}', which this one does not know.")
        found, wanted = (_kind(array) for array in (value, expected[name]))
        if found != wanted:
            raise ValueError(f"'{name}' of the saved environment is {found}; it must be {wanted}.")


def check_range(saved: Mapping[str, np.ndarray], name: str, largest: int) -> None:
    """Raises ValueError unless the number `name` lies between 0 and `largest`."""
    if not 0 <= saved[name] <= largest:
        value = saved[name]
        raise ValueError(f"'{name}' of the saved environment is {value}; it must lie in 0 to {largest}.")


def _text(value: np.ndarray) -> str:
    """A task's name, which is kept as bytes, or a number."""
    return bytes(value).decode(errors="replace") if np.ndim(value) == 1 else str(value)


def _kind(value: Any) -> str:
    array = np.asarray(value)
    return f"{array.dtype} {list(array.shape)}"
