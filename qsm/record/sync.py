"""`qsm sync`: uploads to Weights & Biases what runs recorded offline."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from qsm.base.errors import UserError, first_line
from qsm.record import lock
from qsm.record.find import find_runs

AT_A_TIME = 4
"""Runs that wandb uploads side by side."""
PATIENCE = 20.0
"""Seconds that wandb's server may take to answer before an upload is begun: wandb itself would try for hours."""


def recordings(run: Path) -> list[Path]:
    """Offline recordings of the run folder `run` that were not uploaded, the oldest first: one for each start."""
    return [
        folder
        for folder in sorted((run / "wandb").glob("offline-run-*"))
        if any(not file.with_name(f"{file.name}.synced").exists() for file in folder.glob("*.wandb"))
    ]


def sync(
    folder: Path, tell: Callable[[str], None], upload: Callable[[Sequence[Path]], int] | None = None
) -> int:
    """Uploads every recording at and below `folder` that was not uploaded; exit status.

    Runs that are being trained are left for later. wandb puts the recordings of one run together by its id.

    Args:
      upload: uploads folders, in place of `wandb sync`.

    Raises:
      UserError: wandb's server cannot be reached.
    """
    runs = {run: recordings(run) for run in find_runs(folder)}
    busy = [run for run, found in runs.items() if found and lock.is_owned(run)]
    waiting = [path for run, found in runs.items() if run not in busy for path in found]
    for run in busy:
        tell(f"{run} is being trained; it is left for later")
    if not waiting:
        tell(f"nothing to upload below {folder}")
        return 0
    if upload is None:
        check_server()
        upload = _upload
    of = sum(bool(found) for run, found in runs.items() if run not in busy)
    tell(
        f"uploading {len(waiting)} recording{'s' if len(waiting) > 1 else ''} of {of} run{'s' if of > 1 else ''}"
    )
    status = upload(waiting)
    left = [path for run in runs if run not in busy for path in recordings(run)]
    if left:
        tell(f"{len(left)} of {len(waiting)} were not uploaded; the same command tries them again")
        return 1
    return status


def check_server() -> None:
    """Asks whether wandb's server answers.

    Raises:
      UserError: it does not; names it.
    """
    import wandb

    address = wandb.setup().settings.base_url
    try:
        urllib.request.urlopen(address, timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return  # it answers
    except (OSError, ValueError) as error:
        reason = first_line(getattr(error, "reason", error))  # type: ignore[arg-type]
        raise UserError(
            f"wandb's server {address} cannot be reached ({reason}). Nothing was uploaded and nothing is lost; "
            "try again when there is a network, or name another server with WANDB_BASE_URL"
        ) from error


def _upload(folders: Sequence[Path]) -> int:
    arguments = ["sync", "--yes", "-n", str(AT_A_TIME), *map(str, folders)]
    return subprocess.run([sys.executable, "-m", "wandb", *arguments], stdin=subprocess.DEVNULL).returncode
