"""Options as JSON holds them: held to the types of their fields before anything is made of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import agents
from envs.tasks import BACKENDS, check_task
from qsm.base.errors import nearest
from qsm.options.kinds import LARGEST, kind_of
from qsm.options.run import RunConfig, run_config_class


def check_saved(config: Mapping[str, Any]) -> None:
    """Raises ValueError where this version of qsm can neither go on with a run of `config` nor play it."""
    backend = config["backend"]
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; backends are: {', '.join(BACKENDS)}")
    check_task(config["task"], backend)
    agent_options(config["agent"], config["agent_config"])
    check_run_options(config["run_config"])


def with_former_options(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with the options that it lacks: those that came after the version that wrote it.

    They are at the values that mean what that version did: a class names in `former` where that is not its default.
    Options of agents that are unknown here are let be.
    """
    classes: dict[str, type] = {"run_config": run_config_class(config["backend"])}
    if config["agent"] in agents.AGENTS:
        classes["agent_config"] = agents.config_class(config["agent"])
    return config | {place: _former(kind) | config[place] for place, kind in classes.items()}


def _former(config_class: type) -> dict[str, Any]:
    """The options of `config_class`, in their order, as a run had them before it could say so."""
    defaults = json.loads(json.dumps(dataclasses.asdict(config_class())))
    return defaults | getattr(config_class, "former", {})


def agent_options(agent: str, values: Mapping[str, Any]) -> Any:
    """The options of `agent` out of its `agent_config`.

    Raises:
      ValueError: an agent, an option or a value that is none here, by name.
    """
    if agent not in agents.AGENTS:
        raise ValueError(f"unknown agent {agent!r}; agents are: {', '.join(agents.AGENTS)}")
    config_class = agents.config_class(agent)
    check_types(config_class, values, "agent_config")
    names = [field.name for field in dataclasses.fields(config_class)]
    for name in values:
        if name not in names:
            raise ValueError(f"agent_config.{name} is no option of {agent}.{nearest(name, names)}")
    try:
        return agents.config_from_dict(agent, _former(config_class) | dict(values))
    except ValueError as error:
        raise ValueError(f"agent_config.{error}") from error


def check_run_options(values: Mapping[str, Any]) -> None:
    """Raises ValueError for an entry of `run_config` that is not of its option's type; other names are let be."""
    check_types(RunConfig, values, "run_config")


def check_types(config_class: type, values: Mapping[str, Any], where: str) -> None:
    """Raises ValueError, by name, for an entry of `values` that is not of its field's type, or no choice of it."""
    hints = get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        value, hint = values.get(field.name, field.default), hints[field.name]
        if field.name in values and not _is_of(value, hint):
            kind = kind_of(hint)
            allowed = "true or false" if kind is None else kind.allowed
            raise ValueError(f"{where}.{field.name} is {value!r}; it must be {allowed}")


def _is_of(value: Any, hint: Any) -> bool:
    """Whether `value`, as JSON has it, is one of type `hint`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_is_of(value, argument) for argument in arguments)
    if hint is NoneType:
        return value is None
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_is_of(entry, arguments[0]) for entry in value)
    if isinstance(value, bool):  # an int to Python, and a mistake here
        return hint is bool
    if isinstance(value, int | float) and not abs(value) <= LARGEST:  # of NaN, too
        return False
    return isinstance(value, (int, float) if hint is float else hint)
