"""Imports run one way: scripts -> qsm -> {agents, envs}."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("agents", "envs", "qsm", "scripts", "tests")
MAY_IMPORT = {
    "agents": {"agents"},
    "envs": {"envs"},
    "qsm": {"agents", "envs", "qsm"},
    "scripts": {"agents", "envs", "qsm", "scripts"},
}
# Modules, or names of them, through which an agent could read or write.
INPUT_OUTPUT = {
    "io",
    "logging",
    "os",
    "pathlib",
    "pickle",
    "requests",
    "shutil",
    "socket",
    "subprocess",
    "wandb",
}
FILES = [path for room in MAY_IMPORT for path in sorted((ROOT / room).rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything that `path` imports, at any depth: `from a import b` counts as a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def runtime_imports(path: Path) -> set[str]:
    """Packages that importing `path` imports, those for type checkers apart."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = ast.walk(tree)
    return {
        name.partition(".")[0]
        for node in found
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_keep_their_direction(path: Path):
    room = path.relative_to(ROOT).parts[0]
    wrong = packages(path) & set(ROOMS) - MAY_IMPORT[room]
    assert not wrong, f"{room} must not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("path", sorted((ROOT / "agents").rglob("*.py")), ids=lambda path: path.name)
def test_agents_do_no_input_or_output(path: Path):
    assert not packages(path) & INPUT_OUTPUT
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"open", "print", "input"}


@pytest.mark.parametrize("path", sorted((ROOT / "agents").rglob("*.py")), ids=lambda path: path.name)
def test_only_networks_imports_flax(path: Path):
    assert "flax" not in packages(path) or path.name == "networks.py"


@pytest.mark.parametrize("name", ["__init__.py", "api.py", "dmc.py", "tasks.py"])
def test_host_environments_need_no_jax(name: str):
    assert not runtime_imports(ROOT / "envs" / name) & {"jax", "flax", "optax", "chex"}


def test_every_package_is_declared():
    declared = (ROOT / "pyproject.toml").read_text()
    # What the declared packages bring along on purpose.
    brought = {"dm_env": "dm_control", "google": "tensorboardX", "mujoco_playground": "playground"}
    # Scripts are started as files, and import those beside them.
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    for path in FILES:
        for package in packages(path) - set(sys.stdlib_module_names) - set(ROOMS) - scripts:
            name = brought.get(package, package).replace("orbax", "orbax-checkpoint").replace("_", "[_-]?")
            assert name.replace("[_-]?", "_") in declared or name.replace("[_-]?", "-") in declared, (
                f"{path.relative_to(ROOT)} imports {package}, which pyproject.toml does not name"
            )
