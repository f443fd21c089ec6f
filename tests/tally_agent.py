"""An agent that learns nothing and counts everything, for tests of the loop around it."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from agents import Entry, Style
from agents.config import AgentConfig
from agents.parts.types import Mean, Metrics, Mode, Sampling, Transition


class TallyState(NamedTuple):
    """What came of the calls so far."""

    weight: jax.Array  # [] drawn by `init`
    num_observed: jax.Array  # [] valid rows seen by `observe`
    num_updates: jax.Array  # []
    step_sum: jax.Array  # [] sum of the steps that `update` was given
    reward_sum: jax.Array  # [] sum of the batches' mean rewards
    noise_sum: jax.Array  # [] sum of one draw an update
    hyperparameters: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class TallyAgent:
    """Explores with actions from 2 to 3, which no uniform draw reaches; evaluates with a tenth of a draw, plus a
    hundredth of the observation.

    Metrics: `tally/step`, the update's; `tally/odd`, the same in odd updates only; `tally/never`, skipped in each.
    """

    action_size: int = 1
    n_step: int = 1
    batch_size: int = 4

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.batch_size, self.n_step)

    def init(self, key: jax.Array) -> TallyState:
        zero = jnp.zeros((), jnp.int32)
        return TallyState(
            jax.random.uniform(key),
            zero,
            zero,
            zero,
            jnp.zeros(()),
            jnp.zeros(()),
            {"discount": jnp.asarray(0.5)},
        )

    def discount(self, state: TallyState) -> jax.Array:
        return state.hyperparameters["discount"]

    def observe(self, state: TallyState, time_step: Any, is_valid: jax.Array) -> TallyState:
        return state._replace(num_observed=state.num_observed + is_valid.sum(dtype=jnp.int32))

    def revise(self, state: Any, batch: Transition, key: jax.Array) -> Any:
        return None

    def act(self, state: TallyState, observation: jax.Array, key: jax.Array, *, mode: Mode) -> jax.Array:
        shape = (observation.shape[0], self.action_size)
        noise = jax.random.uniform(key, shape)
        return 2.0 + noise if mode == "explore" else 0.1 * noise + 0.01 * observation[:, :1]

    def sample_policy(self, state: Any, observation: jax.Array, key: jax.Array) -> jax.Array:
        return self.act(state, observation, key, mode="explore")

    def action_value(self, state: Any, observation: jax.Array, action: jax.Array) -> jax.Array | None:
        return None

    def update(
        self, state: TallyState, batch: Transition, key: jax.Array, step: jax.Array
    ) -> tuple[TallyState, Metrics]:
        is_odd = (step % 2).astype(jnp.float32)
        value = step.astype(jnp.float32)
        state = state._replace(
            num_updates=state.num_updates + 1,
            step_sum=state.step_sum + step,
            reward_sum=state.reward_sum + batch.reward.mean(),
            noise_sum=state.noise_sum + jax.random.normal(key),
        )
        metrics = {
            "tally/step": Mean(value, jnp.ones(())),
            "tally/odd": Mean(is_odd * value, is_odd),
            "tally/never": Mean(jnp.zeros(()), jnp.zeros(())),
        }
        return state, metrics


def build(config: AgentConfig, observation_size: int, action_size: int) -> TallyAgent:
    """As `agents.build` calls it; of the options, only the sizes count."""
    return TallyAgent(action_size)


TALLY = Entry(
    __name__, "AgentConfig", "build", "Counts every call", "deterministic", Style("#000000", "-", "o")
)
"""For the registry, while a test runs."""
