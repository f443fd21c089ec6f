"""The name of a run: what is trained, on what, and with which seed; where its folder lies follows from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qsm.base.errors import UserError

ROOT = Path("runs")
"""Folder of all runs, unless another is named."""


class RunId(NamedTuple):
    """One run among all: no two runs below one root have the same."""

    backend: str
    task: str
    agent: str
    name: str | None = None  # of a variant of the agent
    seed: int = 0

    @property
    def label(self) -> str:
        """The agent and its variant: AGENT[@NAME]."""
        return f"{self.agent}@{self.name}" if self.name else self.agent

    def path(self, root: str | Path = ROOT) -> Path:
        """The run's folder, `ROOT/BACKEND/TASK/AGENT[@NAME]/seed_SEED`.

        Raises:
          UserError: the name does not serve as part of a folder's name.
        """
        check_name(self.name)
        return Path(root, self.backend, self.task, self.label, f"seed_{self.seed}")


def run_id_at(path: Path, config: Mapping[str, Any]) -> RunId:
    """The run in the folder `path` whose `config.json` holds `config`: the way back from `RunId.path`.

    The name of a variant stands in the folder's path only; a folder chosen with `--run-dir` has none.
    """
    # A link may be called otherwise than the run that it leads to.
    names = [_variant(folder, config["agent"]) for folder in (path.absolute(), path.resolve())]
    seed = config["run_config"].get("seed", 0)
    return RunId(
        config["backend"],
        config["task"],
        config["agent"],
        names[0] or names[1],
        seed if isinstance(seed, int) else 0,
    )


def _variant(folder: Path, agent: str) -> str | None:
    """`NAME` of a `folder` in one called AGENT@NAME."""
    found, _, name = folder.parent.name.partition("@")
    return name or None if found == agent else None


def check_name(name: str | None) -> None:
    """Raises UserError where `name` does not serve as the name of a variant."""
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+=,-]{0,99}", name):
        raise UserError(
            f"--name is {name!r}; it must be 1 to 100 letters, digits or any of . _ + = , - and begin with a "
            "letter or digit."
        )
