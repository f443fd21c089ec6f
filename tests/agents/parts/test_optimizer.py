from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from agents.parts import optimizer
from tests.agents.analytic import small_agent


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


# ---- Rules ----------------------------------------------------------------------------------------------------------


def stepped(rule: optimizer.Rule, gradients: list[dict], rate: float = 0.1) -> tuple[dict, list[dict]]:
    """Parameters after each of `gradients`, and those before."""
    params = {
        "kernel": jnp.array([[1.0, -2.0]]),
        "bias": jnp.array([3.0]),
        "unit_kernel": jnp.array([[0.6], [0.8]]),
    }
    learned, after = optimizer.start(params), []
    step = jax.jit(functools.partial(optimizer.step, rule=rule))
    for gradient in gradients:
        learned = step(learned, params | gradient, rate)
        after.append(learned.params)
    return params, after


GRADIENTS = [
    {"kernel": jnp.array([[3.0, 0.0]]), "bias": jnp.array([4.0]), "unit_kernel": jnp.zeros((2, 1))},
    {"kernel": jnp.array([[0.3, 0.1]]), "bias": jnp.array([-0.4]), "unit_kernel": jnp.zeros((2, 1))},
]


def test_weight_decay_pulls_kernels_beside_adam():
    params, plain = stepped(optimizer.PLAIN, GRADIENTS[:1])
    _, decayed = stepped(optimizer.Rule(weight_decay=0.5), GRADIENTS[:1])
    np.testing.assert_allclose(
        decayed[0]["kernel"], plain[0]["kernel"] - 0.1 * 0.5 * params["kernel"], rtol=1e-6
    )
    for name in ("bias", "unit_kernel"):
        np.testing.assert_array_equal(decayed[0][name], plain[0][name])


def test_a_long_gradient_is_shortened_as_a_whole_and_a_short_one_is_not():
    short = [jax.tree.map(lambda g: g / 5, GRADIENTS[0]), GRADIENTS[1]]  # of length one, and below
    _, clipped = stepped(optimizer.Rule(gradient_clip=1.0), GRADIENTS)
    _, expected = stepped(optimizer.PLAIN, short)
    for one, other in zip(clipped, expected, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one, other)


def test_the_learning_rate_falls_linearly_and_stays():
    rule = optimizer.Rule(decay_steps=4, last_rate=0.2)
    rates = [float(rule.rate(0.5, jnp.array(count))) for count in (0, 1, 2, 4, 9)]
    np.testing.assert_allclose(rates, [0.5, 0.4, 0.3, 0.1, 0.1], rtol=1e-6)
    # Of the second step, after one other.
    _, plain = stepped(optimizer.PLAIN, GRADIENTS)
    _, falling = stepped(rule, GRADIENTS)
    np.testing.assert_allclose(falling[0]["bias"], plain[0]["bias"])
    np.testing.assert_allclose(
        falling[1]["bias"] - falling[0]["bias"], 0.8 * (plain[1]["bias"] - plain[0]["bias"]), rtol=1e-5
    )


def test_beta1_is_that_of_optax():
    reference = optax.adam(0.1, b1=0.5)
    params, after = stepped(optimizer.Rule(beta1=0.5), GRADIENTS)
    state = reference.init(params)
    for gradient, got in zip(GRADIENTS, after, strict=True):
        updates, state = reference.update(gradient, state)
        params = optax.apply_updates(params, updates)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, params)


def test_the_options_of_an_agent_are_its_rule():
    options = {"weight_decay": 0.1, "gradient_clip": 2.0, "learning_rate_decay_steps": 7, "adam_beta1": 0.5}
    agent = small_agent("qsm", **options)
    rule = optimizer.Rule(0.5, 0.1, 2.0, 7, 0.1)
    assert agent.rule == agent.critic.rule == rule
    assert agent.denoiser.rule == dataclasses.replace(rule, decay_steps=0)  # it has a decay of its own
    assert small_agent("sac", **options).policy.rule == small_agent("td3", **options).actor.rule == rule
    assert dataclasses.replace(small_agent("sac").rule, last_rate=0.0) == optimizer.PLAIN
