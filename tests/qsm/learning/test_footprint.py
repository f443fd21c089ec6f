"""The bytes that are predicted from shapes are those of the arrays that a learner makes."""

from __future__ import annotations

from typing import Any

import jax
import pytest

import agents
from envs.api import EnvSpec
from qsm.learning.footprint import Footprint, predict
from qsm.learning.learner import Learner

SPEC = EnvSpec("by hand", observation_size=5, action_size=2, episode_steps=9, action_repeat=1)
BATCH = 4
CASES = [
    pytest.param("sac", {}, 1, 1000, 1, marks=pytest.mark.slow),
    ("sac", {"n_step": 3, "normalize_observations": True, "critic_head": "two_hot"}, 2, 3000, 7),
    pytest.param("qsm-clean", {}, 1, 1000, 1, marks=pytest.mark.slow),
    ("qsm-clean", {"n_step": 3, "critic_hidden_sizes": (16, 16)}, 3, 2000, 2),
]


def nbytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("name", "options", "num_seeds", "capacity", "num_envs"), CASES)
def test_predicted_bytes_are_those_of_the_arrays(
    name: str, options: dict[str, Any], num_seeds: int, capacity: int, num_envs: int
):
    agent = agents.make_agent(name, 5, 2, hidden_sizes=(32, 32), batch_size=BATCH, **options)
    found = predict(agent, SPEC, num_seeds, capacity, num_envs)
    learner = Learner(agent, SPEC, range(num_seeds), capacity, num_envs)
    state, buffer = learner.init_agents(), learner.compiled.empty_replay()
    assert found.replay == nbytes(buffer)
    assert sum(found) - found.batch - found.replay == nbytes(state)
    # What Adam remembers are two numbers a parameter, and a count for each network.
    networks = {"sac": 3, "qsm-clean": 2}[name]
    assert found.optimizer == 2 * found.parameters + 4 * networks * num_seeds
    critic = nbytes(state.critic.target)
    actor = 0 if name == "sac" else nbytes(state.average)
    assert found.slow_copies == critic + actor
    # Two observations, an action, reward and discount; and which rows they are.
    rows = 4 * (2 * 5 + 2 + 2) * BATCH * num_seeds
    assert rows <= found.batch <= rows + 16 * BATCH * num_seeds


def test_the_parts_are_said_in_mib():
    text = Footprint(3 * 2**20, 2**19, 0, 2**20, 0, 2**18).describe()
    assert text == (
        "replay 3.0 MiB, parameters 0.5 MiB, slow copies 0.0 MiB, optimizer 1.0 MiB, other 0.0 MiB, "
        "batch 0.2 MiB: 4.8 MiB in all"
    )
