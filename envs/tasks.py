"""Names of the DeepMind Control Suite's tasks, without loading the suite where that can be helped.

Importing dm_control takes about a second, too long to wait for the answer to a misspelt name.
"""

from __future__ import annotations

import difflib
import importlib.metadata

RECORDED_VERSION = "1.0.50"
"""Version of dm_control whose names are written down here; any other is asked itself."""

RECORDED_NAMES = tuple(
    """
    acrobot-swingup acrobot-swingup_sparse ball_in_cup-catch cartpole-balance
    cartpole-balance_sparse cartpole-swingup cartpole-swingup_sparse cartpole-two_poles
    cartpole-three_poles cheetah-run dog-stand dog-walk dog-trot dog-run dog-fetch finger-spin
    finger-turn_easy finger-turn_hard fish-upright fish-swim hopper-stand hopper-hop humanoid-stand
    humanoid-walk humanoid-run humanoid-run_pure_state humanoid_CMU-stand humanoid_CMU-walk
    humanoid_CMU-run lqr-lqr_2_1 lqr-lqr_6_2 manipulator-bring_ball manipulator-bring_peg
    manipulator-insert_ball manipulator-insert_peg pendulum-swingup point_mass-easy point_mass-hard
    quadruped-walk quadruped-run quadruped-escape quadruped-fetch reacher-easy reacher-hard
    stacker-stack_2 stacker-stack_4 swimmer-swimmer6 swimmer-swimmer15 walker-stand walker-walk
    walker-run
    """.split()  # noqa: SIM905  (fifty names are easier to read in rows)
)


def task_names() -> tuple[str, ...]:
    """Names of all tasks of the installed suite, `domain-task`, in the suite's order."""
    if importlib.metadata.version("dm_control") == RECORDED_VERSION:
        return RECORDED_NAMES
    from envs import dmc

    return dmc.suite_task_names()


def check_task(task: str) -> None:
    """Returns if `task` exists.

    Raises:
        ValueError: it does not; the message has the nearest name, where one is near.
    """
    names = task_names()
    if task not in names:
        nearest = difflib.get_close_matches(task, names, n=1)
        hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
        raise ValueError(f"Unknown task '{task}'.{hint} List tasks with: qsm tasks")
