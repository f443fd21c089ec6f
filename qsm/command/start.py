"""What a command makes sure of before anything heavy is loaded."""

from __future__ import annotations

import os

from qsm.base.errors import UserError
from qsm.command.versions import check_versions
from qsm.devices import environment_variables

is_own_process = False
"""Whether this process was started as `qsm`, so that its code is what lies on disk and nothing in it was replaced."""


def start_jax() -> None:
    """Loads JAX as the environment says.

    Raises:
      UserError: the packages, the environment or the devices do not allow it.
    """
    check_versions()
    environment_variables.load(os.environ)
    from qsm.devices.runtime import find_devices

    find_devices()


def check_task(task: str, backend: str, hint: str = "") -> None:
    """Returns where `task` exists on `backend`; raises UserError, with `hint` behind it, where it does not."""
    from envs.tasks import check_task

    check_versions()  # the simulator may be loaded for the names of its tasks, and this may say that it cannot be
    try:
        check_task(task, backend)
    except ValueError as error:
        raise UserError(f"{error}. {hint}".replace("..", ".").strip(". ") if hint else str(error)) from error
