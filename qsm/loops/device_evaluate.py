"""Evaluation on the device: the episodes of all seeds in one program."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs.api import StepType
from envs.vector import VectorEnvironment
from qsm.learning import programs
from qsm.learning.learner import Learner
from qsm.learning.seeds import each_seed
from qsm.loops.evaluate import Evaluation


class DevicePlayer:
    """Plays whole episodes of the agents of `learner`, apart from their training.

    Args:
      environment: E of them, one for each episode.
    """

    def __init__(self, learner: Learner, environment: VectorEnvironment) -> None:
        self.learner = learner
        self.environment = environment
        axes = (0, 0, None)
        self._play = jax.jit(learner.placement.over_seeds(each_seed(self._play_one, axes), axes))

    def __call__(self, agents: Any, step: int) -> list[Evaluation | None]:
        """Plays one episode in each environment, from starts that the seed and `step` determine.

        Args:
          agents: learned states `[S, ...]`.

        Returns:
          Undiscounted returns and lengths in control steps, for each seed; None for one that is frozen.
        """
        learner = self.learner
        returns, lengths, failed = learner.placement.fetch(
            self._play(learner.streams.evaluate, agents, np.int32(step))
        )
        return [
            Evaluation(returns[i].tolist(), lengths[i].tolist(), int(failed[i].sum()))
            if learner.active[i]
            else None
            for i in range(learner.num_seeds)
        ]

    def _play_one(
        self, stream: jax.Array, agent_state: Any, step: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns, lengths and whether the simulation failed, which ends an episode; `[E]` each, of one seed."""
        spec, num_episodes = self.environment.spec, self.environment.num_envs
        # Apart from the draws of actions, which fold in a tick from 0 on.
        starts = jax.random.fold_in(jax.random.fold_in(stream, step), np.uint32(2**32 - 1))
        environment, _ = self.environment.reset(starts)
        agent, is_random = self.learner.agent, jnp.zeros((), bool)

        def tick(i: jax.Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
            environment, running, failed, returns, ticks = carry
            observation = self.environment.observation(environment)
            action = programs.act(
                agent, spec.action_size, "evaluate", stream, agent_state, observation, step, i, is_random
            )
            environment, arrival = self.environment.step(environment, action, starts)
            ticks += running
            failed |= running & ~arrival.is_valid
            running &= arrival.is_valid
            returns += jnp.where(running, arrival.time_step.reward, 0.0)
            running &= arrival.time_step.step_type != StepType.LAST
            return environment, running, failed, returns, ticks

        longest = -(-spec.episode_steps // spec.action_repeat)
        running, zeros = jnp.ones(num_episodes, bool), jnp.zeros(num_episodes, jnp.int32)
        carry = (environment, running, jnp.zeros(num_episodes, bool), jnp.zeros(num_episodes), zeros)
        _, _, failed, returns, ticks = jax.lax.fori_loop(0, longest, tick, carry)
        return returns, jnp.minimum(ticks * spec.action_repeat, spec.episode_steps), failed
