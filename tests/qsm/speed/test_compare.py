"""Two checkouts are timed in turn, and a slower one fails."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qsm.speed import compare
from qsm.speed.compare import CannotCompareError, Run

ROOT = Path(__file__).parents[3]


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
    def worker(checkout: Path) -> Iterator[Run]:
        yield lambda agent, case, units: now if checkout == compare.ROOT else 1.0

    @contextlib.contextmanager
    def checked_out(commit: str) -> Iterator[Path]:
        yield Path("/before")

    monkeypatch.setattr(compare, "worker", worker)
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


def test_a_worker_times_the_checkout_in_its_folder_and_tells_what_fails(tmp_path: Path):
    package = tmp_path / "qsm" / "speed"
    package.mkdir(parents=True)
    (package / "cases.py").write_text(
        "Sizes = lambda *sizes: sizes\n"
        "class LearnCase:\n"
        "    def __init__(self, name, sizes, seeds): print('noise'); self.agent = sizes[0]\n"
        "    def run(self, units):\n"
        "        if self.agent == 'bad': raise ValueError('cannot')\n"
        "        return 0.5 * units\n"
    )
    with compare.worker(tmp_path) as run:
        assert run("sac", "update", 3) == 1.5
        with pytest.raises(CannotCompareError, match=r"update of bad in .*: ValueError: cannot"):
            run("bad", "update", 1)
        with pytest.raises(CannotCompareError, match="loop_cases"):
            run("sac", "loop", 1)


@pytest.mark.slow
def test_the_worker_runs_the_cases_of_this_checkout():
    """What it asks of a checkout is there: sizes by position, a case by its name, a number that comes back."""
    requests = "".join(json.dumps(["td3", "update", 2]) + "\n" for _ in range(2))
    worker = ROOT / "qsm" / "speed" / "worker.py"
    done = subprocess.run(
        [sys.executable, str(worker)], input=requests, cwd=ROOT, capture_output=True, text=True, check=True
    )
    first, second = map(json.loads, done.stdout.splitlines())
    assert first > 0 and second > 0, done.stderr
