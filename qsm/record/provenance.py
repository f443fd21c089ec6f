"""What made a run's numbers: versions, commit and processor, for its `provenance.json`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = (
    *("qsm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("mujoco", "mujoco-mjx", "dm-control", "dm-env", "wandb", "tensorboardX", "rich"),
)


def here() -> dict[str, Any]:
    """How this process runs."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": git_commit(),
        "packages": package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a run's numbers, as far as they are installed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def processor() -> str:
    """The processor's name, where it can be told."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def git_commit() -> str | None:
    """Commit of the checkout that this file is part of (`+` after it: with changes), None outside of one."""

    def git(*arguments: str) -> str:
        # Without optional locks: a `git status` that is ended in its middle would leave one in the checkout.
        command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        # An installed copy may lie in a virtual environment inside somebody else's checkout.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
