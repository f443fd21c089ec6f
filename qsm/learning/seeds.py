"""A program of one seed, as one of S."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

CPU_SEEDS = 4
"""Seeds that a CPU computes at once."""


def each_seed(program: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """`program` of one seed as one of S, by `vmap`; of one seed as it is, with its leading axis taken off and put back.

    XLA's reductions on a CPU are slow in four dimensions: with a first one of length one, an update of clean-gradient
    QSM, whose critics are layer-normalised, takes a fifth to a third longer (jaxlib 0.10.2). And what many seeds
    compute at once does not stay in its cache: there, `CPU_SEEDS` at a time take turns.

    Args:
      in_axes: 0 for an argument with a leading axis of seeds, None for one that all share.
    """
    batched = jax.vmap(program, in_axes=in_axes)

    def programs(*arguments: Any) -> Any:
        of_seeds = [argument for argument, axis in zip(arguments, in_axes, strict=True) if axis == 0]
        num_seeds = jax.tree.leaves(of_seeds)[0].shape[0]
        if num_seeds > CPU_SEEDS and jax.default_backend() == "cpu":

            def one(own: list[Any]) -> Any:
                rest = iter(own)
                return program(
                    *(
                        shared if axis is None else next(rest)
                        for shared, axis in zip(arguments, in_axes, strict=True)
                    )
                )

            return jax.lax.map(one, of_seeds, batch_size=CPU_SEEDS)
        if num_seeds > 1:
            return batched(*arguments)
        alone = [
            argument if axis is None else _without_axis(argument)
            for argument, axis in zip(arguments, in_axes, strict=True)
        ]
        return _with_axis(program(*alone))

    return programs


def axis_of_seeds(like: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Puts the leading axis of one seed back, and takes it off; both do nothing where `like` holds several."""
    if jax.tree.leaves(like)[0].shape[0] > 1:
        return (lambda tree: tree), (lambda tree: tree)
    return _with_axis, _without_axis


def _with_axis(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.reshape(1, *leaf.shape), tree)


def _without_axis(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[1:]), tree)
