"""Every row reaches the CSV files once, and no failing sink ends a run."""

from __future__ import annotations

import csv
import errno
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX.record_writer import RecordWriter

from qsm.base.errors import UserError
from qsm.record import tables
from qsm.record.metrics import MetricWriter
from qsm.record.run_folder import RunDir
from qsm.record.sinks import tensorboard
from qsm.record.tables import in_order, read_csv

ROOT = Path(__file__).parents[3]


def writer(run: RunDir, warnings: list[str], resume_step: int | None = None) -> MetricWriter:
    return MetricWriter(run, "disabled", resume_step, warnings.append)


def curve(run: RunDir, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard shows of one metric."""
    events = EventAccumulator(str(run.tensorboard)).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def fail(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_rows_round_trip_through_csv(run: RunDir, warnings: list[str]) -> None:
    with writer(run, warnings) as sink:
        sink.write(
            "train", 0, {"critic/loss": 0.1, "train/actor/loss": float("nan"), "updates": 123_456_789_012}
        )
        sink.write("train", 1000, {"critic/loss": float("-inf"), "train/actor/loss": 1 / 3, "updates": 2})
        sink.write("eval", 0, {"return_mean": 1.5, "return_0": 1, "return_1": 2})
        # Read before the sink is closed: every row is flushed at once.
        assert run.train_csv.read_text() == (
            "step,actor/loss,critic/loss,updates\n0,nan,0.1,123456789012\n1000,0.333333333,-inf,2\n"
        )
    first, second = read_csv(run.train_csv)
    assert math.isnan(first.pop("actor/loss"))
    assert first == {"step": 0, "critic/loss": 0.1, "updates": 123_456_789_012}
    assert second == {"step": 1000, "critic/loss": -math.inf, "actor/loss": 0.333333333, "updates": 2}
    assert read_csv(run.eval_csv) == [{"step": 0, "return_mean": 1.5, "return_0": 1, "return_1": 2}]
    assert not warnings


def test_metric_that_appears_late_reaches_the_csv(run: RunDir, warnings: list[str]) -> None:
    with writer(run, warnings) as sink:
        sink.write("train", 1, {"a": 1})
        sink.write("train", 2, {"b": 2, "a": 3})
        sink.write("train", 3, {"b": 4})
    assert run.train_csv.read_text() == "step,a,b\n1,1,\n2,3,2\n3,,4\n"
    assert read_csv(run.train_csv) == [{"step": 1, "a": 1}, {"step": 2, "a": 3, "b": 2}, {"step": 3, "b": 4}]


AGENT_METRICS = ("actor/loss", "critic/loss", "critic/q_10_mean", "critic/q_2_mean", "score/cosine")


@given(st.permutations(["loop/steps_per_second", "loop/num_updates", *AGENT_METRICS]), st.data())
def test_columns_have_one_order_whatever_was_logged_first(names: list[str], data: st.DataObject) -> None:
    expected = [
        *("step", "loop/num_updates", "loop/steps_per_second", "actor/loss", "critic/loss"),
        *("critic/q_2_mean", "critic/q_10_mean", "score/cosine"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "train.csv")
        sink, expected_rows = tables.CsvSink(file, None, fail), []
        for step, name in enumerate(
            names
        ):  # each appears at another step, and some rows come after a resumption
            row = {name: float(step)} | dict.fromkeys(data.draw(st.sets(st.sampled_from(names))), 0.5)
            sink.write(step, row)
            expected_rows.append({"step": step} | row)
            if data.draw(st.booleans()):
                sink = tables.CsvSink(file, step, fail)
        assert tables.read_table(file).columns == expected
        assert read_csv(file) == expected_rows


def test_episodes_stand_last_and_in_their_order() -> None:
    names = [f"return_{i}" for i in range(12)]
    assert in_order(["seconds", *reversed(names), "return_mean", "step"]) == [
        *("step", "return_mean", "seconds"),
        *names,
    ]


def test_a_file_of_another_order_is_put_in_order_and_goes_on(run: RunDir, warnings: list[str]) -> None:
    run.train_csv.write_text("step,critic/loss,loop/num_updates,actor/loss\n1,10,11,12\n2,20,,22\n")
    with writer(run, warnings, resume_step=2) as sink:
        sink.write("train", 3, {"critic/loss": 30, "actor/loss": 32, "loop/num_updates": 31})
    assert run.train_csv.read_text() == (
        "step,loop/num_updates,actor/loss,critic/loss\n1,11,12,10\n2,,22,20\n3,31,32,30\n"
    )


def test_resume_drops_later_rows_and_appends(run: RunDir, warnings: list[str]) -> None:
    with writer(run, warnings) as sink:
        for step in (0, 10, 20, 30):
            sink.write("train", step, {"a": step})
            sink.write("eval", step, {"return_mean": step})
    with writer(run, warnings, resume_step=10) as sink:
        sink.write("train", 20, {"b": 7, "a": -20})
        sink.write("eval", 20, {"return_mean": -20})
    assert run.train_csv.read_text() == "step,a,b\n0,0,\n10,10,\n20,-20,7\n"
    assert read_csv(run.eval_csv)[-1] == {"step": 20, "return_mean": -20}
    assert curve(run, "train/a") == [(0, 0), (10, 10), (20, -20)]
    with writer(run, warnings) as sink:
        sink.write("train", 0, {"a": 5})
    assert read_csv(run.train_csv) == [{"step": 0, "a": 5}] and read_csv(run.eval_csv) == []
    assert curve(run, "train/a") == [(0, 5)]


def test_row_of_the_same_step_replaces_and_an_earlier_one_is_a_bug(run: RunDir, warnings: list[str]) -> None:
    with writer(run, warnings) as sink:
        sink.write("eval", 5, {"return_mean": 1})
        sink.write("eval", 5, {"return_mean": 2})
        with pytest.raises(ValueError, match="step 4 after that of step 5"):
            sink.write("eval", 4, {"return_mean": 3})
    with writer(run, warnings, resume_step=5) as sink:
        sink.write("eval", 5, {"return_mean": 4})
    assert read_csv(run.eval_csv) == [{"step": 5, "return_mean": 4}]


@pytest.mark.parametrize("name", ["", "step", "a,b", "a b", 'a"', "a\n"])
def test_name_that_is_no_column_is_a_bug(run: RunDir, warnings: list[str], name: str) -> None:
    with writer(run, warnings) as sink, pytest.raises(ValueError, match="no name of a metric"):
        sink.write("train", 0, {name: 1.0})


def test_torn_last_line_is_dropped_on_resume(run: RunDir, warnings: list[str]) -> None:
    run.train_csv.write_text("step,a\n0,1\n10,2\n20,")
    assert [row["step"] for row in read_csv(run.train_csv)] == [0, 10]
    with writer(run, warnings, resume_step=20) as sink:
        sink.write("train", 20, {"a": 3})
    assert run.train_csv.read_text() == "step,a\n0,1\n10,2\n20,3\n"


@pytest.mark.parametrize("call", ["open", "replace"])
def test_full_disk_keeps_csv_rows_and_warns_once(
    run: RunDir, warnings: list[str], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    late = {"b": 9.0} if call == "replace" else {}
    with writer(run, warnings) as sink:
        sink.write("train", 1, {"a": 1})
        before = run.train_csv.read_bytes()
        with monkeypatch.context() as patch:
            if call == "open":
                patch.setattr(tables, "open", fail, raising=False)
            patch.setattr(os, "replace", fail)
            sink.write("train", 2, {"a": 2, **late})
            sink.write("train", 3, {"a": 3})
        assert run.train_csv.read_bytes() == before
        assert len(warnings) == 1 and str(run.train_csv) in warnings[0] and "No space left" in warnings[0]
        assert "\n" not in warnings[0]
        sink.write("train", 4, {"a": 4})
        assert len(warnings) == 2 and "no row was lost" in warnings[1]
    assert [row["a"] for row in read_csv(run.train_csv)] == [1, 2, 3, 4]
    assert read_csv(run.train_csv)[1] == {"step": 2, "a": 2, **late}
    assert curve(run, "train/a") == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_half_written_row_is_overwritten(run: RunDir, warnings: list[str]) -> None:
    with writer(run, warnings) as sink:
        sink.write("train", 1, {"a": 1})
        with run.train_csv.open("a") as file:
            file.write("2,0.1")
        sink.write("train", 2, {"a": 2})
    assert run.train_csv.read_text() == "step,a\n1,1\n2,2\n"


def test_rows_in_memory_are_bounded_and_losses_told(
    run: RunDir, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "PENDING_ROWS", 3)
    with monkeypatch.context() as patch:
        sink = tables.CsvSink(run.train_csv, None, warnings.append)
        patch.setattr(os, "replace", fail)
        for step in range(5):
            sink.write(step, {"a": step})
    sink.write(5, {"a": 5})
    assert [row["step"] for row in read_csv(run.train_csv)] == [3, 4, 5]
    assert len(warnings) == 2 and "the oldest 3 rows are lost" in warnings[1]
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        sink.write(6, {"b": 6})
        sink.close()
    assert "1 rows of" in warnings[-1] and "are lost" in warnings[-1]


@pytest.mark.parametrize(
    "content",
    ["a,b\n1,2\n", "step,a\n1,2\nx,3\n", "step,a\n1\n", "step,a,a\n", "step,a\n1.5,2\n"],
)
def test_damaged_csv_is_refused_untouched(run: RunDir, warnings: list[str], content: str) -> None:
    run.train_csv.write_text(content)
    with pytest.raises(UserError, match=r"train\.csv .*move"):
        writer(run, warnings, resume_step=100)
    assert run.train_csv.read_text() == content


def test_reading_refuses_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot read"):
        read_csv(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_text("step,a\n1,two\n")
    with pytest.raises(UserError, match="line 2"):
        read_csv(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\n")
    with pytest.raises(UserError, match="no text"):
        read_csv(tmp_path / "b.csv")


def test_tensorboard_has_every_curve_but_no_single_episodes(run: RunDir, warnings: list[str]) -> None:
    with writer(run, warnings) as sink:
        sink.write("train", 1000, {"critic/loss": 0.5})
        sink.write("eval", 1000, {"return_mean": 3, "return_std": 1, "return_0": 2, "return_12": 4})
    events = EventAccumulator(str(run.tensorboard)).Reload()
    assert sorted(events.Tags()["scalars"]) == ["eval/return_mean", "eval/return_std", "train/critic/loss"]
    assert curve(run, "train/critic/loss") == [(1000, 0.5)]
    with run.eval_csv.open() as file:
        assert next(csv.reader(file)) == ["step", "return_mean", "return_std", "return_0", "return_12"]


def test_tensorboard_failure_warns_once_and_is_tried_again(
    run: RunDir, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorboard, "FIRST_RETRY", 2)
    with writer(run, warnings) as sink:
        sink.write("train", 0, {"a": 0})
        with monkeypatch.context() as patch:
            patch.setattr(RecordWriter, "flush", fail)
            for step in range(1, 5):
                sink.write("train", step, {"a": step})
        for step in range(5, 10):
            sink.write("train", step, {"a": step})
    assert len(warnings) == 1 and "No space left" in warnings[0] and "\n" not in warnings[0]
    assert [row["step"] for row in read_csv(run.train_csv)] == list(range(10))
    shown = [step for step, _ in curve(run, "train/a")]
    assert shown[0] == 0 and shown[-1] == 9 and shown == sorted(set(shown))


def test_tensorboard_that_never_starts_warns_once(run: RunDir, warnings: list[str]) -> None:
    run.tensorboard.write_text("a file in the way")
    with writer(run, warnings) as sink:
        for step in range(50):
            sink.write("train", step, {"a": step})
    assert len(warnings) == 1 and len(read_csv(run.train_csv)) == 50
