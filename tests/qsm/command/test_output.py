"""Standard output that is closed, full, or takes no more than ASCII: one line on standard error, and no traceback."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from envs.tasks import task_names

ROOT = Path(__file__).parents[3]
CLOSED = "qsm: standard output is closed; what would be printed is lost\n"
needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device here")


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What `line` does, in which PYTHON is this interpreter."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    line = line.replace("PYTHON", shlex.quote(sys.executable))
    return subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True)


@needs_full
@pytest.mark.parametrize("command", ["agents", "train --help", "train sac --help"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_is_full(command: str, unbuffered: str):
    done = shell(f"PYTHON -m qsm {command} >/dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    assert done.stderr == "qsm: error: standard output cannot be written: No space left on device\n"


def test_output_that_is_closed(tmp_path: Path):
    done = shell("PYTHON -m qsm tasks >&-")
    assert (done.returncode, done.stderr) == (0, CLOSED)
    done = shell(f"PYTHON -m qsm runs {shlex.quote(str(tmp_path))} >&-")
    assert done.returncode == 2
    assert (
        done.stderr
        == f"{CLOSED}qsm: error: No run below '{tmp_path}'; train one with: qsm train AGENT TASK\n"
    )
    assert shell("PYTHON -m qsm tasks <&- >&- 2>&-").returncode == 0
    assert shell("PYTHON -m qsm tsaks <&- >&- 2>&-").returncode == 2
    assert shell("PYTHON -m qsm tasks 2>&-").stdout.splitlines() == list(task_names())


def test_training_goes_on_and_no_file_takes_the_place_of_the_closed_output(tmp_path: Path):
    """A stand-in for the training, which writes to a file and lets a library print."""
    program = (
        "import os, sys, types\n"
        "from pathlib import Path\n"
        "def train(*arguments, **options):\n"
        "    with open(sys.argv[1], 'w') as file:\n"
        "        print('shown')\n"
        "        os.system('echo by another')\n"
        "        file.write(f'{file.fileno() > 2}')\n"
        "    return 'interrupted'\n"
        "sys.modules['qsm.training.train'] = types.SimpleNamespace(train=train)\n"
        "from qsm.command.cli import main\n"
        "sys.exit(main(['train', 'sac', 'cartpole-swingup']))\n"
    )
    file = tmp_path / "file"
    done = shell(f"PYTHON -c {shlex.quote(program)} {shlex.quote(str(file))} >&-")
    assert (done.returncode, done.stderr) == (130, CLOSED)
    assert file.read_text() == "True"


def test_what_the_encoding_lacks_is_escaped(tmp_path: Path):
    (tmp_path / "é").mkdir()
    (tmp_path / "é" / "config.json").write_text("{")
    done = shell(f"PYTHON -m qsm runs {shlex.quote(str(tmp_path))}", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.endswith("/\\xe9\n")
