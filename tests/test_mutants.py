"""The faults that `make mutants` plants: each is another program, and every kind is there."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from tests.mutants.__main__ import (
    COMPILED,
    ROOT,
    choose,
    files_named,
    find_tests,
    judge,
    options_of,
    run_tests,
)
from tests.mutants.mutations import mutants_of


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = a < b", {"x = (a <= b)"}),
        ("x = a + b", {"x = (a - b)"}),
        ("x = a and b", {"x = (a or b)"}),
        ("x = not a", {"x = (a)"}),
        ("x = -a", {"x = (a)"}),
        ("x = True", {"x = (False)"}),
        ("x = 7", {"x = (8)"}),
        ("x = 0.5", {"x = (1.0)"}),
        ("x = 0.0", {"x = (1.0)"}),
        ("x = jnp.min(a)", {"x = (jnp.max(a))"}),
        ("x = a.mean()", {"x = (a.sum())"}),
        ("x = min(a, b)", {"x = (max(a, b))"}),
        ("x = jax.lax.stop_gradient(a)", {"x = (a)"}),
        ("x = jnp.clip(a, low, high)", {"x = (a)"}),
        ("x = jnp.where(c, a, b)", {"x = (jnp.where(c, b, a))"}),
        ("x = a if c else b", {"x = (a if not c else b)"}),
        ("if c:\n    pass", {"if (not c):\n    pass"}),
        ("one_key, key = f(key)", {"key, one_key = f(key)"}),
        ("x += a", {"pass"}),
        ("f(a)", {"pass"}),
        ("x: int | None = a", set()),
        ("def f(x: 'a | b') -> 'a | b':\n    return x", set()),
        ("import a.b", set()),
        ('"""Text: 1 + 1."""', set()),
        ("raise ValueError(1 + 1)", set()),
        ("chex.assert_rank(a, 1)", set()),
        ("x = f'{a + 1}'", set()),
        ("x = 'α' + (a < b)", {"x = 'α' + ((a <= b))", "x = ('α' - (a < b))"}),
    ],
)
def test_a_mutant_is_the_file_with_one_fault(source: str, expected: set[str]) -> None:
    assert {mutant.source for mutant in mutants_of(source)} == expected


def test_mutants_of_real_files_are_other_programs_at_their_lines() -> None:
    text = (ROOT / "qsm/data/sampling.py").read_text()
    found = mutants_of(text)
    assert len(found) > 50
    assert len({ast.dump(ast.parse(mutant.source)) for mutant in found}) == len(found)
    assert [mutant.line for mutant in found] == sorted(mutant.line for mutant in found)


def test_a_draw_is_the_same_every_time_and_lines_bound_it() -> None:
    file = [Path("agents/parts/normalizer.py")]
    draws = [choose(file, options_of(["--sample", "5", "--seed", seed])) for seed in ("0", "0", "1")]
    assert len(draws[0]) == 5 and draws[0] == draws[1] != draws[2]
    inside = choose(file, options_of(["--lines", "30", "40"]))
    assert inside and {mutant.line for _, mutant in inside} <= set(range(30, 41))


def tree(root: Path, test: str) -> Path:
    """A file and its tests, as in this project."""
    (root / "agents").mkdir(parents=True)
    (root / "tests" / "agents").mkdir(parents=True)
    (root / "agents" / "half.py").write_text("def half(x):\n    return x / 2\n")
    (root / "tests" / "agents" / "test_half.py").write_text(f"from agents.half import half\n\n\n{test}\n")
    (root / "tests" / "agents" / "test_other.py").write_text("def test_fails():\n    assert False\n")
    return root


@pytest.mark.slow
def test_only_what_the_tests_do_not_find_survives_and_the_file_comes_back(tmp_path: Path) -> None:
    root = tree(tmp_path, "def test_half():\n    assert half(0) == 0")
    file = Path("agents/half.py")
    before = (root / file).read_text()
    [divided, doubled] = choose([file], options_of([]), root)
    found = list(judge([divided, doubled], root, 60.0))
    assert [(one.mutation, one.result) for one in found] == [
        ("x / 2 -> x * 2", "survived"),
        ("2 -> 3", "survived"),
    ]
    assert (root / file).read_text() == before
    (root / "tests/agents/test_half.py").write_text(
        "from agents.half import half\n\n\ndef test_half():\n    assert half(4) == 2\n"
    )
    assert [one.result for one in judge([divided, doubled], root, 60.0)] == ["killed", "killed"]


def test_tests_that_fail_without_a_fault_are_mended_first(tmp_path: Path) -> None:
    root = tree(tmp_path, "def test_half():\n    assert half(4) == 3")
    with pytest.raises(SystemExit, match="killed without a fault"):
        list(judge(choose([Path("agents/half.py")], options_of([]), root), root, 60.0))


def test_tests_that_hang_are_stopped_and_leave_no_program_half_written(tmp_path: Path) -> None:
    root = tree(tmp_path, "def test_half():\n    while True:\n        half(2)")
    former, torn = root / COMPILED / "alone" / "former-cache", root / COMPILED / "alone" / "torn-cache"
    former.parent.mkdir(parents=True)
    for file in (former, torn):
        file.write_bytes(b"program")
    os.utime(former, (1e9, 1e9))
    assert run_tests(["tests/agents/test_half.py"], root, 0.1)[0] == "hung"
    assert former.exists() and not torn.exists()


def test_a_file_is_tested_by_its_own_tests_or_by_those_of_its_folder(tmp_path: Path) -> None:
    root = tree(tmp_path, "")
    assert find_tests(Path("agents/half.py"), root) == ["tests/agents/test_half.py"]
    assert find_tests(Path("agents/parts/half.py"), root) == ["tests/agents/test_half.py"]
    both = ["tests/agents/test_half.py", "tests/agents/test_other.py"]
    assert find_tests(Path("agents/parts/new.py"), root) == both
    (root / "tests/agents/test_contract.py").write_text("")
    assert find_tests(Path("agents/half.py"), root) == [
        "tests/agents/test_half.py",
        "tests/agents/test_contract.py",
    ]
    (root / "tests/data").mkdir()
    for name in ("test_ring.py", "test_a.py"):
        (root / "tests/data" / name).write_text("")
    assert find_tests(Path("data/ring.py"), root) == ["tests/data/test_ring.py", "tests/data/test_a.py"]
    assert files_named(["agents"], root) == [Path("agents/half.py")]
    with pytest.raises(SystemExit, match="no Python file"):
        files_named(["missing"], root)
