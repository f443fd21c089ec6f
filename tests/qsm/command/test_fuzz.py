"""Whatever a person types or a file holds: it is taken, or refused in one line; never a traceback, never half a run."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import agents
from qsm.base.errors import UserError
from qsm.checkpoints.checkpoint import UNREADABLE
from qsm.command import cli
from qsm.data import segments
from qsm.devices.processes import processes_asked
from qsm.options.commands import OutputOptions
from qsm.options.kinds import flag_of
from qsm.options.run import LaunchOptions, MjxRunConfig, RunConfig
from qsm.policies import numpy_policy, policy
from qsm.record import listing, tables
from qsm.record.find import load_run

GROUPS = (RunConfig, MjxRunConfig, LaunchOptions, OutputOptions, *map(agents.config_class, agents.AGENTS))
FLAGS = sorted({flag_of(field.name) for group in GROUPS for field in dataclasses.fields(group)})
NUMBERS = [
    "0",
    "-1",
    "1",
    "1e6",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "1_0",
    "0x10",
    "1/0",
    "1/3",
    "9" * 40,
    "٣",
]
WORDS = [
    "true",
    "None",
    "",
    " ",
    "-",
    "--",
    "=",
    ",",
    "1,2",
    "1,,2",
    "a=1,2",
    "discount=1,2",
    "../x",
    "/",
    "\0",
    "é",
    "mjx",
]
# As the command line gives bytes that are no UTF-8, and among letters that break lines.
STRANGE = st.text(st.sampled_from("ab/é\udcff\ud800\n\r\x1b\x85\u2028\u202e"), min_size=1, max_size=6)
VALUES = st.one_of(st.sampled_from(NUMBERS + WORDS), st.text(max_size=20), st.sampled_from(FLAGS), STRANGE)
RELAXED = settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["state", "step", "steps", "seed", "message", "x"]), inner, max_size=3
        ),
    ),
    max_leaves=6,
)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, and a training that does nothing."""
    module = types.ModuleType("qsm.training.train")
    module.train = lambda *arguments, **_: "finished"  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "qsm.training.train", module)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def called(arguments: list[str]) -> tuple[int, str, str]:
    """Status, output and errors of the command."""
    # As in a terminal, and not io.StringIO, which takes what no file does.
    output, errors = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            status = cli.main(arguments)
        except SystemExit as exit:
            status = int(exit.code or 0)
    return status, *(file.buffer.getvalue().decode() for file in (output, errors))  # type: ignore[attr-defined]


def check(arguments: list[str]) -> None:
    status, output, errors = called(arguments)
    assert status in (0, 2), (arguments, status)
    if status == 2:
        assert output == ""
        assert errors.startswith("qsm: error: "), errors
        assert len(errors.splitlines()) == 1 and len(errors) > 30, errors


@RELAXED
@given(
    st.sampled_from(sorted(agents.AGENTS)), st.lists(st.tuples(st.sampled_from(FLAGS), VALUES), max_size=3)
)
@example("qsm", [("--sweep", "discount=1,2")])
@example("qsm", [("--runs", "\0")])
@example("qsm", [("--run-dir", "\0")])
@example("qsm", [("--run-dir", "a\udcff")])
@example("qsm", [("--run-dir", "a\nb")])
def test_any_option_with_any_value(empty: Path, agent: str, given_options: list[tuple[str, str]]):
    words = [word for pair in given_options for word in pair]
    check(["train", agent, "cheetah-run", *words])
    check(["train", agent, "cheetah-run", *(f"{flag}={value}" for flag, value in given_options)])
    assert list(empty.iterdir()) == []


@RELAXED
@given(st.lists(VALUES, max_size=4))
def test_any_words(empty: Path, words: list[str]):
    check(["train", *words])
    check(["train", "qsm", *words])
    for command in ("eval", "export", "actions", "runs", "tasks", "agents"):
        check([command, *words])
    assert list(empty.iterdir()) == []


@RELAXED
@given(JSON, JSON)
@example(
    {"format": 1, "agent": "a", "task": "t", "backend": "b", "agent_config": {}, "run_config": {}},
    {"step": "x"},
)
@example(
    {
        "format": 1,
        "agent": "a",
        "task": "t",
        "backend": "b",
        "agent_config": {},
        "run_config": {"steps": None},
    },
    {"state": "finished", "step": None, "message": 3, "last_return": True},
)
def test_any_configuration_and_status_are_listed(tmp_path: Path, config: Any, status: Any):
    run = tmp_path / "seed_0"
    run.mkdir(exist_ok=True)
    (run / "config.json").write_text(json.dumps(config))
    (run / "status.json").write_text(json.dumps(status))
    (row,) = listing.rows(tmp_path)
    assert row.path == str(run) and row.state and "\n" not in row.state
    with contextlib.suppress(UserError):
        assert load_run(run).finished in (True, False)


@RELAXED
@given(st.one_of(st.binary(max_size=60), st.text('step,x0123456789.\n\r"-e', max_size=60).map(str.encode)))
def test_any_table(tmp_path: Path, data: bytes):
    file = tmp_path / "train.csv"
    file.write_bytes(data)
    with contextlib.suppress(UserError):
        tables.read_csv(file)
    file.write_bytes(data)
    with contextlib.suppress(UserError):
        tables.CsvSink(file, 3, print).write(10**6, {"x": 1.0})
        assert tables.read_table(file).rows[-1][0] == "1000000"


@RELAXED
@given(st.one_of(st.binary(max_size=80), st.binary(max_size=40).map(lambda data: b"PK\x03\x04" + data)))
def test_any_policy_file(tmp_path: Path, data: bytes):
    file = tmp_path / "policy.npz"
    file.write_bytes(data)
    with pytest.raises(UserError):
        policy.load_policy(file)


OPTIONS = dataclasses.asdict(agents.config_class("td3")(hidden_sizes=(4,), batch_size=4))
DESCRIPTION = policy.Description(
    *(numpy_policy.FORMAT, "td3", OPTIONS, "cartpole-swingup", "dm_control", 5, 1, 1, 12, []),
    *([["position", 3], ["velocity", 2]], [-1.0], [1.0], 7.5, None, ""),
)._asdict()


@RELAXED
@given(
    st.dictionaries(st.sampled_from(sorted(DESCRIPTION)), JSON, max_size=2),
    st.dictionaries(st.sampled_from([*OPTIONS, "x"]), JSON, max_size=2),
    st.one_of(st.just(DESCRIPTION), JSON),
)
@example({"agent_config": []}, {}, DESCRIPTION)
@example({"agent_config": None}, {}, DESCRIPTION)
@example({"observation": [["x", 4]]}, {}, DESCRIPTION)
@example({"observation": [["x"]]}, {}, DESCRIPTION)
@example({"action_low": [0, 1]}, {}, DESCRIPTION)
@example({"action_low": [[]]}, {}, DESCRIPTION)
@example({"program": {}}, {}, DESCRIPTION)
@example({"format": -1}, {}, DESCRIPTION)
@example({"format": True}, {}, DESCRIPTION)
@example({"leaves": "abc"}, {}, DESCRIPTION)
@example({"leaves": [{}, 1]}, {}, DESCRIPTION)
@example({"observation_size": 10**12}, {}, DESCRIPTION)
@example({"action_size": -3}, {}, DESCRIPTION)
@example({}, {"batch_size": 10**400}, DESCRIPTION)
@example({}, {"discount": "x"}, DESCRIPTION)
def test_any_description_of_a_policy(tmp_path: Path, changes: dict, options: dict, description: Any):
    """In an archive that is whole."""
    if description is DESCRIPTION:
        description = DESCRIPTION | {"agent_config": OPTIONS | options} | changes
    file = tmp_path / "policy.npz"
    text = np.frombuffer(json.dumps(description).encode(), np.uint8)
    np.savez(file, allow_pickle=False, **{numpy_policy.DESCRIPTION: text})
    with pytest.raises(numpy_policy.PolicyError) as refusal:  # it has no program, or less
        numpy_policy.load_policy(file)
    assert str(file) in str(refusal.value) and len(str(refusal.value).splitlines()) == 1
    try:
        loaded = policy.load_policy(file)
    except UserError as error:
        assert str(file) in str(error) and len(str(error).splitlines()) == 1
        return
    assert type(loaded.description.format) is int and loaded.description.format == numpy_policy.FORMAT


@RELAXED
@given(
    st.one_of(JSON, st.fixed_dictionaries({"name": VALUES, "sha256": VALUES, "first": JSON, "stop": JSON}))
)
def test_any_list_of_rows(value: Any):
    try:
        segment = segments.Segment.from_json(value)
    except UNREADABLE:
        return
    assert "/" not in segment.name and segment.name.endswith(".npz")


VARIABLES = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
    "SLURM_STEP_NUM_TASKS",
    "OMPI_COMM_WORLD_SIZE",
)


@RELAXED
@given(st.dictionaries(st.sampled_from(VARIABLES), VALUES))
@example({"SLURM_STEP_NUM_TASKS": "four"})
def test_any_variables_of_several_processes(variables: dict[str, str]):
    try:
        asked = processes_asked(variables)
    except UserError as error:
        assert any(name in str(error) for name in VARIABLES)
        return
    assert asked is None or asked == {} or 0 <= asked["process_id"] < asked["num_processes"]
