"""Every test runs on the CPU, with JAX's checks of keys and shapes on, and without a clock in its verdict."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Eight devices for the tests of sharding. One thread a program, for several test processes share the cores, and a
# pool that waits for a core costs more than it gains. (Compiling without optimisation would be quicker, but with jaxlib
# 0.10.2 SAC's samples then come out as NaN now and then.)
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_cpu_multi_thread_eigen=false",
    ]
)

import hypothesis
import jax

jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "qsm",
    deadline=None,
    # A slow machine is no failure.
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    # The same examples every time: whoever changes a file is not blamed for another's rare case.
    derandomize=True,
)
hypothesis.settings.load_profile("qsm")
