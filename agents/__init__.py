"""Learning algorithms in pure JAX. Importing this package, or an agent's file, imports no JAX."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any, NamedTuple

from agents.api import Agent


class AgentEntry(NamedTuple):
    """Where an agent lives and what it is, in one line for `qsm agents`."""

    module: str
    config: str
    agent: str
    summary: str


AGENTS: dict[str, AgentEntry] = {
    "qsm": AgentEntry("agents.qsm", "QSMConfig", "QSM", "Q-score matching as published (Psenka et al. 2024)"),
    "qsm-clean": AgentEntry(
        "agents.qsm",
        "CleanQSMConfig",
        "CleanQSM",
        "Q-score matching on the exact score target, gradients at clean actions",
    ),
    "sac": AgentEntry("agents.sac", "SACConfig", "SAC", "Soft actor-critic (Haarnoja et al. 2018)"),
    "td3": AgentEntry("agents.td3", "TD3Config", "TD3", "Twin delayed DDPG (Fujimoto et al. 2018)"),
}


def config_class(name: str) -> type:
    """The frozen dataclass of `name`'s options.

    Raises:
      ValueError: no agent has that name.
    """
    if name not in AGENTS:
        raise ValueError(f"unknown agent {name!r}; agents are: {', '.join(AGENTS)}")
    entry = AGENTS[name]
    return getattr(importlib.import_module(entry.module), entry.config)


def config_from_dict(name: str, values: dict[str, Any]) -> Any:
    """The options of agent `name` from a saved dictionary; lists become tuples.

    Raises:
      ValueError: an unknown agent, or a value outside what its field allows.
      TypeError: an entry that names no field.
    """
    return config_class(name)(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def override(config: Any, **values: Any) -> Any:
    """`config` with fields replaced.

    Raises:
      ValueError: a field that this agent does not have, or a value outside what it allows.
    """
    allowed = [field.name for field in dataclasses.fields(config)]
    for name in values:
        if name not in allowed:
            raise ValueError(f"{type(config).__name__} has no option {name!r}")
    return dataclasses.replace(config, **values)


def build(name: str, config: Any, observation_size: int, action_size: int) -> Agent:
    """Agent `name` with options `config`, for flat observations `[O]` and actions `[A]`."""
    entry = AGENTS[name]
    return getattr(importlib.import_module(entry.module), entry.agent)(config, observation_size, action_size)


def make_agent(name: str, observation_size: int, action_size: int, **overrides: Any) -> Agent:
    """`build` with the default options of agent `name`, some of them overridden by name.

    Raises:
      ValueError: an unknown agent, or a value outside what its field allows.
      TypeError: an override that names no field.
    """
    return build(name, config_class(name)(**overrides), observation_size, action_size)
