"""What is not finite is named: metric, update, array, row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from envs.api import StepType
from qsm.data.replay import Rows
from qsm.training import diagnosis


def rows(reward: list[float]) -> Rows:
    """One environment, from row 7 on, and a place that no row has reached."""
    length = len(reward) + 1
    return Rows(
        observation=np.zeros((length, 1, 2), np.float32),
        action=np.zeros((length, 1, 1), np.float32),
        reward=np.array([*reward, np.nan], np.float32)[:, None],
        discount=np.ones((length, 1), np.float32),
        step_type=np.full((length, 1), StepType.MID, np.int8),
        first=np.array([7]),
        size=np.array([length - 1]),
    )


def test_what_is_not_finite_is_named(tmp_path: Path):
    agent = {
        "actor": {"kernel": np.ones((2, 2), np.float32)},
        "critic": {"kernel": np.array([[np.nan, 1], [np.inf, -np.inf]], np.float32)},
        "count": np.array(3),
    }
    found = diagnosis.diagnose(120, 100, 40, {"critic/loss": float("nan")}, agent, rows([1, np.inf, 3]))
    assert found.first_bad_update == 61
    assert found.modules == ["critic"]
    assert found.arrays == {"critic.kernel": {"nan": 1, "infinite": 2, "numbers": 4}}
    assert found.rows == [{"row": 8, "environment": 0, "fields": ["reward"]}]
    assert found.describe() == (
        "critic/loss is nan since update 61; not finite: critic; row 8 of the replay buffer is not finite "
        "(reward)"
    )

    diagnosis.write(tmp_path / "folder", found, agent, rows([1]), {"physics": np.arange(3.0)})
    report = json.loads((tmp_path / "folder" / "report.json").read_text())
    assert report == json.loads(json.dumps(found._asdict()))
    with np.load(tmp_path / "folder" / "state.npz", allow_pickle=False) as state:
        np.testing.assert_array_equal(state["agent/critic.kernel"], agent["critic"]["kernel"])
        assert {"replay/first", "environment/physics", "agent/count"} <= set(state.files)


def test_a_metric_alone_may_be_at_fault():
    agent = {"actor": np.ones(3, np.float32)}
    found = diagnosis.diagnose(120, 100, 0, {"policy/q": float("-inf")}, agent, rows([1]))
    assert (found.first_bad_update, found.arrays, found.rows) == (None, {}, [])
    assert found.describe() == "policy/q is -inf; all parameters are finite"
