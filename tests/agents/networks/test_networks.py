from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from agents.networks import initializers
from agents.networks.actors import DeterministicActor, TanhGaussian
from agents.networks.critics import CriticEnsemble
from agents.networks.score import ScoreNetwork
from agents.networks.torsos import MLP, Torso, mish


def critic_inputs(batch: int = 6) -> tuple[jax.Array, jax.Array]:
    observation_key, action_key = jax.random.split(jax.random.key(7))
    return jax.random.normal(observation_key, (batch, 3)), jax.random.normal(action_key, (batch, 2))


@functools.cache
def jitted(network: nn.Module, method: str | None) -> Any:
    return jax.jit(functools.partial(network.apply, method=method))


def apply(network: nn.Module, *inputs: Any, method: str | None = None) -> Any:
    """`network.apply` in one compiled program, much faster to a first result than operation by operation."""
    return jitted(network, method)(*inputs)


def initialised(network: nn.Module, key: jax.Array, *inputs: Any) -> Any:
    return jax.jit(functools.partial(initializers.init, network))(key, *inputs)


@functools.cache
def critic(num_critics: int, layer_norm: bool = False) -> tuple[CriticEnsemble, Any]:
    ensemble = CriticEnsemble(num_critics, Torso((8, 8), layer_norm))
    return ensemble, initialised(ensemble, jax.random.key(0), *critic_inputs())


@functools.cache
def score_network(
    **options: Any,
) -> tuple[ScoreNetwork, Any, tuple[jax.Array, jax.Array, jax.Array]]:
    settings: dict[str, Any] = {"sizes": (16, 8), "time_embedding_size": 6, "time_sizes": (5, 4)} | options
    network = ScoreNetwork(observation_size=3, action_size=2, **settings)
    inputs = (*critic_inputs(), jnp.array([1, 2, 3, 4, 5, 5]))
    return network, initialised(network, jax.random.key(1), *inputs), inputs


class Marked(nn.Module):
    """Hidden layers and a linear one of size 3, all marked to be orthogonal."""

    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3, kernel_init=initializers.orthogonal(0.5))(MLP(self.sizes)(x))


class Plain(nn.Module):
    """Layers with initializers of their own, beside one that is marked; or none that is."""

    with_marked: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(256, name="plain")(x)
        x = nn.Dense(8, kernel_init=nn.initializers.constant(3.0), name="constant")(x)
        return nn.Dense(4, kernel_init=initializers.hidden_init, name="marked")(x) if self.with_marked else x


# ---- Initialisation -----------------------------------------------------------------------------------------------


def test_kernels_are_orthogonal_and_scaled():
    """Tall, wide and square ones, alone and in ensembles; hidden ones by sqrt(2), the last by its own scale."""
    mlp = Marked((12, 12, 5))
    params = initialised(mlp, jax.random.key(0), jnp.zeros((1, 4)))["params"]
    kernels = [*(params["MLP_0"][f"Dense_{i}"]["kernel"] for i in range(3)), params["Dense_0"]["kernel"]]
    ensemble = initialised(CriticEnsemble(2, Torso((8, 8))), jax.random.key(1), *critic_inputs())
    members = [leaf for leaf in jax.tree.leaves(ensemble) if leaf.ndim == 3]
    assert [leaf.shape for leaf in (*kernels, *members)] == [
        *((4, 12), (12, 12), (12, 5), (5, 3)),
        *((2, 5, 8), (2, 8, 8), (2, 8, 1)),
    ]
    scales = [*(math.sqrt(2), math.sqrt(2), math.sqrt(2), 0.5), *(math.sqrt(2), math.sqrt(2), 1.0)]
    for stack, scale in zip((*kernels, *members), scales, strict=True):
        for kernel in np.asarray(stack, np.float64).reshape(-1, *stack.shape[-2:]):
            x = kernel / scale
            gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
            np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-5)
    biases = [leaf for leaf in jax.tree.leaves((params, ensemble)) if leaf.shape[-1:] and leaf.ndim < 2]
    assert biases and all(np.all(leaf == 0) for leaf in biases)


@pytest.mark.parametrize("with_marked", [True, False])
def test_only_marked_kernels_are_drawn_anew(with_marked: bool):
    """Any other module is as its own `init` makes it: once each kernel was multiplied by an orthogonal matrix."""
    network, x = Plain(with_marked), jnp.zeros((1, 64))
    params = initialised(network, jax.random.key(0), x)["params"]
    rest_key = jax.random.split(jax.random.key(0))[0]
    own = nn.meta.unbox(jax.jit(network.init)(rest_key, x))["params"]
    for name in ("plain", "constant"):
        np.testing.assert_array_equal(params[name]["kernel"], own[name]["kernel"])
    assert float(np.sqrt(np.square(params["plain"]["kernel"]).mean())) == pytest.approx(1 / 8, rel=0.05)
    np.testing.assert_array_equal(params["constant"]["kernel"], 3.0)
    assert ("marked" in params) == with_marked
    if with_marked:
        kernel = np.asarray(params["marked"]["kernel"]) / math.sqrt(2)
        np.testing.assert_allclose(kernel.T @ kernel, np.eye(4), atol=1e-5)


def test_a_module_without_kernels_is_as_its_own_init_makes_it():
    params = initialised(nn.LayerNorm(), jax.random.key(0), jnp.zeros((1, 4)))["params"]
    np.testing.assert_array_equal(params["scale"], 1.0)
    assert jax.tree.leaves(initialised(MLP(()), jax.random.key(0), jnp.zeros((1, 4)))) == []


def test_orthogonal_matrices_are_uniformly_distributed():
    """4,000 rotations and reflections of three dimensions: columns uniform on the sphere, half of them mirrored."""
    (x,) = jax.jit(initializers.haar, static_argnums=1)(jax.random.key(2), ((4000, 3, 3),))
    x = np.asarray(x, np.float64)
    assert abs((np.linalg.det(x) > 0).mean() - 0.5) < 0.03
    for column in range(3):
        for row in range(3):
            # Archimedes: a coordinate of a uniform point on the sphere is uniform in [-1, 1].
            assert stats.kstest(x[:, row, column], stats.uniform(-1, 2).cdf).pvalue > 1e-3


# ---- Critics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer_norm", [False, True])
def test_members_differ_at_initialisation(layer_norm: bool):
    ensemble, params = critic(3, layer_norm)
    values = apply(ensemble, params, *critic_inputs())
    assert values.shape == (3, 6, 1)
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 3]
    assert len(kernels) == 3
    for i in range(3):
        for j in range(i):
            assert not np.allclose(values[i], values[j], atol=1e-3)
            assert all(not np.allclose(kernel[i], kernel[j], atol=1e-3) for kernel in kernels)


def test_a_member_has_no_gradient_in_another():
    ensemble, params = critic(3)

    def loss(params: Any, member: int) -> jax.Array:
        return jnp.square(apply(ensemble, params, *critic_inputs())[member] - 1.0).mean()

    for member in range(3):
        for leaf in jax.tree.leaves(jax.grad(loss)(params, member)):
            for other in range(3):
                assert (np.abs(leaf[other]).max() > 0) == (other == member)


def test_a_member_is_a_plain_critic_over_observation_and_action():
    ensemble, params = critic(3)
    values = apply(ensemble, params, *critic_inputs())
    members = params["params"]["members"]
    layers = [members["torso"]["Dense_0"], members["torso"]["Dense_1"], members["value"]]
    for member in range(3):
        x = np.concatenate(critic_inputs(), axis=1)
        for place, layer in enumerate(layers):
            x = x @ layer["kernel"][member] + np.asarray(layer["bias"][member])[None]
            x = x if place == 2 else np.maximum(x, 0)
        np.testing.assert_allclose(values[member], x, rtol=1e-5, atol=1e-6)


def test_the_output_is_as_wide_as_the_head_asks():
    wide = CriticEnsemble(2, Torso((8,)), output_size=51)
    params = initialised(wide, jax.random.key(0), *critic_inputs())
    assert apply(wide, params, *critic_inputs()).shape == (2, 6, 51)


# ---- Activation ---------------------------------------------------------------------------------------------------


def test_mish_equals_its_definition():
    x = np.concatenate([np.linspace(-1000, 1000, 4001), np.linspace(-30, 30, 6001)])
    expected = x * np.tanh(np.logaddexp(0.0, x))
    for function in (mish, jax.jit(mish)):
        np.testing.assert_allclose(function(jnp.asarray(x, jnp.float32)), expected, rtol=2e-6, atol=1e-30)


def test_the_gradient_of_mish_equals_its_definition_and_stays_finite():
    x = np.concatenate([[-1000.0, -100.0, 20.0, 100.0, 1000.0], np.linspace(-15, 19.9, 1000)])
    softplus = np.logaddexp(0.0, x)
    sigmoid = 0.5 + 0.5 * np.tanh(x / 2)
    expected = np.tanh(softplus) + x * sigmoid / np.cosh(np.minimum(softplus, 300)) ** 2
    gradient = jax.vmap(jax.grad(mish))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


# ---- Score network ------------------------------------------------------------------------------------------------


def test_score_network_split_equals_its_call():
    network, params, (observation, action, level) = score_network()
    whole = apply(network, params, observation, action, level)
    assert whole.shape == (6, 2)
    observation_part = apply(network, params, observation, method="encode_observation")
    level_part = apply(network, params, jnp.arange(1, 6), method="encode_level")
    parts = apply(network, params, observation_part, level_part[level - 1], action, method="denoise")
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)
    one_level = apply(network, params, observation_part, level_part[2][None], action, method="denoise")
    same_level = apply(network, params, observation, action, jnp.full((6,), 3))
    np.testing.assert_allclose(one_level, same_level, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("time_sizes", [(5, 4), ()])
def test_score_network_is_dense_over_observation_action_and_time_code(time_sizes: tuple[int, ...]):
    network, params, (observation, action, level) = score_network(time_sizes=time_sizes)
    weights = params["params"]
    phase = 2 * np.pi * np.asarray(level)[:, None] * np.asarray(weights["frequencies"])[None]
    code = np.concatenate([np.cos(phase), np.sin(phase)], axis=1)

    def dense(x: np.ndarray, layer: Any) -> np.ndarray:
        return x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])[None]

    def mish_of(x: np.ndarray) -> np.ndarray:
        return x * np.tanh(np.logaddexp(0.0, x))

    for index in range(len(time_sizes)):
        code = mish_of(dense(code, weights["time_mlp"][f"Dense_{index}"]))
    x = mish_of(dense(np.concatenate([observation, action, code], axis=1), weights))
    assert weights["kernel"].shape == (3 + 2 + (4 if time_sizes else 6), 16)
    expected = dense(mish_of(dense(x, weights["rest"]["Dense_0"])), weights["score"])
    np.testing.assert_allclose(
        apply(network, params, observation, action, level), expected, rtol=1e-4, atol=1e-5
    )


def test_score_network_normalises_every_hidden_layer_if_asked():
    network, params, inputs = score_network(layer_norm=True)
    assert "first_norm" in params["params"] and "LayerNorm_0" in params["params"]["rest"]
    # A first layer that is scaled as a whole is scaled back by the norm.
    scaled = jax.tree.map(lambda leaf: leaf, params)
    scaled["params"]["kernel"] = 1000.0 * scaled["params"]["kernel"]
    expected = apply(network, params, *inputs)
    np.testing.assert_allclose(apply(network, scaled, *inputs), expected, rtol=1e-3, atol=1e-3)


def test_score_network_tells_levels_apart():
    network, params, (observation, action, _) = score_network()
    outputs = [apply(network, params, observation, action, jnp.full((6,), level)) for level in range(1, 6)]
    for i in range(5):
        for j in range(i):
            assert not np.allclose(outputs[i], outputs[j], atol=1e-3)


# ---- Actors -------------------------------------------------------------------------------------------------------


def test_tanh_gaussian_holds_its_log_std_to_the_limits():
    actor = TanhGaussian(2, Torso((8,)))
    observation = critic_inputs()[0]
    params = initialised(actor, jax.random.key(0), observation)
    output = params["params"]["unsquashed"]
    for bias, limit in ((-100.0, -20.0), (100.0, 2.0)):
        output["bias"] = jnp.full((4,), bias)
        mean, log_std = apply(actor, params, observation)
        assert mean.shape == log_std.shape == (6, 2)
        np.testing.assert_array_equal(log_std, limit)
        np.testing.assert_allclose(mean, bias, atol=20)


def test_deterministic_actor_starts_in_the_middle_and_stays_in_the_box():
    actor = DeterministicActor(2, Torso((8,)))
    observation = critic_inputs()[0]
    params = initialised(actor, jax.random.key(0), observation)
    assert float(jnp.abs(apply(actor, params, observation)).max()) < 0.1
    assert float(jnp.abs(apply(actor, params, 1e4 * observation)).max()) <= 1.0
