"""`qsm.speed`: what it writes, and that nothing is lost where a part is missing, fails or takes too long."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from qsm.speed import cases, limits, starts
from qsm.speed import measure as measure_file
from qsm.speed import report as report_file
from qsm.speed.measure import main
from qsm.speed.options import parse
from qsm.speed.report import Report
from qsm.speed.starts import Start
from tests.tally_agent import TallyAgent

RATES = {
    "float32": {"small": 500.0, "large": 1000.0},
    "tensorfloat32": {"large": 2e3},
    "bfloat16": {"large": 4e3},
}
SMALL = "--agent td3 --agents td3 --hidden-sizes 8 --batch-size 8 --capacity 1000 --blocks 5 --block-seconds 0.001"


@pytest.fixture(autouse=True)
def no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_file, "git_commit", lambda: None)


@pytest.fixture
def measure(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Measures with small sizes and more arguments; the report, with the exit status under `status`."""

    def run(arguments: str, clock: Callable[[], float] = lambda: 0.0) -> dict[str, Any]:
        file = tmp_path / "report.json"
        status = main([*SMALL.split(), *arguments.split(), "--output", str(file)], clock)
        return json.loads(file.read_text()) | {"status": status}

    return run


class Clock:
    """Stands still unless it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Fake:
    """A case that compiles nothing: S units take S milliseconds."""

    min_units, max_units, env_steps_per_unit = 1, 100, 0.0
    clock = Clock()
    on_start: Callable[[int], None] = staticmethod(lambda seeds: None)
    on_run: Callable[[int, int], None] = staticmethod(lambda seeds, runs: None)

    def __init__(self, name: str, sizes: Any, num_seeds: int = 1, precision: str = "float32") -> None:
        self.on_start(num_seeds)
        self.name, self.num_seeds, self.runs = name, num_seeds, 0
        self.updates_per_unit = float(num_seeds)
        self.start = Start(2.0, 1.0, 3)

    def run(self, units: int) -> float:
        self.runs += 1
        self.on_run(self.num_seeds, self.runs)
        return 1e-3 * self.num_seeds

    def gflop_per_update(self) -> float:
        return 0.5

    def program_bytes(self) -> int | None:
        return 7


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    """Updates that compile nothing, and limits that were measured elsewhere."""

    class Case(Fake):
        pass

    monkeypatch.setattr(cases, "LearnCase", Case)
    monkeypatch.setattr(cases, "BareUpdate", Case)
    monkeypatch.setattr(limits, "matmul_rates", lambda *arguments: RATES[arguments[-1]])
    monkeypatch.setattr(cases.Sizes, "import_agent", lambda self: None)
    monkeypatch.setattr(limits, "replay_milliseconds", lambda *arguments: 0.1)
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    return Case


def rows(report: dict[str, Any], part: str) -> list[dict[str, Any]]:
    return [row for row in report["rows"] if row["part"] == part]


def settings() -> list[Any]:
    names = ("compilation_cache_dir", "default_matmul_precision", "persistent_cache_min_compile_time_secs")
    return [getattr(jax.config, f"jax_{name}") for name in names]


def left_out(report: dict[str, Any]) -> list[tuple[str, str]]:
    return [(skipped["part"], skipped["why"]) for skipped in report["skipped"]]


@pytest.mark.slow
def test_updates_are_measured_in_both_starts(
    measure: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # An agent that is compiled in a moment; all that it needs is kept, not only what takes long.
    monkeypatch.setattr(cases.Sizes, "make_agent", lambda *arguments: TallyAgent(action_size=6))
    monkeypatch.setattr(starts, "MIN_COMPILE_SECONDS", 0.0)
    monkeypatch.setattr(measure_file, "PRECISIONS", ("float32",))
    former = settings()
    report = measure("--parts seeds precision --seeds 1")
    assert settings() == former
    assert report["status"] == 0 and report["skipped"] == []
    assert report["platform"] == "cpu" and set(report["part_seconds"]) == {"limits", "seeds", "precision"}
    assert report["replay_milliseconds"] > 0 and len(report["matmul_gflop_per_second"]) == 2
    assert report["matmul_gflop_per_second_at_precision"] == {"float32": report["matmul_gflop_per_second"]}
    (alone,) = rows(report, "seeds")
    assert (alone["agent"], alone["seeds"], alone["blocks"]) == ("td3", 1, 5)
    assert alone["time_to_that_of_seeds_alone"] == 1.0
    (exact,) = rows(report, "precision")
    assert (exact["matmul_precision"], exact["time_to_that_of_float32"]) == ("float32", 1.0)
    for row in (alone, exact):
        assert row["updates_per_second"] > 0 and row["env_steps_per_second"] is None
        assert row["gflop_per_second"] > 0 and row["share_of_matmul_rate"] > 0 and row["program_bytes"] > 0
        for name in ("compile_seconds", "first_step_seconds"):
            assert row[name] > 0 and row[f"{name}_of_second_start"] > 0
        # A second start that found its programs in memory would ask for none.
        assert row["programs_from_cache_at_second_start"] > 0


def test_the_bytes_of_a_program_are_those_at_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    lowered = SimpleNamespace(compile=lambda: settings()[1])
    program = SimpleNamespace(lower=lambda *arguments: lowered)
    monkeypatch.setattr(cases, "compiled_bytes", lambda compiled: compiled)
    monkeypatch.setattr(cases.LearnCase, "_first", lambda self, set_up: None)
    case = cases.LearnCase("case", parse([]).sizes(), 1, "bfloat16")
    learner = SimpleNamespace(compiled=SimpleNamespace(learn=program), learn_shapes=tuple)
    case.learner = learner  # pyright: ignore[reportAttributeAccessIssue]
    assert case.program_bytes() == "bfloat16"


@pytest.mark.slow
def test_what_is_not_installed_is_skipped_and_no_failure(
    fake: type[Fake], measure: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("envs.dmc", "envs.headless"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    for module in ("dm_control", "mujoco.mjx"):
        monkeypatch.setitem(sys.modules, module, None)
    report = measure("--parts device host processes agents seeds")
    missing = [("device", "missing"), ("host", "missing"), ("processes", "missing"), ("agents", "missing")]
    assert report["status"] == 0 and left_out(report) == missing
    assert "mujoco.mjx" in report["skipped"][0]["reason"] and "dm_control" in report["skipped"][1]["reason"]
    # An agent's update needs no simulator.
    (bare,) = rows(report, "agents")
    assert bare["bare_updates_per_second"] == pytest.approx(1000.0) and "updates_per_second" not in bare
    assert len(rows(report, "seeds")) == 3


def test_a_module_of_ours_that_cannot_be_imported_is_a_failure() -> None:
    report = Report(None)
    with report.guarded({"part": "seeds"}):
        raise ImportError("cannot import name 'x' from 'qsm.learning.learner'", name="qsm.learning.learner")
    assert report.failures() == ["seeds"]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["at the start", "in its blocks"])
def test_a_case_that_fails_is_recorded_and_the_others_are_measured(
    fake: type[Fake], measure: Callable[..., dict[str, Any]], when: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(seeds: int, runs: int = 5) -> None:
        if seeds == 4 and runs == 5:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    if when == "at the start":
        fake.on_start = staticmethod(fail)
    else:
        fake.on_run = staticmethod(fail)
    report = measure("--parts seeds precision --seeds 1 4 16")
    assert report["status"] == 1
    (failed,) = report["skipped"]
    assert (failed["part"], failed["seeds"], failed["why"]) == ("seeds", 4, "failed")
    assert "RESOURCE_EXHAUSTED" in failed["reason"]
    done = [row for row in rows(report, "seeds") if "updates_per_second" in row]
    assert [(row["seeds"], row["blocks"]) for row in done] == [(1, 5), (16, 5)]
    assert [row["time_to_that_of_seeds_alone"] for row in done] == [pytest.approx(1.0)] * 2
    assert done[0]["share_of_matmul_rate"] == pytest.approx(0.5)
    # Each against products of its own precision.
    shares = [row["share_of_matmul_rate"] for row in rows(report, "precision")]
    assert shares == pytest.approx([0.5, 0.25, 0.125])
    assert "failed: seeds (agent td3, seeds 4)" in capsys.readouterr().out


@pytest.mark.slow
def test_an_interruption_loses_no_case_that_had_started(
    fake: type[Fake], measure: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    def interrupt(seeds: int, runs: int) -> None:
        raise KeyboardInterrupt

    fake.on_run = staticmethod(interrupt)
    with pytest.raises(KeyboardInterrupt):
        measure("--parts seeds --seeds 1 4")
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["first_step_seconds"] for row in report["rows"]] == [2.0, 2.0]


@pytest.mark.slow
def test_what_no_longer_fits_is_skipped_for_time(
    fake: type[Fake], measure: Callable[..., dict[str, Any]]
) -> None:
    clock = Clock()

    def take_half_a_minute(seeds: int) -> None:
        clock.now += 30

    fake.on_start = staticmethod(take_half_a_minute)
    # Each case starts twice, a minute together: of the third only half would fit.
    report = measure("--parts seeds precision agents --seeds 1 4 16 --minutes 2.5", clock)
    assert report["status"] == 0
    assert [(row["seeds"], row["blocks"]) for row in rows(report, "seeds")] == [(1, 5), (4, 5)]
    skipped = report["skipped"]
    assert left_out(report) == [("seeds", "time"), *[("precision", "time")] * 2, ("agents", "time")]
    assert skipped[0]["seeds"] == 16 and "30 s of 2.5 minutes are left" in skipped[0]["reason"]
    # The part had begun in time; its case is measured, in as few rounds as there may be.
    assert [(row["matmul_precision"], row["blocks"]) for row in rows(report, "precision")] == [("float32", 3)]
    assert report["part_seconds"] == {"limits": 0, "seeds": 120, "precision": 60, "agents": 0}


def test_the_largest_number_of_environments_comes_last() -> None:
    options = parse([])
    assert measure_file.device_cases(options, on_cpu=True) == [(1, 1), (1, 16), (4, 16), (16, 16), (1, 128)]
    there = [(1, 1), (1, 16), (1, 256), (1, 1024), (4, 256), (16, 256), (16, 1024), (1, 4096)]
    assert measure_file.device_cases(options, on_cpu=False) == there
    assert measure_file.device_cases(parse(["--num-envs", "8", "--seeds", "1", "2"]), False) == [
        (1, 8),
        (2, 8),
    ]


def test_a_process_of_its_own_measures_the_same_sizes() -> None:
    given = "--capacity 500 --hidden-sizes 8 16 --batch-size 4 --agent sac --blocks 2 --minutes 9"
    options = parse(given.split())
    child = parse(measure_file.child_arguments(options, 90.0))
    assert child.sizes() == options.sizes()
    assert (child.parts, child.seeds, child.blocks, child.minutes) == (["host"], [1], 2, 1.5)
