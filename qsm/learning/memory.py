"""What replay and environments will take, said before anything is allocated."""

from __future__ import annotations

import math
from typing import Any

import jax
import psutil

from qsm.base.errors import UserError
from qsm.base.text import byte_size
from qsm.data import replay
from qsm.devices.processes import global_min
from qsm.learning.learner import Learner
from qsm.options.run import RunConfig

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


def min_capacity(num_envs: int, n_step: int) -> int:
    """The smallest replay capacity whose rows hold a valid start wherever their episodes begin and end."""
    return (n_step + 2) * num_envs


def check(learner: Learner, environment_bytes: int) -> str:
    """A line on the memory that is needed.

    Args:
      environment_bytes: of the device loop's environments, all seeds together.

    Raises:
      UserError: it does not fit; names the largest replay capacity that would, where one of those allowed does.
    """
    mesh = learner.placement.mesh
    devices = list(mesh.devices.ravel()) if mesh is not None else jax.local_devices()[:1]
    local = [device for device in devices if device.process_index == jax.process_index()]
    # The CPU's devices share the memory of their host; others have one each. Seeds or environments are divided evenly.
    number = jax.process_count() if devices[0].platform == "cpu" else len(devices)
    # The smallest of all processes, so that they come to the same verdict.
    free = number * global_min(min(available_bytes(device) for device in local))
    replay_bytes = _replay_bytes(learner, learner.num_rows)
    line = f"replay {byte_size(replay_bytes)}"
    if environment_bytes:
        line += f", environments {byte_size(environment_bytes)}"
    line += f", of {byte_size(free)} free"
    rest = int(SHARE * free) - environment_bytes
    if replay_bytes <= rest:
        return line
    # In whole rows of all environments, for that is what a capacity is rounded up to.
    none = _replay_bytes(learner, 0)
    largest = max(0, (rest - none) // (_replay_bytes(learner, 1) - none)) * learner.num_envs
    smallest = max(
        int(RunConfig.limits["replay_capacity"][0]),
        min_capacity(learner.num_envs, learner.agent.sampling.n_step),
    )
    if largest >= smallest:
        raise UserError(
            f"This does not fit in memory ({line}). The largest that would: --replay-capacity {largest}"
        )
    ways = ["free some memory"]
    if learner.num_seeds > 1:
        ways.insert(0, "train fewer seeds or values of --sweep together")
    if learner.num_envs > 1:
        ways.insert(0, "lower --num-envs")
    raise UserError(
        f"This does not fit in memory ({line}), and would not with the smallest --replay-capacity, {smallest}. "
        f"{' or '.join(ways).capitalize()}"
    )


def _replay_bytes(learner: Learner, num_rows: int) -> int:
    """Bytes of the buffers of all seeds, of `num_rows` rows for each environment."""
    spec = learner.spec
    prioritized = learner.agent.sampling.prioritized
    one = replay.nbytes(num_rows, learner.num_envs, spec.observation_size, spec.action_size, prioritized)
    return learner.num_seeds * one
