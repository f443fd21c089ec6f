"""The leaves of a learned state by the names that files give them: a regrouped state is refused and never mixed up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import Var

from agents.api import Agent


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of `tree`, in their order, by their dotted paths."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def grouped_as(tree: Any, leaves: Any) -> Any:
    """The leaves of `leaves` in the groups of `tree`, by their paths; groups without leaves may differ."""
    found = named_leaves(leaves)
    return jax.tree.unflatten(jax.tree.structure(tree), [found[name] for name in named_leaves(tree)])


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each leaf, by its path."""
    return {name: leaf.shape for name, leaf in named_leaves(tree).items()}


def check_shapes(there: Mapping[str, tuple[int, ...]], here: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError, naming the first leaf that differs."""
    for name in (*here, *there):
        if there.get(name) != here.get(name):
            saved, built = there.get(name, "absent"), here.get(name, "absent")
            raise ValueError(f"{name} is {saved} there and {built} in this agent")


def leaves_read(function: Callable[..., Any], state: Any, *inputs: Any) -> list[str]:
    """Names of the leaves of `state` that `function(state, *inputs)` reads, by tracing it; nothing is computed.

    Args:
      state: arrays, or their shapes; so may the inputs be.
    """
    program = jax.make_jaxpr(function)(state, *inputs).jaxpr
    used = {
        variable for equation in program.eqns for variable in equation.invars if isinstance(variable, Var)
    }
    used |= {variable for variable in program.outvars if isinstance(variable, Var)}
    return [
        name for name, variable in zip(named_leaves(state), program.invars, strict=False) if variable in used
    ]


def acting_leaves(agent: Agent, state: Any, observation_size: int) -> list[str]:
    """Names of the leaves of the learned state that acting in evaluation reads.

    Args:
      state: arrays, or their shapes.
    """

    def act(state: Any, observation: jax.Array, key: jax.Array) -> jax.Array:
        return agent.act(state, observation, key, mode="evaluate")

    return leaves_read(act, state, np.zeros((1, observation_size), np.float32), jax.random.key(0))


def filled(template: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """`template`, a tree of shapes, with `arrays` by name; zeros where a leaf is not among them.

    Raises:
      ValueError: an array that is no leaf of `template`, or has another shape or type.
    """
    leaves = named_leaves(template)
    for name, array in arrays.items():
        if name not in leaves:
            raise ValueError(f"{name} is {array.shape} there and absent in this agent")
        there, here = (f"{array.shape} {array.dtype}", f"{leaves[name].shape} {leaves[name].dtype}")
        if there != here:
            raise ValueError(f"{name} is {there} there and {here} in this agent")
    values = [
        np.asarray(arrays[name]) if name in arrays else np.zeros(leaf.shape, leaf.dtype)
        for name, leaf in leaves.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(template), values)
