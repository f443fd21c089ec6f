"""The check that no key is used twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.key_reuse import _core


def check_keys(program: Callable[..., Any], *arguments: Any) -> None:
    """Traces `program`, and compiles nothing.

    `jax.debug_key_reuse` checks the same of all that runs, but makes tracing three times as long.

    Raises:
      KeyReuseError: it uses a key twice.
    """
    _core.check_key_reuse_jaxpr(jax.make_jaxpr(program)(*arguments).jaxpr)
