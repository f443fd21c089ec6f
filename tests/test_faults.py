"""The quick part of `make faults`: a training in real processes, killed and damaged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_training_survives_sigterm_a_kill_and_a_flipped_bit(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/faults.py", "--quick", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 faults injected, 3 survived with nothing lost" in done.stdout
