"""What is installed, checked before anything heavy is imported.

A resolver may choose a set of packages that cannot work: dm_control 1.0.50 admits mujoco 4 and then fails on
every task with `'MjModel' object has no attribute 'flex_vertedge'`. That is told at start-up, with the mend.
dm_control itself may be missing, where only `--backend mjx` is used: a small machine with an accelerator.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys

from qsm.base.errors import UserError

PYTHON = ((3, 11), (3, 13))
"""First Python that works and first that does not: dm_control needs labmaze, which has no wheel for it."""

MUJOCO = ((3, 17), (4,))
"""First mujoco version that works and first that does not; pyproject.toml says the same."""


def check_versions() -> None:
    """Returns if Python and the simulator fit together.

    Raises:
      UserError: they do not; its line says what to install.
    """
    python = sys.version_info[:2]
    if not PYTHON[0] <= python < PYTHON[1]:
        raise UserError(
            f"Python {python[0]}.{python[1]} does not work (labmaze, which dm_control needs, has no wheel for it)."
            " Install Python 3.12 or 3.11 and run: make setup PYTHON=python3.12"
        )
    mujoco = _installed("mujoco")
    if not MUJOCO[0] <= _release(mujoco) < MUJOCO[1]:
        needed = f"mujoco>={_dotted(MUJOCO[0])},<{_dotted(MUJOCO[1])}"
        raise UserError(
            f"mujoco {mujoco} does not work with {_control()}. "
            f"Install one that does: {sys.executable} -m pip install '{needed}'"
        )


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"{package} is not installed for {sys.executable}. Install everything with: make setup"
        ) from None


def _control() -> str:
    try:
        return f"dm_control {importlib.metadata.version('dm_control')}"
    except importlib.metadata.PackageNotFoundError:
        return "mujoco-mjx"


def _release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version; those of a development build count as the release it leads to."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
