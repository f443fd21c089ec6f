"""Evaluation: its own environments and keys, all episodes stepped together with one batched `act`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from envs.api import HostEnvironment, StepType
from qsm.learner import Learner


class Evaluation(NamedTuple):
    """What came of the episodes of one evaluation, in their order."""

    returns: list[float]  # undiscounted
    lengths: list[int]  # control steps

    def metrics(self) -> dict[str, float]:
        """One row of `eval.csv`: mean, spread and every episode's return."""
        values = {
            "return_mean": float(np.mean(self.returns)),
            "return_std": float(np.std(self.returns)),
            "length_mean": float(np.mean(self.lengths)),
        }
        return values | {f"return_{i}": value for i, value in enumerate(self.returns)}


def episode_seed(seed: int, step: int, episode: int) -> int:
    """Seed of an evaluation episode: a function of the run's seed, the step and the episode, and of nothing else."""
    return int(np.random.SeedSequence((seed, step, episode)).generate_state(1)[0] >> 1)


def evaluate(
    learner: Learner,
    agent_state: Any,
    environments: Sequence[HostEnvironment],
    seed: int,
    step: int,
    record: list[np.ndarray] | None = None,
) -> Evaluation:
    """Plays one episode in each of `environments`, reseeded by `seed` and `step`.

    Args:
      record: if given, the actions `[A]` of the first episode are appended to it.

    Returns:
      Undiscounted returns and lengths in control steps.
    """
    time_steps = []
    for episode, environment in enumerate(environments):
        environment.reseed(episode_seed(seed, step, episode))
        time_steps.append(environment.reset())
    observations = np.stack([time_step.observation for time_step in time_steps])
    returns = np.zeros(len(environments))
    ticks = np.zeros(len(environments), int)
    running = list(range(len(environments)))
    for tick in range(10**9):
        # A fresh array each tick: the CPU backend reads NumPy arguments in place, and may still be at it.
        actions = np.asarray(
            learner.act_to_evaluate(agent_state, observations.copy(), np.int32(step), np.int32(tick))
        )
        if record is not None and running[0] == 0:
            record.append(actions[0].copy())
        still = []
        for i in running:
            time_step = environments[i].step(actions[i])
            observations[i] = time_step.observation
            returns[i] += time_step.reward
            ticks[i] += 1
            if time_step.step_type != StepType.LAST:
                still.append(i)
        running = still
        if not running:
            break
    spec = learner.spec
    lengths = np.minimum(ticks * spec.action_repeat, spec.episode_steps)
    return Evaluation(returns.tolist(), lengths.tolist())


def evaluate_run(
    run_dir: Path,
    episodes: int = 10,
    seed: int = 0,
    eval_samples: int | None = None,
    video: Path | None = None,
) -> dict[str, Any]:
    """Plays the newest checkpoint of a run: `qsm eval`.

    Args:
      seed: of the episodes and of the policy's draws; apart from those of training whatever it is.
      eval_samples: overrides the agent's option, for agents that have it.
      video: file for a video of the first episode.

    Returns:
      The run's name, the step of its checkpoint, and the metrics of `Evaluation`.

    Raises:
      UserError: no run, no checkpoint, an impossible option, or no way to render.
    """
    import agents
    from envs import dmc, render
    from qsm import checkpoint
    from qsm.errors import UserError
    from qsm.rundir import load_run

    run = load_run(run_dir)
    config = run.config
    try:
        if video is not None:
            render.check_path(video)
        options = agents.config_from_dict(config["agent"], config["agent_config"])
        if eval_samples is not None:
            options = agents.override(options, eval_samples=eval_samples)
        action_repeat = config["run_config"]["action_repeat"]
        train_seed = config["run_config"]["seed"]
        environments = [dmc.make_env(config["task"], train_seed, action_repeat) for _ in range(episodes)]
        spec = environments[0].spec
        agent = agents.build(config["agent"], options, spec.observation_size, spec.action_size)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{run.path}: {error}") from error
    learner = Learner(agent, spec, seed, capacity=1)
    agent_state, step = checkpoint.restore_agent(run.checkpoints, learner)
    record: list[np.ndarray] | None = [] if video is not None else None
    # One step past any of training, so that these episodes are not those of the curve.
    evaluation = evaluate(learner, agent_state, environments, seed, step + 1, record)
    result = {"run": str(run.path), "step": step, **evaluation.metrics()}
    if video is not None and record is not None:
        try:
            first = episode_seed(seed, step + 1, 0)
            drawn = render.render_episode(config["task"], first, np.stack(record), video, action_repeat)
        except (ValueError, RuntimeError) as error:
            raise UserError(str(error)) from error
        result["video"] = str(drawn.path)
    return result
