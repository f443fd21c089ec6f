"""What tells one kept program from another: the value, and everything that a change of which may change it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agents
from agents.parts.base import AgentBase
from qsm.devices import program_key
from qsm.devices.program_key import Source, UnknownError, describe, key_of, signature
from qsm.learning.compiled import GroupPrograms
from qsm.learning.placement import Placement

SOURCE = Source("digest", 0.0)


def key(
    name: str = "learn",
    value: str = "value",
    options: Any = None,
    inputs: Any = (1.0,),
    source: Source = SOURCE,
):
    return key_of(name, value, options, signature(inputs), source)


def group(agent: Any, num_seeds: int = 1, placement: Placement | None = None) -> GroupPrograms:
    return GroupPrograms(agent, 3, 1, num_seeds, 10, 1, placement or Placement())


@pytest.mark.parametrize("name", agents.AGENTS)
def test_equal_groups_are_described_alike_and_others_are_not(name: str):
    def make(size: int = 3, **options: Any) -> str:
        return describe(group(agents.make_agent(name, size, 1, **options)))

    assert make() == make()
    others = [
        make(4),
        make(batch_size=17),
        make(hidden_sizes=(8,)),
        make(discount=0.5),
        make(reset_interval=3),
    ]
    others.append(describe(group(agents.make_agent(name, 3, 1), num_seeds=2)))
    assert len({make(), *others}) == 7


def test_agents_of_one_configuration_and_of_different_classes_differ():
    found = {describe(agents.make_agent(name, 3, 1)) for name in agents.AGENTS}
    assert len(found) == len(agents.AGENTS)


def test_a_text_is_no_number_and_a_tuple_no_list():
    values = [1, 1.0, True, "1", b"1", None, (1,), [1], {1: 1}, (1, 1), ((1,), 1), (1, (1,)), -0.0, 0.0]
    assert len({describe(value) for value in values}) == len(values)
    assert describe({"a": 1, "b": 2}) == describe({"b": 2, "a": 1})


@dataclasses.dataclass(frozen=True)
class Elsewhere(AgentBase):
    """An agent of a class that no file of the packages holds."""


@pytest.mark.parametrize(
    "value",
    [
        Elsewhere(agents.config_of("sac"), 3, 1),
        (1, object()),
        np.ones(2),
        len,
        int,
        Placement(num_devices=2, num_seeds=2),  # on several devices
    ],
    ids=["class", "object", "array", "function", "type", "devices"],
)
def test_what_cannot_be_told_from_others_is_unknown(value: Any):
    with pytest.raises(UnknownError):
        describe(value)


@pytest.mark.parametrize(
    "change",
    [
        lambda: key(name="store"),
        lambda: key(value="another"),
        lambda: key(options={"donate_argnums": 0}),
        lambda: key(inputs=(jnp.float32(1.0),)),  # not weakly typed
        lambda: key(inputs=(jnp.zeros(2),)),
        lambda: key(inputs=((1.0,),)),
        lambda: key(inputs=(jax.random.key(0),)),
        lambda: key(source=Source("another", 0.0)),
    ],
)
def test_every_part_of_a_program_is_in_its_key(change: Callable[[], str]):
    assert key() == key()
    assert change() != key()


@pytest.mark.parametrize(
    "setting",
    [
        ("jax_default_matmul_precision", "bfloat16"),
        ("jax_numpy_rank_promotion", "allow"),
        ("jax_threefry_partitionable", False),
        ("jax_debug_key_reuse", True),
        ("jax_default_prng_impl", "rbg"),
    ],
)
def test_jax_s_settings_are_in_the_key(setting: tuple[str, Any]):
    before, former = key(), getattr(jax.config, setting[0])
    jax.config.update(*setting)
    try:
        assert key() != before
    finally:
        jax.config.update(setting[0], former)
    assert key() == before


def test_flags_of_compilers_and_installed_packages_are_in_the_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    before = key()
    with monkeypatch.context() as patch:
        patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"] + " --xla_dump_to=elsewhere")
        assert key() != before
    (tmp_path / "another-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    program_key.packages.cache_clear()
    assert key() != before
    (tmp_path / "another-1.0.dist-info" / "direct_url.json").write_text('{"dir_info": {"editable": true}}')
    program_key.packages.cache_clear()
    with pytest.raises(UnknownError, match="to be edited"):
        key()
    program_key.packages.cache_clear()


def test_a_library_without_a_version_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "flax_of_a_clone").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(program_key.LIBRARIES, "flax_of_a_clone", "flax")
    program_key.packages.cache_clear()
    with pytest.raises(UnknownError, match="no version"):
        key()
    program_key.packages.cache_clear()


def test_any_file_of_a_package_changes_the_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    files = [tmp_path / "own" / name for name in ("__init__.py", "deep/below.py", "map.txt")]
    files[1].parent.mkdir(parents=True)
    for file in files:
        file.write_text("content")
        os.utime(file, (100, 100))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(program_key, "OWN", ("own",))
    found = {program_key.read_source().digest}
    assert program_key.read_source().newest == 100
    for file in files:
        file.write_text("contenT")
        os.utime(file, (200, 200))
        found.add(program_key.read_source().digest)
    assert program_key.read_source().newest == 200
    files[1].rename(files[1].with_name("renamed.py"))
    found.add(program_key.read_source().digest)
    assert len(found) == 5
    (tmp_path / "own" / "__init__.cpython-311.pyc").write_bytes(b"compiled")
    assert program_key.read_source().digest in found


def test_a_package_that_is_no_folder_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(program_key, "OWN", ("no_such_package",))
    with pytest.raises(UnknownError, match="no folder"):
        program_key.read_source()
