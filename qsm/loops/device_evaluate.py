"""Evaluation on the device: the episodes of all seeds in one program."""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.vector import VectorEnvironment
from qsm.learning.learner import Learner
from qsm.loops.device_programs import compile_play
from qsm.loops.evaluate import Evaluation


class DevicePlayer:
    """Plays whole episodes of the agents of `learner`, apart from their training.

    Args:
      environment: E of them, one for each episode.
    """

    def __init__(self, learner: Learner, environment: VectorEnvironment) -> None:
        self.learner = learner
        self.environment = environment
        self._play = compile_play(learner.group, environment)

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
