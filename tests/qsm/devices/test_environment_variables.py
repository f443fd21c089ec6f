"""Variables that JAX, XLA and MuJoCo would answer with a traceback are refused in one line, before a folder is made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsm.base.errors import UserError
from qsm.devices import environment_variables
from qsm.devices.environment_variables import (
    PRECISIONS,
    RENDERERS,
    SWITCHES,
    check,
    idle_accelerators,
    no_device,
)

ROOT = Path(__file__).parents[3]
NAMES = (
    *SWITCHES,
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_NUMPY_DTYPE_PROMOTION",
    "JAX_TRANSFER_GUARD",
    "MUJOCO_GL",
)
SLURM = (
    *("SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE"),
    *("SLURM_NODEID", "SLURM_GPUS_ON_NODE", "JAX_LOCAL_DEVICE_IDS", "JAX_PLATFORMS"),
)
VALUES = st.one_of(
    st.sampled_from(
        ["", "0", "1", "TRUE", "off", "maybe", "egl", "high", "F32_F32_F32", "strict", "disallow", "log"]
    ),
    st.sampled_from(["4", "4(x2)", "4(x2),1", "(x", "4(x", "-1", "cpu", "9" * 5000, "٣"]),
    st.text(max_size=6),
)


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("JAX_ENABLE_X64=maybe", "JAX_ENABLE_X64 is 'maybe'; it must be true or false, or be unset"),
        ("JAX_ENABLE_X64=", "JAX_ENABLE_X64 is ''; it must be true or false"),
        ("JAX_ENABLE_X64=True", "JAX_ENABLE_X64 is set, but agents are trained in float32; unset it"),
        ("JAX_DEBUG_NANS=yes1", "JAX_DEBUG_NANS is 'yes1'; it must be true or false"),
        (
            "JAX_DEFAULT_MATMUL_PRECISION=foo",
            "JAX_DEFAULT_MATMUL_PRECISION is 'foo'; it must be one of default, high,",
        ),
        ("JAX_DEFAULT_MATMUL_PRECISION=", "JAX_DEFAULT_MATMUL_PRECISION is ''"),
        ("JAX_NUMPY_DTYPE_PROMOTION=strict", "JAX_NUMPY_DTYPE_PROMOTION is 'strict'"),
        ("JAX_TRANSFER_GUARD_HOST_TO_DEVICE=disallow", "JAX_TRANSFER_GUARD_HOST_TO_DEVICE is 'disallow'"),
        (
            "MUJOCO_GL=bogus",
            "MUJOCO_GL is 'bogus'; it must be one of egl, osmesa, glfw, disable, or be unset.",
        ),
        ("MUJOCO_GL=eg", "Did you mean 'egl'?"),
    ],
)
def test_a_variable_that_cannot_work_is_named(variable: str, message: str):
    name, _, value = variable.partition("=")
    with pytest.raises(UserError) as error:
        check({name: value})
    assert message in str(error.value)


@pytest.mark.parametrize(
    "variable",
    [
        "X=",
        "JAX_ENABLE_X64=False",
        "JAX_DEBUG_NANS=1",
        "JAX_TRANSFER_GUARD=log",
        "MUJOCO_GL=egl",
        "MUJOCO_GL=",
    ]
    + [f"JAX_DEFAULT_MATMUL_PRECISION={value}" for value in ("highest", "F32_F32_F32")],
)
def test_a_variable_that_can_work_is_let_be(variable: str):
    name, _, value = variable.partition("=")
    check({name: value})


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3))
def test_any_variables(variables: dict[str, str]):
    try:
        check(variables)
    except UserError as error:
        assert any(name in str(error) for name in variables)
        return
    assert variables.get("MUJOCO_GL", "egl") in RENDERERS
    precision = variables.get("JAX_DEFAULT_MATMUL_PRECISION", "high")
    assert precision in PRECISIONS or precision.isupper()


def test_the_known_values_are_those_of_what_reads_them():
    """As installed here."""
    import jax
    from dm_control._render import constants

    assert {*RENDERERS} == {*constants.EGL, *constants.OSMESA, *constants.GLFW, *constants.NO_RENDERER}
    for name in SWITCHES:
        assert type(getattr(jax.config, name.lower())) is bool
    for precision in PRECISIONS:
        with jax.default_matmul_precision(precision):
            pass


TRAIN = ["train", "sac", "cartpole-swingup", "--run-dir", "run"]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"XLA_FLAGS": "--bogus"},
            "XLA_FLAGS is '--bogus', which XLA refuses (Unknown flag in XLA_FLAGS: --bogus)",
        ),
        # One that this file does not know: JAX itself refuses it.
        (
            {"JAX_NUM_CPU_DEVICES": "x"},
            'JAX refuses to start (Invalid value "x" for JAX flag jax_num_cpu_devices)',
        ),
        (
            {"JAX_PLATFORMS": "bogus"},
            "JAX_PLATFORMS is 'bogus', but JAX finds no such device here (Unable to",
        ),
        (
            {"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "bogus"},
            "MUJOCO_GL is 'osmesa', which does not work here",
        ),
    ],
)
def test_training_with_it_is_refused_and_leaves_nothing(
    tmp_path: Path, variables: dict[str, str], message: str
):
    done = subprocess.run(
        [sys.executable, "-m", "qsm", *TRAIN],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith(f"qsm: error: {message}") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_flags_that_xla_knows_are_taken(monkeypatch: pytest.MonkeyPatch):
    environment_variables.load({"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"})
    monkeypatch.setattr(environment_variables, "READ_XLA_FLAGS", "import no_such_module")
    environment_variables.load({"XLA_FLAGS": "--xla_dump_to="})  # what cannot be checked is let be


@pytest.mark.parametrize(
    ("variables", "error", "message"),
    [
        (
            {"JAX_PLATFORMS": "cuda"},
            AssertionError(),
            "JAX_PLATFORMS is 'cuda', but JAX finds no such device here. Unset JAX_PLATFORMS, or train on the CPU with "
            "JAX_PLATFORMS=cpu",
        ),
        (
            {"CUDA_VISIBLE_DEVICES": "7", "JAX_PLATFORMS": "cuda"},
            RuntimeError("No GPU. (set JAX_PLATFORMS='' to automatically choose an available backend)"),
            "JAX_PLATFORMS is 'cuda' and CUDA_VISIBLE_DEVICES is '7', but JAX finds no such device here (No GPU). "
            "Unset JAX_PLATFORMS and CUDA_VISIBLE_DEVICES, or train on the CPU with JAX_PLATFORMS=cpu",
        ),
        (
            {},
            RuntimeError("broken"),
            "JAX finds no device (broken). On the CPU, train with JAX_PLATFORMS=cpu",
        ),
    ],
)
def test_devices_that_are_not_found_are_explained(variables: dict[str, str], error: Exception, message: str):
    assert str(no_device(variables, error)) == message


STEP = {"SLURM_STEP_NUM_TASKS": "3", "SLURM_GPUS_ON_NODE": "4", "SLURM_STEP_TASKS_PER_NODE": "1(x3)"}
IDLE = "SLURM gave this node 4 GPUs and {}; {} stand idle. Ask for one task per GPU: --ntasks-per-node=4"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, IDLE.format("1 task, of which each uses one", 3)),
        (
            {"SLURM_STEP_TASKS_PER_NODE": "4(x2),2", "SLURM_NODEID": "2"},
            IDLE.format("2 tasks, of which each uses one", 2),
        ),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2),2", "SLURM_NODEID": "1"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2),2", "SLURM_NODEID": "3"}, None),
        (
            {"SLURM_STEP_TASKS_PER_NODE": None, "SLURM_NTASKS_PER_NODE": "1"},
            IDLE.format("1 task, of which each uses one", 3),
        ),
        ({"SLURM_GPUS_ON_NODE": "1"}, None),
        ({"SLURM_GPUS_ON_NODE": None}, None),
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),  # JAX sees all GPUs of a process that is alone
        ({"JAX_LOCAL_DEVICE_IDS": "0,1,2,3"}, None),
        ({"JAX_PLATFORMS": "cpu"}, None),
    ],
)
def test_gpus_that_slurm_gave_in_vain_are_warned_of(changes: dict[str, str | None], expected: str | None):
    environ = {name: value for name, value in (STEP | changes).items() if value is not None}
    assert idle_accelerators(environ) == expected


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(SLURM), VALUES))
def test_any_variables_of_slurm(variables: dict[str, str]):
    warning = idle_accelerators(variables)
    assert warning is None or "stand idle" in warning
