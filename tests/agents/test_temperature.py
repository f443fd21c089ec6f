"""A tuned temperature holds the same spread per component whatever the number of components and the scale of Q."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agents
from agents.parts import critic, diffusion, optimizer
from agents.parts.paths import chain, fit, temperature, weights
from agents.parts.paths.plain import Drawn
from agents.parts.types import Transition
from tests.agents.analytic import with_part

TARGET_ENTROPY = -0.5
STD = np.exp(TARGET_ENTROPY) / np.sqrt(2 * np.pi * np.e)
"""Of a Gaussian of that entropy: 0.147, far from the box's bounds."""


def held_std(action_size: int, scale: float) -> float:
    """Std per component that the dual variable ends at, for a policy that is exp(Q/tau) at every tau.

    Q = -scale |a|^2 / 2; the chains have the exact score of a Gaussian of variance tau / scale before the tanh.
    """
    schedule, start = diffusion.make_schedule("vp", 3), temperature.start(10.0 * action_size**0.5)
    size = scale * jnp.sqrt(float(action_size))  # an action gradient's length, up to a constant

    def step(learned: Any, index: jax.Array) -> tuple[Any, jax.Array]:
        tau = size * jnp.exp(learned.params)
        variance = jnp.full(action_size, tau / scale)
        total = jnp.asarray(schedule.abar, jnp.float32) * variance[0] + jnp.asarray(
            schedule.sigma**2, jnp.float32
        )
        slope = jnp.asarray(schedule.sigma, jnp.float32) / total
        steps = chain.step_variance(schedule, fit.gaussian_variance(schedule, variance))
        key = jax.random.fold_in(jax.random.key(0), index)
        paths = chain.draw(schedule, lambda i, noised: slope[i] * noised, key, 64, steps, 3.0)
        value = -0.5 * scale * jnp.square(jnp.tanh(paths.unsquashed)).sum(axis=1)
        share = weights.effective((value / tau + paths.ell).reshape(-1, 8)).mean() / 8
        excess = paths.ell.mean() / action_size - TARGET_ENTROPY
        moved = temperature.step(learned, excess, share - 0.4, jnp.float32(0.02), action_size)
        return moved, jnp.sqrt(variance[0])

    return float(jax.jit(lambda: jax.lax.scan(step, start, jnp.arange(400))[1][-100:].mean())())


@pytest.mark.parametrize("action_size", [1, 6, 21, pytest.param(38, marks=pytest.mark.slow)])
def test_the_spread_per_component_means_the_same_whatever_their_number(action_size: int):
    assert held_std(action_size, 1.0) == pytest.approx(STD, rel=0.04)


def test_the_spread_per_component_means_the_same_whatever_the_scale():
    assert held_std(6, 1000.0) == pytest.approx(held_std(6, 1.0), rel=1e-3)


def held_spread(action_size: int, scale: float) -> float:
    """Std that the dual variable on the spread ends at, for a policy that is exp(Q/tau), of Q = -scale |a|^2 / 2."""
    size = scale * jnp.sqrt(float(action_size))

    def step(learned: Any, index: jax.Array) -> tuple[Any, jax.Array]:
        std = jnp.sqrt(size * jnp.exp(learned.params) / scale)
        pairs = std * jax.random.normal(jax.random.fold_in(jax.random.key(0), index), (32, 2, action_size))
        moved, _ = temperature.hold_spread(
            learned, pairs, jnp.float32(0.15), jnp.float32(1.0), jnp.float32(0.02)
        )
        return moved, std

    start = temperature.start(action_size**0.5)
    return float(jax.jit(lambda: jax.lax.scan(step, start, jnp.arange(600))[1][-200:].mean())())


@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("action_size", [1, 6, 21, 38])
def test_a_spread_is_held_whatever_the_number_of_components_and_the_scale(action_size: int, scale: float):
    assert held_spread(action_size, scale) == pytest.approx(0.15, rel=0.03)


class Quadratic(critic.Critic):
    """Q = -scale |a|^2 / 2, where `scale` is the critics' parameter."""

    def action_gradient(self, params: Any, observation: jax.Array, action: jax.Array) -> Any:
        return -0.5 * params * jnp.square(action).sum(axis=-1), -params * action


OF_ENTROPY = {"target": "weighted", "temperature": "entropy", "target_entropy_per_action": TARGET_ENTROPY}
OF_SPREAD = {"temperature": "spread", "target_spread": 0.2}


def tuned(
    action_size: int, scale: float, num_updates: int, options: dict[str, Any] = OF_ENTROPY
) -> dict[str, float]:
    """Std and metrics of a policy after on-policy updates of its score network and temperature."""
    plain: Any = agents.make_agent(
        "qsm-clean",
        1,
        action_size,
        batch_size=128,
        hidden_sizes=(128, 128),
        time_embedding_size=16,
        time_hidden_sizes=(16,),
        denoising_steps=5,
        temperature_learning_rate=5e-3,
        gradient_size_rate=0.02,
        draw_rate=0.05,
        **options,
    )
    agent: Any = with_part(plain, critic=Quadratic(plain.critic.network, plain.critic.head))
    observation, zeros = jnp.zeros((128, 1)), jnp.zeros(128)
    batch = Transition(observation, jnp.zeros((128, action_size)), zeros, zeros, observation)
    names = ("path/entropy_per_action", "path/effective_share") if options is OF_ENTROPY else ()

    def step(state: Any, index: jax.Array) -> tuple[Any, jax.Array]:
        draw_key, target_key = jax.random.split(jax.random.fold_in(jax.random.key(1), index))
        hyper, decay = state.hyperparameters, 0.02 + 0.98 * (1 - index / num_updates)
        hyper = hyper | {"temperature_learning_rate": decay * hyper["temperature_learning_rate"]}
        if options is OF_ENTROPY:
            drawn = Drawn(
                jnp.zeros(()), *agent.chains.paths(state.paths, state.average, observation, draw_key, hyper)
            )
        else:
            drawn = agent.draw(state, batch, draw_key)
        target, size, metrics = agent.score_target(
            state, scale, observation, drawn.unsquashed, target_key, drawn.ell
        )
        paths, _ = agent.chains.follow(state.paths, state.average, observation, drawn, target, metrics, hyper)
        learned, _ = optimizer.descend(agent.denoiser.loss, state.score, 3e-3 * decay, observation, target)
        average = optimizer.polyak(state.average, learned.params, hyper["draw_rate"])
        state = state._replace(score=learned, average=average, gradient_size=size, paths=paths)
        return state, jnp.stack(
            [*(metrics[name].total for name in names), metrics["score/temperature"].total]
        )

    @jax.jit
    def run(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        state, trace = jax.lax.scan(step, agent.init(key), jnp.arange(num_updates))
        actions = agent.sample(state, jnp.zeros((4000, 1)), jax.random.key(2))
        return actions, trace[-100:].mean(axis=0)

    actions, means = run(jax.random.key(0))
    std = float(jnp.sqrt(actions.var(axis=0).mean()))
    return dict(zip((*names, "tau", "std"), (*map(float, means), std), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("action_size", [1, 6, 21])
def test_learned_policies_have_the_same_spread_per_component(action_size: int):
    found = tuned(action_size, 1.0, 3000)
    assert found["std"] == pytest.approx(STD, rel=0.1)
    assert found["path/entropy_per_action"] == pytest.approx(TARGET_ENTROPY, abs=0.1)
    assert found["path/effective_share"] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("action_size", [1, 6, 21])
@pytest.mark.parametrize("target", ["fitted", "weighted"])
def test_learned_policies_have_the_spread_that_is_asked_for(target: str, action_size: int):
    found = tuned(action_size, 1.0, 3000, OF_SPREAD | {"target": target})
    assert found["std"] == pytest.approx(0.2, rel=0.1)


@pytest.mark.slow
def test_learned_policies_do_not_know_the_scale_of_q():
    one, thousand = (tuned(6, scale, 500) for scale in (1.0, 1024.0))
    assert thousand["std"] == pytest.approx(one["std"], rel=1e-3)
    assert thousand["tau"] == pytest.approx(1024 * one["tau"], rel=1e-3)
