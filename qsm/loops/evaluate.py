"""Evaluation: its own environments and keys, all episodes stepped together with one batched `act`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from agents.api import Agent
from agents.parts.types import Mode
from envs.api import HostEnvironment, SimulationError, StepType
from qsm.learning.learner import Learner


class Evaluation(NamedTuple):
    """What came of the episodes of one evaluation, in their order."""

    returns: list[float]  # undiscounted
    lengths: list[int]  # control steps
    num_failures: int = 0  # episodes that ended where the simulation failed

    def metrics(self) -> dict[str, float]:
        """One row of `eval.csv`: mean, spread, the share of episodes whose simulation failed, every return."""
        values = {
            "return_mean": float(np.mean(self.returns)),
            "return_std": float(np.std(self.returns)),
            "length_mean": float(np.mean(self.lengths)),
            "failure_rate": self.num_failures / len(self.returns),
        }
        return values | {f"return_{i}": value for i, value in enumerate(self.returns)}


@dataclasses.dataclass(frozen=True)
class Exploring:
    """`agent`, which is evaluated as it explores."""

    agent: Agent

    def act(self, state: Any, observation: jax.Array, key: jax.Array, *, mode: Mode) -> jax.Array:
        """Actions `[B, A]` for observations `[B, O]`, whatever `mode` is."""
        return self.agent.act(state, observation, key, mode="explore")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.agent, name)


def episode_seed(seed: int, step: int, episode: int) -> int:
    """Seed of an evaluation episode: a function of the run's seed, the step and the episode, and of nothing else."""
    return int(np.random.SeedSequence((seed, step, episode)).generate_state(1)[0] >> 1)


def evaluate(
    learner: Learner,
    agents: Any,
    environments: Sequence[Sequence[HostEnvironment]],
    step: int,
    record: list[np.ndarray] | None = None,
) -> list[Evaluation | None]:
    """Plays one episode in each of `environments` `[S][E]`, reseeded by the seed, `step` and the episode.

    The episodes of all seeds act in one batch. An episode whose simulation fails ends there.

    Args:
      agents: learned states `[S, ...]`.
      record: if given, the actions `[A]` of the first seed's first episode are appended to it.

    Returns:
      Undiscounted returns and lengths in control steps, for each seed; None for one that is frozen.
    """
    num_seeds, num_episodes = len(environments), len(environments[0])
    spec = learner.spec
    observations = np.zeros((num_seeds, num_episodes, spec.observation_size), np.float32)
    running = [(i, j) for i in range(num_seeds) if learner.active[i] for j in range(num_episodes)]
    for i, j in running:
        environments[i][j].reseed(episode_seed(learner.seeds[i], step, j))
        observations[i, j] = environments[i][j].reset().observation
    returns = np.zeros((num_seeds, num_episodes))
    ticks = np.zeros((num_seeds, num_episodes), int)
    failed = np.zeros((num_seeds, num_episodes), bool)
    tick = 0
    while running:
        # A fresh array each tick: the CPU backend reads NumPy arguments in place, and may still be at it.
        actions = learner.placement.fetch(
            learner.act_to_evaluate(agents, observations.copy(), np.int32(step), np.int32(tick))
        )
        if record is not None and running[0] == (0, 0):
            record.append(actions[0, 0].copy())
        still = []
        for i, j in running:
            ticks[i, j] += 1
            try:
                time_step = environments[i][j].step(actions[i, j])
            except SimulationError:
                failed[i, j] = True
                continue
            observations[i, j] = time_step.observation
            returns[i, j] += time_step.reward
            if time_step.step_type != StepType.LAST:
                still.append((i, j))
        running = still
        tick += 1
    lengths = np.minimum(ticks * spec.action_repeat, spec.episode_steps)
    return [
        Evaluation(returns[i].tolist(), lengths[i].tolist(), int(failed[i].sum()))
        if learner.active[i]
        else None
        for i in range(num_seeds)
    ]
