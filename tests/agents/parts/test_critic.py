"""Critics behind their seam: targets, errors and steps by hand, with analytic values and with networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.networks.critics import CriticEnsemble
from agents.networks.torsos import Torso
from agents.parts.critic import Critic, Target
from agents.parts.heads import Scalar
from agents.parts.types import Transition
from tests.agents.analytic import AnalyticCritic, critic_state, distance, small_batch

HEAD = Scalar()
REWARD = jnp.array([1.0, 2.0, -1.0])
DISCOUNT = jnp.array([0.99, 0.0, 0.99**3])  # one step, true termination, three steps
NEXT_OUT = jnp.array([[10.0, 50.0, -4.0], [20.0, 40.0, -3.0]])[..., None]
NETWORK = CriticEnsemble(2, Torso((16, 16)))
LEARNED = Critic(NETWORK, HEAD)


def head_target(next_out: jax.Array, bonus: jax.Array | None = None) -> jax.Array:
    return HEAD.target(REWARD, DISCOUNT, next_out, bonus)


# ---- The scalar head ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [head_target, jax.jit(head_target)])
def test_truncation_bootstraps_and_termination_does_not(target: Callable[..., jax.Array]):
    # A time limit keeps its discount: nothing in the target may tell it from any other step.
    expected = [1.0 + 0.99 * 10.0, 2.0, -1.0 + 0.99**3 * -4.0]
    np.testing.assert_allclose(target(NEXT_OUT), expected, rtol=1e-6)


def test_the_target_takes_the_smallest_member():
    for order in ([0, 1], [1, 0]):
        assert float(head_target(NEXT_OUT[jnp.array(order)])[0]) == pytest.approx(10.9)
    three = jnp.concatenate([NEXT_OUT, NEXT_OUT - 5.0])
    assert float(head_target(three)[0]) == pytest.approx(1 + 0.99 * 5.0)


def test_the_bonus_is_discounted_with_the_value():
    bonus = jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(
        head_target(NEXT_OUT, bonus), head_target(NEXT_OUT) + DISCOUNT * bonus, rtol=1e-6
    )


def test_errors_are_squared_and_each_members_own():
    values, target = jnp.array([[1.0, 2.0], [0.0, 5.0]]), jnp.array([2.0, 4.0])
    np.testing.assert_array_equal(HEAD.errors(values[..., None], target), [[1.0, 4.0], [4.0, 1.0]])
    np.testing.assert_array_equal(HEAD.value(values[..., None]), values)
    np.testing.assert_array_equal(HEAD.target_value(target), target)


# ---- The ensemble -------------------------------------------------------------------------------------------------


def constant(params: Any, observation: jax.Array, action: jax.Array) -> jax.Array:
    """Critics that answer their own parameter `[E]`."""
    return jnp.broadcast_to(params[:, None], (params.shape[0], action.shape[0]))


def two_transitions(reward: list[float]) -> Transition:
    return small_batch(0, size=2)._replace(reward=jnp.array(reward), discount=jnp.full((2,), 0.5))


def test_the_target_is_of_the_slow_critics_at_the_next_action():
    def values(params: Any, observation: jax.Array, action: jax.Array) -> jax.Array:
        return params[:, None] * (observation.sum(axis=1) + 10 * action.sum(axis=1))[None]

    critic, batch = AnalyticCritic(NETWORK, HEAD, values), two_transitions([1.0, 2.0])
    state = critic_state(jnp.array([1.0, 3.0]))._replace(target=jnp.array([2.0, 5.0]))
    next_action = jnp.array([[0.1, 0.2], [-0.3, -0.4]])
    target = critic.target(state, batch, next_action)
    at_next = np.asarray(batch.next_observation).sum(axis=1) + 10 * np.asarray(next_action).sum(axis=1)
    np.testing.assert_allclose(target.next_value, [2 * at_next, 5 * at_next], rtol=1e-5)
    expected = np.asarray(batch.reward) + 0.5 * np.minimum(2 * at_next, 5 * at_next)
    np.testing.assert_allclose(target.content, expected, rtol=1e-5)


def test_no_gradient_flows_through_the_target():
    batch = two_transitions([1.0, 2.0])

    def total(params: jax.Array) -> jax.Array:
        critic = AnalyticCritic(NETWORK, HEAD, constant)
        return critic.target(critic_state(params), batch, batch.action).content.sum()

    np.testing.assert_array_equal(jax.grad(total)(jnp.array([1.0, 2.0])), 0.0)


def test_members_step_towards_the_target_each_for_itself_and_metrics_are_of_before():
    critic, batch = AnalyticCritic(NETWORK, HEAD, constant), two_transitions([0.0, 0.0])
    state = critic_state(jnp.array([1.0, 5.0]))
    target = Target(jnp.array([2.0, 4.0]), jnp.array([[7.0, 9.0], [1.0, 3.0]]))
    new_state, next_value, metrics = critic.regress(state, batch, target, 0.25)
    # One member lies below its target and one above it; Adam's first step is the rate itself.
    np.testing.assert_allclose(new_state.online.params, [1.25, 4.75], rtol=1e-5)
    np.testing.assert_array_equal(new_state.target, state.target)
    np.testing.assert_array_equal(next_value, target.next_value)
    expected = {"q_replay": 3.0, "target": 3.0, "td_error_abs": 2.0, "loss": 5.0, "disagreement": 2.0}
    assert set(metrics) == {f"critic/{name}" for name in expected}
    for name, value in expected.items():
        assert float(metrics[f"critic/{name}"].total) == pytest.approx(value), name
        assert float(metrics[f"critic/{name}"].count) == 1.0
    followed = critic.follow(new_state, 0.5)
    np.testing.assert_allclose(followed.target, [1.125, 4.875], rtol=1e-5)
    np.testing.assert_array_equal(followed.online.params, new_state.online.params)


def test_a_members_step_does_not_depend_on_the_number_of_members():
    batch, target = two_transitions([0.0, 0.0]), Target(jnp.array([2.0, 4.0]), jnp.zeros((1, 2)))

    def gradient(params: jax.Array) -> np.ndarray:
        critic = AnalyticCritic(NETWORK, HEAD, constant)
        state, _, _ = critic.regress(critic_state(params), batch, target, 0.0)
        mu = next(leaf for leaf in jax.tree.leaves(state.online.optimizer) if leaf.shape == params.shape)
        return np.asarray(mu)  # a tenth of the gradient, after Adam's first step

    np.testing.assert_allclose(
        gradient(jnp.array([1.0, 1.0, 9.0]))[0], gradient(jnp.array([1.0]))[0], rtol=1e-6
    )


def test_smallest_first_and_gradient_by_hand():
    def values(params: Any, observation: jax.Array, action: jax.Array) -> jax.Array:
        difference = action.sum(axis=1)
        return jnp.stack([difference, -3.0 * difference])

    critic = AnalyticCritic(NETWORK, HEAD, values)
    observation, action = jnp.zeros((2, 3)), jnp.array([[1.0, 0.5], [-1.0, 0.0]])
    np.testing.assert_allclose(critic.reduced_value((), observation, action), [-4.5, -1.0])
    np.testing.assert_allclose(critic.first_value((), observation, action), [1.5, -1.0])
    value, gradient = critic.action_gradient((), observation, action)
    np.testing.assert_allclose(value, [-1.5, 1.0])
    np.testing.assert_allclose(gradient, np.full((2, 2), -1.0))


def test_the_first_member_alone_is_the_first_of_all():
    batch = small_batch(0)
    state = jax.jit(LEARNED.init_state)(jax.random.key(0), batch.observation, batch.action)
    assert distance(state.online.params, state.target) == 0.0
    inputs = state.online.params, batch.observation, batch.action
    values = jax.jit(LEARNED.value)(*inputs)
    assert values.shape == (2, 8) and not np.allclose(values[0], values[1], atol=1e-3)
    np.testing.assert_allclose(jax.jit(LEARNED.first_value)(*inputs), values[0], rtol=1e-5, atol=1e-6)


def test_a_network_may_project_its_parameters_after_each_step():
    """As for weights that are kept on a sphere: no agent knows of it."""

    class OnSphere(CriticEnsemble):
        def project(self, params: Any) -> Any:
            return jax.tree.map(lambda leaf: leaf / jnp.maximum(jnp.linalg.norm(leaf), 1e-12), params)

    critic, batch = Critic(OnSphere(2, Torso((4,))), HEAD), small_batch(0)

    @jax.jit
    def step(key: jax.Array) -> Any:
        state = critic.init_state(key, batch.observation, batch.action)
        target = critic.target(state, batch, batch.action)
        return critic.regress(state, batch, target, 0.1)[0]

    for leaf in jax.tree.leaves(step(jax.random.key(0)).online.params):
        assert float(jnp.linalg.norm(leaf)) == pytest.approx(1.0, rel=1e-5)
