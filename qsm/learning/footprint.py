"""The arrays that a run will hold, by their shapes alone: nothing is compiled, allocated or asked of a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from agents.api import Agent
from envs.api import EnvSpec
from qsm.data import replay
from qsm.learning import programs
from qsm.learning.memory import size_of

SLOW_COPIES = ("target", "target_actor", "average")
"""Fields of agents' states that hold parameters which follow others slowly."""


class Footprint(NamedTuple):
    """Bytes, of all seeds together."""

    replay: int
    parameters: int
    slow_copies: int
    optimizer: int  # its moments and counts
    other: int  # of the learned state: statistics, hyperparameters
    batch: int  # of one update

    def describe(self) -> str:
        """The parts and their sum in MiB, for a person."""
        parts = {name.replace("_", " "): size for name, size in self._asdict().items()}
        return (
            f"{', '.join(f'{name} {_mib(size)}' for name, size in parts.items())}: {_mib(sum(self))} in all"
        )


def predict(agent: Agent, spec: EnvSpec, num_seeds: int, capacity: int, num_envs: int = 1) -> Footprint:
    """What `num_seeds` seeds of `agent` will hold, each with a replay buffer of `capacity` time steps.

    Environments are not counted, nor are the temporary arrays of programs.
    """
    num_rows, prioritized = -(-capacity // num_envs), agent.sampling.prioritized

    def shapes() -> tuple[Any, Any, Any]:
        key = jax.random.key(0)
        state = programs.init(agent, key)
        sizes = (num_rows, num_envs, spec.observation_size, spec.action_size, prioritized)
        buffer = replay.create(*sizes)
        return state, buffer, programs.sample(agent, state, buffer, key, jnp.zeros((), jnp.int32))

    state, buffer, batch = jax.eval_shape(shapes)
    learned = {"parameters": 0, "slow_copies": 0, "optimizer": 0, "other": 0}
    for path, leaf in jax.tree.leaves_with_path(state):
        learned[_part_of([entry.name for entry in path if hasattr(entry, "name")])] += size_of(leaf)
    one = {"replay": size_of(buffer), **learned, "batch": size_of(batch)}
    return Footprint(**{name: num_seeds * size for name, size in one.items()})


def _part_of(fields: Sequence[str]) -> str:
    """Where the leaf that lies below `fields` of a learned state is counted."""
    if set(fields) & set(SLOW_COPIES):
        return "slow_copies"
    if "optimizer" in fields:
        return "optimizer"
    return "parameters" if "params" in fields else "other"


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
