"""Torsos of critics and actors against their formulas."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.networks import initializers, simbav2
from agents.networks.actors import DeterministicActor, TanhGaussian
from agents.networks.critics import CriticEnsemble
from agents.networks.score import ScoreNetwork
from agents.networks.torsos import Kind, Torso, mish
from agents.parts.approximator import Approximator

KINDS: list[Kind] = ["mlp", "simba", "simbav2", "batchnorm"]
OBSERVATION, ACTION = jax.random.normal(jax.random.key(7), (2, 6, 3))


@functools.cache
def jitted(network: Any) -> Any:
    """One program for all tests of equal networks."""
    return jax.jit(network.apply)


def compiled(network: Any) -> Any:
    return jitted(network)


@functools.cache
def built(torso: Torso, output_size: int = 1) -> tuple[CriticEnsemble, Any]:
    network = CriticEnsemble(2, torso, output_size)
    return network, jax.jit(Approximator(network).init)(jax.random.key(0), OBSERVATION, ACTION).params


def member(tree: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf[index], np.float64), tree)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def layer_norm(x: np.ndarray, p: Any) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def dense(x: np.ndarray, p: Any) -> np.ndarray:
    return x @ p["kernel"] + p["bias"]


def mish_of(x: np.ndarray) -> np.ndarray:
    return np.asarray(mish(jnp.asarray(x, jnp.float32)))


def perturbed(params: Any) -> Any:
    """Parameters that are nowhere zero or one, so that each is seen in the output."""
    leaves, structure = jax.tree.flatten(params)
    draw = np.random.default_rng(3).normal
    return jax.tree.unflatten(structure, [np.float32(leaf + 0.1 * draw(size=leaf.shape)) for leaf in leaves])


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind == "simba" else kind for kind in KINDS]
)
def test_members_and_rows_are_independent(kind: Kind):
    network, params = built(Torso((8, 8), kind=kind), 5)
    apply = compiled(network)
    out = apply(params, OBSERVATION, ACTION)
    assert out.shape == (2, 6, 5) and not np.allclose(out[0], out[1], atol=1e-4)
    alone = apply(params, OBSERVATION[2:3], ACTION[2:3])
    np.testing.assert_allclose(alone, out[:, 2:3], rtol=1e-4, atol=1e-5)
    for leaf in jax.tree.leaves(params):
        assert leaf.shape[0] == 2


def test_simba_by_its_formula():
    network, params = built(Torso((8, 8), kind="simba"))
    params = perturbed(params)
    out = compiled(network)(params, OBSERVATION, ACTION)
    for index in range(2):
        p = member(params, index)["params"]["members"]
        x = dense(np.concatenate([OBSERVATION, ACTION], axis=1), p["torso"]["embedding"])
        blocks = p["torso"]["blocks"]
        for i in range(2):
            inner = np.maximum(dense(layer_norm(x, blocks[f"LayerNorm_{i}"]), blocks[f"Dense_{2 * i}"]), 0)
            assert inner.shape == (6, 32)
            x = x + dense(inner, blocks[f"Dense_{2 * i + 1}"])
        expected = dense(layer_norm(x, blocks["LayerNorm_2"]), p["value"])
        np.testing.assert_allclose(out[index], expected, rtol=1e-4, atol=1e-5)


def test_simbav2_by_its_formula():
    network, params = built(Torso((8, 8), kind="simbav2"))
    params = perturbed(params)
    out = compiled(network)(params, OBSERVATION, ACTION)
    for index in range(2):
        p = member(params, index)["params"]["members"]
        t, v = p["torso"], p["value"]
        shifted = np.concatenate([OBSERVATION, ACTION, np.full((6, 1), 3.0)], axis=1)
        x = unit(unit(shifted) @ t["embedding"]["unit_kernel"] * t["embedding_scale"]["scale"])
        for i in range(2):
            inner = x @ t[f"inner_{i}"]["unit_kernel"] * t[f"inner_scale_{i}"]["scale"]
            outer = unit(np.maximum(inner, 0) @ t[f"outer_{i}"]["unit_kernel"])
            step = t[f"step_{i}"]["scale"] * (1 / 3) * np.sqrt(8)  # begins at 1 / (blocks + 1)
            x = unit((1 - step) * x + step * outer)
        hidden = x @ v["inner"]["unit_kernel"] * v["scale"]["scale"]
        expected = hidden @ v["outer"]["unit_kernel"] + v["bias"]
        np.testing.assert_allclose(out[index], expected, rtol=1e-4, atol=1e-5)


def test_scales_of_simbav2_begin_as_in_the_paper():
    t = member(built(Torso((8, 8), kind="simbav2"))[1], 0)["params"]["members"]["torso"]
    np.testing.assert_allclose(t["embedding_scale"]["scale"], np.sqrt(2 / 8), rtol=1e-6)
    np.testing.assert_allclose(t["inner_scale_0"]["scale"], np.sqrt(2 / 32), rtol=1e-6)
    np.testing.assert_allclose(t["step_0"]["scale"], 1 / np.sqrt(8), rtol=1e-6)


def unit_kernels(params: Any) -> list[Any]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [leaf for path, leaf in leaves if path[-1].key == simbav2.UNIT_KERNEL]


@pytest.mark.parametrize(
    ("network", "count"),
    [
        (CriticEnsemble(2, Torso((8, 8), kind="simbav2")), 7),
        (CriticEnsemble(2, Torso((8, 8), kind="batchnorm", weight_norm=True)), 2),
        (TanhGaussian(2, Torso((8,), kind="simbav2")), 5),
        (DeterministicActor(2, Torso((8,), kind="simbav2")), 5),
    ],
)
def test_weights_have_length_one_at_the_start_and_after_every_step(network: Any, count: int):
    inputs = (OBSERVATION, ACTION) if isinstance(network, CriticEnsemble) else (OBSERVATION,)
    approximator = Approximator(network)

    def loss(params: Any) -> Any:
        return sum(
            jnp.square(x - 3.0).sum() for x in jax.tree.leaves(approximator.apply(params, *inputs))
        ), ()

    learned = jax.jit(approximator.init)(jax.random.key(0), *inputs)
    step = jax.jit(lambda learned: approximator.descend(loss, learned, 0.1)[0])
    for _ in range(3):
        kernels = unit_kernels(learned.params)
        assert len(kernels) == count
        for kernel in kernels:
            np.testing.assert_allclose(np.linalg.norm(kernel, axis=-2), 1.0, rtol=1e-5)
        before, learned = kernels, step(learned)
        assert all(
            not np.allclose(a, b, atol=1e-4)
            for a, b in zip(before, unit_kernels(learned.params), strict=True)
        )


def test_zero_stays_zero_on_the_sphere_and_has_a_gradient():
    assert float(jnp.abs(simbav2.unit(jnp.zeros((1, 4)))).max()) == 0.0
    assert np.isfinite(jax.grad(lambda x: simbav2.unit(x).sum())(jnp.zeros((1, 4)))).all()
    np.testing.assert_allclose(simbav2.unit(jnp.array([[3.0, 4.0]])), [[0.6, 0.8]], rtol=1e-6)


def test_a_score_network_of_blocks_by_its_formula():
    network = ScoreNetwork(3, 3, (8, 8), 6, (4,), torso="simba")
    level = jnp.array([1, 2, 3, 4, 5, 5])
    params = perturbed(
        jax.jit(functools.partial(initializers.init, network))(jax.random.key(0), OBSERVATION, ACTION, level)
    )
    p = jax.tree.map(np.asarray, params)["params"]
    phase = 2 * np.pi * np.asarray(level)[:, None] * p["frequencies"]
    code = np.concatenate([np.cos(phase), np.sin(phase)], axis=1)
    code = mish_of(dense(code, p["time_mlp"]["Dense_0"]))
    x = dense(np.concatenate([OBSERVATION, ACTION, code], axis=1), p)
    for i in range(2):
        inner = dense(layer_norm(x, p["rest"][f"LayerNorm_{i}"]), p["rest"][f"Dense_{2 * i}"])
        x = x + dense(mish_of(inner), p["rest"][f"Dense_{2 * i + 1}"])
    expected = dense(layer_norm(x, p["rest"]["LayerNorm_2"]), p["score"])
    np.testing.assert_allclose(
        compiled(network)(params, OBSERVATION, ACTION, level), expected, rtol=1e-3, atol=1e-4
    )
