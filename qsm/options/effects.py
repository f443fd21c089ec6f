"""Options that were given and that nothing will read: a line for each reason, before anything is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, get_type_hints

import agents
from qsm.options.arguments import negated
from qsm.options.kinds import flag_of, kind_of


def without_effect(config: Any, usual: Any, given: Collection[str]) -> list[str]:
    """Lines on options that change nothing: what each would take, and what to do.

    Args:
      config: the options of an agent.
      usual: what they would be had nothing been said but a preset.
      given: fields that were given; none of a preset is.
    """
    changed = {name for name in given if getattr(config, name) != getattr(usual, name)}
    names_of: dict[str, list[str]] = {}
    causes = agents.without_effect(config, changed)
    for name, condition in causes.items():
        names_of.setdefault(condition.words, []).append(name)
    lines = []
    for names in names_of.values():
        condition = causes[names[0]]
        flags = {option: flag_of(option) for option in condition.options}
        options = " and ".join(_shown(config, name) for name in names)
        has, them = ("has", "it") if len(names) == 1 else ("have", "them")
        reason, advice = condition.words.format_map(flags), f"leave {them} out"
        if flags:
            reason, advice = f"read only where {reason}", f"change that, or {advice}"
        lines.append(f"{options} {has} no effect: {reason}; {advice}")
    return lines


def of_agent(agent: str, config: Any, given: Collection[str]) -> list[str]:
    """`without_effect` for options of `agent` that are not those of its preset."""
    names = {field.name for field in dataclasses.fields(config)} & {*given}
    return without_effect(config, agents.config_of(agent, config.preset), names)


def _shown(config: Any, name: str) -> str:
    """Option `name` of `config` as words of the command line."""
    value, kind = getattr(config, name), kind_of(get_type_hints(type(config))[name])
    if kind is None:
        return flag_of(name) if value else negated(flag_of(name))
    return f"{flag_of(name)} {kind.show(value)}"
