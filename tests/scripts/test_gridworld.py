"""The gridworlds of docs/paper.md: committed tables against the code, and learned critics against what is known."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agents
from agents.tabular import planning
from agents.tabular.mdp import MDP
from envs.gridworld import ACTIONS, MOVES, TASKS, make_env
from qsm.learning.learner import Learner
from qsm.loops.host_loop import HostLoop
from qsm.options.run import RunConfig
from scripts.paper import gridworld, gridworld_learned
from tests.recorder import Recorder

RESULTS = Path(__file__).parents[2] / "results" / "paper"
WORLD = TASKS["gridworld-open"].world


def table(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open() as file:
        return list(csv.DictReader(file))


def assert_same(row: dict[str, str], made: dict[str, Any]) -> None:
    """Numbers to four digits; residuals, which are rounding, to where they count for nothing."""
    assert row.keys() == made.keys()
    for name, text in row.items():
        if isinstance(made[name], float):
            assert float(text) == pytest.approx(made[name], rel=1e-4, abs=1e-8), name
        else:
            assert text == str(made[name]), name


@pytest.mark.parametrize("alpha", ["1", "100"])
def test_the_committed_table_is_what_the_script_makes(alpha: str):
    rows = [row for row in table("gridworld.csv") if row["alpha"] == alpha]
    assert {(row["task"], row["method"]) for row in rows} == {
        (task, method) for task in TASKS for method in gridworld.ITERATIONS
    }
    for row in rows:
        assert_same(row, gridworld.measure(row["task"], float(alpha), 0.9, row["method"]))


def test_the_committed_examples_are_what_the_script_makes():
    made = gridworld.examples()
    for row, one in zip(table("equation_20.csv"), made, strict=True):
        assert_same(row, one)


def test_a_critic_that_knows_is_right():
    """A stand-in whose critics have the exact Q of its own policy, half of them 0.1 too high and half too low."""
    best = planning.value_iteration(MDP(WORLD.transition, WORLD.reward, 0.9))
    moves = best.action_value.argmax(axis=1)

    def act(state: Any, observation: Any, key: Any, *, mode: str) -> Any:
        assert mode == "evaluate"
        return jnp.asarray(ACTIONS)[moves]

    def value(params: Any, observation: Any, action: Any) -> Any:
        assert params == "online"
        number = jnp.argmax(jnp.abs(action @ ACTIONS.T + 1), axis=1)  # of the move of the same direction
        exact = jnp.asarray(best.action_value)[jnp.argmax(observation, axis=1), number]
        return jnp.stack([exact + 0.1, exact - 0.1])

    agent = SimpleNamespace(
        act=act, critic=SimpleNamespace(value=value), normalized=lambda state, observation: observation
    )
    state = SimpleNamespace(critic=SimpleNamespace(online=SimpleNamespace(params="online")))
    rows = gridworld_learned.compare(agent, state, WORLD, 0.9)
    assert [(row["row"], row["column"]) for row in rows] == [
        (i, j) for i in range(5) for j in range(5) if (i, j) != (0, 4)
    ]
    for row in rows:
        distance = row["row"] + 4 - row["column"]
        assert row["best_value"] == pytest.approx(row["value"], abs=1e-9)
        assert row["value"] == pytest.approx(0.9 ** (distance - 1))
        assert row["critic"] == pytest.approx(row["value"], abs=1e-6)
        for move in MOVES:
            assert row[f"critic_{move}"] == pytest.approx(row[f"q_{move}"], abs=1e-6)
        assert row[f"q_{row['move']}"] == pytest.approx(row["value"])


@pytest.mark.slow
def test_a_learned_critic_agrees_with_dynamic_programming():
    """TD3 through the real loop; bounds with room over what three seeds had (docs/paper.md)."""
    agent = agents.make_agent("td3", 25, 2, hidden_sizes=(64, 64), batch_size=64, discount=0.9)
    environment = make_env("gridworld-open", 0)
    learner = Learner(agent, environment.spec, seeds=0, capacity=8192)
    config = RunConfig(steps=6000, random_steps=1000, replay_capacity=8192)
    loop = HostLoop(learner, [environment], [], config)
    state, _ = Recorder().run(loop, loop.begin())
    one = jax.tree.map(lambda leaf: leaf[0], state.agent)
    rows = gridworld_learned.compare(agent, one, WORLD, 0.9)
    is_best = np.array([row["best_value"] - row["value"] < 1e-9 for row in rows])
    errors = np.array([abs(row["critic"] - row["value"]) for row in rows])
    assert is_best.mean() >= 0.75
    assert errors[is_best].mean() < 0.06 and errors[is_best].max() < 0.2
