"""The critic that is exact, the angles that are measured, and the course that agents learn on, against closed forms."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agents
from agents.exact import alignment, linear_quadratic
from agents.exact.learning import Course
from agents.exact.linear_quadratic import Policy, Process
from agents.exact.quadratic import Quadratic
from agents.parts.types import Transition
from tests.agents.analytic import small_options

PROCESS = Process(
    np.array([[0.9, 0.3], [-0.2, 0.9]]),
    np.array([[0.5, 0.1], [0.0, 0.4]]),
    0.01 * np.array([[1.0, 0.5], [0.5, 1.0]]),
    np.diag([1.0, 0.5]),
    np.diag([0.3, 0.6]),
    0.9,
)
COURSE = Course(PROCESS, 0.4)
VALUE = linear_quadratic.evaluate(PROCESS, linear_quadratic.best(PROCESS)).action_value


def make(name: str, **options: Any) -> Any:
    return agents.make_agent(name, 2, 2, **small_options(name) | {"discount": 0.9} | options)


def exact(observation: jax.Array, action: jax.Array) -> jax.Array:
    joint = jnp.concatenate([observation, action])
    return joint @ jnp.asarray(VALUE.matrix, jnp.float32) @ joint + VALUE.constant


def test_transitions_are_those_of_the_process():
    batch = jax.jit(lambda key: COURSE.transitions(40_000, key))(jax.random.key(0))
    state, action, following = (
        np.asarray(x, np.float64) for x in (batch.observation, batch.action, batch.next_observation)
    )
    np.testing.assert_allclose(batch.reward, PROCESS.reward(state, action), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(batch.discount, 0.9, rtol=1e-6)
    drawn = following - state @ PROCESS.state_matrix.T - action @ PROCESS.action_matrix.T
    np.testing.assert_allclose(np.cov(drawn.T), PROCESS.noise, atol=4e-4)
    np.testing.assert_allclose(np.cov(state.T), 0.16 * np.eye(2), atol=0.005)
    assert np.abs(action).max() <= 1 and action.var() == pytest.approx(1 / 3, rel=0.02)


class Linear:
    """An agent that takes the actions of a policy without noise."""

    def __init__(self, gain: np.ndarray) -> None:
        self.gain = jnp.asarray(gain, jnp.float32)

    def act(self, state: Any, observation: jax.Array, key: jax.Array, *, mode: str) -> jax.Array:
        return observation @ self.gain.T


def test_the_simulated_value_is_the_exact_one():
    policy = Policy(np.array([[-0.5, 0.1], [0.0, -0.3]]), np.zeros((2, 2)))
    found = jax.jit(lambda key: COURSE.value(Linear(policy.gain), (), key, 4000, 60))(jax.random.key(1))
    expected = linear_quadratic.evaluate(PROCESS, policy).value.mean(0.16 * np.eye(2))
    assert float(found) == pytest.approx(expected, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qsm", "qsm-clean"])
def test_an_agent_with_an_exact_critic_learns_its_score_alone(name: str):
    agent = alignment.with_quadratic_critic(make(name))
    state = jax.jit(agent.init)(jax.random.key(0))._replace(critic=alignment.critic_state(VALUE))
    learned = jax.jit(lambda state: COURSE.learn(agent, state, jax.random.key(1), jnp.asarray(0), 2))(state)
    for before, after in zip(*map(jax.tree.leaves, (state.critic, learned.critic)), strict=True):
        np.testing.assert_array_equal(before, after)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.score.params, learned.score.params)
    assert max(jax.tree.leaves(moved)) > 1e-4


def test_an_exact_critic_knows_its_value_and_keeps_it():
    agent, state = alignment.with_quadratic_critic(make("qsm")), alignment.critic_state(VALUE)
    joint = np.random.default_rng(0).normal(size=(5, 4))
    observation, action = jnp.asarray(joint[:, :2]), jnp.asarray(joint[:, 2:])
    batch = Transition(observation, action, action[:, 0], action[:, 1], observation)

    @jax.jit
    def ask(state: Any) -> Any:
        target = agent.critic.target(state, batch, action)
        regressed, next_value, _ = agent.critic.regress(state, batch, target, 0.1)
        gradient = agent.critic.action_gradient(state.online.params, observation, action)[1]
        return agent.critic.follow(regressed, 0.5), next_value, gradient

    kept, values, gradient = ask(state)
    for before, after in zip(*map(jax.tree.leaves, (state, kept)), strict=True):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_allclose(values, np.tile(VALUE.value(joint), (2, 1)), rtol=1e-4)
    np.testing.assert_allclose(gradient, VALUE.gradient(joint)[:, 2:], rtol=1e-4, atol=1e-5)


class Predicts:
    """A denoiser of `agent`'s schedule that predicts what a function of (s, a_t, t) says."""

    def __init__(self, agent: Any, predict: Any) -> None:
        self.schedule = agent.denoiser.schedule
        self.function = predict

    def predict(self, params: Any, *inputs: Any) -> jax.Array:
        return self.function(*inputs)


class Holds:
    def __init__(self, denoiser: Predicts) -> None:
        self.denoiser = denoiser


def test_the_target_of_qsm_has_cosine_one_and_one_at_a_right_angle_has_none():
    agent, rng = make("qsm"), np.random.default_rng(0)
    observation, clean = (jnp.asarray(rng.normal(size=(64, 2)), jnp.float32) for _ in range(2))
    gradient = jax.vmap(jax.grad(exact, argnums=1))
    turn = jnp.array([[0.0, 1.0], [-1.0, 0.0]])

    @jax.jit
    def ask(key: jax.Array) -> list[alignment.Cosines]:
        predictions = (
            lambda s, a, t: -7.0 * gradient(s, a),
            lambda s, a, t: gradient(s, a) @ turn,
            lambda s, a, t: jnp.where(t[:, None] == 2, 1.0, -1.0) * gradient(s, a),
        )
        return [
            alignment.score_cosines(Holds(Predicts(agent, predict)), (), exact, observation, clean, key)
            for predict in predictions
        ]

    cosines = ask(jax.random.key(0))
    np.testing.assert_allclose(cosines[0].gradient, 1.0, atol=1e-5)
    np.testing.assert_allclose(cosines[1].gradient, 0.0, atol=1e-5)
    np.testing.assert_allclose(cosines[2].gradient, [1.0, -1.0, 1.0], atol=1e-5)
    assert cosines[0].density is None and cosines[0].exact is None


def test_the_noised_score_is_that_of_a_known_density():
    """For tau so small that the tanh is straight there, a is Gaussian, and its noised score is linear."""
    schedule, tau = make("qsm-clean").denoiser.schedule, 6e-3
    observation, noised = np.array([0.05, -0.03]), np.array([0.2, 0.1])

    @jax.jit
    def ask(observation: Any, noised: Any, level: Any, tau: Any) -> Any:
        return alignment.noised_score(schedule, exact, observation, noised, level, tau)

    policy = linear_quadratic.boltzmann(VALUE, 2, 1 / tau)
    for level in (2, 3):
        abar = schedule.abar[level - 1]
        spread = abar * policy.covariance + (1 - abar) * np.eye(2)
        expected = np.linalg.solve(spread, np.sqrt(abar) * policy.gain @ observation - noised)
        inputs = (jnp.asarray(x, jnp.float32) for x in (observation, noised))
        found = ask(*inputs, jnp.asarray(level), jnp.asarray(tau))
        np.testing.assert_allclose(found, expected, rtol=0.03)
    # At an infinite temperature u has the density of arctanh of a uniform action: symmetric, and wider than the noise.
    free = ask(jnp.zeros(2), jnp.array([0.5, -0.5]), jnp.asarray(1), jnp.asarray(1e9))
    assert float(free[0]) == pytest.approx(-float(free[1]), rel=1e-3) and -1.0 < float(free[0]) < 0.0


def test_cosines_before_a_tanh_are_by_the_unsquashed_action():
    agent, rng = make("qsm-clean"), np.random.default_rng(1)
    observation, clean = (jnp.asarray(0.3 * rng.normal(size=(12, 2)), jnp.float32) for _ in range(2))
    tau = jnp.asarray(0.05)
    gradient = jax.vmap(jax.grad(exact, argnums=1))

    def by_u(s: jax.Array, u: jax.Array, t: jax.Array) -> jax.Array:
        return -(1 - jnp.square(jnp.tanh(u))) * gradient(s, jnp.tanh(u))

    def noised(s: jax.Array, u: jax.Array, t: jax.Array) -> jax.Array:
        score = alignment.noised_score
        return -jax.vmap(lambda s, u, t: score(agent.denoiser.schedule, exact, s, u, t, tau))(s, u, t)

    one, two = (
        jax.jit(
            lambda key, predict=predict: alignment.score_cosines(
                Holds(Predicts(agent, predict)), (), exact, observation, clean, key, tau
            )
        )(jax.random.key(0))
        for predict in (by_u, noised)
    )
    np.testing.assert_allclose(one.gradient, 1.0, atol=1e-5)
    np.testing.assert_allclose(two.density, 1.0, atol=1e-5)
    np.testing.assert_allclose(two.gradient, two.exact, atol=1e-5)
    np.testing.assert_allclose(one.density, one.exact, atol=1e-5)
    # What noise does to a density turns its score away from the gradient, least where there is least of it.
    assert np.all(two.exact[1:] < two.exact[0]) and two.exact[-1] < 0.9


def test_a_quadratic_is_its_own_formula():
    rng = np.random.default_rng(2)
    matrix = rng.normal(size=(3, 3))
    quadratic = Quadratic(matrix + matrix.T, 0.7)
    x = rng.normal(size=(4, 3))
    for point, value, gradient in zip(x, quadratic.value(x), quadratic.gradient(x), strict=True):
        assert value == pytest.approx(point @ (matrix + matrix.T) @ point + 0.7)
        np.testing.assert_allclose(gradient, 2 * (matrix + matrix.T) @ point)
    assert quadratic.mean(np.cov(x.T, bias=True) + np.outer(x.mean(0), x.mean(0))) == pytest.approx(
        quadratic.value(x).mean()
    )
