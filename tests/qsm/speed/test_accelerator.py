"""The steps for an accelerator: what they call is understood, and what they leave is kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from qsm.command.train import parser_of
from qsm.speed import accelerator
from qsm.speed.accelerator import Options, Step, steps

PYTHON = [sys.executable, "-c"]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "POLL_SECONDS", 0.0)


@pytest.mark.parametrize("small", [False, True])
def test_every_training_is_a_line_that_train_understands(tmp_path: Path, small: bool) -> None:
    made = steps(tmp_path, tmp_path / "runs", Options(small=small))
    assert sum(step.share for step in made) == pytest.approx(1.0)
    trainings = made[2].commands | made[3].commands
    assert set(trainings) == {"sac", "qsm-clean", "spread", "qsm", "diffusion-ql", "again"}
    for command in trainings.values():
        assert command[1:4] == ["-m", "qsm", "train"]
        agent = command[4]
        given = parser_of(agent, "mjx").parse(command[5:])
        assert given["agent"].preset == "strong" and given["task"] == "cheetah-run"
        launch = given["launch"]
        assert launch.num_seeds > 1 or small


def test_processes_end_with_their_status_and_their_tables_are_kept(tmp_path: Path) -> None:
    runs, output = tmp_path / "runs", tmp_path / "output"
    output.mkdir()
    run = runs / "task" / "agent" / "seed_0"
    write = f"from pathlib import Path; p = Path({str(run)!r}); p.mkdir(parents=True); print('made')\n"
    write += "[(p / name).write_text(name) for name in ('config.json', 'eval.csv', 'checkpoint')]"
    commands = {"good": [*PYTHON, write], "bad": [*PYTHON, "raise SystemExit(3)"]}
    done = accelerator.run(commands, 600.0, runs, output)
    assert {name: status for name, (status, _) in done.items()} == {"good": 0, "bad": 3}
    kept = output / "runs" / "task" / "agent" / "seed_0"
    assert sorted(path.name for path in kept.iterdir()) == ["config.json", "eval.csv"]
    assert (output / "good.log").read_text() == "made\n"


def test_processes_run_side_by_side(tmp_path: Path) -> None:
    """Each waits for the other's word: one after the other they would never end."""
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        accelerator.os.mkfifo(path)
    say = "open({!r}, 'w').write('x')".format
    hear = "assert open({!r}).read() == 'x'".format
    commands = {
        "one": [*PYTHON, f"{say(str(first))}; {hear(str(second))}"],
        "other": [*PYTHON, f"{hear(str(first))}; {say(str(second))}"],
    }
    done = accelerator.run(commands, 600.0, tmp_path, tmp_path)
    assert [status for status, _ in done.values()] == [0, 0]


def test_what_is_not_done_in_time_is_told_to_stop(tmp_path: Path) -> None:
    for_ever = [*PYTHON, "import signal; signal.pause()"]
    done = accelerator.run({"long": for_ever}, 0.0, tmp_path, tmp_path)
    assert done["long"][0] == -accelerator.signal.SIGTERM


def test_what_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "GRACE_SECONDS", 0.0)
    for_ever = [*PYTHON, "import signal; signal.pause()"]
    assert accelerator.run({"long": for_ever}, 0.0, tmp_path, tmp_path)["long"][0] is None


@pytest.mark.parametrize(("status", "expected"), [(0, 0), (143, 0), (1, 1), (None, 1)])
def test_the_status_says_whether_all_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int | None, expected: int
) -> None:
    made = [Step(0.5, {"a": []}), Step(0.5, {"b": [], "c": []})]
    found = {"a": 0, "b": 0, "c": status}
    monkeypatch.setattr(accelerator, "steps", lambda *given: made)
    monkeypatch.setattr(
        accelerator, "run", lambda commands, *given: {name: (found[name], 1.0) for name in commands}
    )
    assert accelerator.run_all(tmp_path / "new", Options()) == expected
    told = json.loads((tmp_path / "new" / "steps.json").read_text())
    assert [(one["step"], one["status"]) for one in told] == [("a", 0), ("b", 0), ("c", status)]
