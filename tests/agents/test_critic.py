from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agents import critic as critics
from agents.parts.types import Mean

REWARD = jnp.array([1.0, 2.0, -1.0])
DISCOUNT = jnp.array([0.99, 0.0, 0.99**3])  # one step, true termination, three steps
NEXT_VALUES = jnp.array([[10.0, 50.0, -4.0], [20.0, 40.0, -3.0]])


@pytest.mark.parametrize("td_target", [critics.td_target, jax.jit(critics.td_target)])
def test_truncation_bootstraps_and_termination_does_not(td_target: Callable[..., jax.Array]):
    # A time limit keeps its discount: nothing in the target may tell it from any other step.
    expected = [1.0 + 0.99 * 10.0, 2.0, -1.0 + 0.99**3 * -4.0]
    np.testing.assert_allclose(td_target(REWARD, DISCOUNT, NEXT_VALUES), expected, rtol=1e-6)


def test_the_target_takes_the_smallest_member():
    for order in ([0, 1], [1, 0]):
        target = critics.td_target(REWARD, DISCOUNT, NEXT_VALUES[jnp.array(order)])
        assert float(target[0]) == pytest.approx(10.9)
    three = jnp.concatenate([NEXT_VALUES, NEXT_VALUES - 5.0])
    assert float(critics.td_target(REWARD, DISCOUNT, three)[0]) == pytest.approx(1 + 0.99 * 5.0)


def test_no_gradient_flows_through_the_target():
    gradient = jax.grad(lambda values: critics.td_target(REWARD, DISCOUNT, values).sum())(NEXT_VALUES)
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("critic_loss", [critics.critic_loss, jax.jit(critics.critic_loss)])
def test_each_member_has_its_own_mean_squared_error(critic_loss: Callable[..., jax.Array]):
    values, target = jnp.array([[1.0, 2.0], [0.0, 5.0]]), jnp.array([2.0, 4.0])
    # Member 0: (1 + 4)/2; member 1: (4 + 1)/2; summed, so that a member's step does not depend on their number.
    assert float(critic_loss(values, target)) == 2.5 + 2.5
    np.testing.assert_allclose(jax.grad(critic_loss)(values, target), [[-1.0, -2.0], [-2.0, 1.0]])


def test_critic_metrics_by_hand():
    values, target = jnp.array([[1.0, 2.0], [0.0, 5.0]]), jnp.array([2.0, 4.0])
    metrics = critics.critic_metrics(values, target)
    expected = {"q_replay": 2.0, "target": 3.0, "td_error_abs": 1.5, "loss": 2.5, "disagreement": 1.0}
    assert set(metrics) == {f"critic/{name}" for name in expected}
    for name, value in expected.items():
        assert float(metrics[f"critic/{name}"].total) == pytest.approx(value)
        assert float(metrics[f"critic/{name}"].count) == 1.0


def test_polyak_by_hand():
    target, online = (
        {"a": jnp.array([0.0, 1.0]), "b": (jnp.array(2.0),)},
        {"a": jnp.ones(2), "b": (jnp.array(4.0),)},
    )
    moved = jax.jit(critics.polyak)(target, online, 0.25)
    np.testing.assert_allclose(moved["a"], [0.25, 1.0])
    assert float(moved["b"][0]) == 2.5
    np.testing.assert_array_equal(critics.polyak(target, online, 0.0)["a"], target["a"])
    np.testing.assert_array_equal(critics.polyak(target, online, 1.0)["a"], online["a"])


def test_adam_equals_optax():
    params = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.zeros(2)}
    reference = optax.adam(3e-3)
    ours, theirs = params, params
    state, reference_state = critics.adam_init(params), reference.init(params)
    step = jax.jit(critics.adam_step)
    for index in range(6):
        grads = jax.tree.map(lambda p: jnp.sin(p + index) * 10.0 ** (index - 3), params)  # noqa: B023
        ours, state = step(grads, state, ours, 3e-3)
        updates, reference_state = reference.update(grads, reference_state)
        theirs = optax.apply_updates(theirs, updates)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), ours, theirs)
    assert not np.allclose(ours["w"], params["w"], atol=1e-3)


def test_one_program_serves_every_learning_rate():
    num_traces = 0

    def step(rate: jax.Array) -> jax.Array:
        nonlocal num_traces
        num_traces += 1
        params = jnp.ones(3)
        return critics.adam_step(jnp.ones(3), critics.adam_init(params), params, rate)[0]

    jitted = jax.jit(step)
    # Adam's first step is the rate itself, whatever the gradient's size.
    np.testing.assert_allclose(jitted(jnp.float32(0.1)), 0.9, rtol=1e-5)
    np.testing.assert_allclose(jitted(jnp.float32(0.5)), 0.5, rtol=1e-5)
    assert num_traces == 1


def test_a_skipped_metric_adds_nothing_to_a_running_mean():
    updates = [critics.mean(jnp.array([1.0, 3.0])), critics.skipped(), critics.mean(jnp.array([5.0]))]
    total, count = (sum(float(entry) for entry in column) for column in zip(*updates, strict=True))
    assert total / count == pytest.approx((2.0 + 5.0) / 2)
    # Both branches of a `lax.cond` must agree in type.
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), entry) for entry in updates]
    assert isinstance(updates[1], Mean)
    assert shapes[0] == shapes[1]
