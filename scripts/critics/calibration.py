"""What a run's critics say of the actions that its policy takes, beside what came of them.

    python scripts/critics/calibration.py RUN... --output calibration.csv --figure calibration.png

Plays episodes with the newest policy of each run. Of states along them a row: what the critics say of the action there
(mean over members, in the task's rewards), and the discounted rewards that followed. Where an episode ends by its time
limit, the states before it of which less than 95 % of the discount was seen are left out, and what is missing of the
others is nought. Values of `sac` hold its entropy bonus, which is small once its temperature is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from agents.api import Agent
from agents.config import INFINITY, Limits, check_limits
from agents.parts.types import Mode
from envs.api import EnvSpec, HostEnvironment, TimeStep
from qsm.base.errors import UserError, first_line
from qsm.checkpoints.selection import restore_policy
from qsm.command.script import mistakes_told, read_arguments, write_rows
from qsm.devices import runtime
from qsm.learning.build import build
from qsm.learning.learner import Learner
from qsm.loops.evaluate import Exploring, evaluate
from qsm.options.parser import Positional
from qsm.record.find import load_run
from qsm.record.run_folder import RunDir
from qsm.report.styles import RC

matplotlib.use("Agg")

SEEN = 0.95
"""Share of the discount that must lie before the end of an episode."""
PARTS = 5
"""Groups of states, by what the critics say, that are told."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare critics with what comes of their policies."""

    episodes: int = 10
    """Episodes of each run."""
    mode: Mode = "explore"
    """How the policy acts. Critics learn from it as it explores."""
    stride: int = 10
    """Decisions between two states."""
    seed: int = 0
    """Of the episodes and the policy's draws."""
    output: Path = Path("calibration.csv")
    """CSV file to write."""
    figure: Path | None = None
    """PNG file to draw."""

    limits: ClassVar[Limits] = {
        "episodes": (1, 1000),
        "stride": (1, INFINITY),
        "seed": (0, 2**31 - 1),
    }

    def __post_init__(self) -> None:
        check_limits(self, self.limits)


class Recorder:
    """An environment that keeps what was seen, done and got since its last reset."""

    def __init__(self, environment: HostEnvironment) -> None:
        self._environment = environment
        self.observations: list[np.ndarray] = []
        self.actions: list[np.ndarray] = []
        self.rewards: list[float] = []
        self.discount = 1.0  # of the last step; 0 at a termination

    def reset(self) -> TimeStep:
        first = self._environment.reset()
        self.observations, self.actions, self.rewards = [first.observation], [], []
        return first

    def step(self, action: np.ndarray) -> TimeStep:
        arrived = self._environment.step(action)
        self.actions.append(np.array(action))
        self.rewards.append(float(arrived.reward))
        self.observations.append(arrived.observation)
        self.discount = float(arrived.discount)
        return arrived

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environment, name)


def returns_to_go(rewards: Sequence[float], discount: float) -> np.ndarray:
    """`[T]` discounted sums of each reward and those after it."""
    found, after = np.zeros(len(rewards)), 0.0
    for t in range(len(rewards) - 1, -1, -1):
        after = found[t] = rewards[t] + discount * after
    return found


def num_seen(length: int, last_discount: float, discount: float) -> int:
    """How many of the states of an episode have enough of their future in it: all where it terminates."""
    if last_discount == 0.0 or discount == 0.0:
        return length
    return max(0, length - math.ceil(math.log(1 - SEEN) / math.log(discount))) if discount < 1 else 0


def compare(
    agent: Agent, state: Any, spec: EnvSpec, environments: Sequence[HostEnvironment], options: Options
) -> list[dict[str, Any]]:
    """What is said and what came, of the states that are told of an episode in each of `environments`.

    Raises:
      UserError: the agent has no critics.
    """
    player: Any = Exploring(agent) if options.mode == "explore" else agent
    learner = Learner(player, spec, options.seed, capacity=1)
    recorders: list[Any] = [Recorder(environment) for environment in environments]
    (played,) = evaluate(
        learner, jax.tree.map(lambda leaf: np.asarray(leaf)[None], state), [recorders], step=0
    )
    assert played is not None, "no seed is frozen"
    discount, scale = float(agent.discount(state)), float(agent.reward_scale(state))  # type: ignore[attr-defined]
    value = jax.jit(agent.action_value)
    rows = []
    for episode, recorder in enumerate(recorders):
        at = np.arange(0, num_seen(len(recorder.rewards), recorder.discount, discount), options.stride)
        if not len(at):
            continue
        said = value(state, np.stack(recorder.observations)[at], np.stack(recorder.actions)[at])
        if said is None:
            raise UserError("it has no critics; give a run of another agent")
        came = returns_to_go(recorder.rewards, discount)[at]
        rows += [
            {
                "episode": episode,
                "return": played.returns[episode],
                "decision": int(t),
                "said": float(says) * scale,
                "came": float(comes),
            }
            for t, says, comes in zip(at, np.asarray(said).reshape(-1), came, strict=True)
        ]
    if not rows:
        raise UserError(
            f"no state has {SEEN:.0%} of its discounted future in an episode of {spec.episode_steps} steps"
        )
    return rows


def rows_of(run: RunDir, options: Options) -> list[dict[str, Any]]:
    """The rows of one run.

    Raises:
      UserError: no run on dm_control with critics and a checkpoint, or no state that is told.
    """
    config = run.config
    if config["backend"] != "dm_control":
        raise UserError(f"{run.path} was trained on {config['backend']}; give a run of --backend dm_control")
    # Runs of the first version name no precision.
    runtime.set_precision(config["run_config"].get("matmul_precision", "float32"))
    try:
        task, agent = build(config)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{run.path}: {error}") from error
    restored = restore_policy(run.path, Learner(agent, task.spec, options.seed, capacity=1))
    state = jax.tree.map(jnp.asarray, restored.agent)
    try:
        found = compare(agent, state, task.spec, [task.host(i) for i in range(options.episodes)], options)
    except UserError as error:
        raise UserError(f"{run.path}: {error}") from error
    seed = config["run_config"]["seed"]
    about = {
        "task": config["task"],
        "agent": run.id.label,
        "seed": seed,
        "step": restored.step,
        "mode": options.mode,
    }
    return [about | row for row in found]


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is said of a run: the means, and those of groups of states by what the critics say."""
    said, came = (np.array([row[name] for row in rows]) for name in ("said", "came"))
    lines = [
        f"  critics say {said.mean():7.2f}, {came.mean():7.2f} came of it, in the mean over {len(rows)} states"
    ]
    parts = np.array_split(np.argsort(said, kind="stable"), min(PARTS, len(rows)))
    return lines + [f"  {said[part].mean():19.2f}, {came[part].mean():7.2f}" for part in parts]


def draw(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """What was said over what came, a panel a run."""
    runs = list(dict.fromkeys((row["agent"], row["seed"], row["step"]) for row in rows))
    with plt.rc_context(RC):
        figure, axes = plt.subplots(
            1,
            len(runs),
            figsize=(3.4 * len(runs), 3.4),
            squeeze=False,
            sharex=True,
            sharey=True,
            layout="constrained",
        )
        ends = [
            min(min(row["said"], row["came"]) for row in rows),
            max(max(row["said"], row["came"]) for row in rows),
        ]
        for axis, (agent, seed, step) in zip(axes[0], runs, strict=True):
            here = [row for row in rows if (row["agent"], row["seed"], row["step"]) == (agent, seed, step)]
            axis.plot(ends, ends, color="0.6", linewidth=1)
            axis.scatter(
                [row["came"] for row in here], [row["said"] for row in here], s=6, alpha=0.4, linewidths=0
            )
            axis.set_title(f"{agent}\nseed {seed}, {step:,} steps", fontsize="medium")
            axis.set_xlabel("discounted rewards that came")
        axes[0, 0].set_ylabel("what the critics say")
        figure.savefig(file)
    plt.close(figure)
    print(f"written to {file}")


def main() -> None:
    """Plays the runs, prints a summary of each, and writes every state."""
    given = read_arguments(Options, __doc__, [Positional("runs", "Folders of runs.", tuple[Path, ...])])
    options: Options = given["options"]
    rows: list[dict[str, Any]] = []
    with mistakes_told():
        for file in (options.output, options.figure):
            try:
                if file is not None:
                    file.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"Cannot write {file} ({first_line(error)})") from error
        for folder in given["runs"]:
            run = load_run(folder)
            found = rows_of(run, options)
            print(
                f"{run.path}, {found[0]['step']:,} steps, {options.mode}",
                *summary(found),
                sep="\n",
                flush=True,
            )
            rows += found
        write_rows(options.output, rows)
        if options.figure is not None:
            draw(rows, options.figure)


if __name__ == "__main__":
    main()
