"""Programs are compiled with less work on a CPU, and do the same to the bit."""

from __future__ import annotations

import os

import jax
import numpy as np
import pytest

from qsm.devices import compiler_options


def test_an_accelerator_is_left_to_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler_options.of_updates() is None
    assert compiler_options.of_starts() is None


def test_what_xla_flags_say_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    jax.devices()  # looked for with the flags of these tests, whichever test is the first
    monkeypatch.setenv("XLA_FLAGS", "")
    assert compiler_options.of_updates() == {"xla_backend_optimization_level": 2}
    emitters = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}
    assert compiler_options.of_starts() == {"xla_backend_optimization_level": 1, **emitters}
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    assert compiler_options.of_updates() is None
    assert compiler_options.of_starts() == (emitters or None)


def test_xla_knows_every_option() -> None:
    for options in (compiler_options.RUN_OFTEN, compiler_options.RUN_ONCE):
        program = jax.jit(lambda x: x * 2 + 1, compiler_options=options)
        np.testing.assert_array_equal(program(np.arange(3.0)), [1, 3, 5])


def test_these_tests_set_both() -> None:
    # Or every program of theirs would be compiled for speed.
    assert all(name in os.environ["XLA_FLAGS"] for name in compiler_options.RUN_ONCE)
