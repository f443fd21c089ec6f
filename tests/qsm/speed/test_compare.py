"""Two checkouts are timed in turn, and a slower one fails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsm.speed import compare
from qsm.speed.compare import CannotCompareError, Run
from qsm.speed.worker import Timed, WorkerError, worker


class Machine:
    """Runs of known length on a machine that slows down all the time; the order of what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def run(self, name: str, seconds: float) -> Run:
        def run(agent: str, case: str, units: int) -> float:
            self.asked.append(name)
            return seconds * 1.1 ** ((len(self.asked) - 1) // 2)  # by rounds

        return run


def test_blocks_take_turns_so_that_a_drift_touches_both():
    machine = Machine()
    found = compare.compare("sac", "update", machine.run("before", 3.0), machine.run("now", 2.0), 6, 1.0)
    assert machine.asked[:4] == ["before", "before", "now", "now"]  # compiles, and warms up
    assert machine.asked[4:] == ["before", "now", "now", "before"] * 3
    assert found.ratio == pytest.approx(1.5)


@pytest.mark.parametrize(("now", "status"), [(1.0, 0), (1.04, 0), (1.06, 1)])
def test_what_became_slower_fails(
    now: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    @contextlib.contextmanager
    def runs_of(checkout: Path) -> Iterator[Run]:
        yield lambda agent, case, units: now if checkout == compare.ROOT else 1.0

    @contextlib.contextmanager
    def checked_out(commit: str) -> Iterator[Path]:
        yield Path("/before")

    monkeypatch.setattr(compare, "runs_of", runs_of)
    monkeypatch.setattr(compare, "checked_out", checked_out)
    assert compare.main(["HEAD", "--agents", "td3", "--blocks", "3"]) == status
    output = capsys.readouterr().out
    assert f"{1 / now:.3f}" in output
    assert ("slower than 0.95 of HEAD: update of td3, loop of td3" in output) == bool(status)


def test_a_commit_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert compare.main(["no-such-commit"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and "no commit 'no-such-commit' here" in captured.err


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with cases of known pace; the one of `bad` cannot be run."""
    package = tmp_path / "qsm" / "speed"
    package.mkdir(parents=True)
    (package / "cases.py").write_text(
        "from types import SimpleNamespace\n"
        "import os\n"
        "Sizes = lambda *sizes: sizes\n"
        "class LearnCase:\n"
        "    def __init__(self, name, sizes, seeds):\n"
        "        print('noise'); self.agent, self.seeds = sizes[0], seeds\n"
        "        self.start = SimpleNamespace(first_step_seconds=len(os.environ['XLA_FLAGS'].split()))\n"
        "    def run(self, units):\n"
        "        if self.agent == 'bad': raise ValueError('cannot')\n"
        "        if self.agent == 'gone': os._exit(1)\n"
        "        return 0.5 * units * self.seeds\n"
    )
    return tmp_path


def test_a_worker_times_the_checkout_in_its_folder(checkout: Path):
    with worker(checkout, {"XLA_FLAGS": "--a=1 --b=2"}) as process:
        assert process.run(Timed("sac"), 3) == 1.5
        assert process.run(Timed("sac", seeds=4), 3) == 6.0
        assert process.run(Timed("sac"), 0) == 2.0  # the first update, with the flags it was given
        with pytest.raises(WorkerError, match="ValueError: cannot"):
            process.run(Timed("bad"), 1)
        assert process.run(Timed("sac"), 1) == 0.5  # goes on
        for _ in range(2):
            with pytest.raises(WorkerError, match="the process has ended"):
                process.run(Timed("gone"), 1)


def test_what_fails_is_told_with_its_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    with compare.runs_of(checkout) as run:
        assert run("sac", "update", 3) == 1.5
        with pytest.raises(CannotCompareError, match=r"update of bad in .*: ValueError: cannot"):
            run("bad", "update", 1)
        with pytest.raises(CannotCompareError, match="loop_cases"):
            run("sac", "loop", 1)


@pytest.mark.slow
def test_the_worker_runs_the_cases_of_this_checkout():
    """What it asks of a checkout is there: sizes by position, cases by name, numbers that come back."""
    with worker(compare.ROOT, {}) as process:
        for timed in (Timed("td3"), Timed("td3", seeds=2), Timed("td3", "loop")):
            assert process.run(timed, 0) > process.run(timed, 2) > 0
