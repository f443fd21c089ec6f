"""How hard XLA works on a program, by how often it will run. A GPU's or TPU's programs are compiled by its defaults."""

from __future__ import annotations

import os

import jax

Options = dict[str, bool | int | str]

RUN_OFTEN: Options = {"xla_backend_optimization_level": 2}
"""LLVM's second level in place of the third: a third less to compile, the same time to run and bits in updates."""
RUN_ONCE: Options = {"xla_backend_optimization_level": 1}
"""And the former emitters of loops, where XLA still has them: an agent's `init` compiles in a third of the time. It may
take its time to run."""
if jax.__version_info__ < (0, 11):
    RUN_ONCE["xla_cpu_use_fusion_emitters"] = False


def of_updates() -> Options | None:
    """For programs that a training runs at every step."""
    return _on_cpu(RUN_OFTEN)


def of_starts() -> Options | None:
    """For programs that a training runs once, or seldom."""
    return _on_cpu(RUN_ONCE)


def _on_cpu(options: Options) -> Options | None:
    """`options` but for those that XLA_FLAGS sets; None, which leaves all to XLA, on an accelerator."""
    if jax.default_backend() != "cpu":
        return None
    flags = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in options.items() if name not in flags} or None
