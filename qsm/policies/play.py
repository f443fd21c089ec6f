"""`qsm eval`: plays a policy of a run, on the simulator it was trained on or on the other."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from envs import render
from envs.tasks import GRIDWORLD_NAMES, SAME_OBSERVATIONS, check_task
from qsm.base.errors import UserError
from qsm.checkpoints.selection import NEWEST, Which, restore_policy
from qsm.devices import runtime
from qsm.learning.build import SIMULATORS, Simulators, build
from qsm.learning.learner import Learner
from qsm.loops.evaluate import Evaluation, episode_seed, evaluate
from qsm.options.run import Backend
from qsm.record.find import load_run
from qsm.record.run_folder import RunDir


def play(
    run_dir: Path,
    episodes: int = 10,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    video: Path | None = None,
    backend: Backend | None = None,
    which: Which = NEWEST,
    simulators: Simulators = SIMULATORS,
) -> dict[str, Any]:
    """Plays a policy of a run.

    Args:
      seed: of the episodes and of the policy's draws; apart from those of training whatever it is.
      overrides: options of the agent to be replaced, for agents that have them.
      video: file for a video of the first episode.
      backend: simulator to play on; the one that the run was trained on by default. On another, the same policy is
        played on both, and what it loses by the change is among the results.
      which: the newest checkpoint's policy, the best evaluated one, or that of a step.

    Returns:
      The run's name, the step that the policy was trained for, the backend, and the metrics of `Evaluation`.

    Raises:
      UserError: no run, no such policy, an impossible option, observations that differ, or no way to render.
    """
    run = load_run(run_dir)
    trained_on: Backend = run.config["backend"]
    backend = backend or trained_on
    task = run.config["task"]
    try:
        if video is not None:
            render.check_path(video)
            if task in GRIDWORLD_NAMES:
                raise ValueError(f"{task} has no camera to film with; leave out --video")
            if backend != "dm_control":
                raise ValueError(
                    "videos are drawn by dm_control: add --backend dm_control, or leave out --video"
                )
        if backend != trained_on:
            check_task(task, backend)
            if task not in SAME_OBSERVATIONS:
                raise ValueError(
                    f"{task} is observed differently on {trained_on} and {backend}; this policy can only be played on "
                    f"{trained_on}"
                )
    except ValueError as error:
        raise UserError(f"{run.path}: {error}") from error
    player = _Player(run, seed, episodes, overrides or {}, which, simulators)
    record: list[np.ndarray] | None = [] if video is not None else None
    evaluation = player.play(backend, record)
    result = {"run": str(run.path), "step": player.step, "backend": backend, **evaluation.metrics()}
    if backend != trained_on:
        before = player.play(trained_on).metrics()["return_mean"]  # of the same checkpoint
        after = result["return_mean"]
        result[f"return_mean on {trained_on}"] = before
        result["lost"] = before - after
        result["lost_share"] = f"{(before - after) / before:.1%}" if before else "undefined"
    if video is not None and record is not None:
        _say(f"drawing the first to {video}")
        try:
            first = episode_seed(seed, player.step + 1, 0)
            drawn = render.render_episode(
                task,
                run.config["run_config"]["seed"],
                np.stack(record),
                video,
                run.config["run_config"].get("action_repeat", 1),
                episode_seed=first,
            )
        except (ValueError, RuntimeError) as error:
            raise UserError(str(error)) from error
        result["video"] = str(drawn.path)
    return result


def _say(what: str) -> None:
    """What is waited for, on standard error: results go to standard output."""
    print(what, file=sys.stderr, flush=True)


class _Player:
    """A policy of a run, to be played on either backend."""

    def __init__(
        self,
        run: RunDir,
        seed: int,
        episodes: int,
        overrides: Mapping[str, Any],
        which: Which,
        simulators: Simulators,
    ) -> None:
        self._run, self._seed, self._episodes = run, seed, episodes
        self._which, self._simulators = which, simulators
        self._overrides = overrides
        options = run.config["run_config"]
        # Runs of the first version name no precision.
        runtime.set_precision(options.get("matmul_precision", "float32"))
        self.step = 0
        self._agents: Any = None  # read once: training may go on meanwhile

    def play(self, backend: Backend, record: list[np.ndarray] | None = None) -> Evaluation:
        """One evaluation; the actions of its first episode go to `record`, on dm_control."""
        try:
            task, agent = build(self._run.config, backend, self._simulators, **self._overrides)
            spec = task.spec
            host = [task.host() for _ in range(self._episodes)] if backend != "mjx" else []
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{self._run.path}: {error}") from error
        learner = Learner(agent, spec, self._seed, capacity=1)
        if self._agents is None:
            restored = restore_policy(self._run.path, learner, *self._which)
            self.step = restored.step
            self._agents = jax.tree.map(lambda leaf: np.asarray(leaf)[None], restored.agent)
        number = f"{self._episodes} episode{'s' if self._episodes > 1 else ''}"
        _say(f"playing {number} on {backend} with the policy of step {self.step:,}")
        # One step past any of training, so that these episodes are not those of the curve.
        step = self.step + 1
        if backend == "mjx":
            from qsm.loops.device_evaluate import DevicePlayer

            (result,) = DevicePlayer(learner, task.vector(self._episodes))(self._agents, step)
        else:
            (result,) = evaluate(learner, self._agents, [host], step, record)
        assert result is not None
        return result
