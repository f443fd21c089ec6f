"""Programs on disk: found by a later start untraced, equal bit for bit, and made anew where anything has changed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import compilation_cache as jax_cache

import agents
from agents.parts.types import Mean
from envs.api import EnvSpec, StepType
from qsm.devices import compilation_cache, kept_programs, program_file, program_key
from qsm.devices.compilation_cache import CACHE_VARIABLE, ProgramCache
from qsm.devices.kept_programs import KeptProgram
from qsm.learning import compiled
from qsm.learning.compiled import GroupPrograms
from qsm.learning.learner import Learner
from qsm.learning.placement import Placement
from tests.arrivals import arrival

SPEC = EnvSpec(task="by hand", observation_size=2, action_size=1, episode_steps=10, action_repeat=1)
LATER = 2.0**33
"""After any change of a file."""
ACTION = np.full((1, 1, 1), 0.5, np.float32)


class State(NamedTuple):
    """Of every kind of leaf."""

    key: jax.Array
    mean: Mean
    rest: dict[str, Any]


def state() -> State:
    return State(
        jax.random.key(3), Mean(jnp.arange(4.0), jnp.zeros(4, jnp.int32)), {"b": (), "a": jnp.ones(2)}
    )


class Start:
    """What a process does, with a function that it has not traced yet."""

    def __init__(self) -> None:
        self.traces = 0

    def step(self, state: State, x: Any) -> State:
        self.traces += 1
        return state._replace(mean=Mean(state.mean.total * x, state.mean.count + 1))

    def program(self, value: Any = "value", **options: Any) -> Any:
        return kept_programs.jit(self.step, "step", value, **{"donate_argnums": 0, **options})


def cholesky() -> Any:
    def factor(x: jax.Array) -> jax.Array:
        return jnp.linalg.cholesky(x, symmetrize_input=False)

    return kept_programs.jit(factor, "cholesky", "value")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where programs are kept from now on."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setattr(jax_cache, "get_file_cache", jax_cache.get_file_cache)
    jax_cache.reset_cache()
    assert compilation_cache.use_cache() is None
    jax.config.update(
        "jax_persistent_cache_min_compile_time_secs", 1000.0
    )  # JAX itself would keep none of these
    assert kept_programs.use(LATER) is None
    yield tmp_path / "qsm" / "xla"
    kept_programs._store = None
    for name, value in before.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()


def stepped(times: int = 1, x: float = 2.0) -> State:
    before = state()
    return before._replace(mean=Mean(before.mean.total * x**times, before.mean.count + times))


def raw(tree: Any) -> list[bytes]:
    def numbers(leaf: Any) -> np.ndarray:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return [numbers(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("kept_*"))


def test_a_second_start_traces_nothing_and_computes_the_same(folder: Path) -> None:
    for traces in (1, 0):
        start, given = Start(), state()
        program = start.program()
        found = program(given, 2.0)
        assert raw(found) == raw(stepped())
        assert jax.tree.structure(found) == jax.tree.structure(given)
        assert given.mean.total.is_deleted() and given.key.is_deleted()  # donated
        assert raw(program(found, 2.0)) == raw(stepped(2))
        assert start.traces == traces
        assert len(kept(folder)) == 1


def test_other_shapes_are_programs_of_their_own(folder: Path) -> None:
    for traces in (2, 0):
        start = Start()
        program = start.program()
        for x in (jnp.float32(2.0), jnp.full(4, 2.0), jnp.float32(2.0)):
            assert raw(program(state(), x)) == raw(stepped())
        assert start.traces == traces
    assert len(kept(folder)) == 2


def test_an_error_of_arguments_is_told_as_ever(folder: Path) -> None:
    program = Start().program()
    program(state(), 2.0)
    with pytest.raises(TypeError):
        program(state(), "text")


def test_shapes_are_those_of_the_kept_program(folder: Path) -> None:
    expected = jax.eval_shape(Start().step, state(), 2.0)
    start = Start()
    assert kept_programs.shapes(start.program(), state(), 2.0) == expected
    assert start.traces == 1 and not kept(folder)  # nothing is compiled for its shape
    kept_programs.compile_for(start.program(), *jax.eval_shape(lambda: (state(), 2.0)))
    start = Start()
    program = start.program()
    assert kept_programs.shapes(program, *jax.eval_shape(lambda: (state(), 2.0))) == expected
    program(state(), jnp.asarray(2.0))
    assert start.traces == 0


def test_another_value_or_option_is_traced(folder: Path) -> None:
    Start().program()(state(), 2.0)
    for program in ({"value": "another"}, {"donate_argnums": ()}, {"keep_unused": True}):
        start = Start()
        start.program(**program)(state(), 2.0)
        assert start.traces == 1


def test_code_that_was_changed_is_traced(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").mkdir()
    file = tmp_path / "own" / "__init__.py"
    file.write_text("one")
    os.utime(file, (1, 1))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(program_key, "OWN", ("own", "tests"))
    for text, traces in (("one", 1), ("one", 0), ("two", 1), ("two", 0), ("one", 0)):
        file.write_text(text)
        os.utime(file, (1, 1))
        kept_programs.use(LATER)
        start = Start()
        start.program()(state(), 2.0)
        assert start.traces == traces, text
    # Changed since this process was started, or after it had read its code: what was traced may be of either.
    for stamp, after in ((LATER, ""), (1, "three")):
        file.write_text(f"of {stamp}")
        os.utime(file, (stamp, stamp))
        kept_programs.use(LATER)
        if after:
            file.write_text(after)
            os.utime(file, (stamp, stamp))
        before = kept(folder)
        Start().program()(state(), 2.0)
        assert kept(folder) == before


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def exchange(file: Path) -> None:
    """Puts another program in its place."""
    there = kept(file.parent)
    Start().program(value="another")(state(), 2.0)
    (other,) = set(kept(file.parent)) - set(there)
    other.replace(file)


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        exchange,
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"foreign" * 100),
        lambda file: file.chmod(0o620),
        lambda file: file.chmod(0o602),
    ],
    ids=["flipped", "exchanged", "cut", "empty", "foreign", "group", "world"],
)
def test_what_is_damaged_or_others_can_write_is_replaced(folder: Path, damage: Callable[[Path], Any]) -> None:
    Start().program()(state(), 2.0)
    (file,) = kept(folder)
    damage(file)
    for traces in (1, 0):
        start = Start()
        assert raw(start.program()(state(), 2.0)) == raw(stepped())
        assert start.traces == traces
    assert file.stat().st_mode & 0o777 == 0o600


def put_another(file: Path) -> None:
    """Puts the executable of another program in its place."""
    cholesky()(jnp.eye(2))
    (other,) = file.parent.glob("jit_factor-*")
    file.write_bytes(other.read_bytes())


@pytest.mark.parametrize("change", [Path.unlink, put_another], ids=["gone", "another"])
def test_a_program_without_its_executable_is_made_anew(folder: Path, change: Callable[[Path], Any]) -> None:
    Start().program()(state(), 2.0)
    (executable,) = folder.glob("jit_step-*")
    change(executable)
    start = Start()
    program = start.program()
    assert program._load(program_key.signature((state(), 2.0))) is None
    executable.unlink(missing_ok=True)
    program(state(), 2.0)
    assert start.traces == 1 and executable.exists()


def test_a_file_of_another_user_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Start().program()(state(), 2.0)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    start = Start()
    start.program()(state(), 2.0)
    assert start.traces == 1


def test_a_program_that_calls_back_is_not_kept(folder: Path) -> None:
    def step(x: Any) -> Any:
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(lambda x: np.float32(x + 1), shape, x)

    program = kept_programs.jit(step, "step", "value")
    assert float(program(jnp.float32(1.0))) == 2.0
    assert not kept(folder)


def test_lapack_is_found_before_a_program_that_calls_it_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    four = 4 * jnp.eye(2)
    np.testing.assert_array_equal(cholesky()(four), 2 * np.eye(2))
    found: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(program_file, "initialize_lapack", lambda: found.append("lapack"))
        np.testing.assert_array_equal(cholesky()(four), 2 * np.eye(2))
        Start().program()(state(), 2.0)
        Start().program()(state(), 2.0)  # has no need of it
    assert found == ["lapack"]
    (file,) = folder.glob("kept_cholesky-*")
    file.unlink()
    monkeypatch.setattr(program_file, "KNOWN", re.compile("another"))
    np.testing.assert_array_equal(cholesky()(four), 2 * np.eye(2))
    assert not file.exists()


def test_what_is_damaged_is_not_unpickled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Start().program()(state(), 2.0)
    (file,) = kept(folder)
    flip(file)
    monkeypatch.setattr(program_file.pickle, "load", lambda *_: pytest.fail("was unpickled"))
    Start().program()(state(), 2.0)


def test_a_disk_that_is_full_ends_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProgramCache, "replace", lambda *rest: (_ for _ in ()).throw(OSError("full")))
    start = Start()
    assert raw(start.program()(state(), 2.0)) == raw(stepped())
    assert start.traces == 1 and not kept(folder)


@pytest.mark.parametrize("setting", ["jax_debug_nans", "jax_disable_jit", "jax_enable_compilation_cache"])
def test_settings_that_switch_it_off(folder: Path, setting: str) -> None:
    before = getattr(jax.config, setting)
    jax.config.update(setting, not before)
    try:
        assert kept_programs.use(LATER)
        assert not isinstance(Start().program(), KeptProgram)
    finally:
        jax.config.update(setting, before)


def test_where_jax_s_own_variable_rules_or_the_value_is_unknown_nothing_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not isinstance(Start().program(value=object()), KeptProgram)
    assert not isinstance(Start().program(value=Placement(2, num_seeds=2)), KeptProgram)
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))
    assert kept_programs.use(LATER)
    assert not isinstance(Start().program(), KeptProgram)


def test_a_version_that_it_was_not_tried_with_keeps_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kept_programs.use() is None
    monkeypatch.setattr(jax, "__version__", "0.12.0")
    assert kept_programs.use() == "it was not tried with jax 0.12.0"
    assert not isinstance(kept_programs.jit(jnp.sin, "sine", ()), kept_programs.KeptProgram)


def test_nothing_is_kept_unless_a_command_asks() -> None:
    group = GroupPrograms(agents.make_agent("sac", 3, 1), 3, 1, 1, 7, 1, Placement())
    assert not any(isinstance(program, KeptProgram) for program in compiled.compile_group(group))


def test_no_program_of_several_devices_is_kept(folder: Path) -> None:
    agent = agents.make_agent("sac", 3, 1, hidden_sizes=(4,))
    for devices, is_kept in ((1, True), (2, False)):
        placement = Placement(devices, num_seeds=2)
        group = GroupPrograms(agent, 3, 1, 2, 7, 1, placement)
        programs = [*compiled.compile_group.__wrapped__(group), compiled._are_finite.__wrapped__(placement)]
        assert [isinstance(program, KeptProgram) for program in programs] == [is_kept] * 7


PROCESS = """
import jax
import jax.numpy as jnp
from qsm.devices import compilation_cache, kept_programs

compilation_cache.use_cache()
assert kept_programs.use(2.0**33) is None
traces = []

def program(x):
    traces.append(1)
    return jnp.linalg.solve(x, jnp.ones(2)), jnp.linalg.svd(x)[1], jnp.linalg.cholesky(x)

found = kept_programs.jit(program, "linalg", "value")(4 * jnp.eye(2))
print(len(traces), *(float(leaf.sum()) for leaf in found))
"""


@pytest.mark.slow
def test_another_process_computes_with_lapack(tmp_path: Path) -> None:
    environ = dict(os.environ, XDG_CACHE_HOME=str(tmp_path))
    for traces in (1, 0):
        done = subprocess.run(
            [sys.executable, "-c", PROCESS], env=environ, capture_output=True, text=True, check=True
        )
        assert done.stdout == f"{traces} 0.5 8.0 4.0\n"


@pytest.mark.slow
def test_learning_from_disk_is_learning_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = agents.make_agent("sac", 2, 1, hidden_sizes=(8,), batch_size=4)
    learner = Learner(agent, SPEC, seeds=0, capacity=16)  # traced
    monkeypatch.setattr(kept_programs, "_store", None)
    assert kept_programs.use(LATER) is None
    make = compiled.compile_group.__wrapped__
    kept_programs.compile_for(make(learner.group).learn, *learner.learn_shapes())
    from_disk = make(learner.group).learn
    monkeypatch.setattr(from_disk, "_make", lambda *rest: pytest.fail("was traced"))

    def learn(program: Any) -> Any:
        state = learner.init()
        for i, updates in enumerate((0, 0, 0, 1, 3)):
            step = arrival(StepType.FIRST if i == 0 else StepType.MID, i, 0.1 * i)
            state = program(
                state, learner.streams, ACTION, step, np.int32(i), np.int32(updates), learner.active
            )
        return state

    assert raw(learn(from_disk)) == raw(learn(learner.compiled.learn))
