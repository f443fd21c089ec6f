"""Learning algorithms in pure JAX. Importing this package, or an agent's file, imports no JAX."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any, Literal, NamedTuple

from agents.api import Agent
from agents.conditions import without_effect
from agents.presets import PLAIN, PRESETS, PresetName, label_of, options_of

__all__ = [
    "AGENTS",
    "PLAIN",
    "PRESETS",
    "Agent",
    "Entry",
    "Family",
    "PresetName",
    "Style",
    "label_of",
    "without_effect",
]

Family = Literal["diffusion", "energy", "gaussian", "deterministic"]
"""What the policy is; in tables and figures agents stand by family, in this order."""


class Style(NamedTuple):
    """How an agent looks in figures: told apart in print and by colour-blind readers."""

    color: str
    dashes: Any  # as matplotlib takes them
    marker: str


class Entry(NamedTuple):
    """Where an agent lives, what it is in one line for `qsm agents`, and how it is shown."""

    module: str
    config: str
    agent: str
    summary: str
    family: Family
    style: Style
    published: tuple[str, ...] = ()  # names of the same algorithm in files of published curves
    is_compared: bool = True  # in the grid of `qsm bench` where no agents are named


# The order is that of tables and legends; colours are of Okabe and Ito's palette.
AGENTS: dict[str, Entry] = {
    "qsm": Entry(
        "agents.qsm",
        "QSMConfig",
        "QSM",
        "Q-score matching as published (Psenka et al. 2024)",
        "diffusion",
        Style("#0072B2", "-", "o"),
    ),
    "qsm-clean": Entry(
        "agents.qsm_clean",
        "CleanQSMConfig",
        "CleanQSM",
        "Q-score matching on the exact score target, gradients at clean actions",
        "diffusion",
        Style("#D55E00", "--", "s"),
    ),
    "sac": Entry(
        "agents.sac",
        "SACConfig",
        "SAC",
        "Soft actor-critic (Haarnoja et al. 2018)",
        "gaussian",
        Style("#009E73", "-.", "^"),
        ("SAC", "SAC(jaxrl,RR1)"),
    ),
    "td3": Entry(
        "agents.td3",
        "TD3Config",
        "TD3",
        "Twin delayed DDPG (Fujimoto et al. 2018)",
        "deterministic",
        Style("#CC79A7", ":", "D"),
        ("TD3(SpinningUp)",),
    ),
    "diffusion-ql": Entry(
        "agents.diffusion_ql",
        "DiffusionQLConfig",
        "DiffusionQL",
        "Gradient of Q through the whole sampling chain (Wang et al. 2022), trained online",
        "diffusion",
        Style("#E69F00", (0, (5, 2, 1, 2)), "*"),
        is_compared=False,
    ),
    "diffusion-pg": Entry(
        "agents.diffusion_pg",
        "DiffusionPGConfig",
        "DiffusionPG",
        "Policy gradient of a diffusion policy (equation 9 of Psenka et al. 2024)",
        "diffusion",
        Style("#56B4E9", (0, (1, 1)), "h"),
        is_compared=False,
    ),
    "langevin": Entry(
        "agents.langevin",
        "LangevinConfig",
        "Langevin",
        "Langevin dynamics on Q in place of a policy network",
        "energy",
        Style("#000000", (0, (6, 2)), "d"),
        is_compared=False,
    ),
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


def preset_options(name: str, preset: PresetName) -> dict[str, Any]:
    """What `preset` sets of the options of agent `name`, itself among them; it may name others, which are left out.

    Raises:
      ValueError: an unknown agent or preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset is {preset!r}; it must be one of {', '.join(PRESETS)}")
    known = {field.name for field in dataclasses.fields(config_class(name))}
    all_options = options_of(preset, name, AGENTS[name].family)
    options = {option: value for option, value in all_options.items() if option in known}
    return {"preset": preset, **options}


def config_of(name: str, preset: PresetName = PLAIN, **given: Any) -> Any:
    """The options of agent `name`: those of `preset`, and those `given` in their place.

    Raises:
      ValueError: an unknown agent or preset, or a value outside what its field allows.
      TypeError: an entry that names no field.
    """
    return config_class(name)(**preset_options(name, preset) | given)


def override(config: Any, **values: Any) -> Any:
    """`config` with fields replaced.

    Raises:
      ValueError: a field that this agent does not have, or a value outside what it allows.
    """
    allowed = [field.name for field in dataclasses.fields(config)]
    for name in values:
        if name not in allowed:
            raise ValueError(f"--{name.replace('_', '-')} is no option of this agent; leave it out")
    return dataclasses.replace(config, **values)


def build(name: str, config: Any, observation_size: int, action_size: int) -> Agent:
    """Agent `name` with options `config`, for flat observations `[O]` and actions `[A]`."""
    entry = AGENTS[name]
    kind = getattr(importlib.import_module(entry.module), entry.agent)
    if config.reset_interval:
        from agents.parts.base import resetting

        kind = resetting(kind)
    return kind(config, observation_size, action_size)


def make_agent(name: str, observation_size: int, action_size: int, **overrides: Any) -> Agent:
    """`build` with the default options of agent `name`, or those of a `preset`, some of them overridden by name.

    Raises:
      ValueError: an unknown agent, or a value outside what its field allows.
      TypeError: an override that names no field.
    """
    return build(name, config_of(name, **overrides), observation_size, action_size)
