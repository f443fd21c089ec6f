"""How orbax is used here: which items a checkpoint has, on one process or several, and what it may log."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from qsm.base.errors import UserError


def open_manager(folder: Path, read_only: bool) -> ocp.CheckpointManager:
    """The checkpoints in `folder`, which is made unless they are only read.

    Raises:
      UserError: the folder cannot be used.
    """
    # Each process is on its own here: the one that writes the run never waits for the others.
    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process{process}"
    )
    several: dict[str, Any] = {"multiprocessing_options": alone} if jax.process_count() > 1 else {}
    options = ocp.CheckpointManagerOptions(
        max_to_keep=None,  # `Checkpoints.prune` is called when the rest of the group has been written too
        enable_async_checkpointing=False,
        read_only=read_only,
        # orbax makes no folder where processes are named.
        create=jax.process_count() == 1,
        **several,
    )
    if jax.process_count() > 1 and not read_only:
        folder.mkdir(parents=True, exist_ok=True)
    handlers = {
        "agent": ocp.StandardCheckpointHandler(),
        "sums": ocp.StandardCheckpointHandler(),
        "environment": ocp.StandardCheckpointHandler(),
        "counters": ocp.JsonCheckpointHandler(),
        "rows": ocp.JsonCheckpointHandler(),
    }
    try:
        return ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be used for checkpoints: {error.strerror or error}. Restore the drive it lies on, or "
            "move away what is there in its place"
        ) from error


@contextlib.contextmanager
def collected_errors() -> Iterator[list[str]]:
    """Collects the errors that orbax logs; its threads would print pages of them, and then raise the same error."""
    errors: list[str] = []
    formatter = logging.Formatter()

    def keep(record: logging.LogRecord) -> bool:
        if record.levelno < logging.ERROR or "orbax" not in record.pathname:
            return True
        errors.append(formatter.format(record))
        return False

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield errors
    finally:
        logger.removeFilter(keep)


def _is_news(record: logging.LogRecord) -> bool:
    """Not what orbax warns of wherever a folder is opened to be read, which is what was asked for."""
    return not str(record.msg).startswith(
        ("CheckpointManagerOptions.read_only", "Given directory is read only")
    )


logging.getLogger("absl").addFilter(_is_news)
