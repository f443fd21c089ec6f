"""Every test runs on the CPU, with JAX's checks of shapes on, and without a clock in its verdict."""

from __future__ import annotations

import gc
import importlib.metadata
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Whatever terminal starts the tests: rich draws nothing live on one that calls itself dumb.
os.environ["TERM"] = "xterm-256color"
# Most of these tests' time is compilation, and most programs are compiled by many of them: kept from test to test and
# from run to run, for all test processes and the trainings that they start. `make clean` removes it.
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parents[1] / ".pytest_cache" / "home")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Eight devices for the tests of sharding. One thread a program, for several test processes share the cores, and a
# pool that waits for a core costs more than it gains. The former fusion emitters and no optimization compile in a
# quarter of the time of the defaults of jaxlib 0.10.2, which is most of what these tests do. LLVM's quick selection of
# instructions is off, for with it SAC's gradients came out as NaN now and then (on AVX2, not on SSE4.2).
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_cpu_multi_thread_eigen=false",
        "--xla_cpu_use_fusion_emitters=false"
        if importlib.metadata.version("jax").startswith("0.10.")
        else "",
        "--xla_backend_optimization_level=0",
        "--xla_backend_extra_options=-fast-isel=false",
        "--xla_cpu_parallel_codegen_split_count=1",  # of parts that would be compiled side by side
    ]
)

import hypothesis
import jax

from qsm.devices import compilation_cache

compilation_cache.use_cache()
jax.config.update("jax_numpy_rank_promotion", "raise")
# As every run sets it, so that a test that trains does not have the programs of later ones traced anew.
jax.config.update("jax_default_matmul_precision", "float32")


def pytest_collection_finish() -> None:
    """Has Python look for garbage seldom: what is there by now stays, and tracing makes much that is none.

    One in thirteen seconds went there.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)


hypothesis.settings.register_profile(
    "qsm",
    deadline=None,
    # A slow machine is no failure.
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    # The same examples every time: whoever changes a file is not blamed for another's rare case.
    derandomize=True,
)
hypothesis.settings.load_profile("qsm")
