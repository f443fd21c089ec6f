"""Whether a comparison is like for like: settings of every agent, what is not a default, where it was run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import agents
from qsm.base.text import shorten
from qsm.options.run import MjxRunConfig, RunConfig
from qsm.record.config_file import flatten
from qsm.report.results import Comparison, Result

SHARED = (
    "run_config.steps",
    "run_config.random_steps",
    "run_config.replay_ratio",
    "run_config.replay_capacity",
    "run_config.num_envs",
    "run_config.action_repeat",
    "run_config.eval_interval",
    "run_config.eval_episodes",
    "agent_config.hidden_sizes",
    "agent_config.batch_size",
)
"""Settings that a comparison is unfair without: shown for every agent, and marked where they differ."""
APART = ("run_config.seed", "run_config.wandb", "run_config.wandb_project")
"""Settings in which runs of a comparison are to differ, or that change nothing but what is recorded."""


class Setting(NamedTuple):
    """One row of the protocol's table."""

    name: str
    values: list[str]  # of each agent; of several, all of them
    differs: bool  # between agents, or within one


def shared_settings(comparison: Comparison) -> list[Setting]:
    """The settings `SHARED` of every agent."""
    found = []
    runs = [_runs(comparison, agent) for agent in comparison.agents]
    for name in SHARED:
        values = [_values(own, name) for own in runs]
        differs = len({value for own in values for value in own}) > 1
        found.append(Setting(_plain(name), [" / ".join(own) for own in values], differs))
    return found


def unlike(comparison: Comparison) -> list[str]:
    """A line on each of the settings `SHARED` that differs, lengths apart: `random steps: 5000 (qsm), 10,000 (sac)`."""
    lines = []
    for setting in shared_settings(comparison):
        agents_of: dict[str, list[str]] = {}
        for agent, value in zip(comparison.agents, setting.values, strict=True):
            agents_of.setdefault(value, []).append(agent)
        if setting.differs and setting.name != "steps":
            said = ", ".join(f"{value} ({', '.join(names)})" for value, names in agents_of.items())
            lines.append(f"{setting.name}: {said}")
    return lines


def not_default(comparison: Comparison, agent: str) -> list[str]:
    """`option = value` for every option of `agent` that is not its default in some run."""
    found = []
    runs = _runs(comparison, agent)
    defaults = _defaults(runs[0][0])
    for name in _names(runs):
        values = [value for value in _values(runs, name) if value not in (defaults.get(name), ABSENT)]
        if values:
            found.append(f"{_plain(name)} = {' / '.join(values)}")
    return found


def varying(comparison: Comparison, agent: str) -> list[str]:
    """The options of `agent` that differ between its runs, each value with the runs that have it."""
    found = []
    runs = _runs(comparison, agent)
    for name in _names(runs):
        places: dict[str, list[str]] = {}
        for one, settings in runs:
            places.setdefault(settings.get(name, ABSENT), []).append(f"{one.task} seed {one.seed}")
        if len(places) > 1:
            said = [f"{value} ({shorten(cells, 3)})" for value, cells in places.items()]
            found.append(f"{_plain(name)} is {' and '.join(said)}")
    return found


ABSENT = "not recorded"
"""In place of an option that a run of another version does not have."""
Runs = Sequence[tuple[Result, dict[str, str]]]
"""Runs with all of their settings as they are shown."""


def _runs(comparison: Comparison, agent: str) -> Runs:
    return [(one, _settings(one)) for one in comparison.results if one.agent == agent]


def _settings(one: Result) -> dict[str, str]:
    parts = {key: one.config[key] for key in ("run_config", "agent_config")}
    return {name: _show(value) for name, value in flatten(parts).items()}


def _names(runs: Runs) -> list[str]:
    names = dict.fromkeys(name for _, settings in runs for name in settings)
    return [name for name in names if name not in APART]


def _values(runs: Runs, name: str) -> list[str]:
    return list(dict.fromkeys(settings.get(name, ABSENT) for _, settings in runs))


def _defaults(one: Result) -> dict[str, str]:
    """Every option of the run's agent and backend as it is unless given."""
    options = {"run_config": MjxRunConfig if one.backend == "mjx" else RunConfig}
    if (
        one.config["agent"] in agents.AGENTS
    ):  # else it is of another version, and none of its options is known
        options["agent_config"] = agents.config_class(one.config["agent"])
    values = {key: dataclasses.asdict(kind()) for key, kind in options.items()}
    return {name: _show(value) for name, value in flatten(values).items()}


def _plain(name: str) -> str:
    return name.partition(".")[2].replace("_", " ")


def _show(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000:
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def provenance(comparison: Comparison) -> dict[tuple[str, str], int]:
    """Commits, hardware and versions as (kind, value), by kind, each with the number of starts."""
    counts: dict[tuple[str, str], int] = {}
    for one in comparison.results:
        for start in one.starts:
            packages = start.get("packages")
            versions = packages if isinstance(packages, Mapping) else {}
            hardware = [one._replace(starts=[start]).hardware, start.get("platform")]
            facts = {
                "commit": start.get("commit") or "not from a checkout",
                "hardware": ", ".join(str(part) for part in hardware if part),
                "python": start.get("python"),
                "packages": ", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
            }
            for kind, value in facts.items():
                counts[kind, str(value)] = counts.get((kind, str(value)), 0) + 1
    return dict(sorted(counts.items(), key=lambda item: item[0][0]))
