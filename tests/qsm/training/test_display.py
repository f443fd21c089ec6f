"""What a person sees: rows that rise, plain text without a terminal, silence when the output is closed."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from qsm.base.text import spread
from qsm.training.display import Display, Wait, open_log

ROOT = Path(__file__).parents[3]
WAIT = Wait("compiling the programs (a minute)", "all is compiled")
HEADER = {"agent": "qsm", "task": "walker-walk"}


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def output(console: Console) -> str:
    """All that was written, apart from the codes that move the cursor."""
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def terminal(width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=30, color_system=None)


def plain(width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=width)


def test_without_a_terminal_lines_are_plain() -> None:
    console, clock = plain(), Clock()
    with Display(20_000, HEADER, console, clock=clock) as display:
        display.evaluation(0, [0.0, 20.0])
        for step in range(0, 20_001, 1000):
            clock.now += 6
            display.progress(step)
        display.evaluation(20_000, [500.0, 500.0])
        display.warn("disk is full [red]mend it[/red] " + "x" * 150)
        display.finish(["Look at it with: qsm eval " + "y" * 150])
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert all(line.isprintable() for line in lines)
    assert lines[:2] == ["agent  qsm", "task   walker-walk"]
    assert lines[2].split() == ["step", "return", "0", "1000", "best", "minutes"]
    assert re.fullmatch(r" +0 +10\.0 ± +10\.0  [^ ]+ +10\.0 +0\.0", lines[3])
    assert re.fullmatch(r" +20,000 +500\.0 ± +0\.0  [^ ]+ +500\.0 +2\.1", lines[4])
    assert lines[5] == "warning: disk is full [red]mend it[/red] " + "x" * 150
    assert lines[6:] == ["Look at it with: qsm eval " + "y" * 150]


@pytest.mark.parametrize("width", [30, 60, 80, 100, 200])
def test_rows_fit_and_bars_rise(width: int) -> None:
    console = terminal(width)
    with Display(10, {}, console) as display:
        for step, mean in enumerate((-5.0, 0.0, 250.0, 500.0, 1000.0, 1200.0)):
            display.evaluation(step, [mean])
    rows = [line for line in output(console).splitlines() if "±" in line]
    filled = [row.count("█") for row in rows]
    bars = [sum(character in "█░▏▎▍▌▋▊▉" for character in row) for row in rows]
    assert len(rows) == 6 and len(set(bars)) == 1 and bars[0] >= 10
    assert filled[:2] == [0, 0] and filled[4] == filled[5] == bars[0]
    assert filled[2] == bars[0] // 4 and filled[3] == bars[0] // 2
    assert width < 60 or max(map(len, rows)) <= width
    assert all(row.rstrip()[-1] in "█░" for row in rows) == (width < 76)


def test_the_spread_of_seeds_is_that_of_a_sample_as_in_the_closing_line() -> None:
    console = plain()
    with Display(10, {}, console) as display:
        display.evaluation(0, [600.0, 620.0], are_of_seeds=True)
        display.evaluation(5, [600.0], are_of_seeds=True)
    _, two, one = output(console).splitlines()
    assert two.split()[1:4] == ["610.0", "±", "14.1"] and spread([600.0, 620.0]) == "610.0 ± 14.1"
    assert one.split()[1:4] == ["600.0", "±", "0.0"]


def test_a_maze_s_bar_is_full_at_its_goal() -> None:
    console = plain()
    with Display(10, {}, console, full_return=1.0) as display:
        display.evaluation(0, [0.0, 0.5])
        display.evaluation(5, [1.0])
    head, half, full = output(console).splitlines()
    assert head.split()[2:4] == ["0", "1"]
    assert half.split()[:4] == ["0", "0.25", "±", "0.25"] and full.split()[-2] == "1.00"
    assert 4 * half.count("█") == pytest.approx(full.count("█"), abs=4) and "░" not in full


def bar(console: Console) -> str:
    """The bar as it was drawn last."""
    return output(console).rstrip().splitlines()[-1]


def test_bar_shows_steps_rate_and_time_left() -> None:
    console, clock = terminal(), Clock()
    with Display(10_000, HEADER, console, clock=clock) as display:
        display.progress(0)
        clock.now += 10
        display.progress(1000)
        assert "1,000/10,000 · 100 steps/s · 1:30 left" in output(console)
        clock.now += 3
        display.progress(1006)
        assert "1,006/10,000 · 2.0 steps/s · 1:14:57 left" in output(console)
        size = len(output(console))
        display.progress(1007)
        assert len(output(console)) == size, "redrawn before its time"
        display.progress(10_000)
        assert "10,000/10,000 · 0:13 in all" in output(console)


def test_resumed_run_counts_only_its_own_steps() -> None:
    console, clock = terminal(), Clock()
    with Display(10_000, HEADER, console, first_step=5000, clock=clock) as display:
        clock.now += 7  # its programs are compiled
        display.progress(5010)
        assert "steps/s" not in output(console)
        clock.now += 10
        display.progress(6010)
    assert "6,010/10,000 · 100 steps/s · 0:40 left" in output(console)


def test_compiling_is_said_and_counts_into_no_rate() -> None:
    """A run of 1,500 steps whose first step came after 30 s was shown at 0.2 steps/s, and as to take 51:41 more."""
    console, clock = terminal(), Clock()
    with Display(1500, {}, console, clock=clock) as display:
        with display.compiling(WAIT):
            assert bar(console).endswith("compiling · 0:00")
            clock.now += 30
            display.waiting()
            assert bar(console).endswith("compiling · 0:30")
            display.evaluation(0, [1.0])
        clock.now += 5
        for step in range(6):
            display.progress(step)
            clock.now += 0.1
        assert "steps/s" not in output(console) and "left" not in output(console)
        display.progress(106)
        clock.now += 1
        display.progress(206)
        assert "206/1,500 · 129 steps/s · 0:10 left" in output(console)


def test_an_evaluation_counts_into_no_rate() -> None:
    console, clock = terminal(), Clock()
    with Display(10_000, {}, console, clock=clock) as display:
        display.progress(0)
        clock.now += 3
        display.progress(300)
        display.evaluation(300, [1.0])
        clock.now += 60
        display.progress(301)
        clock.now += 3
        display.progress(601)
    assert "601/10,000 · 100 steps/s · 1:34 left" in output(console)
    assert set(re.findall(r"([0-9.,]+) steps/s", output(console))) == {"100"}


def test_compiling_is_one_line_in_a_file() -> None:
    console = plain()
    with Display(10, {}, console) as display:
        with display.compiling(WAIT):
            display.waiting()
            display.waiting()
        display.waiting()
        display.progress(1)
        display.evaluation(10, [1.0])
    lines = output(console).splitlines()
    assert lines[0] == WAIT.line and not any(WAIT.line in line for line in lines[1:])


def test_a_short_wait_is_told_when_it_has_taken_a_while() -> None:
    console = plain()
    with Display(10, {}, console) as display:
        with display.compiling(WAIT._replace(is_long=False)):
            pass
        assert output(console) == ""
        with display.compiling(WAIT._replace(is_long=False)):
            display.waiting()
            display.waiting()
    assert output(console).splitlines() == [WAIT.line]


def test_what_stops_a_training_is_told_as_it_is() -> None:
    with Display(10, {}, plain()) as display:
        usual = display.stopping
        assert usual == "stopping after this step and saving; once more ends at once without saving"
        with display.compiling(WAIT):
            told = display.stopping
        assert told.startswith("stopping when all is compiled, for a compiler cannot be interrupted,")
        assert "once more ends at once" in told and "step" not in told
        assert display.stopping == usual


def test_best_of_a_resumed_run_is_that_of_the_whole_run() -> None:
    console = plain()
    with Display(10, {}, console, first_step=5) as display:
        display.begin_at_best(81.4)
        display.evaluation(5, [8.6])
        display.evaluation(10, [90.0])
    assert [row.split()[-2] for row in output(console).splitlines()[1:]] == ["81.4", "90.0"]


def test_best_is_kept_and_nan_is_shown() -> None:
    console = plain()
    with Display(10, {}, console) as display:
        for returns in ([float("nan")], [300.0], [float("nan")], [100.0]):
            display.evaluation(0, returns)
    rows = output(console).splitlines()[1:]
    assert [row.split()[-2] for row in rows[1:]] == ["300.0"] * 3
    assert "nan" in rows[0] and "█" not in rows[0] and "nan" in rows[2]


def test_output_that_knows_no_unicode() -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii"), force_terminal=False, width=80)
    with Display(10, {"task": "café"}, console) as display:
        display.evaluation(0, [500.0])
        display.info("naïve")
        display.finish(["Return   612.0 ± 17.0"])
    text = raw.getvalue().decode("ascii")
    assert "500.0 +-" in text and "612.0 +- 17.0" in text
    assert "###" in text and "caf\\xe9" in text and "na\\xefve" in text


def test_bytes_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="utf-8"), force_terminal=False, width=80)
    with Display(10, {"folder": "a\udcffb é"}, console, log=open_log(tmp_path / "log.txt")):
        pass
    assert raw.getvalue().decode().strip() == r"folder  a\udcffb é"
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").endswith("folder  a\\udcffb é\n")


class Broken(io.StringIO):
    """Output whose reader went away."""

    def write(self, _: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("file", [Broken(), io.StringIO()], ids=["broken", "closed"])
def test_closed_output_is_no_error(tmp_path: Path, file: io.StringIO, is_terminal: bool) -> None:
    console = Console(file=file, force_terminal=is_terminal, width=80)
    standard_output, clock = sys.stdout, Clock()
    log = open_log(tmp_path / "log.txt")
    with Display(10, HEADER, console, log=log, clock=clock) as display:
        if not isinstance(file, Broken):
            file.close()
        for step in range(11):
            clock.now += 1
            display.progress(step)
        display.evaluation(10, [1.0])
        display.finish(["done"])
    assert sys.stdout is standard_output
    assert (tmp_path / "log.txt").read_text().endswith("done\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device here")
def test_output_that_is_full_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = open_log(tmp_path / "log.txt")
    with open("/dev/full", "w") as full, Display(10, HEADER, Console(file=full), log=log) as display:
        for step in range(5):
            display.evaluation(step, [1.0])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "qsm: standard output cannot be written (No space left on device); training goes on"
    )
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2 + 1 + 5


def test_reader_that_leaves_does_not_end_the_program(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom qsm.training.display import Display\n"
        "with Display(10, {'agent': 'qsm'}) as display:\n"
        "    for step in range(5000):\n        display.evaluation(step, [1.0])\n"
        "Path(sys.argv[1]).write_text('trained to the end')\n"
    )
    end = tmp_path / "end"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(end)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "agent  qsm\n"
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 0 and errors == ""
    assert end.read_text() == "trained to the end"


def test_log_has_every_line_with_its_time(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    with Display(10, HEADER, terminal(), log=open_log(path)) as display:
        display.evaluation(5, [1.0, 3.0])
        display.warn("wandb is off")
        display.info("saved")
        display.finish(["bye"])
    open_log(path).info("again")
    lines = path.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (INFO   |WARNING) ", line) for line in lines)
    told = [line.split(" ", 1)[1] for line in lines]
    assert told[0] == "INFO    agent  qsm" and "2.0 ±   1.0" in told[3]
    assert told[4:] == ["WARNING wandb is off", "INFO    saved", "INFO    bye", "INFO    again"]


def test_log_that_cannot_be_written_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = open_log(tmp_path / "away" / "log.txt")
    log.warning("lost")
    (tmp_path / "away").mkdir()
    log.warning("found")
    assert (tmp_path / "away" / "log.txt").read_text().endswith("WARNING found\n")
    assert capsys.readouterr() == ("", "")
    assert str(tmp_path / "away" / "log.txt") not in logging.Logger.manager.loggerDict
