"""Arrays as bytes, of any type to the bit."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np

DAMAGED_ARCHIVE = (
    *(ValueError, KeyError, TypeError, EOFError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
"""What reading a damaged archive of arrays may raise."""


def pack(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Arrays of any type as bytes `[B]`: orbax would hand float64 back as float32."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)  # type: ignore[arg-type]
    return np.frombuffer(file.getvalue(), np.uint8)


def unpack(data: np.ndarray) -> dict[str, np.ndarray]:
    """What `pack` was given."""
    with np.load(io.BytesIO(data.tobytes()), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
