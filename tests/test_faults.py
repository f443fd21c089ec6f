"""The quick part of `make faults`: what a training in real processes leaves that is stopped, killed and damaged.

What is expected of its folders is written down here, not taken from the harness, whose own verdict is tested on runs
that were tampered with.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.faults.contents import content, differences
from tests.faults.injections import WRAPPERS

slow = pytest.mark.slow  # trains in a dozen processes; `make faults` injects more

ROOT = Path(__file__).parents[1]
STEPS, INTERVAL, EVAL_INTERVAL, KEPT_ROWS = 1200, 100, 300, 1000
TRANSITION = ("observation", "action", "reward", "discount", "step_type")
RUN = "dm_control/cartpole-swingup/sac/seed_0"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The runs that the harness has left, by its own names; `undisturbed` is the one that was left alone."""
    root = tmp_path_factory.mktemp("faults")
    command = [sys.executable, "-m", "tests.faults", "--quick", "--folder", str(root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 faults injected, 3 survived with nothing lost" in done.stdout
    return {
        "undisturbed": root / "reference_0" / RUN,
        "preemption": root / "preemption" / RUN,
        "bit flipped": root / "bit_flipped" / RUN,
    }


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_is_replaced_to_fail_is_there(wrapper: str) -> None:
    """Else a case fails of an import, and not of its fault."""
    names: dict[str, object] = {}
    replaced = []
    for statement in ast.parse(wrapper).body:
        match statement:
            case ast.Import() | ast.ImportFrom():
                exec(compile(ast.Module([statement], []), "wrapper", "exec"), names)
            case ast.Assign(targets=[ast.Attribute(value=ast.Name(id=owner), attr=name)]):
                replaced.append(hasattr(names[owner], name))
    assert replaced == [True]


def rows(file: Path) -> list[dict[str, str]]:
    """Rows of a table but for what a clock has said."""
    with file.open(newline="") as table:
        return [
            {name: value for name, value in row.items() if "second" not in name}
            for row in csv.DictReader(table, strict=True)
        ]


def checkpoints(run: Path) -> list[Path]:
    """By step."""
    return sorted((path for path in (run / "checkpoints").iterdir()), key=lambda path: int(path.name))


def learned(checkpoint: Path) -> dict[str, bytes]:
    """The arrays of the agent, of the sums of metrics and of the environment, to the bit."""
    found: dict[str, bytes] = {}

    def collect(tree: object, name: str) -> None:
        if isinstance(tree, dict):
            for key, value in tree.items():
                collect(value, f"{name}.{key}")
        elif isinstance(tree, list | tuple):
            for place, value in enumerate(tree):
                collect(value, f"{name}.{place}")
        else:
            found[name] = np.asarray(tree).tobytes()

    with ocp.StandardCheckpointer() as checkpointer:
        for part in ("agent", "sums", "environment"):
            collect(checkpointer.restore((checkpoint / part).absolute()), part)
    return found


def replay(run: Path, checkpoint: Path) -> dict[str, np.ndarray]:
    """The rows that the checkpoint names, however they are divided over files."""
    listed = json.loads((checkpoint / "rows" / "metadata").read_text())["segments"]
    parts = []
    for one in listed:
        file = run / "replay" / one["name"]
        assert hashlib.sha256(file.read_bytes()).hexdigest() == one["sha256"]
        with np.load(file) as arrays:
            parts.append({name: arrays[name] for name in TRANSITION})
    return {name: np.concatenate([part[name] for part in parts]) for name in TRANSITION}


@slow
@pytest.mark.parametrize("name", ["undisturbed", "preemption", "bit flipped"])
def test_a_run_ends_whole_whatever_has_happened(folders: dict[str, Path], name: str) -> None:
    run = folders[name]
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"], status["saved_step"]) == ("finished", STEPS, STEPS)
    assert [int(row["step"]) for row in rows(run / "train.csv")] == list(range(INTERVAL, STEPS + 1, INTERVAL))
    assert [int(row["step"]) for row in rows(run / "eval.csv")] == list(range(0, STEPS + 1, EVAL_INTERVAL))
    assert [int(path.name) for path in checkpoints(run)] == [STEPS - INTERVAL, STEPS]
    for checkpoint in checkpoints(run):
        sums = json.loads((checkpoint / "checksums.json").read_text())
        files = {
            str(path.relative_to(checkpoint)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in checkpoint.rglob("*")
            if path.is_file() and path.name != "checksums.json"
        }
        assert len(files) > 3 and sums == files
    # All that the replay buffer holds, and nothing that no checkpoint needs.
    assert len(replay(run, checkpoints(run)[-1])["reward"]) >= KEPT_ROWS


@slow
@pytest.mark.parametrize("name", ["preemption", "bit flipped"])
def test_a_run_ends_as_one_that_was_left_alone(folders: dict[str, Path], name: str) -> None:
    run, alone = folders[name], folders["undisturbed"]
    for table in ("train.csv", "eval.csv"):
        assert rows(run / table) == rows(alone / table)
    found, expected = (learned(checkpoints(one)[-1]) for one in (run, alone))
    assert len(expected) > 10 and found == expected
    found, expected = (replay(one, checkpoints(one)[-1]) for one in (run, alone))
    for field in TRANSITION:
        np.testing.assert_array_equal(found[field][-KEPT_ROWS:], expected[field][-KEPT_ROWS:])


@slow
def test_the_faults_did_happen(folders: dict[str, Path]) -> None:
    starts = {name: len(json.loads((run / "provenance.json").read_text())) for name, run in folders.items()}
    assert starts == {"undisturbed": 1, "preemption": 2, "bit flipped": 2}
    assert list(folders["bit flipped"].glob("damaged_*")) != []
    assert list(folders["preemption"].glob("damaged_*")) == []


def change_a_number(run: Path) -> None:
    file = run / "train.csv"
    *lines, last = file.read_text().splitlines()
    cells = last.split(",")
    place = lines[0].split(",").index("critic/loss")
    cells[place] = repr(float(cells[place]) * (1 + 1e-6))
    file.write_text("\n".join([*lines, ",".join(cells), ""]))


def lose_a_row(run: Path) -> None:
    lines = (run / "eval.csv").read_text().splitlines(keepends=True)
    (run / "eval.csv").write_text("".join([*lines[:2], *lines[3:]]))


def lose_the_last_checkpoint(run: Path) -> None:
    shutil.rmtree(checkpoints(run)[-1])


def take_another_state(run: Path) -> None:
    """Puts that of the checkpoint before in its place."""
    before, last = checkpoints(run)
    shutil.rmtree(last / "agent")
    shutil.copytree(before / "agent", last / "agent")


def take_another_environment(run: Path) -> None:
    before, last = checkpoints(run)
    shutil.rmtree(last / "environment")
    shutil.copytree(before / "environment", last / "environment")


def change_a_transition(run: Path) -> None:
    """With its checksum, so that nobody but who knows the number can see it."""
    metadata = checkpoints(run)[-1] / "rows" / "metadata"
    listed = json.loads(metadata.read_text())
    segment = listed["segments"][-1]
    file = run / "replay" / segment["name"]
    with np.load(file) as there:
        arrays = dict(there)
    arrays["reward"][-1] += 1e-3
    np.savez(file, allow_pickle=False, **arrays)
    segment["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    metadata.write_text(json.dumps(listed))


@slow
@pytest.mark.parametrize(
    ("tamper", "where"),
    [
        (change_a_number, "seed_0/train/1200/critic/loss"),
        (lose_a_row, "seed_0/eval/300/return_mean"),
        (lose_the_last_checkpoint, "seed_0/step"),
        (take_another_state, "seed_0/agent/"),
        (take_another_environment, "seed_0/environment/"),
        (change_a_transition, "seed_0/reward"),
    ],
)
def test_the_harness_sees_what_was_lost(
    folders: dict[str, Path], tmp_path: Path, tamper: Callable[[Path], None], where: str
) -> None:
    alone = folders["undisturbed"]
    copy = tmp_path / "seed_0"
    shutil.copytree(alone, copy)
    expected = content([alone])
    assert differences(expected, content([copy])) == []
    tamper(copy)
    assert any(name.startswith(where) for name in differences(expected, content([copy])))
