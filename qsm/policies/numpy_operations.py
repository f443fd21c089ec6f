"""The operations of a policy's program, in NumPy: imports nothing else but the standard library.

A program is JSON, and nothing in it is executed as Python: each step names an operation of the table at the end, which
does what the operation of that name in `jax.lax` does. docs/policies.md describes the form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

PROGRAM_VERSION = 1
"""Version of the operations and of the form of a program."""


class Plan:
    """A block of operations at one batch size, ready to run: whatever follows from `known` alone is computed already.

    Args:
      block: `inputs`, their number, which are registers 0, 1, ...; `steps`, each [operation, inputs, outputs,
        attributes]; `results`. An input is the number of a register or {type: value}.
      known: registers whose values are the same at each run.
    """

    @np.errstate(all="ignore")  # as JAX does
    def __init__(self, block: dict, known: Mapping[int, Any]) -> None:
        self._registers: dict[int, Any] = dict(known)
        self._steps: list[tuple[Callable, list[int], list[int], dict]] = []
        literal = -1
        for name, inputs, outputs, attributes in block["steps"]:
            sources = []
            for entry in inputs:
                if isinstance(entry, dict):
                    ((kind, value),) = entry.items()
                    self._registers[literal] = np.array(
                        float(value) if isinstance(value, str) else value, kind
                    )
                    entry, literal = literal, literal - 1
                sources.append(entry)
            given = {i: self._registers[r] for i, r in enumerate(sources) if r in self._registers}
            if name == "scan":
                count = attributes["num_consts"]
                constants = {i: value for i, value in given.items() if i < count}
                attributes = attributes | {"body": Plan(attributes["body"], constants)}
            step = OPERATIONS[name], sources, outputs, attributes
            if len(given) == len(sources):
                _run_step(self._registers, *step)
            else:
                self._steps.append(step)
        self._results = block["results"]
        self._num_inputs = block["inputs"]

    @np.errstate(all="ignore")
    def __call__(self, inputs: list) -> list:
        registers = self._registers | dict(enumerate(inputs))
        for step in self._steps:
            _run_step(registers, *step)
        return [registers[result] for result in self._results]


def _run_step(registers: dict, operation: Callable, sources: list, outputs: list, attributes: dict) -> None:
    result = operation(*[registers[source] for source in sources], **attributes)
    if len(outputs) == 1:
        registers[outputs[0]] = result
    else:
        registers.update(zip(outputs, result, strict=True))


def at_batch(value: Any, batch: int) -> Any:
    """`value` with each {"batch": [a, b]} in it as the number a + b * batch."""
    if isinstance(value, list):
        return [at_batch(entry, batch) for entry in value]
    if isinstance(value, dict):
        if set(value) == {"batch"}:
            offset, factor = value["batch"]
            return offset + factor * batch
        return {name: at_batch(entry, batch) for name, entry in value.items()}
    return value


# ---- The operations: arrays first, then attributes -------------------------------------------------------------------


def threefry(key: Any, high: Any, low: Any) -> tuple[np.ndarray, np.ndarray]:
    """Threefry-2x32 of 20 rounds (Salmon et al. 2011) on counts; a key is a uint64, its first word the upper one."""
    words = [np.uint32(key >> np.uint64(32)), np.uint32(key & np.uint64(0xFFFFFFFF))]
    words.append(words[0] ^ words[1] ^ np.uint32(0x1BD11BDA))
    x, y = np.asarray(high, np.uint32) + words[0], np.asarray(low, np.uint32) + words[1]
    for group in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = x + y
            y = (y << np.uint32(rotation) | y >> np.uint32(32 - rotation)) ^ x
        x, y = x + words[(group + 1) % 3], y + words[(group + 2) % 3] + np.uint32(group + 1)
    return x, y


def _counted(key: Any, shape: list) -> tuple[np.ndarray, np.ndarray]:
    """Threefry of 0, 1, ... in `shape`, for each of the keys."""
    counts = np.arange(math.prod(shape), dtype=np.uint64).reshape(shape)
    keys = np.reshape(key, (*np.shape(key), *[1] * len(shape)))
    return threefry(keys, counts >> np.uint64(32), counts & np.uint64(0xFFFFFFFF))


def _as_key(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x.astype(np.uint64) << np.uint64(32) | y.astype(np.uint64)


def _random_bits(key: Any, bit_width: int, shape: list) -> np.ndarray:
    x, y = _counted(key, shape)
    return _as_key(x, y) if bit_width == 64 else (x ^ y).astype(f"uint{bit_width}")


def _erf_inv(x: Any) -> np.ndarray:
    """Giles (2012), "Approximating the erfinv function", single precision."""
    w = -np.log1p(-x * x)
    near = (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503)
    near += (-0.00417768164, 0.246640727, 1.50140941)
    far = (-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613)
    far += (0.00943887047, 1.00167406, 2.83297682)
    p, q = [_polynomial(c, v) for c, v in ((near, w - np.float32(2.5)), (far, np.sqrt(w) - np.float32(3)))]
    return np.where(np.abs(x) == 1, x * np.float32(np.inf), np.where(w < 5, p, q) * x)


def _polynomial(coefficients: tuple, x: Any) -> np.ndarray:
    total = np.zeros_like(x)
    for coefficient in coefficients:
        total = total * x + np.float32(coefficient)
    return total


def _dot_general(a: np.ndarray, b: np.ndarray, dimension_numbers: list) -> np.ndarray:
    (over_a, over_b), (batch_a, batch_b) = dimension_numbers
    free_a = [i for i in range(a.ndim) if i not in over_a + batch_a]
    free_b = [i for i in range(b.ndim) if i not in over_b + batch_b]
    shape = [a.shape[i] for i in batch_a + free_a] + [b.shape[i] for i in free_b]
    batch, inner = shape[: len(batch_a)], math.prod(a.shape[i] for i in over_a)
    left = a.transpose(batch_a + free_a + over_a).reshape(*batch, -1, inner)
    right = b.transpose(batch_b + over_b + free_b).reshape(*batch, inner, -1)
    return (left @ right).reshape(shape)


def _broadcast_in_dim(x: Any, shape: list, broadcast_dimensions: list) -> np.ndarray:
    view = [1] * len(shape)
    for size, place in zip(np.shape(x), broadcast_dimensions, strict=True):
        view[place] = size
    return np.broadcast_to(np.reshape(x, view), shape)


def _dynamic_slice(x: np.ndarray, *starts: Any, slice_sizes: list) -> np.ndarray:
    ends = [size - length for size, length in zip(x.shape, slice_sizes, strict=True)]
    begins = [min(max(int(start), 0), end) for start, end in zip(starts, ends, strict=True)]
    return x[tuple(slice(begin, begin + length) for begin, length in zip(begins, slice_sizes, strict=True))]


def _gather(
    x: np.ndarray, starts: np.ndarray, slice_sizes: list, dimension_numbers: list, fill: Any
) -> np.ndarray:
    """Slices of `x` at `starts` [..., K]: moved inside where they reach beyond it, or `fill` where that is not None."""
    offset, collapsed, index_map, batching, starts_batching = dimension_numbers
    batch = starts.shape[:-1]
    index, is_inside = [], np.ones(batch, bool)
    for d, length in enumerate(slice_sizes):
        start = np.zeros(batch, int)
        if d in index_map:
            start = starts[..., index_map.index(d)].astype(int)
        elif d in batching:
            axis = starts_batching[batching.index(d)]
            start = (
                np.arange(batch[axis]).reshape([-1 if i == axis else 1 for i in range(len(batch))]) + start
            )
        is_inside &= (start >= 0) & (start <= x.shape[d] - length)
        start = np.clip(start, 0, x.shape[d] - length).reshape(*batch, *[1] * len(slice_sizes))
        within = [length if i == d else 1 for i in range(len(slice_sizes))]
        index.append(start + np.arange(length).reshape(within))
    result = x[tuple(index)]
    if fill is not None:
        outside = ~is_inside.reshape(*batch, *[1] * len(slice_sizes))
        result = np.where(outside, np.array(float(fill) if isinstance(fill, str) else fill, x.dtype), result)
    result = result.squeeze(tuple(len(batch) + d for d in (*collapsed, *batching)))
    return np.moveaxis(result, range(len(batch), result.ndim), offset)


def _scan(*inputs: Any, body: Plan, length: int, reverse: bool, num_consts: int, num_carry: int) -> Any:
    constants, carry = list(inputs[:num_consts]), list(inputs[num_consts : num_consts + num_carry])
    rows = []
    for i in reversed(range(length)) if reverse else range(length):
        results = body([*constants, *carry, *(array[i] for array in inputs[num_consts + num_carry :])])
        carry = results[:num_carry]
        rows.append(results[num_carry:])
    stacked = [np.stack(column) for column in zip(*(rows[::-1] if reverse else rows), strict=True)]
    outputs = [*carry, *stacked]
    return outputs[0] if len(outputs) == 1 else outputs


def _iota(dtype: str, shape: list, dimension: int) -> np.ndarray:
    view = [-1 if i == dimension else 1 for i in range(len(shape))]
    return np.broadcast_to(np.arange(shape[dimension], dtype=dtype).reshape(view), shape)


def _select_n(which: Any, *cases: Any) -> np.ndarray:
    result = cases[0]
    for i, case in enumerate(cases[1:], 1):
        result = np.where(np.asarray(which) == i, case, result)
    return result


def _slice(x: np.ndarray, start_indices: list, limit_indices: list, strides: list | None) -> np.ndarray:
    strides = strides or [1] * x.ndim
    return x[tuple(map(slice, start_indices, limit_indices, strides))]


def _reduce(function: np.ufunc) -> Callable:
    return lambda x, axes: function.reduce(x, axis=tuple(axes), dtype=x.dtype)


_UFUNCS = (
    "abs cos exp exp2 expm1 floor ceil log log1p neg=negative sign sin sqrt square tan tanh is_finite=isfinite "
    "not=invert add sub=subtract mul=multiply max=maximum min=minimum rem=fmod pow=power and=bitwise_and or=bitwise_or "
    "xor=bitwise_xor eq=equal ne=not_equal lt=less le=less_equal gt=greater ge=greater_equal shift_left=left_shift "
    "shift_right_logical=right_shift div=divide"
)
"""Names of operations, with NumPy's after the sign where it is another."""

OPERATIONS: dict[str, Callable[..., Any]] = {
    entry.partition("=")[0]: getattr(np, entry.partition("=")[2] or entry) for entry in _UFUNCS.split(" ")
}
OPERATIONS |= {
    "argmax": lambda x, axes, index_dtype: np.argmax(x, axes[0]).astype(index_dtype),
    "argmin": lambda x, axes, index_dtype: np.argmin(x, axes[0]).astype(index_dtype),
    "bitcast_convert_type": lambda x, new_dtype: np.asarray(x).view(new_dtype),
    "broadcast_in_dim": _broadcast_in_dim,
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
    "concatenate": lambda *parts, dimension: np.concatenate(parts, dimension),
    "convert_element_type": lambda x, new_dtype: np.asarray(x).astype(new_dtype),
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "erf": lambda x: np.vectorize(math.erf, [np.float32])(x),
    "erfc": lambda x: np.vectorize(math.erfc, [np.float32])(x),
    "erf_inv": _erf_inv,
    "expand_dims": lambda x, dimensions: np.expand_dims(x, tuple(dimensions)),
    "gather": _gather,
    "integer_pow": lambda x, y: np.power(x, np.array(y, x.dtype)),
    "iota": _iota,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "random_bits": _random_bits,
    "random_fold_in": lambda key, data: _as_key(*threefry(key, np.zeros_like(data), data)),
    "random_split": lambda key, shape: _as_key(*_counted(key, shape)),
    "reduce_max": _reduce(np.maximum),
    "reduce_min": _reduce(np.minimum),
    "reduce_prod": _reduce(np.multiply),
    "reduce_sum": _reduce(np.add),
    "reshape": lambda x, new_sizes: np.reshape(x, new_sizes),
    "rev": lambda x, dimensions: np.flip(x, dimensions),
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "scan": _scan,
    "select_n": _select_n,
    "slice": _slice,
    "stack": lambda *parts, axis: np.stack(parts, axis),
    "split": lambda x, sizes, axis: np.split(x, np.cumsum(sizes)[:-1], axis),
    "squeeze": lambda x, dimensions: np.squeeze(x, tuple(dimensions)),
    "transpose": lambda x, permutation: np.transpose(x, permutation),
}
