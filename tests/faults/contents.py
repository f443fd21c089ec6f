"""What runs hold in the end, and where that differs from what others hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from qsm.checkpoints.leaves import named_leaves
from qsm.data import segments
from qsm.data.replay import ROW_FIELDS
from qsm.record.tables import read_csv
from tests.faults.trainings import newest


def content(folders: Sequence[Path]) -> dict[str, Any]:
    """All that the runs in `folders` hold but for seconds."""
    return {
        f"{folder.name}/{name}": value
        for folder in folders
        for name, value in _content_of_one(folder).items()
    }


def _content_of_one(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("train", "eval"):
        for row in read_csv(run / f"{name}.csv"):
            found |= {f"{name}/{row['step']:.0f}/{key}": row[key] for key in row if "second" not in key}
    folder = newest(run)
    found["step"] = folder.name
    with ocp.StandardCheckpointer() as checkpointer:
        for part in ("agent", "sums", "environment"):
            tree = checkpointer.restore((folder / part).absolute())
            found |= {
                f"{part}/{name}": np.asarray(leaf).tobytes() for name, leaf in named_leaves(tree).items()
            }
    listed = json.loads((folder / "rows" / "metadata").read_text())["segments"]
    parts = [segments.read(run / "replay", segments.Segment.from_json(one)) for one in listed]
    # However the rows are divided over files.
    found |= {name: np.concatenate([getattr(part, name) for part in parts]).tobytes() for name in ROW_FIELDS}
    return found


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Names of what is in one of them only, or is not the same in both."""
    nothing = object()
    names = sorted(expected.keys() | found.keys())
    return [name for name in names if expected.get(name, nothing) != found.get(name, nothing)]
