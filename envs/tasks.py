"""Names of the tasks of each backend, without loading a simulator where that can be helped.

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

GRIDWORLD_NAMES = ("gridworld-open", "gridworld-rooms", "gridworld-cliff")
"""Names of the mazes of `envs.gridworld`, which are stepped on the host as dm_control's tasks are."""

SUITE_RETURN, GRIDWORLD_RETURN = 1000.0, 1.0
"""The most that an episode yields: a reward of up to 1 at each of 1,000 steps, and 1 for the goal of a maze."""

BACKENDS = ("dm_control", "mjx")
"""Simulators: on the CPU, dm_control and the gridworlds; on the accelerator, MuJoCo Playground's tasks."""

MJX_RECORDED_VERSION = "0.2.0"
"""Version of playground whose names are written down in `MJX_NAMES`."""

MJX_NAMES = {
    "acrobot-swingup": "AcrobotSwingup",
    "acrobot-swingup_sparse": "AcrobotSwingupSparse",
    "ball_in_cup-catch": "BallInCup",
    "cartpole-balance": "CartpoleBalance",
    "cartpole-balance_sparse": "CartpoleBalanceSparse",
    "cartpole-swingup": "CartpoleSwingup",
    "cartpole-swingup_sparse": "CartpoleSwingupSparse",
    "cheetah-run": "CheetahRun",
    "finger-spin": "FingerSpin",
    "finger-turn_easy": "FingerTurnEasy",
    "finger-turn_hard": "FingerTurnHard",
    "fish-swim": "FishSwim",
    "hopper-stand": "HopperStand",
    "hopper-hop": "HopperHop",
    "humanoid-stand": "HumanoidStand",
    "humanoid-walk": "HumanoidWalk",
    "humanoid-run": "HumanoidRun",
    "pendulum-swingup": "PendulumSwingup",
    "point_mass-easy": "PointMass",
    "reacher-easy": "ReacherEasy",
    "reacher-hard": "ReacherHard",
    "swimmer-swimmer6": "SwimmerSwimmer6",
    "walker-stand": "WalkerStand",
    "walker-walk": "WalkerWalk",
    "walker-run": "WalkerRun",
}
"""Our name of each task of MuJoCo Playground's DeepMind Control Suite, and Playground's, in the suite's order."""

SAME_OBSERVATIONS = frozenset(MJX_NAMES) - {
    "fish-swim",  # the uprightness comes first, before the joint angles; dm_control has it after them
    "pendulum-swingup",  # the pole's orientation is (x, z), in dm_control (z, x)
    # The entry called height is the torso's uprightness; in dm_control it is the height.
    "walker-stand",
    "walker-walk",
    "walker-run",
}
"""Tasks whose observation is the same function of positions, velocities and target on both backends.

Sizes agree in all tasks. Along a trajectory the two differ all the same, in two ways. MJX answers a step with
new `qpos` and `qvel`, but with body positions, orientations and sensors of one simulation step earlier, where
dm_control brings them up to date. And several models are solved with other settings: see `envs.mjx`.
"""


def task_names(backend: str = "dm_control") -> tuple[str, ...]:
    """Names of all tasks of `backend`, `domain-task`, in the suite's order; of dm_control, as installed.

    Behind dm_control's come the gridworlds, which its loop steps too.

    Raises:
        ValueError: `backend` is none of `BACKENDS`.
    """
    if backend not in BACKENDS:
        raise ValueError(f"Unknown backend '{backend}'; it must be one of: {', '.join(BACKENDS)}.")
    if backend == "mjx":
        return tuple(MJX_NAMES)
    try:
        is_recorded = importlib.metadata.version("dm_control") == RECORDED_VERSION
    except importlib.metadata.PackageNotFoundError:  # on a machine for mjx alone
        is_recorded = True
    return (*(RECORDED_NAMES if is_recorded else suite_task_names()), *GRIDWORLD_NAMES)


def full_return(task: str) -> float:
    """The most that an episode of `task` yields, by which returns are divided where they are compared as shares."""
    return GRIDWORLD_RETURN if task in GRIDWORLD_NAMES else SUITE_RETURN


def suite_task_names() -> tuple[str, ...]:
    """Names of all tasks as dm_control itself lists them, which it takes a second to import."""
    from envs.headless import suite

    return tuple(f"{domain}-{task}" for domain, task in suite.ALL_TASKS)


def check_task(task: str, backend: str = "dm_control") -> None:
    """Returns if `task` exists on `backend`.

    Raises:
        ValueError: it does not; the message says on which backend it does, or has the nearest name, where one
            is near.
    """
    names = task_names(backend)
    if task in names:
        return
    if backend == "mjx" and task in task_names():
        raise ValueError(f"Task '{task}' exists on dm_control only; drop --backend mjx")
    nearest = difflib.get_close_matches(task, names, n=1)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    raise ValueError(f"Unknown task '{task}'.{hint} List tasks with: qsm tasks")
