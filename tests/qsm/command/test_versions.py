"""Packages that cannot work together are told at start-up, in one line."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from qsm.base.errors import UserError
from qsm.command import cli, versions

ROOT = Path(__file__).parents[3]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch):
    """Pretends that packages are installed in other versions; None: not at all."""
    real = importlib.metadata.version

    def install(**packages: str | None) -> None:
        def version(name: str) -> str:
            found = packages.get(name, real(name))
            if found is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return found

        monkeypatch.setattr(importlib.metadata, "version", version)

    return install


def test_what_is_installed_here_works():
    versions.check_versions()


@pytest.mark.parametrize("version", ["4.0.0", "4.1", "3.16.9", "5", "2.3.7", "4.0.0.dev1", "unknown"])
@pytest.mark.parametrize("command", [["train", "qsm", "cheetah-run", "--dry-run"], ["tasks"]])
def test_a_mujoco_that_fails_is_refused(install, capsys, version: str, command: list[str]):
    install(mujoco=version, dm_control="1.0.50")
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"qsm: error: mujoco {version} does not work with dm_control 1.0.50. Install")
    assert "pip install 'mujoco>=3.17,<4'" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("version", ["3.17.0", "3.17", "3.20.1", "3.99.0rc1"])
def test_a_mujoco_that_works_is_accepted(install, version: str):
    install(mujoco=version)
    versions.check_versions()


def test_a_missing_package_names_the_mend(install):
    install(mujoco=None)
    with pytest.raises(UserError, match=r"mujoco is not installed .* make setup"):
        versions.check_versions()


WITHOUT = """
import importlib.metadata, sys
from importlib.abc import MetaPathFinder

MISSING = ("dm_control", "wandb", "labmaze")

class Refuse(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

found = importlib.metadata.version

def version(name):
    if name in MISSING:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)

importlib.metadata.version = version
sys.meta_path.insert(0, Refuse())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in MISSING else find(name, *rest)
from qsm.command.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""`qsm` on a machine that has neither dm_control nor wandb."""


def without(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_mjx_needs_no_dm_control(tmp_path: Path):
    line = ("train", "sac", "cartpole-swingup", "--runs", str(tmp_path), "--dry-run", "--backend")
    done = without(*line, "mjx")
    assert done.returncode == 0 and "backend" in done.stdout, done.stderr
    done = without(*line[:-2], "--wandb", "disabled")
    assert done.returncode == 2
    assert done.stderr.startswith("qsm: error: --backend dm_control needs the package dm_control")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_mjx_trains_without_dm_control(tmp_path: Path):
    line = "--backend mjx --num-envs 2 --steps 40 --random-steps 20 --replay-capacity 1000 --eval-episodes 1"
    small = "--hidden-sizes 8 --batch-size 8 --wandb disabled --runs"
    done = without("train", "sac", "cartpole-swingup", *line.split(), *small.split(), str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mjx/cartpole-swingup/sac/seed_0/eval.csv").exists()


@pytest.mark.parametrize("version", [(3, 13), (3, 14), (3, 10), (4, 0)])
def test_a_python_that_fails_is_refused(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int]):
    monkeypatch.setattr(sys, "version_info", (*version, 0, "final", 0))
    with pytest.raises(UserError, match=rf"^Python {version[0]}\.{version[1]} .*Install Python 3\.12"):
        versions.check_versions()


def test_the_package_declares_the_same_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "mujoco>=3.17,<4" in project["dependencies"]
    assert versions.MUJOCO == ((3, 17), (4,))
    assert project["requires-python"] == ">=3.11,<3.13"
    assert versions.PYTHON == ((3, 11), (3, 13))


def test_constraints_name_versions_and_nothing_else():
    marker = r"( ; python_version (<|>=) \"3\.12\")?"
    import re

    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+" + marker, line), line
