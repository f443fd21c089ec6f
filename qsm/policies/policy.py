"""`qsm.load_policy`: a trained policy out of one small file, run by JAX; `numpy_policy` runs the same file without."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_type_hints

import jax
import numpy as np

import agents
from agents.api import Agent
from qsm.base.errors import UserError, first_line
from qsm.checkpoints.leaves import acting_leaves, filled
from qsm.options.saved import agent_options
from qsm.policies.numpy_policy import LARGEST_SIZE, BasePolicy, Description, PolicyError, read_policy
from qsm.policies.program import act_once


class Policy(BasePolicy):
    """A policy run by JAX: the agent itself, compiled for each number of observations.

    Attributes:
      state: of the agent; zeros in what acting does not read.
    """

    def __init__(self, description: Description, agent: Agent, state: Any, seed: int = 0) -> None:
        super().__init__(description, seed)
        self.state = state
        self._compiled = jax.jit(act_once(agent))

    def _act(self, observation: np.ndarray, call: int) -> np.ndarray:
        return np.asarray(
            self._compiled(self.state, observation, jax.random.key(self._seed), np.uint32(call))
        )


def load_policy(path: str | Path, seed: int = 0) -> Policy:
    """The policy that `qsm export` wrote; nothing in the file is executed.

    Raises:
      UserError: the file is no such policy, is damaged, or was written by another version.
    """
    try:
        description, arrays = read_policy(path)
    except PolicyError as error:
        raise UserError(str(error)) from error
    try:
        _check(description)
        leaves = {name: arrays[name] for name in description.leaves}
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise UserError(f"{path} is no policy, or is damaged; write it anew with: qsm export RUN") from error
    try:
        options = agent_options(description.agent, description.agent_config)
        agent = agents.build(
            description.agent, options, description.observation_size, description.action_size
        )
        template = jax.eval_shape(lambda: agent.init(jax.random.key(0)))
        state = filled(template, leaves)
        for name in acting_leaves(agent, template, description.observation_size):
            if name not in leaves:
                raise ValueError(f"{name} is absent there")
    except (ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        raise UserError(
            f"{path} does not fit this version of {description.agent}: {first_line(error)}; export it anew with: qsm "
            "export RUN"
        ) from error
    return Policy(description, agent, state, seed)


def _check(description: Description) -> None:
    """Holds what the file says of itself to its types; raises ValueError, TypeError or OverflowError."""
    for name, kind in get_type_hints(Description).items():
        value = getattr(description, name)
        # By its exact type: to Python True is a whole number.
        if type(value) not in (get_args(kind) or (kind,)):
            raise ValueError(f"{name} is of the wrong type")
        if kind is int:
            largest = LARGEST_SIZE if name.endswith("size") else 2**63
            if not (0 if name == "step" else 1) <= value <= largest:
                raise ValueError(f"{name} is {value}")
    if not all(isinstance(name, str) for name in description.leaves):
        raise ValueError("leaves are no names")
    if description.observation:
        sizes = [size for _, size in description.observation]
        if set(map(type, sizes)) != {int} or sum(sizes) != description.observation_size:
            raise ValueError("observation is of another size")
    for bounds in (description.action_low, description.action_high):
        if np.array(bounds, np.float64).shape != (description.action_size,):
            raise ValueError("bounds are of another size")
