"""The cache of compiled programs and the precision of matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax._src.lru_cache import LRUCache

from qsm.devices import runtime

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that a user without settings would get."""
    monkeypatch.delenv(runtime.CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    yield tmp_path / "qsm" / "xla"
    for name, value in before.items():
        jax.config.update(name, value)


def test_half_written_program_is_removed_and_the_others_stay(cache: Path) -> None:
    assert runtime.use_cache() is None
    kept = LRUCache(str(cache), max_size=1000)
    kept.put("whole", b"program")
    (cache / "torn-cache").write_bytes(b"prog")  # killed before JAX wrote torn-atime

    with pytest.raises(FileNotFoundError):  # why it has to go
        kept.put("next", b"program")
    assert runtime.use_cache() is None

    kept.put("next", b"program")
    assert kept.get("whole") == kept.get("next") == b"program"
    assert kept.get("torn") is None


def test_cache_is_bounded(cache: Path) -> None:
    runtime.use_cache()
    assert [getattr(jax.config, name) for name in SETTINGS[:2]] == [str(cache), runtime.CACHE_BYTES]


def test_jax_own_variable_rules(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(runtime.CACHE_VARIABLE, "elsewhere")
    assert runtime.use_cache() is None
    assert not cache.exists()


def test_no_folder_to_write_to_is_a_warning(cache: Path) -> None:
    cache.parent.parent.mkdir(exist_ok=True)
    cache.parent.write_text("a file")
    assert runtime.CACHE_VARIABLE in (runtime.use_cache() or "")


def test_a_precision_out_of_a_file_is_held_to_those_of_a_run() -> None:
    expected = "matmul_precision is 'fp8'; it must be one of float32, tensorfloat32, bfloat16"
    with pytest.raises(ValueError, match=expected):
        runtime.set_precision("fp8")  # pyright: ignore[reportArgumentType]
