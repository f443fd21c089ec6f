"""A compiled program as a file: how it is called, and where JAX's cache has its executable.

Not the executable itself: one that came out of the cache cannot be taken apart again on a CPU, for parts of it are then
missing (jaxlib 0.10.2). The content is pickled, and read only where this user wrote it and nobody else could.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from collections.abc import Collection
from typing import Any

import jax
from jax._src import compilation_cache as jax_cache
from jax._src.lax.linalg import initialize_lapack
from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]
from jax._src.lib.mlir import ir  # pyright: ignore[reportPrivateImportUsage]

from qsm.devices.compilation_cache import ProgramCache
from qsm.devices.program_key import UnknownError

DIGEST_BYTES = 32
LAPACK = "lapack_"
"""How the names of functions begin that JAX finds in SciPy when it lowers the first program with one of them."""
KNOWN = re.compile(rf"{LAPACK}\w+|(cu_|cusolver_|cusparse_)\w+_ffi|Sharding|annotate_device_placement")
"""Functions outside of XLA that are there when JAX is: a program that calls another may need it to be made first."""


def called_functions(lowered: Any) -> set[str]:
    """Names of the functions outside of XLA that a lowered program calls."""
    found: set[str] = set()

    def look(operation: Any) -> Any:
        if operation.name.endswith(".custom_call"):
            found.add(ir.StringAttr(operation.attributes["call_target_name"]).value)
        return ir.WalkResult.ADVANCE

    lowered.compiler_ir("stablehlo").operation.walk(look)
    return found


def write(
    cache: ProgramCache, key: str, program: Any, functions: Collection[str], executable_keys: Collection[str]
) -> None:
    """Keeps `program`, of `jit(...).lower(...).compile()`.

    Args:
      key: for `read`.
      functions: that it calls outside of XLA.
      executable_keys: under which JAX has asked its cache for the executable.

    Raises:
      UnknownError: the cache has no executable of it, or it calls what may not be in another process (as Python is),
        or holds arrays.
      Exception: of many kinds, where JAX or the disk do not allow it.
    """
    unloaded = program._executable._unloaded_executable
    if unknown := [name for name in functions if not KNOWN.fullmatch(name)]:
        raise UnknownError(f"it calls {unknown[0]}")
    if program._params.const_args or unloaded.mut is not None:
        raise UnknownError("it holds arrays")
    (executable_key,) = executable_keys
    executable = cache.get(executable_key)
    if executable is None:
        raise UnknownError("its executable is not in the cache")
    content = io.BytesIO()
    arguments, structure = jax.tree.flatten(program.args_info)
    call = (unloaded, arguments, structure, program.out_tree, program._no_kwargs)
    pickle.dump((key, any(name.startswith(LAPACK) for name in functions)), content)
    _Pickler(content, executable_key, _digest(executable)).dump(call)
    cache.replace(key, _digest(content.getvalue()) + content.getvalue())


def read(cache: ProgramCache, key: str) -> Any:
    """The program, to be called; None where there is none, or it is damaged or another user's.

    Raises:
      Exception: of many kinds, where its executable is gone, or JAX cannot read it.
    """
    packed = cache.get_own(key)
    if packed is None or _digest(packed[DIGEST_BYTES:]) != packed[:DIGEST_BYTES]:
        return None
    content = io.BytesIO(packed[DIGEST_BYTES:])
    there, needs_lapack = pickle.load(content)
    if there != key:
        return None
    if needs_lapack:
        initialize_lapack()  # or the program would jump to nowhere
    call = _Unpickler(content, cache).load()
    unloaded, arguments, structure, out_tree, no_kwargs = call
    return jax.stages.Compiled(
        unloaded.load(), [], structure.unflatten(arguments), out_tree, no_kwargs=no_kwargs
    )


class _Pickler(pickle.Pickler):
    """Leaves out what lives in this process."""

    def __init__(self, file: io.BytesIO, executable_key: str, digest: bytes) -> None:
        super().__init__(file)
        self._executable = executable_key, digest

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, _jax.LoadedExecutable | _jax.Executable):
            return "executable", *self._executable
        if isinstance(obj, _jax.Device):
            return ("device", obj.id)
        return ("client",) if isinstance(obj, _jax.Client) else None


class _Unpickler(pickle.Unpickler):
    """Puts this process's in its place; a program is of the first device."""

    def __init__(self, file: io.BytesIO, cache: ProgramCache) -> None:
        super().__init__(file)
        self._cache = cache
        self._device = jax.devices()[0]

    def persistent_load(self, pid: Any) -> Any:
        kind, *rest = pid
        if kind == "client":
            return self._device.client
        if kind == "device":
            if rest != [self._device.id]:
                raise UnknownError("it is of another device")
            return self._device
        key, digest = rest
        executable = self._cache.get(key)
        if executable is None or _digest(executable) != digest:
            raise UnknownError("its executable is gone")
        serialized, _ = jax_cache.extract_executable_and_time(jax_cache.decompress_executable(executable))
        devices = _jax.DeviceList((self._device,))
        return self._device.client.deserialize_executable(serialized, executable_devices=devices)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
