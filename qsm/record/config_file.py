"""`config.json`: the options of a run, as they are written, read back and compared.

It marks a folder as a run, and is the first file written there.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from qsm.base.errors import UserError
from qsm.base.files import read_json
from qsm.options.saved import with_former_options

FORMAT = 1
"""Version of the folder's layout; a reader refuses a larger number."""

CONFIG_KEYS: dict[str, type] = {
    "format": int,
    "agent": str,
    "task": str,
    "backend": str,
    "agent_config": dict,
    "run_config": dict,
}
CHANGEABLE = ("wandb", "wandb_project")
"""Options of a run that may change when it goes on: none of its numbers depends on them."""


def is_run(path: Path) -> bool:
    """Whether `path` is the folder of a run."""
    return os.path.exists(path / "config.json")


def resolved_config(
    agent: str, task: str, backend: str, agent_config: Any, run_config: Any
) -> dict[str, Any]:
    """The content of `config.json` from the two option dataclasses, as it reads back (tuples as lists)."""
    config = {
        "format": FORMAT,
        "agent": agent,
        "task": task,
        "backend": backend,
        "agent_config": dataclasses.asdict(agent_config),
        "run_config": dataclasses.asdict(run_config),
    }
    return json.loads(json.dumps(config, allow_nan=False))


def normalized(config: dict[str, Any]) -> dict[str, Any]:
    """`config` as it reads back: tuples as lists, and every option there."""
    return with_former_options(json.loads(json.dumps(config, allow_nan=False)))


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options as one level of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """`field is X there and Y here` for each that differs, in their order; of two agents, not their options."""
    is_other = there.get("agent") != here.get("agent")
    old, new = (
        flatten({key: value for key, value in one.items() if not (is_other and key == "agent_config")})
        for one in (there, here)
    )
    absent = object()

    def show(value: Any) -> str:
        return "not set" if value is absent else json.dumps(value)

    pairs = ((name, old.get(name, absent), new.get(name, absent)) for name in dict.fromkeys([*old, *new]))
    return [f"{name} is {show(a)} there and {show(b)} here" for name, a, b in pairs if a != b]


def as_option(difference: str) -> str:
    """A line of `differences` with its field as on a command line: `--log-interval` for `run_config.log_interval`."""
    field, rest = difference.split(" ", 1)
    group, _, option = field.partition(".")
    return f"--{option.replace('_', '-')} {rest}" if group in ("agent_config", "run_config") else difference


def read_config(path: Path) -> dict[str, Any]:
    """`config.json` of the run at `path`, its shape checked.

    Options that a former version did not have are at the values that mean what it did.

    Raises:
      UserError: it is damaged, or was written by a newer version.
    """
    file = path / "config.json"
    config = read_json(file)
    found = config.get("format") if isinstance(config, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise UserError(
            f"{path} was written by a newer qsm (format {found}; this one reads {FORMAT}); update qsm."
        )
    for key, kind in CONFIG_KEYS.items():
        if not isinstance(config, dict) or not isinstance(config.get(key), kind):
            raise UserError(
                f"{file} is damaged ({key!r} is missing or of the wrong type); restore it or start anew."
            )
    return with_former_options(config)


def continued(there: dict[str, Any], here: dict[str, Any], extend_steps: bool = False) -> dict[str, Any]:
    """`there` with what may change in a run that goes on, as `here` has it.

    Args:
      extend_steps: whether its steps may become more, too.
    """
    old, new = there["run_config"], here["run_config"]
    changed = {name: new[name] for name in CHANGEABLE if name in new}
    if extend_steps and _steps(new) > _steps(old):
        changed["steps"] = new["steps"]
    return there | {"run_config": old | changed}


def conflicts(path: Path, here: dict[str, Any], is_finished: bool) -> list[str]:
    """What keeps the run at `path`, if there is one, from being the run of `here`, as `differences` words it.

    Args:
      is_finished: whether it has the steps that are asked for; it may then have been trained for longer.
    """
    try:
        there = read_config(path)
    except UserError:
        return []  # none, or a damaged one, of which its training tells
    here = normalized(here)
    if is_finished:
        here["run_config"]["steps"] = there["run_config"].get("steps")
    return differences(continued(there, here, extend_steps=True), here)


def _steps(run_config: dict[str, Any]) -> float:
    steps = run_config.get("steps")
    return steps if isinstance(steps, int) else float("inf")
