from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from agents.parts import optimizer


def test_polyak_by_hand():
    target, online = (
        {"a": jnp.array([0.0, 1.0]), "b": (jnp.array(2.0),)},
        {"a": jnp.ones(2), "b": (jnp.array(4.0),)},
    )
    moved = jax.jit(optimizer.polyak)(target, online, 0.25)
    np.testing.assert_allclose(moved["a"], [0.25, 1.0])
    assert float(moved["b"][0]) == 2.5
    np.testing.assert_array_equal(optimizer.polyak(target, online, 0.0)["a"], target["a"])
    np.testing.assert_array_equal(optimizer.polyak(target, online, 1.0)["a"], online["a"])


def test_adam_equals_optax():
    params = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.zeros(2)}
    reference = optax.adam(3e-3)
    theirs = params
    learned, reference_state = optimizer.start(params), reference.init(params)
    step = jax.jit(optimizer.step)
    for index in range(6):
        grads = jax.tree.map(lambda p: jnp.sin(p + index) * 10.0 ** (index - 3), params)  # noqa: B023
        learned = step(learned, grads, 3e-3)
        updates, reference_state = reference.update(grads, reference_state)
        theirs = optax.apply_updates(theirs, updates)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), learned.params, theirs
        )
    assert not np.allclose(learned.params["w"], params["w"], atol=1e-3)


def test_one_program_serves_every_learning_rate():
    num_traces = 0

    def step(rate: jax.Array) -> jax.Array:
        nonlocal num_traces
        num_traces += 1
        return optimizer.step(optimizer.start(jnp.ones(3)), jnp.ones(3), rate).params

    jitted = jax.jit(step)
    # Adam's first step is the rate itself, whatever the gradient's size.
    np.testing.assert_allclose(jitted(jnp.float32(0.1)), 0.9, rtol=1e-5)
    np.testing.assert_allclose(jitted(jnp.float32(0.5)), 0.5, rtol=1e-5)
    assert num_traces == 1


def test_descend_hands_on_what_the_loss_said_of_the_former_parameters():
    def loss(params: jax.Array, scale: float) -> tuple[jax.Array, jax.Array]:
        return scale * params.sum(), params

    before = optimizer.start(jnp.array([1.0, 2.0]))
    after, said = jax.jit(lambda learned: optimizer.descend(loss, learned, 0.1, 3.0))(before)
    np.testing.assert_array_equal(said, before.params)
    # Adam's first step is the rate itself, down the slope.
    np.testing.assert_allclose(after.params, before.params - 0.1, rtol=1e-5)


def test_the_cosine_falls_from_one_to_zero_and_stays_there():
    steps = jnp.array([0, 25, 50, 100, 1000])
    expected = [1.0, 0.5 * (1 + np.sqrt(0.5)), 0.5, 0.0, 0.0]
    np.testing.assert_allclose(jax.vmap(lambda s: optimizer.cosine_decay(s, 100))(steps), expected, atol=1e-6)
