"""The cache of compiled programs: kept, bounded, never half written, and there for a user without a name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax._src import compilation_cache as jax_cache

from qsm.devices import compilation_cache
from qsm.devices.compilation_cache import CACHE_VARIABLE, ProgramCache, use_cache

SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
COMPILE = """
import pwd
from jax._src import monitoring

def no_such_user(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

pwd.getpwuid = no_such_user  # as in a container that runs with an arbitrary user
import jax
from qsm.devices.compilation_cache import use_cache

assert use_cache() is None
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None)
jax.jit(lambda x: 3 * x + 1)(2.0)
print(len(hits))
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that a user without settings would get."""
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    former = jax_cache.get_file_cache
    yield tmp_path / "qsm" / "xla"
    jax_cache.get_file_cache = former
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_user_without_a_name_compiles_once(cache: Path) -> None:
    hits = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", COMPILE], env=os.environ, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        hits.append(int(done.stdout))
    assert hits[0] == 0 and hits[1] > 0


def test_a_program_is_kept_and_the_first_of_a_key_stays(tmp_path: Path) -> None:
    kept = ProgramCache(tmp_path)
    assert kept.get("key") is None
    kept.put("key", b"program")
    kept.put("key", b"another")
    assert ProgramCache(tmp_path).get("key") == b"program"


def test_no_reader_finds_a_half_written_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, found = ProgramCache(tmp_path), []
    replace = Path.replace

    def watched(file: Path, target: Path) -> Path:
        found.append(reader.get("key"))  # all is written, and under another name
        return replace(file, target)

    monkeypatch.setattr(Path, "replace", watched)
    ProgramCache(tmp_path).put("key", b"program")
    assert found == [None]
    assert reader.get("key") == b"program"


def test_what_a_killed_process_left_is_removed_and_can_be_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = ProgramCache(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *rest: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            kept.put("key", b"program")
    assert kept.get("key") is None
    assert list(tmp_path.glob("*.part"))
    kept.clean(1000)
    assert not list(tmp_path.glob("*.part"))
    kept.put("key", b"program")
    assert kept.get("key") == b"program"


def test_a_program_of_one_s_own_replaces_any_and_what_was_left_of_another(tmp_path: Path) -> None:
    cache = ProgramCache(tmp_path)
    cache.put("key", b"program")
    (tmp_path / "key.part").write_bytes(b"longer than the program")
    (tmp_path / "key.part").chmod(0o666)
    cache.replace("key", b"newer")
    assert cache.get_own("key") == b"newer"
    assert (tmp_path / "key.program").stat().st_mode & 0o777 == 0o600
    assert cache.get_own("another") is None


def test_the_least_recently_used_programs_go_first(tmp_path: Path) -> None:
    times = iter(range(10, 100))
    kept = ProgramCache(tmp_path, clock=lambda: next(times) * 10**9)
    for key in "abcd":
        kept.put(key, bytes(100))
    assert kept.get("a")  # used last
    kept.clean(400)  # just as many as there may be
    assert all((tmp_path / f"{key}.program").exists() for key in "abcd")
    kept.clean(299)
    assert [kept.get(key) is not None for key in "abcd"] == [True, False, False, True]


def test_a_start_bounds_the_cache_and_leaves_nothing_of_the_former_one(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation_cache, "CACHE_BYTES", 10)
    assert use_cache() is None
    assert jax.config.jax_compilation_cache_dir == str(cache)  # pyright: ignore[reportAttributeAccessIssue]
    ProgramCache(cache).put("large", bytes(11))
    for name in ("jit_f-0-cache", "jit_f-0-atime"):
        (cache / name).write_bytes(b"of JAX's own bounded cache")
    assert use_cache() is None
    assert [file.name for file in cache.iterdir() if file.name != ".lockfile"] == []


def test_another_process_that_holds_the_lock_is_waited_for_and_then_warned_of(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation_cache, "LOCK_SECONDS", 0.0)
    other = ProgramCache(cache)
    with other._lock:
        assert CACHE_VARIABLE in (use_cache() or "")
    assert use_cache() is None


def test_two_processes_do_not_write_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation_cache, "LOCK_SECONDS", 0.0)
    one, other = ProgramCache(tmp_path), ProgramCache(tmp_path)
    with one._lock, pytest.raises(TimeoutError):
        other.put("key", b"program")


def test_jax_own_variable_rules(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "elsewhere")
    assert use_cache() is None
    assert not cache.exists()


def test_no_folder_to_write_to_is_a_warning(cache: Path) -> None:
    cache.parent.parent.mkdir(exist_ok=True)
    cache.parent.write_text("a file")
    assert CACHE_VARIABLE in (use_cache() or "")
