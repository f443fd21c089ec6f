"""What replay and environments will take, said before anything is allocated."""

from __future__ import annotations

import math
from typing import Any

import jax
import psutil

from qsm import replay, runtime
from qsm.errors import UserError
from qsm.learner import Learner

SHARE = 0.9
"""Of the free memory, for replay and environments: the rest is for networks, batches and temporary arrays."""


def size_of(shapes: Any) -> int:
    """Bytes of a tree of arrays or of their shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def available_bytes(device: Any) -> int:
    """Free memory of `device`; of the host for a CPU device."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return psutil.virtual_memory().available


def check(learner: Learner, environment_bytes: int) -> str:
    """A line on the memory that is needed.

    Args:
      environment_bytes: of the device loop's environments, all seeds together.

    Raises:
      UserError: it does not fit; names the largest replay capacity that would.
    """
    mesh = learner.placement.mesh
    devices = list(mesh.devices.ravel()) if mesh is not None else jax.local_devices()[:1]
    local = [device for device in devices if device.process_index == jax.process_index()]
    # The CPU's devices share the memory of their host; others have one each. Seeds or environments are divided evenly.
    number = jax.process_count() if devices[0].platform == "cpu" else len(devices)
    spec, seeds = learner.spec, learner.num_seeds
    rows = seeds * learner.num_rows * learner.num_envs
    replay_bytes = rows * replay.bytes_per_row(spec.observation_size, spec.action_size)
    # The least of all processes, so that they come to the same verdict.
    least = runtime.least(min(available_bytes(device) for device in local))
    free = number * least
    line = f"replay {show(replay_bytes)}"
    if environment_bytes:
        line += f", environments {show(environment_bytes)}"
    line += f", of {show(free)} free"
    if replay_bytes + environment_bytes <= SHARE * free:
        return line
    per_step = seeds * replay.bytes_per_row(spec.observation_size, spec.action_size)
    largest = int((SHARE * free - environment_bytes) // per_step) // learner.num_envs * learner.num_envs
    if largest < 1000:
        raise UserError(f"This does not fit in memory ({line}). Lower --num-envs or --num-seeds")
    raise UserError(
        f"This does not fit in memory ({line}). The largest that would: --replay-capacity {largest}"
    )


def show(number: int) -> str:
    """`1.2 GB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number} B"
