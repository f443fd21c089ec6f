"""What the tests of agents share: small agents and batches, analytic values in place of critics, and an exact chain."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import agents
from agents import critic as critics
from agents.parts.types import Transition

OBSERVATION_SIZE = 3
ACTION_SIZE = 2
SMALL = {"batch_size": 8, "hidden_sizes": (16, 16)}
SMALL_DIFFUSION = {
    "denoising_steps": 3,
    "time_embedding_size": 8,
    "time_hidden_sizes": (8,),
    "score_decay_steps": 100,
}


def small_agent(name: str, **overrides: Any) -> Any:
    """Agent `name` for 3 observations and 2 actions, with networks that compile and run fast."""
    options = SMALL | (SMALL_DIFFUSION if agents.AGENTS[name].family == "diffusion" else {}) | overrides
    return agents.make_agent(name, OBSERVATION_SIZE, ACTION_SIZE, **options)


@functools.cache
def initial(agent: Any, seed: int = 0) -> Any:
    """The agent's initial state, computed once."""
    return jax.jit(agent.init)(jax.random.key(seed))


def with_hyperparameters(state: Any, **values: float) -> Any:
    """`state` with other hyperparameters, which need no other program."""
    changed = {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}
    assert set(changed) <= set(state.hyperparameters)
    return state._replace(hyperparameters=state.hyperparameters | changed)


class CompiledUpdate:
    """An agent's jitted `update`, counting how often it is traced."""

    def __init__(self, agent: Any) -> None:
        self.num_traces = 0

        def traced(*inputs: Any) -> Any:
            self.num_traces += 1
            return agent.update(*inputs)

        self.call = jax.jit(traced)


@functools.cache
def compiled_update(agent: Any) -> CompiledUpdate:
    """One program for all tests of equal agents; most of these tests' time is compilation."""
    return CompiledUpdate(agent)


def update(
    agent: Any, state: Any = None, *, step: int = 1, seed: int = 1, batch: Transition | None = None
) -> Any:
    """State and metrics after one update from `state`, or else from the initial state."""
    state = initial(agent) if state is None else state
    batch = small_batch(0) if batch is None else batch
    return compiled_update(agent).call(state, batch, jax.random.key(seed), jnp.asarray(step))


def distance(first: Any, second: Any) -> float:
    """Largest difference between two trees."""
    return max(
        float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True)
    )


def small_batch(seed: int, size: int = 8, lead: tuple[int, ...] = ()) -> Transition:
    """Random transitions `[*lead, size, ...]`, about a fifth of them terminal."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(*lead, *shape)), jnp.float32)

    discount = jnp.asarray(0.99 * (rng.uniform(size=(*lead, size)) > 0.2), jnp.float32)
    action = jnp.asarray(rng.uniform(-1, 1, (*lead, size, ACTION_SIZE)), jnp.float32)
    return Transition(
        normal(size, OBSERVATION_SIZE), action, normal(size), discount, normal(size, OBSERVATION_SIZE)
    )


def with_gradient(agent: Any, gradient: Callable[[jax.Array], jax.Array]) -> Any:
    """`agent` whose value has `gradient` by the action, `[B, A]` to `[B, A]`, instead of a learned critic's."""

    class Analytic(type(agent)):
        def action_gradient(self, critic_params: Any, observation: jax.Array, action: jax.Array) -> Any:
            return jnp.zeros(action.shape[0]), gradient(action)

    return Analytic(agent.config, agent.observation_size, agent.action_size)


def train_score(
    agent: Any,
    state: Any,
    key: jax.Array,
    num_steps: int,
    clean: Callable[[Any, jax.Array], jax.Array],
    *,
    plain: bool = False,
) -> Any:
    """Trains only the score network of `agent`: its own target, loss and slow copy; actions from `clean(state, key)`.

    The learning rate falls linearly to zero, so that what is left at the end is the fixed point and not Adam's noise.
    `plain` takes the noise itself for the target: the network then learns the distribution of the clean actions.
    """

    def step(state: Any, index: jax.Array) -> tuple[Any, None]:
        clean_key, target_key = jax.random.split(jax.random.fold_in(key, index))
        action = clean(state, clean_key)
        observation = jnp.zeros((action.shape[0], agent.observation_size))
        target, gradient_size, _ = agent.score_target(state, (), observation, action, target_key)
        if plain:
            target = target._replace(noise=denoising_target(agent.schedule, action, target))
        grads, _ = jax.grad(agent.score_loss, has_aux=True)(state.score_params, observation, target)
        rate = state.hyperparameters["score_learning_rate"] * (1 - index / num_steps)
        params, optimizer = critics.adam_step(grads, state.score_optimizer, state.score_params, rate)
        state = state._replace(score_params=params, score_optimizer=optimizer, gradient_size=gradient_size)
        return state._replace(draw_params=agent.next_draw_params(state, params)), None

    state, _ = jax.lax.scan(step, state, jnp.arange(num_steps))
    return state


def denoising_target(schedule: Any, action: jax.Array, target: Any) -> jax.Array:
    """The noise in `target.noised`, by the forward equation."""
    root = jnp.sqrt(jnp.asarray(schedule.abar, jnp.float32))[target.level - 1][:, None]
    sigma = jnp.asarray(schedule.sigma, jnp.float32)[target.level - 1][:, None]
    return (target.noised - root * action) / sigma


class Chain:
    """The vp chain and its reverse moments, written from the equations and not from agents/diffusion.py."""

    def __init__(self, num_levels: int, step_variance: str = "beta") -> None:
        t = np.arange(1, num_levels + 1)
        self.alpha = np.exp(-0.1 / num_levels - 9.9 * (2 * t - 1) / (2 * num_levels**2))
        self.abar = np.array([np.prod(self.alpha[:i]) for i in t])
        self.sigma = np.sqrt(1 - self.abar)
        before = np.append(1.0, self.abar[:-1])
        beta = 1 - self.alpha
        self.variance = beta if step_variance == "beta" else beta * (1 - before) / (1 - self.abar)

    def run(self, slope: np.ndarray, offset: np.ndarray) -> tuple[float, float]:
        """Mean and variance of a_0 when the predicted noise is `slope_t a_t + offset_t`; a_T ~ N(0, 1).

        a_{t-1} = (a_t - beta_t / sigma_t eps) / sqrt(alpha_t) + noise, none at t = 1 (Ho et al. 2020, algorithm 2).
        """
        mean, variance = 0.0, 1.0
        for i in reversed(range(len(self.alpha))):
            share = (1 - self.alpha[i]) / self.sigma[i]
            factor = (1 - share * slope[i]) / np.sqrt(self.alpha[i])
            mean = factor * mean - share * offset[i] / np.sqrt(self.alpha[i])
            variance = factor**2 * variance + (self.variance[i] if i > 0 else 0.0)
        return mean, variance

    def exact_score(self, mean: float, variance: float) -> tuple[np.ndarray, np.ndarray]:
        """Slope and offset of the exact noise prediction for a Gaussian a_0."""
        slope = self.sigma / (self.abar * variance + self.sigma**2)
        return slope, -slope * np.sqrt(self.abar) * mean

    def clean_target(
        self, drawn: tuple[float, float], mean: float, variance: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Slope and offset of E[sigma^2 eps - sigma sqrt(abar) grad | a_t] for a_0 drawn from a Gaussian.

        grad = -(a_0 - mean) / variance is the target's score; `drawn` is the mean and variance of the policy.
        """
        m, v = drawn
        root = np.sqrt(self.abar)
        total = self.abar * v + self.sigma**2
        # a_0 and eps given a_t: m + root v / total (a_t - root m) and sigma / total (a_t - root m).
        slope = self.sigma**3 / total + self.sigma * root / variance * (root * v / total)
        return slope, -slope * root * m + self.sigma * root / variance * (m - mean)

    def on_policy_fixed_point(self, mean: float, variance: float) -> tuple[float, float]:
        """Mean and std of the policy that clean-gradient regression on its own samples leaves unchanged."""
        m, v = mean, variance
        for _ in range(1000):
            next_m, next_v = self.run(*self.clean_target((m, v), mean, variance))
            m, v = 0.9 * m + 0.1 * next_m, 0.9 * v + 0.1 * next_v
        return m, v**0.5
