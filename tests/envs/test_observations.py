"""Observations are flattened in one place, for training and for whoever plays a policy without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from envs.observations import flatten

ROOT = Path(__file__).parents[2]


def test_entries_follow_one_another_in_their_order():
    observation = {
        "velocity": np.array([3.0, 4.0]),
        "height": np.float64(0.5),
        "frame": np.arange(4).reshape(2, 2),
        "is_up": np.array(True),
    }
    flat = flatten(observation)
    assert flat.dtype == np.float32
    assert flat.tolist() == [3, 4, 0.5, 0, 1, 2, 3, 1]


def test_the_array_is_fresh():
    entry = np.zeros(2, np.float32)
    flat = flatten({"only": entry})
    entry[:] = 1
    assert flat.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("observation", "shown"),
    [
        ({}, "none"),
        ({"position": np.zeros(2), "name": np.array("cheetah")}, r"position float64 \(2,\), name <U7 \(\)"),
        ({"phase": np.array([1j])}, r"phase complex128 \(1,\)"),
        ({"nested": {"position": 1.0}}, r"nested object \(\)"),
    ],
)
def test_what_cannot_be_laid_out_is_named(observation: dict[str, np.ndarray], shown: str):
    with pytest.raises(ValueError, match=f"cannot be laid out as real numbers: {shown}"):
        flatten(observation)


def test_nothing_but_numpy_is_needed():
    program = (
        "import sys, envs.observations\n"
        "print({'jax', 'mujoco', 'dm_control', 'qsm'} & set(sys.modules) or 'nothing')\n"
    )
    child = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert child.stdout.strip() == "nothing", child.stderr
