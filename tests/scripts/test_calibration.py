"""calibration.py: what critics say is held against the discounted rewards that are known to follow."""

from __future__ import annotations

import csv
import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.parts.types import Mode, Sampling
from qsm.base.errors import UserError
from qsm.learning.build import Built
from scripts.critics import calibration
from scripts.critics.calibration import Options
from tests.probe_environments import ProbeEnvironment
from tests.run_folders import add

STEPS, DISCOUNT = 40, 0.9


class Steady(ProbeEnvironment):
    """The action is the reward, in episodes of 40 steps that end by their limit, or terminate."""

    def __init__(self, seed: int = 0, terminates: bool = False) -> None:
        super().__init__(seed, STEPS)
        self._terminates = terminates

    def _reward(self, action: float) -> float:
        return action

    def _last_discount(self) -> float:
        return 0.0 if self._terminates else 1.0


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Explores with 1/2 and evaluates with 3/4; values an action by ten times itself."""

    has_critics: bool = True

    scale: float = 1.0

    def reward_scale(self, state: Any) -> float:
        return self.scale

    @property
    def sampling(self) -> Sampling:
        return Sampling(4, 1)

    def discount(self, state: Any) -> float:
        return DISCOUNT

    def act(self, state: Any, observation: jax.Array, key: jax.Array, *, mode: Mode) -> jax.Array:
        return jnp.full((len(observation), 1), 0.5 if mode == "explore" else 0.75)

    def action_value(self, state: Any, observation: jax.Array, action: jax.Array) -> jax.Array | None:
        return 10 * action[:, 0] if self.has_critics else None


def compared(options: Options, *environments: Steady, agent: Any = Fixed()) -> list[dict[str, Any]]:
    return calibration.compare(agent, (), environments[0].spec, environments, options)


def test_an_episode_begins_with_its_reset():
    recorder = calibration.Recorder(Steady())
    for _ in range(2):
        recorder.reset()
        recorder.step(np.array([0.5]))
        assert (recorder.rewards, len(recorder.observations), len(recorder.actions)) == ([0.5], 2, 1)


def test_what_came_is_the_discounted_sum_of_what_followed():
    assert calibration.returns_to_go([1.0, 0.0, 4.0], 0.5) == pytest.approx([2.0, 2.0, 4.0])
    rows = compared(Options(stride=1), Steady())
    # .9^29 is the first power below .05.
    assert [row["decision"] for row in rows] == list(range(STEPS - 29))
    for row in rows:
        left = STEPS - row["decision"]
        assert row["came"] == pytest.approx(0.5 * (1 - DISCOUNT**left) / (1 - DISCOUNT))
        assert row["said"] == pytest.approx(5.0) and row["return"] == pytest.approx(0.5 * STEPS)


def test_episodes_that_terminate_are_told_whole_and_others_are_not_mixed_in():
    rows = compared(Options(stride=15, mode="evaluate"), Steady(), Steady(terminates=True))
    assert [(row["episode"], row["decision"]) for row in rows] == [(0, 0), (1, 0), (1, 15), (1, 30)]
    assert {row["said"] for row in rows} == {7.5}
    scaled = compared(Options(), Steady(), agent=Fixed(scale=3.0))  # critics that speak in scaled rewards
    assert {row["said"] for row in scaled} == {15.0} and scaled[0]["came"] == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize(
    ("length", "last", "discount", "expected"),
    [
        (100, 1.0, 0.99, 0),
        (1000, 1.0, 0.99, 701),
        (100, 0.0, 0.99, 100),
        (100, 1.0, 0.0, 100),
        (100, 1.0, 1.0, 0),
    ],
)
def test_as_much_of_the_future_must_be_seen(length: int, last: float, discount: float, expected: int):
    assert calibration.num_seen(length, last, discount) == expected


def test_groups_are_by_what_is_said():
    rows = [{"said": float(value), "came": float(value % 2)} for value in (9, 1, 8, 2, 7, 3, 6, 4, 5, 0)]
    first, *groups = calibration.summary(rows)
    assert first.split()[2:4] == ["4.50,", "0.50"] and "over 10 states" in first
    assert [line.split() for line in groups] == [[f"{2 * i + 0.5:.2f},", "0.50"] for i in range(5)]


def test_what_cannot_be_compared_is_told(tmp_path: Path):
    with pytest.raises(UserError, match="no critics"):
        compared(Options(), Steady(), agent=Fixed(has_critics=False))
    short = Steady()
    short._spec = dataclasses.replace(short.spec, episode_steps=20)
    short._steps = 20
    with pytest.raises(
        UserError, match="no state has 95% of its discounted future in an episode of 20 steps"
    ):
        compared(Options(), short)
    on_mjx = add(tmp_path / "mjx", "sac", "cartpole-swingup", 0, {0: 1.0}, backend="mjx")
    with pytest.raises(UserError, match="was trained on mjx"):
        calibration.rows_of(on_mjx, Options())
    published = add(tmp_path / "published", "sac", "cartpole-swingup", 0, {0: 1.0})
    with pytest.raises(UserError, match="has no checkpoint"):
        calibration.rows_of(published, Options())


def test_runs_are_read_told_drawn_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    runs = [add(tmp_path, "sac", "cartpole-swingup", seed, {0: 1.0}).path for seed in (0, 1)]
    task = SimpleNamespace(spec=Steady().spec, host=lambda index: Steady(index))
    monkeypatch.setattr(calibration, "build", lambda config: Built(task, Fixed()))  # type: ignore[arg-type]
    monkeypatch.setattr(
        calibration, "restore_policy", lambda path, learner: SimpleNamespace(agent=np.zeros(1), step=30_000)
    )
    table, figure = tmp_path / "made" / "table.csv", tmp_path / "made" / "figure.png"
    words = ["--episodes", "2", "--output", str(table), "--figure", str(figure)]
    monkeypatch.setattr(sys, "argv", ["calibration.py", *map(str, runs), *words])
    calibration.main()
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["episode"], row["decision"]) for row in rows] == [
        (seed, episode, decision) for seed in "01" for episode in "01" for decision in ("0", "10")
    ]
    assert {(row["agent"], row["step"], row["mode"], row["said"]) for row in rows} == {
        ("sac", "30000", "explore", "5")
    }
    assert figure.read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert f"{runs[0]}, 30,000 steps, explore" in shown and "critics say    5.00" in shown
