"""`qsm dashboard`: TensorBoard, for this machine only."""

from __future__ import annotations

import os
import socket
import sys
import urllib.parse
from pathlib import Path

from qsm.base.errors import UserError

PROGRAM = "qsm.command.tensorboard_main"


def serve(runs: Path, port: int) -> None:
    """Turns this process into TensorBoard, so that signals reach it.

    Raises:
      UserError: there is no such folder, or the port cannot be used.
    """
    if not runs.is_dir():
        raise UserError(f"No folder '{runs}' to show. Name the folder of your runs: qsm dashboard RUNS")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            reason, other = error.strerror or str(error), port % 50_000 + 10_001
            raise UserError(
                f"Port {port} cannot be used ({reason}). Choose another, such as --port {other}"
            ) from None
    # Seeds of an agent on a task share a colour, as they share a curve in a report.
    grouping = urllib.parse.urlencode({"runColorGroup": "regex:(.*)/seed_"})
    print(
        f"Dashboard of {runs} on http://127.0.0.1:{port}/?{grouping}#timeseries (Ctrl-C ends it)", flush=True
    )
    address = ["--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", PROGRAM, "--logdir", str(runs), *address])
