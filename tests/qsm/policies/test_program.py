"""What NumPy runs does what JAX does, to the bit where draws are concerned; what it cannot do is said at export."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agents
from qsm.checkpoints.leaves import named_leaves
from qsm.policies import program
from qsm.policies.numpy_operations import Plan, at_batch

MATRIX = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
Key = Any


def run(function: Callable[..., jax.Array], observation: np.ndarray, seed: int, call: int = 0) -> np.ndarray:
    """`function(state, observation, key, call)` by NumPy, through JSON; the state is `MATRIX` and a bias."""
    state = {"matrix": MATRIX, "bias": np.float32(0.5)}
    traced = program.trace(function, state, observation.shape[1])
    described = json.loads(json.dumps(traced.description, allow_nan=False))
    arrays = named_leaves(state) | traced.constants
    known = {3 + i: arrays[name] for i, name in enumerate(described["parameters"])}
    plan = Plan(at_batch(described["block"], len(observation)), known)
    (result,) = plan([observation, np.uint64(seed), np.uint32(call)])
    return np.asarray(result)


def check(function: Callable[..., jax.Array], exact: bool = False) -> None:
    """The same as JAX, for one observation and for several."""
    for batch in (1, 4):
        observation = np.random.default_rng(batch).uniform(-2, 2, size=(batch, 4)).astype(np.float32)
        for seed, call in ((0, 0), (7, 3)):
            state = {"matrix": MATRIX, "bias": np.float32(0.5)}
            expected = np.asarray(function(state, observation, jax.random.key(seed), np.uint32(call)))
            found = run(function, observation, seed, call)
            assert found.dtype == expected.dtype and found.shape == expected.shape
            if exact:
                np.testing.assert_array_equal(found, expected)
            else:
                np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


RANDOM: dict[str, Callable[..., jax.Array]] = {
    "bits": lambda s, o, k, c: jax.random.bits(jax.random.fold_in(k, c), (o.shape[0], 3)),
    "bits8": lambda s, o, k, c: jax.random.bits(k, (5,), jnp.uint8),
    "bits16": lambda s, o, k, c: jax.random.bits(k, (o.shape[0],), jnp.uint16),
    "split": lambda s, o, k, c: jax.random.bits(jax.random.split(k, 3)[1], (o.shape[0],)),
    "many": lambda s, o, k, c: jax.vmap(jax.random.bits)(jax.random.split(k, o.shape[0])),
    "folded": lambda s, o, k, c: jax.random.bits(jax.random.fold_in(jax.random.fold_in(k, c), c + 1), (2,)),
    "uniform": lambda s, o, k, c: jax.random.uniform(k, (o.shape[0], 2), minval=-1.0),
    "integers": lambda s, o, k, c: jax.random.bits(k, (o.shape[0],)) % jnp.uint32(10),
}


@pytest.mark.parametrize("name", RANDOM)
def test_draws_are_those_of_jax_to_the_bit(name: str):
    check(RANDOM[name], exact=True)


def cumulated(state: Any, observation: jax.Array, key: Key, call: jax.Array) -> jax.Array:
    """A scan, from the end, with a constant, a carry and rows in and out."""

    def body(carry: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        carry = carry * state["bias"] + row @ state["matrix"]
        return carry, jnp.tanh(carry)

    last, rows = jax.lax.scan(
        body, jnp.zeros((observation.shape[0], 3)), jnp.stack([observation] * 3), reverse=True
    )
    return last + rows.sum(axis=0) * rows[0]


def few_reduced(state: Any, observation: jax.Array, key: Key, call: jax.Array) -> jax.Array:
    o = observation.reshape(-1, 2, 2)
    return jnp.stack(
        [o.min(axis=(1, 2)), o.max(axis=(1, 2)), o.prod(axis=(1, 2)), o.mean(axis=(1, 2))], axis=1
    )


def chosen(state: Any, observation: jax.Array, key: Key, call: jax.Array) -> jax.Array:
    """The best of several, as best-of-N takes it, by two ways of indexing."""
    best = observation.argmax(axis=1)
    one = jnp.take_along_axis(observation, best[:, None], axis=1)[:, 0]
    other = observation[jnp.arange(observation.shape[0]), observation.argmin(axis=1)]
    return one - 2 * other + state["matrix"][best, 1]


def batched_product(state: Any, observation: jax.Array, key: Key, call: jax.Array) -> jax.Array:
    members = jnp.stack([state["matrix"], 2 * state["matrix"]])
    return jnp.einsum("bo,eoa->eba", observation, members) + jnp.einsum("eba,ebc->eac", *[members] * 2).sum()


FUNCTIONS: dict[str, Callable[..., jax.Array]] = {
    "scan": cumulated,
    "reductions": few_reduced,
    "best": chosen,
    "products": batched_product,
    "erf": lambda s, o, k, c: jax.nn.gelu(o, approximate=False) + jax.scipy.special.erf(o),
    "erf_inv": lambda s, o, k, c: jax.lax.erf_inv(jnp.clip(o, -0.99, 0.9)),
    "normal": lambda s, o, k, c: jax.random.normal(k, (o.shape[0], 500)),
    "activations": lambda s, o, k, c: jax.nn.silu(o) + jax.nn.elu(o) + jax.nn.softplus(o) + jax.nn.sigmoid(o),
    "mish": lambda s, o, k, c: jax.nn.mish(o) * jax.nn.relu(o) + jax.nn.leaky_relu(o),
    "softmax": lambda s, o, k, c: jax.nn.softmax(o) + jax.nn.log_softmax(o),
    "powers": lambda s, o, k, c: o**3 + jnp.abs(o) ** 0.5 + jax.lax.rsqrt(1 + o**2) + jnp.square(o) + o**-2,
    "where": lambda s, o, k, c: jnp.where(o > 0, jnp.ceil(o), -jnp.inf),
    "pieces": lambda s, o, k, c: jnp.concatenate([p[:, ::-1] for p in jnp.split(o, 2, axis=1)], axis=1),
    "shapes": lambda s, o, k, c: (
        jnp.repeat(o, 3, axis=0).reshape(o.shape[0], 3, 4).transpose(2, 0, 1)[1:3, :, None]
    ),
    "strides": lambda s, o, k, c: (
        o[:, ::2] + o[:, 1::2] + jax.lax.dynamic_slice(o, (0, c.astype(int)), (o.shape[0], 2))
    ),
    "outside": lambda s, o, k, c: (
        jnp.asarray(o).at[:, jnp.array([1, 9])].get(mode="fill") + o[:, jnp.array([0, -1])]
    ),
    "clamped": lambda s, o, k, c: jax.lax.clamp(-1.0, o, 1.0) + jnp.sign(o) + jnp.fmod(o, 0.3) + jnp.sin(o),
    "levels": lambda s, o, k, c: jnp.arange(o.shape[0])[:, None].astype(jnp.float32) * o,
    "switch": lambda s, o, k, c: jax.lax.select_n((jnp.abs(o) * 1.4).astype(jnp.int32), o, 2 * o, 3 * o),
    "batch": lambda s, o, k, c: o.sum(axis=0, keepdims=True) / o.shape[1] + o,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations_do_what_jax_does(name: str):
    check(FUNCTIONS[name])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda s, o, k, c: jnp.sort(o), "sort is none of the operations"),
        (lambda s, o, k, c: jax.lax.cond(c > 0, jnp.sin, jnp.cos, o), "cond is none"),
        (lambda s, o, k, c: o - o.mean(axis=0, keepdims=True), "depends on the number of observations"),
        (lambda s, o, k, c: o * np.arange(o.shape[0])[:, None].astype(np.float32), "a constant depends on"),
        (lambda s, o, k, c: o.astype(jnp.bfloat16) * 2, "mul of bfloat16"),
        (lambda s, o, k, c: o * (c // jnp.uint32(2)), "div of whole numbers"),
        (lambda s, o, k, c: o if o.shape[0] < 8 else 2 * o, "depends on the number of observations"),
    ],
)
def test_what_a_program_cannot_say_is_refused(function: Callable[..., jax.Array], message: str):
    with pytest.raises(program.UnsupportedError, match=message):
        program.trace(function, {"matrix": MATRIX}, 4)


def test_nothing_that_acting_does_not_need_is_in_the_program():
    agent = agents.make_agent("sac", 4, 1, hidden_sizes=(8,))
    state = jax.eval_shape(lambda: agent.init(jax.random.key(0)))
    traced = program.trace(program.act_once(agent), state, 4)
    names = [step[0] for step in traced.description["block"]["steps"]]
    assert not any(name.startswith("random") for name in names)
    assert all(name.startswith("actor.params") for name in traced.description["parameters"])
    assert not traced.constants
