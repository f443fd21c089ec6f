"""Acting as a list of operations: traced from any agent, for `numpy_operations` to run.

`agent.act` is traced at three batch sizes. What differs between the traces must be whole numbers that grow linearly
with the batch, and is kept as {"batch": [offset, factor]}: one program serves every batch size, and an agent needs no
code of its own for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from agents.api import Agent
from qsm.checkpoints.leaves import named_leaves
from qsm.policies.numpy_operations import OPERATIONS, PROGRAM_VERSION

BATCHES = (5, 7, 11)
"""Sizes that acting is traced at; the third checks what the first two say."""
INLINED = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}
"""Operations that are nothing but the program in this parameter of theirs."""
SAME = ("stop_gradient", "copy", "copy_p", "optimization_barrier")
"""Operations that hand on what they are given."""
SYNONYMS = {"add_any": "add"}
"""Operations that do what another one does: derivatives are summed by one of their own."""
KEPT = {
    "argmax": ("axes", "index_dtype"),
    "argmin": ("axes", "index_dtype"),
    "bitcast_convert_type": ("new_dtype",),
    "broadcast_in_dim": ("shape", "broadcast_dimensions"),
    "concatenate": ("dimension",),
    "convert_element_type": ("new_dtype",),
    "dot_general": ("dimension_numbers",),
    "dynamic_slice": ("slice_sizes",),
    "expand_dims": ("dimensions",),
    "integer_pow": ("y",),
    "iota": ("dtype", "shape", "dimension"),
    "random_bits": ("bit_width", "shape"),
    "random_split": ("shape",),
    "reshape": ("new_sizes",),
    "rev": ("dimensions",),
    "slice": ("start_indices", "limit_indices", "strides"),
    "split": ("sizes", "axis"),
    "squeeze": ("dimensions",),
    "stack": ("axis",),
    "transpose": ("permutation",),
} | dict.fromkeys(("reduce_max", "reduce_min", "reduce_prod", "reduce_sum"), ("axes",))
"""Parameters of operations that decide what they give; the others say how it is computed."""


class UnsupportedError(Exception):
    """Acting does something that a program cannot say; one line says what."""


class Program(NamedTuple):
    """See docs/policies.md."""

    description: dict[str, Any]  # as JSON has it
    constants: dict[str, np.ndarray]  # arrays that it reads besides the learned parameters


def trace(act: Callable[..., jax.Array], state: Any, observation_size: int) -> Program:
    """The program of `act(state, observation, key, call)`.

    Raises:
      UnsupportedError: an operation that `numpy_operations` does not have, or one that depends on the batch otherwise
        than linearly.
    """
    if not jax.config.jax_threefry_partitionable or jax.config.jax_default_prng_impl != "threefry2x32":  # type: ignore[attr-defined]
        raise UnsupportedError("random numbers are not drawn by JAX's default generator")
    traced = [_traced(act, state, observation_size, batch) for batch in BATCHES]
    (block, constants), *others = traced
    for _, other in others:
        if len(other) != len(constants) or not all(
            np.array_equal(one, another) for one, another in zip(constants, other, strict=True)
        ):
            raise UnsupportedError("a constant depends on the number of observations")
    block = _merged([one[0] for one in traced])
    if not all(isinstance(result, int) for result in block["results"]):
        raise UnsupportedError("acting gives a constant")
    names = list(named_leaves(state)) + [f"constant {i}" for i in range(len(constants))]
    block["steps"] = _without_dead(block["steps"], block["results"])
    read = {entry for _, inputs, _, _ in block["steps"] for entry in inputs if isinstance(entry, int)}
    kept = [i for i in range(len(names)) if 3 + i in read or 3 + i in block["results"]]
    # Registers 3, 4, ... are the parameters that are kept; all others keep their numbers, which are above.
    places = {3 + i: 3 + place for place, i in enumerate(kept)}
    block = _renamed(block, places)
    description = {"version": PROGRAM_VERSION, "parameters": [names[i] for i in kept], "block": block}
    arrays = {f"constant {i}": np.asarray(value) for i, value in enumerate(constants)}
    return Program(description, {name: arrays[name] for name in description["parameters"] if name in arrays})


def _traced(act: Callable[..., jax.Array], state: Any, observation_size: int, batch: int) -> tuple[Any, list]:
    observation = np.zeros((batch, observation_size), np.float32)
    closed = jax.make_jaxpr(act)(state, observation, jax.random.key(0), np.uint32(0))
    jaxpr, encoder = closed.jaxpr, _Encoder()
    num_leaves = len(jaxpr.invars) - 3
    inputs = [*jaxpr.invars[num_leaves:], *jaxpr.invars[:num_leaves], *jaxpr.constvars]
    results = encoder.block(jaxpr, list(encoder.fresh(len(inputs))), inputs)
    return {"inputs": 3, "steps": encoder.steps, "results": results}, list(closed.consts)


class _Encoder:
    """Turns a jaxpr into steps, what it calls written out in its place."""

    def __init__(self) -> None:
        self.steps: list[list[Any]] = []
        self._next = 0

    def fresh(self, count: int) -> range:
        """Registers that nothing else uses."""
        self._next += count
        return range(self._next - count, self._next)

    def block(self, jaxpr: Any, registers: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        """Appends the steps of `jaxpr`, whose `variables` are in `registers`; where its results are."""
        places = dict(zip(variables, registers, strict=True))

        def source(variable: Any) -> Any:
            return _literal(variable) if isinstance(variable, Literal) else places[variable]

        for equation in jaxpr.eqns:
            inputs = [source(variable) for variable in equation.invars]
            places.update(zip(equation.outvars, self._step(equation, inputs), strict=True))
        return [source(variable) for variable in jaxpr.outvars]

    def _step(self, equation: Any, inputs: list[Any]) -> Sequence[Any]:
        """Appends one operation; the registers of its results."""
        params, name = equation.params, equation.primitive.name
        name = SYNONYMS.get(name, name)
        if name in SAME:
            return inputs
        if name in INLINED:
            inner = params[INLINED[name]]
            if getattr(inner, "consts", ()):
                raise UnsupportedError(f"{name} closes over arrays")
            inner = getattr(inner, "jaxpr", inner)
            return self.block(inner, inputs, inner.invars)
        if name not in OPERATIONS:
            raise UnsupportedError(f"{name} is none of the operations that the NumPy program has")
        _refuse_variants(name, params, [variable.aval for variable in equation.invars])
        attributes = _ATTRIBUTES[name](params) if name in _ATTRIBUTES else _kept(name, params)
        outputs = self.fresh(len(equation.outvars))
        self.steps.append([name, inputs, list(outputs), attributes])
        return outputs


def _kept(name: str, params: dict[str, Any]) -> dict[str, Any]:
    return {key: _plain(params[key]) for key in KEPT.get(name, ())}


def _scan(params: dict[str, Any]) -> dict[str, Any]:
    body = params["jaxpr"]
    if body.consts:
        raise UnsupportedError("scan closes over arrays")
    encoder = _Encoder()
    count = len(body.jaxpr.invars)
    results = encoder.block(body.jaxpr, list(encoder.fresh(count)), body.jaxpr.invars)
    if not all(isinstance(result, int) for result in results):
        raise UnsupportedError("scan gives a constant")
    block = {"inputs": count, "steps": encoder.steps, "results": results}
    kept = {key: _plain(params[key]) for key in ("length", "reverse", "num_consts", "num_carry")}
    return kept | {"body": block}


def _gather(params: dict[str, Any]) -> dict[str, Any]:
    numbers = params["dimension_numbers"]
    fields = ("offset_dims", "collapsed_slice_dims", "start_index_map")
    fields += ("operand_batching_dims", "start_indices_batching_dims")
    fill = None
    if "FILL" in str(params["mode"]):
        fill = params["fill_value"]
        fill = "nan" if fill is None or np.isnan(fill) else np.asarray(fill).item()
    return {
        "slice_sizes": _plain(params["slice_sizes"]),
        "dimension_numbers": [_plain(getattr(numbers, field)) for field in fields],
        "fill": fill,
    }


_ATTRIBUTES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"scan": _scan, "gather": _gather}


def _refuse_variants(name: str, params: dict[str, Any], inputs: list[Any]) -> None:
    """Raises UnsupportedError for what NumPy's function of that name does otherwise."""
    kinds = ["k" if jnp.issubdtype(i.dtype, jax.dtypes.prng_key) else i.dtype.kind for i in inputs]
    if any(kind not in "fiubk" for kind in kinds) or any(
        kind == "f" and i.dtype.itemsize < 4 for kind, i in zip(kinds, inputs, strict=True)
    ):
        raise UnsupportedError(f"{name} of {', '.join(str(i.dtype) for i in inputs)}")
    if (name in ("div", "pow") and set(kinds) != {"f"}) or (name == "shift_right_logical" and "i" in kinds):
        raise UnsupportedError(f"{name} of whole numbers")
    if name == "dot_general" and params["preferred_element_type"] not in (None, inputs[0].dtype):
        raise UnsupportedError("dot_general with a result of another type")
    if name == "gather" and kinds[0] != "f" and "FILL" in str(params["mode"]):
        raise UnsupportedError("gather of whole numbers that fills")
    if name in ("erf", "erfc", "erf_inv") and inputs[0].dtype != np.float32:
        raise UnsupportedError(f"{name} of {inputs[0].dtype}")
    if name == "reshape" and params["dimensions"] is not None:
        raise UnsupportedError("reshape with a permutation")
    if name == "transpose" and "k" in kinds and params["permutation"] is None:
        raise UnsupportedError("transpose without a permutation")


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, int | np.integer):
        return int(value)
    return np.dtype(value).name


def _literal(literal: Any) -> dict[str, Any]:
    value = np.asarray(literal.val).item()
    if isinstance(value, float) and not np.isfinite(value):
        value = str(value)
    return {np.dtype(literal.aval.dtype).name: value}


def _merged(values: Sequence[Any]) -> Any:
    """One of three: equal, or whole numbers that are linear in `BATCHES`."""
    first, second, third = values
    kinds = {type(value) for value in values}
    if kinds == {dict} and list(first) == list(second) == list(third):
        return {name: _merged([value[name] for value in values]) for name in first}
    if kinds == {list} and len(first) == len(second) == len(third):
        return [_merged(entries) for entries in zip(*values, strict=True)]
    if first == second == third:
        return first
    if kinds == {int}:
        factor, rest = divmod(second - first, BATCHES[1] - BATCHES[0])
        offset = first - factor * BATCHES[0]
        if rest == 0 and third == offset + factor * BATCHES[2]:
            return {"batch": [offset, factor]}
    raise UnsupportedError(
        f"acting depends on the number of observations: {first} for {BATCHES[0]}, {second} for {BATCHES[1]}"
    )


def _without_dead(steps: list[list[Any]], results: list[Any]) -> list[list[Any]]:
    """The steps that the results follow from."""
    needed, kept = set(results), []
    for step in reversed(steps):
        _, inputs, outputs, _ = step
        if needed.intersection(outputs):
            needed.update(entry for entry in inputs if isinstance(entry, int))
            kept.append(step)
    return kept[::-1]


def _renamed(block: dict[str, Any], places: dict[int, int]) -> dict[str, Any]:
    """The block with other numbers for some registers of its own; a literal or a body is as it was."""

    def renamed(entries: list[Any]) -> list[Any]:
        return [places.get(entry, entry) if isinstance(entry, int) else entry for entry in entries]

    steps = [
        [name, renamed(inputs), outputs, attributes] for name, inputs, outputs, attributes in block["steps"]
    ]
    return block | {"steps": steps, "results": renamed(block["results"])}


def act_once(agent: Agent) -> Callable[..., jax.Array]:
    """`act(state, observation, key, call)`: the draws of an exported policy at its call number `call`."""

    def act(state: Any, observation: jax.Array, key: jax.Array, call: jax.Array) -> jax.Array:
        return agent.act(state, observation, jax.random.fold_in(key, call), mode="evaluate")

    return act
