"""Devices and processes: how the arrays of training lie on them, and how they come back to the host.

Where there are enough seeds they are divided over the devices, and no device ever waits for another's numbers.
Otherwise the environments, their replay rows and each batch are divided, the networks are copied, and the compiler
inserts the sums that average the gradients. The agents and `qsm.learning.programs` know nothing of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from agents.parts.types import Transition
from qsm.data.replay import Replay

Tree = TypeVar("Tree")
AXIS = "devices"


class Placement:
    """Shardings for S seeds with N environments each.

    Args:
      num_devices: D; None or 1 for JAX's default device.
      num_seeds, num_envs, batch_size: what may be divided.

    Raises:
      ValueError: there are fewer devices, or neither seeds nor environments and batch divide over them.
    """

    def __init__(
        self, num_devices: int | None = None, num_seeds: int = 1, num_envs: int = 1, batch_size: int = 1
    ) -> None:
        self.mesh: Mesh | None = None
        self.mode: Literal["one", "seeds", "batch"] = "one"
        if num_devices in (None, 1) and jax.process_count() == 1:
            return
        there = jax.devices()
        count = len(there) if num_devices is None else num_devices
        if count > len(there):
            here = "is one device" if len(there) == 1 else f"are {len(there)} devices"
            raise ValueError(f"--num-devices is {count}, but there {here} here")
        if jax.process_count() > 1 and count != len(there):
            raise ValueError(
                f"--num-devices is {count}; a run of {jax.process_count()} processes uses all {len(there)} devices"
            )
        given = "The number of devices" if num_devices is None else "--num-devices"
        if num_seeds % count == 0:
            self.mode = "seeds"
        elif num_envs % count == 0 and batch_size % count == 0:
            self.mode = "batch"
        else:
            raise ValueError(
                f"{given} is {count}, which divides neither the {num_seeds} seeds nor both the {num_envs} "
                f"environments and the batch of {batch_size}; choose numbers that it divides"
            )
        self.mesh = Mesh(np.array(there[:count]), (AXIS,))

    def __eq__(self, other: object) -> bool:
        """Whether arrays lie alike: then the compiled programs are the same."""
        return isinstance(other, Placement) and (self.mesh, self.mode) == (other.mesh, other.mode)

    def __hash__(self) -> int:
        return hash((self.mesh, self.mode))

    def identity(self) -> str | None:
        """For `program_key.describe`: programs of several devices are not kept."""
        return self.mode if self.mesh is None else None

    def describe(self) -> str:
        """For a person: `gpu`, or `8 x gpu, seeds divided`."""
        platform = jax.default_backend()
        if self.mesh is None:
            return platform
        what = "seeds" if self.mode == "seeds" else "environments and batches"
        return f"{self.mesh.size} x {platform}, {what} divided"

    # ---- Shardings ----------------------------------------------------------------------------------------------

    def _sharding(self, *axes: str | None) -> NamedSharding | None:
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec(*axes))

    @property
    def replicated(self) -> NamedSharding | None:
        return self._sharding()

    @property
    def seed_sharding(self) -> NamedSharding | None:
        """Of what has a seed axis and nothing else to divide: learned state, metrics, keys."""
        return self._sharding(AXIS) if self.mode == "seeds" else self._sharding()

    @property
    def env_sharding(self) -> NamedSharding | None:
        """Of `[S, N, ...]`."""
        return self._sharding(AXIS) if self.mode == "seeds" else self._sharding(None, AXIS)

    def replay_sharding(self, buffer: Replay) -> Any:
        """Of `buffer` `[S, T, N, ...]` or its shapes, field by field."""
        if self.mesh is None:
            return None
        rows = self._sharding(AXIS) if self.mode == "seeds" else self._sharding(None, None, AXIS)
        largest = None if buffer.largest_priority is None else self.seed_sharding
        fields: dict[str, Any] = dict.fromkeys(buffer.row_fields, rows)
        return Replay(**fields, written=self.env_sharding, largest_priority=largest)  # type: ignore[arg-type]

    def environment_sharding(self, environment: Any) -> Any:
        """Of the device loop's environments: what has an axis of environments is divided along it."""
        num_envs = environment.elapsed.shape[1]

        def choose(leaf: Any) -> NamedSharding | None:
            has_axis = len(leaf.shape) > 1 and leaf.shape[1] == num_envs
            return self.env_sharding if has_axis else self.seed_sharding

        return jax.tree.map(choose, environment)

    # ---- Moving -------------------------------------------------------------------------------------------------

    def put_seeds(self, tree: Tree) -> Tree:
        """Places what has a seed axis `[S, ...]`."""
        return self._put(tree, self.seed_sharding)

    def put_replay(self, tree: Replay) -> Replay:
        """Places a `Replay` `[S, T, N, ...]`."""
        return self._put(tree, self.replay_sharding(tree))

    def put_environment(self, tree: Tree) -> Tree:
        """Places the device loop's environments `[S, N, ...]`."""
        return self._put(tree, self.environment_sharding(tree) if self.mesh is not None else None)

    def _put(self, tree: Any, sharding: Any) -> Any:
        if self.mesh is None:
            return jax.device_put(tree)
        if jax.process_count() == 1:
            return jax.device_put(tree, sharding)
        # device_put would first send all of it to every process, to see whether they agree.
        return jax.tree.map(_put_part, tree, jax.tree.broadcast(sharding, tree))

    def fetch(self, tree: Any) -> Any:
        """Copies to the host, on every process, whatever devices it lies on."""
        if jax.process_count() > 1:
            tree = _compile_moves(self.replicated).gather(tree)
        return jax.device_get(tree)

    def member(self, tree: Any, index: int) -> Any:
        """The part of seed `index`, on the host, as a copy: on a CPU, what JAX hands out is the array itself."""
        return jax.tree.map(np.array, _compile_moves(self.replicated).pick(tree, np.int32(index)))

    def rows(self, buffer: Replay, index: int, start: int, length: int) -> dict[str, np.ndarray]:
        """The row fields `[length, N, ...]` of seed `index` from place `start` on, on the host, as copies."""
        fields = {name: getattr(buffer, name) for name in buffer.row_fields}
        cut = _compile_moves(self.replicated).cut
        return jax.tree.map(np.array, cut(fields, np.int32(index), np.int32(start), length))

    # ---- Inside programs ----------------------------------------------------------------------------------------

    def over_seeds(self, program: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
        """`program` of S seeds as one that every device runs for its share of them, by itself.

        Without this, the devices would agree at every round on whether a batched `while_loop` goes on.

        Args:
          in_axes: 0 for an argument with a leading axis of seeds, None for one that all share.
        """
        if self.mode != "seeds":
            return program
        assert self.mesh is not None
        specs = tuple(PartitionSpec() if axis is None else PartitionSpec(AXIS) for axis in in_axes)
        return jax.shard_map(
            program, mesh=self.mesh, in_specs=specs, out_specs=PartitionSpec(AXIS), check_vma=False
        )

    def constrain(self, state: Any) -> Any:
        """Holds a `TrainState` to its places, so that what is donated is written in place."""
        if self.mode != "batch":
            return state
        place = jax.lax.with_sharding_constraint
        environment = state.environment
        if environment != ():
            environment = place(environment, self.environment_sharding(environment))
        return state._replace(
            agent=place(state.agent, self.seed_sharding),
            replay=place(state.replay, self.replay_sharding(state.replay)),
            metrics=place(state.metrics, self.seed_sharding),
            environment=environment,
        )

    def constrain_batch(self, batch: Transition) -> Transition:
        """Divides a batch `[B, ...]`, where the devices share one seed's work."""
        if self.mode != "batch":
            return batch
        return jax.lax.with_sharding_constraint(batch, self._sharding(AXIS))  # type: ignore[arg-type]


class _Moves(NamedTuple):
    """What brings arrays to the host."""

    gather: Any  # the whole tree, onto every process
    pick: Any
    cut: Any


@functools.cache
def _compile_moves(replicated: NamedSharding | None) -> _Moves:
    # Made once: a new function for every call would be compiled at every call.
    return _Moves(
        jax.jit(lambda tree: tree, out_shardings=replicated),
        jax.jit(_pick, out_shardings=replicated),
        jax.jit(_cut, static_argnames="length", out_shardings=replicated),
    )


def _pick(tree: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _cut(tree: Any, index: jax.Array, start: jax.Array, length: int) -> Any:
    def of_leaf(leaf: jax.Array) -> jax.Array:
        beginning = (index, start, *(0,) * (leaf.ndim - 2))
        return jax.lax.dynamic_slice(leaf, beginning, (1, length, *leaf.shape[2:]))[0]

    return jax.tree.map(of_leaf, tree)


def _put_part(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """The array that all processes hold whole, or divided already, on the devices of all of them."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put_part(jax.random.key_data(leaf), sharding))
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.jit(lambda array: array, out_shardings=sharding)(leaf)
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
