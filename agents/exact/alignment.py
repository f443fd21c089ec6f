"""What theory says of an agent's score, measured: a critic that is exact, and the angle between score and grad Q."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from agents.exact.quadratic import Quadratic
from agents.parts import critic, diffusion, optimizer
from agents.parts.types import Metrics, Transition

Value = Callable[[jax.Array, jax.Array], jax.Array]
"""Q of one observation `[O]` and action `[A]`, `[]`."""
GRID_POINTS, GRID_END = 101, 3.0  # a component of the quadrature's grid, before a tanh


class QuadraticCritic(critic.Critic):
    """Critics of the one value (s, a)' M (s, a) + c; their parameters are the `Quadratic`, which no update changes."""

    def value(self, params: Any, observation: jax.Array, action: jax.Array) -> jax.Array:
        joint = jnp.concatenate([observation, action], axis=-1)
        value = jnp.einsum("bi,ij,bj->b", joint, params.matrix, joint) + params.constant
        return jnp.broadcast_to(value, (self.network.num_critics, *value.shape))

    def target(
        self,
        state: critic.CriticState,
        batch: Transition,
        next_action: jax.Array,
        bonus: jax.Array | None = None,
    ) -> critic.Target:
        return critic.Target(None, self.value(state.target, batch.next_observation, next_action))

    def regress(
        self, state: critic.CriticState, batch: Transition, target: critic.Target, rate: float | jax.Array
    ) -> tuple[critic.CriticState, jax.Array, Metrics]:
        return state, target.next_value, {}

    def follow(self, state: critic.CriticState, rate: float | jax.Array) -> critic.CriticState:
        return state


def with_quadratic_critic(agent: Any) -> Any:
    """`agent` with `QuadraticCritic` in the place of its networks; all else, its update too, is its own."""
    plain = agent.critic
    exact = QuadraticCritic(plain.network, plain.head)

    def init_critic(self: Any, key: jax.Array) -> critic.CriticState:
        size = self.observation_size + self.action_size
        return critic_state(Quadratic(jnp.zeros((size, size)), jnp.zeros(())))  # type: ignore[arg-type]

    members = {"critic": property(lambda self: exact), "init_critic": init_critic}
    kind = type(type(agent).__name__, (type(agent),), members)
    return kind(agent.config, agent.observation_size, agent.action_size)


def critic_state(value: Quadratic) -> critic.CriticState:
    """The state of a `QuadraticCritic` that knows `value`."""
    params = Quadratic(jnp.asarray(value.matrix, jnp.float32), jnp.asarray(value.constant, jnp.float32))  # type: ignore[arg-type]
    return critic.CriticState(optimizer.start(params), params)


class Cosines(NamedTuple):
    """Mean cosines between two vectors at noised actions, over the states and actions given, `[T]` levels."""

    gradient: jax.Array  # the network's score, and the gradient of Q
    density: jax.Array | None = None  # the network's score, and the score of exp(Q/tau) noised to that level
    exact: jax.Array | None = None  # the latter, and the gradient of Q


def score_cosines(
    agent: Any,
    params: Any,
    value: Value,
    observation: jax.Array,
    clean: jax.Array,
    key: jax.Array,
    tau: jax.Array | None = None,
) -> Cosines:
    """Cosines at every level t, at a_t = sqrt(abar_t) a_0 + sigma_t eps.

    Args:
      agent: `qsm`, or `qsm-clean`.
      params: of its score network.
      value: Q.
      observation: `[B, O]`.
      clean: a_0 `[B, A]`; of `qsm-clean` before its tanh, where the gradient of Q is that by u at a = tanh(u).
      tau: temperature `[]` of the density that `qsm-clean` is after, which is compared too, in u; None for `qsm`.
    """
    schedule = agent.denoiser.schedule

    def climbed(observation: jax.Array, action: jax.Array) -> jax.Array:
        return value(observation, action if tau is None else jnp.tanh(action))

    def at(inputs: tuple[jax.Array, jax.Array]) -> Cosines:
        level, key = inputs
        levels = jnp.full(clean.shape[0], level)
        noised = diffusion.add_noise(schedule, clean, levels, jax.random.normal(key, clean.shape))
        predicted = -agent.denoiser.predict(params, observation, noised, levels)
        gradient = jax.vmap(jax.grad(climbed, argnums=1))(observation, noised)
        if tau is None:
            return Cosines(cosine(predicted, gradient))
        over = jax.vmap(noised_score, in_axes=(None, None, 0, 0, None, None))
        score = over(schedule, value, observation, noised, level, tau)
        return Cosines(cosine(predicted, gradient), cosine(predicted, score), cosine(score, gradient))

    levels = jnp.arange(1, schedule.num_levels + 1)
    return jax.lax.map(at, (levels, jax.random.split(key, len(levels))))


def noised_score(
    schedule: diffusion.Schedule,
    value: Value,
    observation: jax.Array,
    noised: jax.Array,
    level: jax.Array,
    tau: jax.Array,
) -> jax.Array:
    """The score at u_t = `noised` `[A]` of the density of u, a = tanh(u) ~ exp(Q/tau), noised to `level`; `[A]`.

    It is E[sqrt(abar) u_0 - u_t | u_t] / sigma^2, by quadrature over a grid in all components.
    """
    sigma = jnp.asarray(schedule.sigma, jnp.float32)[level - 1]
    root = jnp.sqrt(jnp.asarray(schedule.abar, jnp.float32))[level - 1]
    line = jnp.linspace(-GRID_END, GRID_END, GRID_POINTS)
    grid = jnp.stack(jnp.meshgrid(*[line] * noised.shape[0]), axis=-1).reshape(-1, noised.shape[0])
    squashed = jnp.tanh(grid)
    log_density = jax.vmap(lambda a: value(observation, a))(squashed) / tau
    log_density = log_density + jnp.log1p(-jnp.square(squashed)).sum(axis=1)
    distance = jnp.square(noised[None] - root * grid).sum(axis=1)
    weights = jax.nn.softmax(log_density - distance / (2 * jnp.square(sigma)))
    return (root * weights @ grid - noised) / jnp.square(sigma)


def cosine(first: jax.Array, second: jax.Array) -> jax.Array:
    """Mean cosine `[]` between vectors `[B, A]`."""
    lengths = jnp.linalg.norm(first, axis=-1) * jnp.linalg.norm(second, axis=-1)
    return (jnp.sum(first * second, axis=-1) / jnp.maximum(lengths, 1e-8)).mean()
