"""How JAX runs here: precision, devices. Called once, before the first array."""

from __future__ import annotations

import os
from typing import get_args

import jax

from qsm.devices.environment_variables import no_device
from qsm.options.run import MatmulPrecision


def set_precision(precision: MatmulPrecision) -> None:
    """Sets the precision of matrix products; JAX's own default on a GPU rounds their inputs to 10 bits (TF32).

    Raises:
      ValueError: `precision`, out of a file, is none of those that a run can have.
    """
    if precision not in get_args(MatmulPrecision):
        raise ValueError(
            f"matmul_precision is {precision!r}; it must be one of {', '.join(get_args(MatmulPrecision))}"
        )
    jax.config.update("jax_default_matmul_precision", precision)


def find_devices() -> None:
    """Starts JAX's backends.

    Raises:
      UserError: those that the environment's variables ask for are not here.
    """
    try:
        jax.devices()
    except (RuntimeError, ValueError, AssertionError) as error:
        raise no_device(os.environ, error) from error
