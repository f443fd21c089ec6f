"""Observations as agents see them, flat. Needs NumPy alone, so that a policy may be played without a simulator."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def flatten(observation: Mapping[str, np.ndarray]) -> np.ndarray:
    """The entries of dm_control's observation dictionary as one fresh array `[O]` float32.

    In the order of the dictionary, which is the task's; scalars are entries of length one.

    Raises:
        ValueError: there is no entry, or one that is not made of real numbers.
    """
    try:
        # axis=None ravels every entry, scalars too: one fresh array and one cast, in one call.
        return np.concatenate(tuple(observation.values()), axis=None, dtype=np.float32, casting="same_kind")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The observation has entries that cannot be laid out as real numbers: {_describe(observation)}."
        ) from error


def _describe(observation: Mapping[str, np.ndarray]) -> str:
    """`position float64 (4,), name <U3 ()`."""
    shown = []
    for name, entry in observation.items():
        try:
            array = np.asarray(entry)
            shown.append(f"{name} {array.dtype} {array.shape}")
        except ValueError:  # a list of lists of other lengths
            shown.append(f"{name} {type(entry).__name__}")
    return ", ".join(shown) or "none"
