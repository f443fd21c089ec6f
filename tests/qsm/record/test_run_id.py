"""The name of a run leads to its folder, and the folder back to the name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.config import AgentConfig
from qsm.base.errors import UserError
from qsm.options.run import RunConfig
from qsm.record.config_file import resolved_config
from qsm.record.run_id import RunId, run_id_at

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+=,-]{0,20}", fullmatch=True)
RUN_IDS = st.builds(
    RunId,
    st.sampled_from(["dm_control", "mjx"]),
    st.just("walker-walk"),
    st.sampled_from(["qsm", "qsm-clean"]),
    st.none() | NAMES,
    st.integers(0, 2**31 - 1),
)


def config_of(run_id: RunId) -> dict:
    options = RunConfig(seed=run_id.seed)
    return resolved_config(run_id.agent, run_id.task, run_id.backend, AgentConfig(), options)


def test_path_of_a_run() -> None:
    run_id = RunId("dm_control", "walker-walk", "sac", seed=3)
    assert run_id.path() == Path("runs/dm_control/walker-walk/sac/seed_3") and run_id.label == "sac"
    named = RunId("mjx", "walker-walk", "sac", "wide-2")
    assert named.path("elsewhere") == Path("elsewhere/mjx/walker-walk/sac@wide-2/seed_0")
    assert named.label == "sac@wide-2"


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b", "a@b", "-x", "a\n", "a" * 101])
def test_name_that_is_no_folder_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="--name is"):
        RunId("dm_control", "walker-walk", "sac", name).path()


@given(RUN_IDS)
def test_a_folder_leads_back_to_its_run(run_id: RunId) -> None:
    assert run_id_at(run_id.path("elsewhere"), config_of(run_id)) == run_id


def test_a_folder_of_any_other_place_names_no_variant() -> None:
    run_id = RunId("mjx", "walker-walk", "sac", None, 4)
    for path in ("seed_4", "me@home/seed_4", "sac/seed_4", "sac@/seed_4"):
        assert run_id_at(Path(path), config_of(run_id)) == run_id
