"""What the tests of agents share: small agents and batches, analytic values in place of critics, and an exact chain."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import agents
from agents.parts import critic, optimizer
from agents.parts.types import Transition
from tests.agents.exact_chain import Chain

OBSERVATION_SIZE = 3
ACTION_SIZE = 2
SMALL = {
    "batch_size": 8,
    "hidden_sizes": (16, 16),
    "denoising_steps": 3,
    "time_embedding_size": 8,
    "time_hidden_sizes": (8,),
    "score_decay_steps": 100,
    "chains_per_state": 4,
}
"""Options that compile and run fast, for agents that have them."""
LONG_RUN: Any = {"xla_backend_optimization_level": 2}
"""Compiler options of a program that runs for longer than it compiles, where tests/conftest.py optimizes nothing."""


VARIANTS: dict[str, dict[str, Any]] = {
    "sac+sphere": {
        "critic_torso": "simbav2",
        "actor_torso": "simbav2",
        "critic_head": "c51",
        "num_atoms": 11,
        "normalize_rewards": True,
        "rescale_targets": True,
    },
    "qsm-clean+blocks": {
        "critic_torso": "simba",
        "actor_torso": "simba",
        "critic_head": "hl_gauss",
        "num_atoms": 11,
    },
    "qsm-clean+fitted": {"target": "fitted", "prediction": "velocity"},
    "qsm+steps": {"acting_sampler": "dpm++", "acting_steps": 2},
    "diffusion-pg+steps": {"acting_sampler": "ddim", "acting_steps": 2, "ddim_eta": 0.5},
    "td3+batches": {
        "critic_torso": "batchnorm",
        "critic_weight_norm": True,
        "critic_reduction": "mean_std",
        "weight_decay": 1e-3,
        "gradient_clip": 10.0,
        "learning_rate_decay_steps": 1000,
    },
}
"""Agents with critics and actors of other kinds, which owe the loop the same."""


def small_agent(name: str, **overrides: Any) -> Any:
    """Agent `name`, or one of `VARIANTS`, for 3 observations and 2 actions, with networks that compile and run fast."""
    name, overrides = name.partition("+")[0], VARIANTS.get(name, {}) | overrides
    return agents.make_agent(name, OBSERVATION_SIZE, ACTION_SIZE, **small_options(name) | overrides)


def small_options(name: str) -> dict[str, Any]:
    """`SMALL`, of the options that agent `name` has."""
    known = {field.name for field in dataclasses.fields(agents.config_class(name))}
    return {option: value for option, value in SMALL.items() if option in known}


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


@dataclasses.dataclass(frozen=True)
class AnalyticCritic(critic.Critic):
    """Critics whose values are `function(params, observation, action)`, `[E, B]`, in place of a network's."""

    function: Any

    def apply(self, params: Any, *inputs: Any, method: str | None = None) -> Any:
        return self.function(params, *inputs)[..., None]

    def first_value(self, params: Any, observation: jax.Array, action: jax.Array) -> jax.Array:
        return self.function(params, observation, action)[0]


@dataclasses.dataclass(frozen=True)
class GradientCritic(critic.Critic):
    """Critics whose mean has `gradient` by the action, `[B, A]` to `[B, A]`; their values are zero."""

    gradient: Any

    def action_gradient(self, params: Any, observation: jax.Array, action: jax.Array) -> Any:
        return jnp.zeros(action.shape[0]), self.gradient(action)


def with_part(agent: Any, **parts: Any) -> Any:
    """`agent` with some of its properties or methods replaced by values."""
    members = {name: property(lambda self, part=part: part) for name, part in parts.items()}
    changed = type(type(agent).__name__, (type(agent),), members)
    return changed(agent.config, agent.observation_size, agent.action_size)


def with_values(agent: Any, function: Callable[..., jax.Array]) -> Any:
    """`agent` with critics of values `function(params, observation, action)`, `[E, B]`."""
    plain = agent.critic
    return with_part(agent, critic=AnalyticCritic(plain.network, plain.head, function))


def with_gradient(agent: Any, gradient: Callable[[jax.Array], jax.Array]) -> Any:
    """`agent` whose value has `gradient` by the action, `[B, A]` to `[B, A]`, instead of a learned critic's."""
    plain = agent.critic
    return with_part(agent, critic=GradientCritic(plain.network, plain.head, gradient))


def critic_state(params: Any) -> critic.CriticState:
    """Critics with `params`, online and slow."""
    return critic.CriticState(optimizer.start(params), params)


def with_critic_of(state: Any, other: Any) -> Any:
    """`state` whose target critics have the parameters of the critics of `other`."""
    return state._replace(critic=state.critic._replace(target=other.critic.online.params))


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
        target, state = score_target(agent, state, (), action, target_key)
        if plain:
            target = target._replace(noise=denoising_target(agent.denoiser.schedule, action, target))
        rate = state.hyperparameters["score_learning_rate"] * (1 - index / num_steps)
        return follow_score(agent, state, target, rate), None

    state, _ = jax.lax.scan(step, state, jnp.arange(num_steps))
    return state


def score_target(
    agent: Any, state: Any, critic_params: Any, action: jax.Array, key: jax.Array
) -> tuple[Any, Any]:
    """The score target of either form of Q-score matching at blank observations, and the state with what it moved."""
    observation = jnp.zeros((action.shape[0], agent.observation_size))
    if not hasattr(state, "average"):
        batch = Transition(observation, action, action[:, 0], action[:, 0], observation)
        return agent.score_target(critic_params, state.hyperparameters, batch, key)[0], state
    target, size, _ = agent.score_target(state, critic_params, observation, action, key)
    return target, state._replace(gradient_size=size)


def follow_score(agent: Any, state: Any, target: Any, rate: Any) -> Any:
    """One step of the score network towards `target`, and of the slow one where there is one."""
    observation = jnp.zeros((target.noised.shape[0], agent.observation_size))
    learned, _ = optimizer.descend(agent.denoiser.loss, state.score, rate, observation, target)
    state = state._replace(score=learned)
    if not hasattr(state, "average"):
        return state
    return state._replace(
        average=optimizer.polyak(state.average, learned.params, state.hyperparameters["draw_rate"])
    )


def denoising_target(schedule: Any, action: jax.Array, target: Any) -> jax.Array:
    """The noise in `target.noised`, by the forward equation."""
    root = jnp.sqrt(jnp.asarray(schedule.abar, jnp.float32))[target.level - 1][:, None]
    sigma = jnp.asarray(schedule.sigma, jnp.float32)[target.level - 1][:, None]
    return (target.noised - root * action) / sigma


def implied_noise(target: Any, action: jax.Array, chain: Chain) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The noise in `target`, by the forward equation, and sigma and sqrt(abar) of its levels, all `[B, 1]`."""
    index = np.asarray(target.level) - 1
    sigma, root = chain.sigma[index][:, None], np.sqrt(chain.abar)[index][:, None]
    return (np.asarray(target.noised) - root * np.asarray(action)) / sigma, sigma, root
