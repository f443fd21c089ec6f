"""Where matplotlib and fontconfig keep what they find out about fonts, on machines where a home cannot be written."""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def import_quietly() -> None:
    """Imports matplotlib with its fonts, once, so that it complains of no folder that it may not write to.

    Where one of its folders, or fontconfig's, cannot be written, all are temporary for the time of the import: they
    hold nothing but a list of fonts.
    """
    with writable_folders():
        importlib.import_module("matplotlib.font_manager")


@contextlib.contextmanager
def writable_folders() -> Iterator[None]:
    """Lets the variables for settings and caches name a temporary folder, where what they name cannot be written."""
    home = Path(os.path.expanduser("~"))
    used = {
        "MPLCONFIGDIR": Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config", "matplotlib"),
        "XDG_CACHE_HOME": home / ".cache",
    }
    folders = [Path(os.environ.get(name) or folder) for name, folder in used.items()]
    if all(map(_can_be_written, folders)):
        yield
        return
    before = {name: os.environ.get(name) for name in used}
    with tempfile.TemporaryDirectory(prefix="qsm-fonts-") as temporary:
        os.environ.update(dict.fromkeys(used, temporary))
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _can_be_written(folder: Path) -> bool:
    """Whether `folder` can be made and a file be opened in it: permissions alone say too little."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True
