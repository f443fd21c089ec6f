"""Agents that write down what a loop shows them, and that write back into replay, for tests of the loops."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agents.parts.types import Metrics, Mode, Revision, Sampling, Transition
from tests.tally_agent import TallyAgent, TallyState


class WitnessState(NamedTuple):
    """What was shown so far."""

    tally: TallyState
    rows: jax.Array  # [M, 3 + O] step type, reward, discount and observation, in the order of showing
    count: jax.Array  # [] int32

    @property
    def hyperparameters(self) -> dict[str, jax.Array]:
        return self.tally.hyperparameters


@dataclasses.dataclass(frozen=True)
class WitnessAgent(TallyAgent):
    """Writes down every valid row that `observe` is given; explores with the number of rows it has seen."""

    observation_size: int = 2
    num_rows: int = 256

    def init(self, key: jax.Array) -> WitnessState:
        rows = jnp.zeros((self.num_rows, 3 + self.observation_size))
        return WitnessState(super().init(key), rows, jnp.zeros((), jnp.int32))

    def discount(self, state: WitnessState) -> jax.Array:
        return super().discount(state.tally)

    def observe(self, state: WitnessState, time_step: Any, is_valid: jax.Array) -> WitnessState:
        scalars = [time_step.step_type, time_step.reward, time_step.discount]
        columns = [*(jnp.asarray(value, jnp.float32)[:, None] for value in scalars), time_step.observation]
        place = jnp.where(is_valid, state.count + jnp.cumsum(is_valid) - 1, self.num_rows)
        rows = state.rows.at[place].set(jnp.concatenate(columns, axis=1), mode="drop")
        return state._replace(rows=rows, count=state.count + is_valid.sum(dtype=jnp.int32))

    def act(self, state: WitnessState, observation: jax.Array, key: jax.Array, *, mode: Mode) -> jax.Array:
        if mode == "evaluate":
            return super().act(state.tally, observation, key, mode=mode)
        return jnp.broadcast_to(state.count.astype(jnp.float32), (observation.shape[0], self.action_size))

    def update(
        self, state: WitnessState, batch: Transition, key: jax.Array, step: jax.Array
    ) -> tuple[WitnessState, Metrics]:
        tally, metrics = super().update(state.tally, batch, key, step)
        return state._replace(tally=tally), metrics


@dataclasses.dataclass(frozen=True)
class RevisingAgent(TallyAgent):
    """After each update sets the actions of its batch to their negatives less 1, and priorities at random."""

    prioritized: bool = True

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.batch_size, self.n_step, revises=True, prioritized=self.prioritized)

    def revise(self, state: TallyState, batch: Transition, key: jax.Array) -> Revision:
        priority = jax.random.uniform(key, batch.reward.shape, minval=0.1, maxval=3.0)
        return Revision(-batch.action - 1.0, priority if self.prioritized else None)


def shown(state: WitnessState, seed: int) -> np.ndarray:
    """The rows `[count, 3 + O]` that the agent of `seed` was shown."""
    return np.asarray(state.rows[seed])[: int(state.count[seed])]
