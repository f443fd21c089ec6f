"""The random keys of a run: one stream for each purpose, and no random state beyond the loop's counters."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import jax


class Streams(NamedTuple):
    """One key per purpose; a draw folds in the counter it belongs to, so there is no other random state."""

    init: jax.Array
    explore: jax.Array  # folded with the environment step
    update: jax.Array  # folded with the update
    revise: jax.Array  # folded with the update
    replay: jax.Array  # folded with the update
    evaluate: jax.Array  # folded with the environment step, then the tick of the evaluation
    environment: jax.Array  # for the starts of episodes in device environments
    elapsed: jax.Array  # for how far their first episodes have come


def make_streams(seed: int) -> Streams:
    """The key streams of one seed. Names, not positions, tell streams apart: adding one changes no other."""
    root = jax.random.key(seed)
    return Streams(*(jax.random.fold_in(root, zlib.crc32(name.encode())) for name in Streams._fields))
