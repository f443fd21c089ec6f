"""Named sets of tasks for `qsm bench`."""

from __future__ import annotations

from typing import NamedTuple


class Suite(NamedTuple):
    """Tasks that are benchmarked together."""

    summary: str
    tasks: tuple[str, ...]


SUITES = {
    "easy": Suite(
        "six tasks that a CPU learns within 100,000 steps",
        (
            "cartpole-balance",
            "cartpole-swingup",
            "ball_in_cup-catch",
            "finger-spin",
            "reacher-easy",
            "walker-walk",
        ),
    ),
    # The figure names some of its tasks illegibly: cheetah-run, walker-run and hopper-hop are certain.
    "paper": Suite(
        "Figure 3 of the QSM paper, as far as its tasks are known",
        (
            "cartpole-balance",
            "cheetah-run",
            "hopper-hop",
            "quadruped-walk",
            "walker-run",
            "walker-walk",
        ),
    ),
    "dmc28": Suite(
        "the 28 tasks usual in recent work (BRO, SimbaV2, MR.Q)",
        (
            "acrobot-swingup",
            "ball_in_cup-catch",
            "cartpole-balance",
            "cartpole-balance_sparse",
            "cartpole-swingup",
            "cartpole-swingup_sparse",
            "cheetah-run",
            "dog-run",
            "dog-stand",
            "dog-trot",
            "dog-walk",
            "finger-spin",
            "finger-turn_easy",
            "finger-turn_hard",
            "fish-swim",
            "hopper-hop",
            "hopper-stand",
            "humanoid-run",
            "humanoid-stand",
            "humanoid-walk",
            "pendulum-swingup",
            "quadruped-run",
            "quadruped-walk",
            "reacher-easy",
            "reacher-hard",
            "walker-run",
            "walker-stand",
            "walker-walk",
        ),
    ),
}


def tasks_of(names: tuple[str, ...]) -> tuple[str, ...]:
    """The tasks that `names` of suites and tasks stand for, in their order, each once."""
    found = [task for name in names for task in (SUITES[name].tasks if name in SUITES else (name,))]
    return tuple(dict.fromkeys(found))
