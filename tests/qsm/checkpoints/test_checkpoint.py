"""A checkpoint gives back what was saved, bit for bit, or says in one line why it cannot."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

import agents
from envs.api import EnvSpec, StepType
from qsm.base.errors import UserError
from qsm.base.files import read_json, write_json
from qsm.checkpoints import checkpoint, integrity
from qsm.checkpoints.checkpoint import KEPT, Checkpoints, Saved
from qsm.learning.learner import Learner, TrainState
from qsm.loops.schedule import Counters
from tests.arrivals import arrival, stored
from tests.tally_agent import TallyAgent

SPEC = EnvSpec("probe", observation_size=2, action_size=1, episode_steps=3, action_repeat=1)


@functools.cache  # its programs are worth keeping
def small_learner(name: str, size: int = 8, capacity: int = 8) -> Learner:
    few = (
        {"denoising_steps": 2} if agents.AGENTS[name].family == "diffusion" else {}
    )  # compiles in half the time
    agent = agents.make_agent(name, 2, 1, hidden_sizes=(size,), batch_size=4, **few)
    return Learner(agent, SPEC, 0, capacity)


def trained(learner: Learner, num_ticks: int = 12) -> TrainState:
    """A state whose buffer has wrapped and whose every part has moved."""
    state = learner.init()
    for tick in range(num_ticks):
        step_type = (StepType.FIRST, StepType.MID, StepType.LAST)[tick % 3]
        here = arrival(step_type, 0.3 * tick, 0.1 * tick, tick % 2)
        action, updates = np.full((1, 1, 1), 0.05 * tick, np.float32), int(tick >= 6)
        state = learner.learn(state, action, here, np.int32(max(tick - 6, 0)), np.int32(updates))
    return state


ENVIRONMENT = {
    "physics": np.array([1 / 3, 1e-300]),
    "steps_left": np.array(7),
    "random": np.arange(3, dtype=np.uint32),
}


def saved(state: TrainState, since: np.ndarray | None = None) -> Saved:
    """The only seed's part of `state`, with an environment beside it, and the rows from `since` on."""
    part = jax.device_get(jax.tree.map(lambda leaf: leaf[0], state))
    return Saved(part.agent, [stored(part.replay, since)], part.metrics, ENVIRONMENT)


def placed(learner: Learner, saved: Saved) -> TrainState:
    """The training state that goes on from `saved`."""
    one = jax.tree.map(lambda leaf: np.asarray(leaf)[None], (saved.agent, saved.metrics))
    return learner.place(one[0], [saved.replay], one[1], ())


def assert_same(one: Any, other: Any) -> None:
    """Equal structure, types and bits."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "name",
    [name if name == "sac" else pytest.param(name, marks=pytest.mark.slow) for name in agents.AGENTS],
)
def test_a_training_state_comes_back_bit_for_bit(name: str, tmp_path: Path):
    learner = small_learner(name)
    state = trained(learner)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(saved(state), Counters(12, 6), 8)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        restored, counters = checkpoints.restore(learner, 12)
    assert counters == Counters(12, 6)
    assert len(restored.replay[0].step_type) == learner.capacity
    assert_same(restored, saved(state))
    assert learner.drain(placed(learner, restored))[1] == learner.drain(state)[1]


def test_a_restored_state_learns_on_as_the_saved_one_would(tmp_path: Path):
    learner = Learner(TallyAgent(), SPEC, seeds=0, capacity=8)
    state = trained(learner)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(saved(state), Counters(12, 6), 8)
        restored, _ = checkpoints.restore(learner, 12)
    arguments = (np.ones((1, 1, 1), np.float32), arrival(StepType.FIRST, 1), np.int32(6), np.int32(5))
    assert_same(
        saved(learner.learn(placed(learner, restored), *arguments)), saved(learner.learn(state, *arguments))
    )


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    learner = Learner(TallyAgent(), SPEC, seeds=0, capacity=8)
    state = trained(learner)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest_step is None
        for step in (0, 10, 200, 3000):
            checkpoints.save(saved(state, checkpoints.rows_saved), Counters(step, step // 2), 8)
            checkpoints.prune()
            assert checkpoints.latest_step == step
        checkpoints.save(saved(state), Counters(3000, 7), 8)  # is there already
        assert checkpoints.steps() == [200, 3000]
    assert KEPT == 2
    assert sorted(path.name for path in folder.iterdir() if path.name.isdigit()) == ["200", "3000"]
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore(learner, 3000)[1] == Counters(3000, 1500)
        assert checkpoints.restore(learner, 200)[1] == Counters(200, 100)
        checkpoints.go_back_to(200)
        checkpoints.save(saved(state, checkpoints.rows_saved), Counters(700, 7), 8)
        assert checkpoints.steps() == [200, 700]


def test_a_buffer_that_was_not_full_may_be_restored_into_a_smaller_one(tmp_path: Path):
    state = trained(Learner(TallyAgent(), SPEC, 0, capacity=8), num_ticks=7)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(saved(state), Counters(7, 1), 8)
        smaller = Learner(TallyAgent(), SPEC, 0, capacity=5)
        restored, _ = checkpoints.restore(smaller, 7)
    np.testing.assert_array_equal(
        saved(placed(smaller, restored)).replay[0].observation, saved(state).replay[0].observation[2:]
    )


def test_the_agent_alone_can_be_read(tmp_path: Path):
    learner = small_learner("sac")
    state = trained(learner)
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(saved(state), Counters(12, 6), 8)
    # A player has no use for the buffer: its own is of another size.
    agent_state, step = checkpoint.restore_agent(folder, small_learner("sac", capacity=1))
    assert step == 12
    assert_same(agent_state, saved(state).agent)


def test_a_checkpoint_from_before_a_part_that_holds_nothing_is_read(tmp_path: Path):
    """As of published QSM before `gradient_size`, which is () unless its scale is relative."""
    learner = small_learner("qsm")
    state = saved(trained(learner))
    fields = state.agent._asdict()
    assert fields.pop("gradient_size") == ()
    older = NamedTuple("State", [(name, Any) for name in fields])(**fields)  # type: ignore[misc]
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state._replace(agent=older), Counters(12, 6), 8)
        restored, counters = checkpoints.restore(learner, 12)
    assert counters == Counters(12, 6)
    assert_same(restored.agent, state.agent)


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("sac", 16, "actor.params.params.torso.Dense_0.bias is (8,) there and (16,) in this agent"),
        ("td3", 8, "actor.params.params.unsquashed.bias is (2,) there and (1,) in this agent"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_told_in_one_line(
    name: str, size: int, reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(saved(trained(small_learner("sac"))), Counters(12, 6), 8)
    with pytest.raises(UserError) as refusal:
        checkpoint.restore_agent(folder, small_learner(name, size))
    assert str(refusal.value) == f"the checkpoint {folder / '12'} cannot be read: {reason}"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("exists", [False, True])
def test_a_run_without_a_checkpoint_is_told_in_one_line(exists: bool, tmp_path: Path):
    folder = tmp_path / "run" / "checkpoints"
    if exists:
        folder.mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"run has no checkpoint: .* resume it with its command; .* in another folder\.$"
    ):
        checkpoint.restore_agent(folder, Learner(TallyAgent(), SPEC, 0, 1))
    assert folder.is_dir() == exists


def flip(path: Path) -> None:
    """One bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])  # the last byte may be a newline that means nothing


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_a_damaged_checkpoint_is_passed_over(damage: Callable[[Path], object], tmp_path: Path):
    folder = tmp_path / "checkpoints"
    learner = Learner(TallyAgent(), SPEC, seeds=0, capacity=8)
    state = trained(learner)
    with Checkpoints(folder) as checkpoints:
        for step in (12, 24):
            checkpoints.save(saved(state, checkpoints.rows_saved), Counters(step, 6), 8)
    files = sorted(path for path in (folder / "24").rglob("*") if path.is_file() and path.stat().st_size)
    assert len(files) > 10
    for path in files:
        assert integrity.is_whole(folder / "24")
        before = path.read_bytes()
        damage(path)
        assert not integrity.is_whole(folder / "24"), path
        path.write_bytes(before)

    damage(max(files, key=lambda path: path.stat().st_size))
    told: list[str] = []
    assert checkpoint.restore_agent(folder, learner, told.append)[1] == 12
    assert "24 is damaged" in told.pop()
    with Checkpoints(folder) as checkpoints:
        checkpoints.set_damaged_aside(told.append)
        assert checkpoints.steps() == [12]
        checkpoints.save(saved(state, checkpoints.rows_saved), Counters(24, 6), 8)
        assert checkpoints.steps() == [12, 24]
    (warning,) = told
    assert f"it is kept as {tmp_path / 'damaged_checkpoint_24'}" in warning
    assert (tmp_path / "damaged_checkpoint_24" / "counters").is_dir()
    assert integrity.is_whole(folder / "24")


def test_where_every_checkpoint_is_damaged_nothing_is_touched(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    learner = Learner(TallyAgent(), SPEC, seeds=0, capacity=8)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(saved(trained(learner)), Counters(12, 6), 8)
    for path in (folder / "12" / "agent").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(UserError, match="damaged or not complete; restore one"):
        checkpoint.restore_agent(folder, learner)
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(UserError, match="nothing was changed"):
            checkpoints.set_damaged_aside(print)
        assert checkpoints.steps() == [12]
        # A kill while the first was being written: there was nothing yet to lose.
        (folder / "12" / integrity.CHECKSUMS).unlink()
        checkpoints.set_damaged_aside(print)
        assert checkpoints.steps() == []


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            None,
            r"is of an earlier version of qsm \(format 1; this one reads 2\)\. .* take the version .*5b8e0bd",
        ),
        (3, r"was written by a newer qsm \(format 3; this one reads 2\); update qsm$"),
    ],
)
def test_a_checkpoint_of_another_format_is_neither_read_nor_touched(
    found: int | None, message: str, tmp_path: Path
):
    folder = tmp_path / "checkpoints"
    learner = Learner(TallyAgent(), SPEC, seeds=0, capacity=8)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(saved(trained(learner)), Counters(12, 6), 8)
    rows = folder / "12" / "rows" / "metadata"
    values = read_json(rows)
    assert values.pop("format") == checkpoint.FORMAT
    write_json(rows, values if found is None else values | {"format": found})
    integrity.seal(folder / "12")
    with pytest.raises(UserError, match=message):
        checkpoint.restore_agent(folder, learner)
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(UserError, match=message):
            checkpoints.set_damaged_aside(print)
        assert checkpoints.steps() == [12]
    # A damaged one tells no format; it is set aside as such.
    rows.write_text("[]")
    with Checkpoints(folder) as checkpoints, pytest.raises(UserError, match="is damaged"):
        checkpoints.set_damaged_aside(print)
