"""Imports run one way: scripts -> qsm -> {agents, envs}, and inside qsm from room to room, only downwards."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP = ("agents", "envs", "qsm", "scripts", "tests")
MAY_IMPORT = {
    "agents": {"agents"},
    "envs": {"envs"},
    "qsm": {"agents", "envs", "qsm"},
    "scripts": {"agents", "envs", "qsm", "scripts"},
}
REGISTRY = {"agents"}
"""The registry of agents and their options, which import no JAX; below it lie the algorithms and their parts."""
TASKS = {"envs.tasks"}
"""The names of tasks, which import no simulator."""
LEARNING = {"agents", "agents.api", "agents.parts", "envs", "base", "options", "devices", "data"}
ROOMS = {
    # From the ground up; each may import itself, and what stands behind it.
    "base": set(),
    "options": REGISTRY | TASKS | {"agents.config", "base"},
    "devices": {"base", "options"},
    "data": {"agents.parts", "envs.api", "base"},
    "record": {"base", "options"},
    "learning": LEARNING,
    "loops": LEARNING | {"learning"},
    "checkpoints": LEARNING | {"learning", "loops", "record"},
    "policies": LEARNING | {"learning", "loops", "record", "checkpoints"},
    "training": LEARNING | {"learning", "loops", "record", "checkpoints"},
    "speed": LEARNING | {"learning", "loops", "record", "checkpoints"},
    "bench": REGISTRY | TASKS | {"base", "options", "record"},
    "report": REGISTRY | TASKS | {"base", "options", "record"},
    "command": REGISTRY
    | TASKS
    | {"base", "options", "devices", "record", "checkpoints", "policies", "training", "bench", "report"},
}
"""The rooms of qsm/, and what each may import (docs/architecture.md says why)."""
LONGEST_FILE, LONGEST_FUNCTION, LARGEST_FOLDER = 350, 60, 13
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
FILES = [path for top in MAY_IMPORT for path in sorted((ROOT / top).rglob("*.py"))]


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


OF_QSM = [path for path in sorted((ROOT / "qsm").rglob("*.py")) if path.parent != ROOT / "qsm"]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_keep_their_direction(path: Path):
    top = path.relative_to(ROOT).parts[0]
    wrong = packages(path) & set(TOP) - MAY_IMPORT[top]
    assert not wrong, f"{top} must not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("path", OF_QSM, ids=name_of)
def test_rooms_import_what_lies_below_them(path: Path):
    room = path.relative_to(ROOT / "qsm").parts[0]
    taken = set()
    for name in imports(path):
        first, second = (*name.split("."), "")[:2]
        if first == "qsm" and second:
            taken.add(second)
        elif first in ("agents", "envs"):
            # `agents.AGENTS` and `agents.build` are of the registry, `agents.parts.types` is not.
            is_module = (ROOT / first / second).is_dir() or (ROOT / first / f"{second}.py").is_file()
            taken.add(f"{first}.{second}" if is_module and second else first)
    wrong = {name for name in taken - {room} if not {name, name.partition(".")[0]} & ROOMS[room]}
    # The registry is let in without what lies below it.
    wrong |= {name for name in taken if name.startswith("agents.") and name not in ROOMS[room]}
    assert not wrong, f"qsm/{room} must not import {', '.join(sorted(wrong))}"


def test_every_room_has_its_line_in_the_table():
    folders = {path.name for path in (ROOT / "qsm").iterdir() if (path / "__init__.py").is_file()}
    assert folders == set(ROOMS)


def test_no_file_imports_itself_by_way_of_others():
    graph = {}
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in FILES
    }
    for module, path in modules.items():
        names = set(imports(path))
        graph[module] = {
            name for one in names for name in (one, one.rpartition(".")[0]) if name in modules
        } - {module}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"a circle: {' -> '.join((*above[above.index(module) :], module))}"
        if module not in done:
            for below in sorted(graph[module]):
                visit(below, (*above, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_one_sitting_long(path: Path):
    text = path.read_text()
    assert text.count("\n") <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            said = (ast.get_docstring(node, clean=False) or "").count("\n")
            assert (node.end_lineno or 0) - node.lineno - said < LONGEST_FUNCTION, f"{node.name} is too long"


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=name_of)
def test_folders_stay_small_and_every_file_says_what_it_is(folder: Path):
    files = [path for path in FILES if path.parent == folder and path.name != "__init__.py"]
    assert len(files) <= LARGEST_FOLDER
    for path in files:
        line = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        assert len(line) > 10, f"{path.name} has no first line"


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
    assert "flax" not in runtime_imports(path) or path.parent.name == "networks"


@pytest.mark.parametrize(
    "name", ["__init__.py", "api.py", "dmc.py", "headless.py", "observations.py", "tasks.py"]
)
def test_host_environments_need_no_jax(name: str):
    assert not runtime_imports(ROOT / "envs" / name) & {"jax", "flax", "optax", "chex"}


@pytest.mark.parametrize("room", ["base", "options", "record"])
def test_rooms_without_jax_import_none(room: str):
    for path in sorted((ROOT / "qsm" / room).rglob("*.py")):
        assert not runtime_imports(path) & {"jax", "flax", "optax", "chex", "orbax"}, path.name


def test_every_package_is_declared():
    declared = (ROOT / "pyproject.toml").read_text()
    # What the declared packages bring along on purpose.
    brought = {"dm_env": "dm_control", "google": "tensorboardX", "mujoco_playground": "playground"}
    # Scripts are started as files, and import those beside them.
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    for path in FILES:
        for package in packages(path) - set(sys.stdlib_module_names) - set(TOP) - scripts:
            name = brought.get(package, package).replace("orbax", "orbax-checkpoint").replace("_", "[_-]?")
            assert name.replace("[_-]?", "_") in declared or name.replace("[_-]?", "-") in declared, (
                f"{path.relative_to(ROOT)} imports {package}, which pyproject.toml does not name"
            )
