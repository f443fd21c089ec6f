"""Online diffusion-policy reinforcement learning: the `qsm` command and what runs behind it."""

from typing import Any

from qsm.base.version import __version__ as __version__


def __getattr__(name: str) -> Any:
    """`qsm.load_policy`, imported when it is asked for: the command line answers without JAX."""
    if name == "load_policy":
        from qsm.policies.policy import load_policy

        return load_policy
    raise AttributeError(f"module 'qsm' has no attribute {name!r}")
