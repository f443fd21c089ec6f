"""TensorBoard's notices are left out, and nothing else."""

from __future__ import annotations

import importlib.metadata
import io

from qsm.command.tensorboard_main import NOTICES, WithoutNotices

NOTICE = "TensorFlow installation not found - running with reduced feature set."
ADVICE = "\nNOTE: Using experimental fast data loading logic. To disable, pass\n    --load_fast=false\n\n"
SERVING = "TensorBoard 2.21.0 at http://127.0.0.1:6006/ (Press CTRL+C to quit)\n"


def test_notices_are_left_out_with_the_ends_of_their_lines() -> None:
    kept = io.StringIO()
    stream = WithoutNotices(kept)
    print(NOTICE, file=stream)
    stream.write(ADVICE)
    stream.write(SERVING)
    assert kept.getvalue() == ""
    stream.write("\n")  # the end of no notice
    assert kept.getvalue() == "\n"


def test_warnings_and_errors_pass() -> None:
    kept = io.StringIO()
    stream = WithoutNotices(kept)
    lines = [
        "ERROR: TensorBoard could not bind to port 6006, it was already in use\n",
        f"W1127 {NOTICE}\n",
        f"{NOTICE} Traceback (most recent call last):\n",
        "UserWarning: pkg_resources is deprecated\n",
    ]
    for line in lines:
        assert stream.write(line) == len(line)
    print("Error: unknown flag", file=stream)
    assert kept.getvalue() == "".join(lines) + "Error: unknown flag\n"
    assert stream.isatty() is False


def test_the_installed_tensorboard_writes_these_notices() -> None:
    files = {str(file): file for file in importlib.metadata.files("tensorboard") or ()}
    main, program = (files[f"tensorboard/{name}.py"].read_text() for name in ("main_lib", "program"))
    assert f'"{NOTICE}"' in main
    (advice,) = (text for text in program.split('"""') if "experimental fast data loading" in text)
    assert "TensorBoard %s at %s (Press CTRL+C to quit)\\n" in program
    kept = io.StringIO()
    stream = WithoutNotices(kept)
    stream.write(advice)
    assert kept.getvalue() == "" and len(NOTICES) == 3
