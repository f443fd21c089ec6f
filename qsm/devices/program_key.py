"""What a compiled program depends on, as text: the value it computes for, all code, packages, settings, the device."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax

OWN = ("agents", "envs", "qsm")
"""The packages whose source is read. A class defined elsewhere computes nobody knows what."""
LIBRARIES = {
    "jax": "jax",
    "jaxlib": "jaxlib",
    "numpy": "numpy",
    "flax": "flax",
    "optax": "optax",
    "etils": "etils",
    "mujoco": "mujoco",
    "mujoco_playground": "playground",
}
"""Packages that trace, and the distributions whose version stands for their code."""
VARIABLES = ("XLA_", "LIBTPU_", "TF_", "NVIDIA_")
"""How the names of variables begin that compilers read; JAX's own are among its settings."""


class UnknownError(Exception):
    """It cannot be said what a program depends on: it is not to be kept."""


class Source(NamedTuple):
    """The code of `OWN` as it lies on disk."""

    digest: str
    newest: float  # when a file was last changed, in seconds since the epoch


def read_source() -> Source:
    """Reads every file of `OWN`, caches of Python apart: a few milliseconds.

    Raises:
      UnknownError: a package does not lie in a folder, or a file cannot be read.
    """
    digest, newest = hashlib.sha256(), 0.0
    for package in OWN:
        for folder in _folders(package):
            for file in sorted(folder.rglob("*")):
                if file.suffix == ".pyc" or not file.is_file():
                    continue
                try:
                    content, changed = file.read_bytes(), file.stat().st_mtime
                except OSError as error:
                    raise UnknownError(str(error)) from error
                name = f"{package}/{file.relative_to(folder).as_posix()}"
                digest.update(f"{name}\0{len(content)}\0".encode())
                digest.update(content)
                newest = max(newest, changed)
    return Source(digest.hexdigest(), newest)


def describe(value: Any) -> str:
    """`value` as text that equal values share and others do not, in every process.

    Numbers, texts, tuples and dictionaries of them, dataclasses of `OWN`, and objects of `OWN` that have an
    `identity()`: what tells them from others of their class, or None where that cannot be said.

    Raises:
      UnknownError: something else is in it, or an object of a class that is defined elsewhere.
    """
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        return f"{type(value).__name__}({', '.join(map(describe, value))})"
    if type(value) is dict:
        return f"dict({', '.join(sorted(f'{describe(k)}: {describe(v)}' for k, v in value.items()))})"
    names = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(value).__mro__]
    foreign = [name for name in names if name.partition(".")[0] not in (*OWN, "builtins", "typing")]
    if foreign:
        raise UnknownError(f"{foreign[0]} is defined elsewhere")
    identify: Any = getattr(value, "identity", None)
    if identify is not None:
        if (identity := identify()) is None:
            raise UnknownError(f"{names[0]} cannot say which it is")
        return f"{names}({describe(identity)})"
    if dataclasses.is_dataclass(value):
        fields = (
            f"{field.name}={describe(getattr(value, field.name))}" for field in dataclasses.fields(value)
        )
        return f"{names}({', '.join(fields)})"
    raise UnknownError(f"{names[0]} is no plain value")


def signature(arguments: Any) -> tuple[Any, ...]:
    """Structure, shapes and types of arguments, or of their shapes: programs are compiled for one."""
    leaves, structure = jax.tree.flatten(arguments)
    typed = [leaf if hasattr(leaf, "dtype") else jax.typeof(leaf) for leaf in leaves]
    return structure, tuple((leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)) for leaf in typed)


def key_of(name: str, value: str, options: Any, called_with: tuple[Any, ...], source: Source) -> str:
    """The name of the file of a program: of all that decides what it is.

    Raises:
      UnknownError: the packages here cannot be told by their versions.
    """
    parts = [name, value, repr(options), repr(called_with), source.digest, packages(), settings(), device()]
    return f"kept_{name}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}"


@functools.cache
def packages() -> str:
    """Python, and everything installed, by name and version.

    Raises:
      UnknownError: a package is installed to be edited, or has no version beside it.
    """
    found = []
    for folder in dict.fromkeys(map(Path, sys.path)):
        for entry in [*folder.glob("*.dist-info"), *folder.glob("*.egg-info")] if folder.is_dir() else ():
            found.append(entry.name)
            origin = entry / "direct_url.json"
            if (
                not entry.name.startswith("qsm-")
                and origin.is_file()
                and '"editable": true' in origin.read_text()
            ):
                raise UnknownError(f"{entry.name} is installed to be edited")
    for module, distribution in LIBRARIES.items():
        for folder in _folders(module, required=False):
            if not any(folder.parent.glob(f"{distribution}-*-info")):
                raise UnknownError(f"{folder} has no version beside it")
    return "\n".join([sys.version, *sorted(found)])


def settings() -> str:
    """All of JAX's settings as they are for this thread, and the variables that compilers read."""
    variables = {name: value for name, value in os.environ.items() if name.startswith(VARIABLES)}
    return f"{sorted(jax.config.values.items())}\n{sorted(variables.items())}"


def device() -> str:
    """The first device: its kind and the instructions that it has, its driver, and how many there are."""
    from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]  # another version may not have it

    first = jax.devices()[0]
    client = first.client
    try:
        features = str(_jax.get_topology_for_devices([first]).fingerprint())
    except jax.errors.JaxRuntimeError:  # not every backend has one: JAX then takes the kind, too
        features = ""
    counts = f"{jax.device_count()} {jax.process_count()}"
    return "\n".join([client.platform, client.platform_version, first.device_kind, features, counts])


def _folders(package: str, required: bool = True) -> list[Path]:
    spec = importlib.util.find_spec(package)
    found = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    if required and not (found and all(folder.is_dir() for folder in found)):
        raise UnknownError(f"{package} is no folder of files")
    return found
