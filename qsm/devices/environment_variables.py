"""Environment variables that JAX and MuJoCo read: one that cannot work is refused before anything is made.

JAX and dm_control look at theirs when they are imported, and answer with a traceback; XLA ends the process.
"""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
from collections.abc import Mapping

from qsm.base.errors import UserError, first_line, nearest

TRUE, FALSE = ("y", "yes", "t", "true", "on", "1"), ("n", "no", "f", "false", "off", "0")
"""What JAX takes for a switch, in any case of letters."""
SWITCHES = (
    "JAX_ENABLE_X64",
    "JAX_DEBUG_NANS",
    "JAX_DEBUG_INFS",
    "JAX_DEBUG_KEY_REUSE",
    "JAX_DISABLE_JIT",
    "JAX_ENABLE_CHECKS",
    "JAX_ENABLE_COMPILATION_CACHE",
    "JAX_LOG_COMPILES",
    "JAX_THREEFRY_PARTITIONABLE",
)
"""The switches that people set. JAX has a hundred; `load` reports the others as JAX refuses them."""
PRECISIONS = ("default", "high", "highest", "bfloat16", "tensorfloat32", "float32")
"""Of JAX_DEFAULT_MATMUL_PRECISION; its names for single kinds of product are written in capitals (F32_F32_F32)."""
DISABLED = ("disable", "disabled", "off", "false", "0")
RENDERERS = ("egl", "osmesa", "glfw", "on", "enable", "enabled", "true", "1", "", *DISABLED)
"""What dm_control takes for MUJOCO_GL."""
DEVICE_VARIABLES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "JAX_NUM_CPU_DEVICES", "CUDA_VISIBLE_DEVICES")
"""Those that decide which devices JAX looks for."""
READ_XLA_FLAGS = "from jaxlib import _jax; _jax.CompileOptions()"
"""Program that reads XLA_FLAGS as a training does; takes a tenth of a second."""


def check(environ: Mapping[str, str]) -> None:
    """Returns if the variables can work; imports nothing.

    Raises:
      UserError: naming the variable, its value and what is allowed.
    """
    for name in SWITCHES:
        value = environ.get(name)
        if value is not None and value.lower() not in (*TRUE, *FALSE):
            raise UserError(f"{name} is {value!r}; it must be true or false, or be unset")
    if environ.get("JAX_ENABLE_X64", "0").lower() in TRUE:
        raise UserError("JAX_ENABLE_X64 is set, but agents are trained in float32; unset it")
    for name, value in environ.items():
        if name.startswith("JAX_TRANSFER_GUARD") and value.startswith("disallow"):
            raise UserError(
                f"{name} is {value!r}, but the loops copy from and to the host; take log or unset it"
            )
    if environ.get("JAX_NUMPY_DTYPE_PROMOTION") == "strict":
        raise UserError("JAX_NUMPY_DTYPE_PROMOTION is 'strict', which agents are not written for; unset it")
    precision = environ.get("JAX_DEFAULT_MATMUL_PRECISION", "default")
    if precision not in PRECISIONS and not precision.isupper():
        raise UserError(
            f"JAX_DEFAULT_MATMUL_PRECISION is {precision!r}; it must be one of {', '.join(PRECISIONS)}, or be unset."
            f"{nearest(precision, PRECISIONS)} (A run has an option for it: --matmul-precision)"
        )
    renderer = environ.get("MUJOCO_GL", "disable")
    if renderer not in RENDERERS:
        raise UserError(
            f"MUJOCO_GL is {renderer!r}; it must be one of egl, osmesa, glfw, disable, or be unset."
            f"{nearest(renderer, RENDERERS[:3])}"
        )


def load(environ: Mapping[str, str], backend: str = "dm_control") -> None:
    """Imports JAX, and dm_control where `backend` says so, if the variables let them.

    XLA_FLAGS are read in a process of their own, for XLA ends the process that has one which it does not know.

    Raises:
      UserError: a variable that cannot work.
    """
    check(environ)
    if refusal := _why_flags_are_refused(environ.get("XLA_FLAGS", "")):
        raise UserError(refusal)
    try:
        importlib.import_module("jax")
    except Exception as error:
        given = [name for name in environ if name.startswith("JAX_")]
        if not given:
            raise
        # JAX writes the variable's name in small letters.
        named = [name for name in given if name.lower() in str(error).lower()] or given
        raise UserError(f"JAX refuses to start ({first_line(error)}); unset {' or '.join(named)}") from error
    renderer = environ.get("MUJOCO_GL", "disable")
    if backend == "dm_control" and renderer not in DISABLED:
        try:
            importlib.import_module("envs.dmc")
        except Exception as error:
            raise UserError(
                f"MUJOCO_GL is {renderer!r}, which does not work here ({first_line(error)}). Unset it: training draws "
                "nothing, and videos find what works"
            ) from error


@functools.lru_cache(maxsize=1)
def _why_flags_are_refused(flags: str) -> str:
    """Why XLA cannot take XLA_FLAGS; empty where it can, or where that cannot be learned."""
    if not flags:
        return ""
    try:
        environment = os.environ | {"XLA_FLAGS": flags}
        command = [sys.executable, "-c", READ_XLA_FLAGS]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", timeout=60
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return ""
    # Any other failure is of the program itself: jaxlib may have another name for it one day.
    if done.returncode == 0 or "parse_flags_from_env" not in done.stderr:
        return ""
    # `E1125 04:19:07.242303   15072 command_line_flags.cc:93] Couldn't interpret value maybe for flag xla_x.`
    reason = done.stderr.strip().partition("\n")[0].partition("] ")[2].partition(" (We assumed")[0]
    return f"XLA_FLAGS is {flags!r}, which XLA refuses ({reason.rstrip('.')[:200]}); mend it or unset it"


def no_device(environ: Mapping[str, str], error: Exception) -> UserError:
    """Explains in one line why JAX finds no device."""
    message = (
        first_line(error).partition(" (set JAX_PLATFORMS")[0].partition(" (you may need")[0].rstrip(". ")
    )
    # Of cuda without a GPU, JAX says no more than that an assertion failed.
    reason = f" ({message})" if message != type(error).__name__ else ""
    given = [f"{name} is {environ[name]!r}" for name in DEVICE_VARIABLES if environ.get(name)]
    if not given:
        return UserError(f"JAX finds no device{reason}. On the CPU, train with JAX_PLATFORMS=cpu")
    names = " and ".join(text.partition(" ")[0] for text in given)
    return UserError(
        f"{' and '.join(given)}, but JAX finds no such device here{reason}. Unset {names}, or train on the CPU with "
        "JAX_PLATFORMS=cpu"
    )


def idle_accelerators(environ: Mapping[str, str]) -> str | None:
    """Warns where SLURM gave this node more GPUs than tasks: JAX takes one in each task, and the rest stand idle.

    JAX_LOCAL_DEVICE_IDS says otherwise where it is set.
    """
    if environ.get("JAX_LOCAL_DEVICE_IDS") or environ.get("JAX_PLATFORMS") == "cpu":
        return None
    try:
        # JAX asks SLURM for its share in a step of several tasks only.
        if int(environ.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
            return None
        gpus = int(environ["SLURM_GPUS_ON_NODE"])
        tasks = _tasks_here(environ)
    except (KeyError, ValueError, IndexError):
        return None
    if not 0 < tasks < gpus:
        return None
    return (
        f"SLURM gave this node {gpus} GPUs and {tasks} task{'s' if tasks > 1 else ''}, of which each uses one; "
        f"{gpus - tasks} stand idle. Ask for one task per GPU: --ntasks-per-node={gpus}"
    )


def _tasks_here(environ: Mapping[str, str]) -> int:
    """Tasks of the step on this node: SLURM writes `4(x2),3` for two nodes of four and one of three."""
    counts = environ.get("SLURM_STEP_TASKS_PER_NODE")
    if counts is None:
        return int(environ["SLURM_NTASKS_PER_NODE"])
    node = int(environ.get("SLURM_NODEID", "0"))
    for entry in counts.split(","):
        count, _, repeat = entry.partition("(x")
        node -= int(repeat.rstrip(")") or 1)
        if node < 0:
            return int(count)
    raise IndexError(counts)
