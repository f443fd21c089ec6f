"""How far learned critics agree with dynamic programming, in each state of a gridworld that `qsm train` learned.

    python scripts/paper/gridworld_learned.py runs/dm_control/gridworld-open/td3@paper/seed_*

`make paper` trains these runs. The policy's move in every state is read from the newest checkpoint; what that policy is
worth follows exactly from the known process. Beside it stands what the critics say: of the policy's own action, and of
the four moves at the middle of the actions that mean them. docs/paper.md reads the result.
"""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from agents.tabular import planning
from agents.tabular.mdp import MDP
from envs.gridworld import ACTIONS, MOVES, TASKS, Gridworld, move_of
from qsm.base.errors import UserError
from qsm.checkpoints.selection import restore_policy
from qsm.command.script import read_arguments
from qsm.learning.build import build
from qsm.learning.learner import Learner
from qsm.options.parser import Positional
from qsm.record.find import load_run


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare a learned critic."""

    output: Path = Path("results/paper/gridworld_learned.csv")
    """CSV file to write."""


def compare(agent: Any, state: Any, world: Gridworld, discount: float) -> list[dict[str, Any]]:
    """A row a state in which an episode goes on: what the agent does and says there, and what is known.

    Args:
      agent: one with critics, for this world.
      state: what it has learned, without an axis of seeds.
      discount: that it was trained with.
    """
    mdp = MDP(world.transition, world.reward, discount)
    observation = np.eye(len(world.cells), dtype=np.float32)

    @jax.jit
    def critics(actions: jax.Array) -> jax.Array:
        seen = agent.normalized(state, observation)
        return agent.critic.value(state.critic.online.params, seen, actions).mean(axis=0)

    @jax.jit
    def act(key: jax.Array) -> jax.Array:
        return agent.act(state, observation, key, mode="evaluate")

    actions = np.asarray(act(jax.random.key(0)))
    said = np.asarray(critics(actions))
    said_of_moves = np.stack([critics(np.tile(action, (len(actions), 1))) for action in ACTIONS], axis=1)
    moves = np.array([move_of(action) for action in actions])
    value, action_value = planning.evaluate(mdp, np.eye(len(MOVES))[moves])
    value = value + 0.0  # no -0
    best = planning.policy_iteration(mdp)
    return [
        {
            "row": row,
            "column": column,
            "x": actions[cell, 0],
            "y": actions[cell, 1],
            "move": MOVES[moves[cell]],
            "best_value": best.value[cell],
            "value": value[cell],
            "critic": said[cell],
            **{f"q_{move}": action_value[cell, number] for number, move in enumerate(MOVES)},
            **{f"critic_{move}": said_of_moves[cell, number] for number, move in enumerate(MOVES)},
        }
        for cell, (row, column) in enumerate(world.cells.tolist())
        if not world.is_terminal[cell]
    ]


def read(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's newest checkpoint; prints a summary.

    Raises:
      UserError: no run on a gridworld, or none with a checkpoint.
      ValueError: a run that this version cannot build.
    """
    run = load_run(folder)
    task, agent = build(run.config)
    if task.name not in TASKS:
        raise UserError(f"{run.path} is a run on {task.name}; it must be one on: {', '.join(TASKS)}")
    if not hasattr(agent, "critic"):
        raise UserError(f"{run.path} is a run of {run.config['agent']}, which has no critic")
    restored = restore_policy(run.path, Learner(agent, task.spec, 0, capacity=1))
    rows = compare(agent, restored.agent, TASKS[task.name].world, run.config["agent_config"]["discount"])
    is_best = np.array([row["best_value"] - row["value"] < 1e-9 for row in rows])
    errors = np.array([abs(row["critic"] - row["value"]) for row in rows])
    of_moves = np.array([[abs(row[f"critic_{move}"] - row[f"q_{move}"]) for move in MOVES] for row in rows])
    print(f"{run.path}: {restored.step:,} steps, the best move in {is_best.sum()} of {len(rows)} states")
    for name, values in (
        ("|critic - value|, where the move is best", errors[is_best]),
        ("|critic - value|, where it is not", errors[~is_best]),
        ("|critic - Q|, of all four moves", of_moves.ravel()),
    ):
        if len(values):
            spread = f"median {np.median(values):.3f}  mean {values.mean():.3f}  largest {values.max():.3f}"
            print(f"  {name:42} {spread}")
    origin = {"task": task.name, "agent": run.config["agent"], "seed": run.config["run_config"]["seed"]}
    return [origin | row for row in rows]


def main() -> None:
    """Reads runs, compares, prints summaries and writes every state."""
    runs = Positional("runs", "Folders of runs on gridworlds.", tuple[Path, ...])
    given = read_arguments(Options, __doc__, [runs])
    try:
        rows = [row for folder in given["runs"] for row in read(folder)]
    except (UserError, ValueError) as error:
        raise SystemExit(str(error)) from error
    output = given["options"].output
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {
                name: f"{cell:.4f}" if isinstance(cell, float | np.floating) else cell
                for name, cell in row.items()
            }
            for row in rows
        )
    print(f"written to {output}")


if __name__ == "__main__":
    main()
