"""The best evaluated policy is kept, small and consistent with the evaluations that are kept, and can be asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from envs.api import EnvSpec
from qsm.base.errors import UserError
from qsm.checkpoints import best
from qsm.checkpoints.best import BestPolicies, kept_steps
from qsm.checkpoints.checkpoint import Checkpoints, Saved
from qsm.checkpoints.selection import restore_policy
from qsm.learning.learner import Learner
from qsm.loops.schedule import Counters
from tests.tally_agent import TallyAgent, TallyState

SPEC = EnvSpec("probe", observation_size=2, action_size=1, episode_steps=3, action_repeat=1)


@dataclasses.dataclass(frozen=True)
class WeightAgent(TallyAgent):
    """Acts with its `weight`, and reads nothing else."""

    reads_sum: bool = False

    def act(self, state: TallyState, observation: jax.Array, key: jax.Array, *, mode: Any) -> jax.Array:
        action = observation[:, :1] * 0 + state.weight
        return action + state.reward_sum if self.reads_sum else action


def learner(num_seeds: int = 1, **options: Any) -> Learner:
    return Learner(WeightAgent(**options), SPEC, tuple(range(num_seeds)), capacity=1)


def weighing(there: Learner, *weights: float) -> Any:
    """Learned states `[S, ...]` of these weights, whose every other part differs from zero."""
    state = jax.tree.map(lambda leaf: leaf + 7, there.init_agents())
    return state._replace(weight=np.array(weights, np.float32))


def save_checkpoint(run: Path, there: Learner, step: int, weight: float) -> None:
    state = jax.tree.map(lambda leaf: leaf[0], weighing(there, weight))
    with Checkpoints(run / "checkpoints") as checkpoints:
        checkpoints.save(Saved(state, [], {}, {}), Counters(step, 0), 8)


def test_the_best_of_each_run_is_kept_and_holds_what_acting_reads(tmp_path: Path):
    there, runs = learner(2), [tmp_path / "a", tmp_path / "b"]
    for run in runs:
        run.mkdir()
    keeper = BestPolicies(runs, there, pytest.fail)
    evaluations: list[tuple[float | None, float | None]] = [(1.0, 5.0), (3.0, None), (2.0, 4.0), (3.0, 6.0)]
    for number, returns in enumerate(evaluations):
        keeper.offer(100 * number, returns, weighing(there, number, 10 + number))
    assert keeper.returns == [3.0, 6.0]
    assert [kept_steps(run / "best")[-1] for run in runs] == [100, 300]
    with np.load(runs[0] / "best" / "100.npz") as file:
        assert sorted(file.files) == ["description", "weight"]
    for run, step, weight, value in ((runs[0], 100, 1, 3.0), (runs[1], 300, 13, 6.0)):
        restored = restore_policy(run, there, best=True)
        assert restored[1:] == (step, value)
        assert restored.agent.weight == weight and restored.agent.num_updates == 0
    # Whoever opens the run later knows what has to be beaten.
    again = BestPolicies(runs, there, pytest.fail)
    assert again.returns == [3.0, 6.0]
    again.offer(400, [float("nan"), 6.0], weighing(there, 9, 9))
    assert [kept_steps(run / "best")[-1] for run in runs] == [100, 300]


def test_a_resumed_run_has_the_best_of_the_evaluations_that_it_keeps(tmp_path: Path):
    there = learner()
    keeper = BestPolicies([tmp_path], there, pytest.fail)
    for step in range(100, 1000, 100):  # each better than the last
        keeper.offer(step, [float(step)], weighing(there, step))
        if step in (300, 700):
            save_checkpoint(tmp_path, there, step, step)
    # The newest two, and what was the best at each checkpoint.
    assert kept_steps(tmp_path / "best") == [300, 700, 800, 900]
    for resumed, expected in ((700, 700), (500, 300), (None, None)):
        keeper.go_back_to(resumed)
        assert keeper.returns == [expected or -np.inf]
        assert kept_steps(tmp_path / "best")[-1:] == ([expected] if expected else [])
    with pytest.raises(UserError, match=r"has no best policy: .* leave out --best"):
        restore_policy(tmp_path, there, best=True)


def test_what_a_run_kept_that_does_not_go_on_stays(tmp_path: Path):
    runs, there = [tmp_path / name for name in ("goes_on", "frozen")], learner(2)
    for run in runs:
        run.mkdir()
    keeper = BestPolicies(runs, there, pytest.fail)
    for step in (100, 300):
        keeper.offer(step, [float(step)] * 2, weighing(there, 1, 1))
    keeper.go_back_to(200, [0])
    assert [kept_steps(run / "best") for run in runs] == [[100], [100, 300]]
    assert keeper.returns == [100.0, 300.0]


def test_a_full_disk_is_warned_of_once_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    there, warnings = learner(), []
    keeper = BestPolicies([tmp_path], there, warnings.append)
    keeper.offer(1, [1.0], weighing(there, 1))
    replace = best.replace_file

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(best, "replace_file", full)
    keeper.offer(2, [4.0], weighing(there, 2))
    keeper.offer(3, [3.0], weighing(there, 3))
    (warning,) = warnings
    assert "cannot be kept" in warning and "No space left on device" in warning
    assert kept_steps(tmp_path / "best") == [1] and keeper.returns == [1.0]
    monkeypatch.setattr(best, "replace_file", replace)
    keeper.offer(4, [2.0], weighing(there, 4))  # better than what is there
    assert restore_policy(tmp_path, there, best=True)[1:] == (4, 2.0)


def test_a_step_is_that_of_a_checkpoint_or_of_the_best(tmp_path: Path):
    there = learner()
    keeper = BestPolicies([tmp_path], there, pytest.fail)
    with pytest.raises(UserError, match="has no policy of step 5; none is there yet"):
        restore_policy(tmp_path, there, step=5)
    for step, value in ((900, 1.0), (1100, 3.0), (2000, 2.0)):
        keeper.offer(step, [value], weighing(there, step))
    for step in (1000, 2000):
        save_checkpoint(tmp_path, there, step, step)
    for step, value in ((1000, None), (2000, None), (1100, 3.0)):
        restored = restore_policy(tmp_path, there, step=step)
        assert restored[1:] == (step, value) and restored.agent.weight == step
    assert restore_policy(tmp_path, there).step == 2000
    with pytest.raises(
        UserError,
        match=r"of step 900; there are checkpoints of step 1,000 and 2,000, and the best policy, of step 1,100$",
    ):
        restore_policy(tmp_path, there, step=900)
    (tmp_path / "checkpoints" / "1000" / "counters" / "metadata").write_text("{}")
    with pytest.raises(UserError, match="1000 is damaged or not complete"):
        restore_policy(tmp_path, there, step=1000)


def test_what_cannot_be_read_is_told_in_one_line(tmp_path: Path):
    there = learner()
    BestPolicies([tmp_path], there, pytest.fail).offer(1, [1.0], weighing(there, 1))
    # Options that were not the run's may read more: zeros in its place would act, and wrongly.
    with pytest.raises(UserError, match="reward_sum is not among it"):
        restore_policy(tmp_path, learner(reads_sum=True), best=True)
    file = tmp_path / "best" / "1.npz"
    content = file.read_bytes()
    for found, message in ((1, "is of an earlier version"), (9, "by a newer qsm")):
        arrays = {"description": np.frombuffer(b'{"format": %d}' % found, np.uint8)}
        np.savez(file, allow_pickle=False, **arrays)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=message):
            restore_policy(tmp_path, there, best=True)
    file.write_bytes(content[:-30])
    with pytest.raises(UserError, match=r"1\.npz is damaged; take a checkpoint"):
        restore_policy(tmp_path, there, best=True)
    # It has to be beaten by nobody any more.
    keeper = BestPolicies([tmp_path], there, pytest.fail)
    keeper.offer(2, [0.5], weighing(there, 2))
    assert restore_policy(tmp_path, there, best=True)[1:] == (2, 0.5)
