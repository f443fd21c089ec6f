"""What every agent shares: its sizes, its critics, its normalizer. Imports no JAX before it is used."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from etils import epy

from agents.config import AgentConfig, DiffusionConfig
from agents.parts.types import Metrics, Sampling, Transition

with epy.lazy_imports():  # the command line reads the options of agents without loading JAX
    import jax
    import jax.numpy as jnp

    from agents.networks import critics, torsos
    from agents.parts import critic, heads, normalizer, optimizer, score
    from agents.parts.samplers import steps


@dataclasses.dataclass(frozen=True)
class AgentBase:
    """The part of `agents.api.Agent` that does not tell one algorithm from another.

    An algorithm adds `init`, `act` and `update`. Its state is a NamedTuple with, at least, the entries `normalizer`
    and `hyperparameters`, and `critic` where it has one.
    """

    config: AgentConfig
    observation_size: int
    action_size: int

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.config.batch_size, self.config.n_step)

    def discount(self, state: Any) -> jax.Array:
        return state.hyperparameters["discount"]

    def revise(self, state: Any, batch: Transition, key: jax.Array) -> None:
        return None

    # ---- What figures ask ---------------------------------------------------------------------------------------

    def sample_policy(self, state: Any, observation: jax.Array, key: jax.Array) -> jax.Array:
        """Draws `[B, A]` of the policy alone: as it explores, with `action_noise` at zero where it has that option.

        A choice of the best of several draws is part of the policy. A deterministic policy gives its one action.
        """
        hyper = state.hyperparameters
        if "action_noise" in hyper:
            state = state._replace(hyperparameters=hyper | {"action_noise": jnp.zeros((), jnp.float32)})
        return self.act(state, observation, key, mode="explore")  # type: ignore[attr-defined]

    def action_value(self, state: Any, observation: jax.Array, action: jax.Array) -> jax.Array | None:
        """Q(s, a) `[B]` as the critics' reduction has it, of observations `[B, O]` that are not normalized yet."""
        if not hasattr(state, "critic"):
            return None
        return self.critic.reduced_value(
            state.critic.online.params, self.normalized(state, observation), action
        )

    # ---- What the options choose --------------------------------------------------------------------------------

    @property
    def critic(self) -> critic.Critic:
        """The ensemble of critics."""
        c = self.config
        sizes = c.critic_hidden_sizes or c.hidden_sizes
        torso = torsos.Torso(sizes, c.critic_layer_norm, c.critic_torso, c.critic_weight_norm)
        head = self.head
        network = critics.CriticEnsemble(c.num_critics, torso, head.output_size)
        kind = critic.JointCritic if torso.normalizes_batches else critic.Critic
        rescales = c.rescale_targets and c.normalize_rewards
        return kind(network, head, rescales=rescales, rule=self.rule)

    @property
    def head(self) -> heads.Head:
        """What the outputs of the critics mean."""
        c = self.config
        reduction = heads.Reduction(c.critic_reduction, c.critic_pessimism)
        if c.critic_head == "scalar":
            return heads.Scalar(reduction=reduction)
        return heads.Categorical(c.num_atoms, c.value_bound, c.critic_head, c.atom_smoothing, reduction)

    @property
    def rule(self) -> optimizer.Rule:
        """How the gradients of critics and actor become steps."""
        return optimizer.rule_of(self.config)

    @property
    def actor_torso(self) -> torsos.Torso:
        """Hidden layers of an actor network."""
        c = self.config
        return torsos.Torso(c.actor_hidden_sizes or c.hidden_sizes, kind=c.actor_torso)

    def init_critic(self, key: jax.Array) -> critic.CriticState:
        """Fresh critics."""
        return self.critic.init_state(
            key, jnp.zeros((1, self.observation_size)), jnp.zeros((1, self.action_size))
        )

    def hyperparameters(self) -> dict[str, jax.Array]:
        """The float options, to be kept in the state."""
        return {
            name: jnp.asarray(value, jnp.float32) for name, value in self.config.hyperparameters().items()
        }

    # ---- Observations and rewards -------------------------------------------------------------------------------

    def init_normalizer(self) -> Any:
        """Statistics of nothing; () where neither observations nor rewards are normalized."""
        c = self.config
        observation = normalizer.init(self.observation_size) if c.normalize_observations else ()
        if not c.normalize_rewards:
            return observation
        return normalizer.Normalizer(observation, normalizer.init_returns())

    def observe(self, state: Any, time_step: Any, is_valid: jax.Array) -> Any:
        c, seen = self.config, state.normalizer
        if c.normalize_rewards:
            returns = normalizer.observe_returns(seen.returns, time_step, is_valid, self.discount(state))
            seen = seen._replace(returns=returns)
        if c.normalize_observations:
            statistics = normalizer.observe(self._statistics(state), time_step.observation, is_valid)
            seen = seen._replace(observation=statistics) if c.normalize_rewards else statistics
        return state if seen is state.normalizer else state._replace(normalizer=seen)

    def _statistics(self, state: Any) -> normalizer.Statistics:
        return state.normalizer.observation if self.config.normalize_rewards else state.normalizer

    def normalized(self, state: Any, observation: jax.Array) -> jax.Array:
        """Observations `[B, O]` as the networks see them."""
        if not self.config.normalize_observations:
            return observation
        return normalizer.normalize(self._statistics(state), observation)

    def reward_scale(self, state: Any) -> jax.Array | float:
        """What rewards are divided by, `[]`: values times it are in the task's rewards."""
        if not self.config.normalize_rewards:
            return 1.0
        return normalizer.reward_scale(state.normalizer.returns, self.config.value_bound)

    def normalized_batch(self, state: Any, batch: Transition) -> Transition:
        """`batch` with its observations and rewards as the networks see them."""
        if self.config.normalize_rewards:
            scale = self.reward_scale(state)
            batch = batch._replace(reward=batch.reward / scale, scale=scale)
        return batch._replace(
            observation=self.normalized(state, batch.observation),
            next_observation=self.normalized(state, batch.next_observation),
        )


@dataclasses.dataclass(frozen=True)
class DiffusionBase(AgentBase):
    """`AgentBase` of agents whose policy is a diffusion chain."""

    config: DiffusionConfig

    @property
    def denoiser(self) -> score.Denoiser:
        """The chain and its score network."""
        return score.denoiser(self.config, self.observation_size, self.action_size)

    @property
    def acting_sampler(self) -> steps.Sampler | None:
        """The way down the chain to act; None where it is the one that learning takes, through all levels."""
        c = self.config
        if c.acting_sampler == "ancestral" and c.acting_steps in (0, c.denoising_steps):
            return None
        return steps.Sampler(c.acting_sampler, c.acting_steps, c.ddim_eta)


class _Resetting(AgentBase):
    """Begins anew after every `reset_interval` updates (Nikishin et al. 2022; D'Oro et al. 2023)."""

    def update(self, state: Any, batch: Transition, key: jax.Array, step: jax.Array) -> tuple[Any, Metrics]:
        """An update, and a reset before it where one is due; statistics and hyperparameters stay."""
        update_key, reset_key = jax.random.split(key)

        def renewed(state: Any, key: jax.Array) -> Any:
            fresh = self.init(key)  # type: ignore[attr-defined]
            return fresh._replace(normalizer=state.normalizer, hyperparameters=state.hyperparameters)

        is_due = (step > 0) & (step % self.config.reset_interval == 0)
        state = jax.lax.cond(is_due, renewed, lambda state, key: state, state, reset_key)
        return super().update(state, batch, update_key, step)  # type: ignore[misc]


@functools.cache
def resetting(agent: type) -> type:
    """The class of agents `agent` that reset themselves."""
    return type(agent.__name__, (_Resetting, agent), {"__doc__": agent.__doc__})
