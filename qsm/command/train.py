"""`qsm train`."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import agents
from qsm.base.errors import UserError, nearest
from qsm.command import start
from qsm.command.output import complain
from qsm.command.start import check_task
from qsm.devices import environment_variables
from qsm.options import effects
from qsm.options.arguments import negated, show_options
from qsm.options.commands import OutputOptions
from qsm.options.kinds import flag_of
from qsm.options.parser import Parser, Positional
from qsm.options.run import Backend, LaunchOptions, run_config_class
from qsm.record.status import EXIT_STATUS

if TYPE_CHECKING:
    from qsm.training.group import Member

USAGE = "qsm train AGENT TASK [options]"


def train(arguments: Sequence[str]) -> int:
    """`qsm train AGENT TASK [options]`."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: {USAGE}\n\nTrain AGENT on TASK. Running the same command again resumes.\n")
        print(agent_table())
        print("\nOptions of an agent and of its run: qsm train AGENT --help\nTasks: qsm tasks")
        print("\nexample: qsm train qsm cheetah-run --seed 3 --steps 1e6 --score-scale 120")
        return 0
    if not arguments or arguments[0].startswith("-"):
        raise UserError(f"AGENT is missing. Usage: {USAGE}. Agents: {', '.join(agents.AGENTS)}")
    agent = arguments[0]
    if agent not in agents.AGENTS:
        raise UserError(
            f"Unknown agent '{agent}'.{nearest(agent, agents.AGENTS)} List agents with: qsm agents"
        )
    given = parser_of(agent, _backend_of(arguments[1:])).parse(arguments[1:])
    task, launch, output = given["task"], given["launch"], given["output"]
    if both := [option for option in launch.sweep_values if option in given["named"]]:
        raise UserError(
            f"{flag_of(both[0])} is given, and --sweep has values of it too; leave one of them out"
        )
    check_task(task, launch.backend)
    from qsm.training.group import members

    runs = members(
        agent, task, given["agent"], given["run"], launch, output.name, output.runs, output.run_dir
    )
    _warn(agent, runs, launch, given["named"])
    if output.dry_run:
        memory = predicted_memory(agent, task, runs, launch)  # before anything is printed: it may refuse
        print(f"qsm train {agent} {task}")
        _print_options({title: given[title] for title in ("agent", "run", "launch")})
        print(f"\nrun folder{'s' if len(runs) > 1 else ''}", *(run.path for run in runs), sep="\n  ")
        print("\nmemory, predicted", *memory, sep="\n  ")
        return 0
    environment_variables.load(os.environ, launch.backend)
    from qsm.training.train import train as run_training

    words = ["qsm", "train", *arguments]
    return EXIT_STATUS[run_training(agent, task, runs, launch, words, keep_programs=start.is_own_process)]


def predicted_memory(agent: str, task: str, runs: Sequence[Member], launch: LaunchOptions) -> list[str]:
    """Two lines on the arrays of a training of `runs`; loads JAX and the simulator, and starts no device.

    Raises:
      UserError: an option that the task or the agent cannot take.
    """
    if launch.backend == "mjx":
        return ["said when the training starts, before anything is made: MJX takes many seconds to load"]
    environment_variables.load(os.environ, launch.backend)
    from qsm.training.build import predict_arrays

    return [
        f"arrays: {predict_arrays(agent, task, runs, launch)}",
        "not counted: the interpreter, XLA's compiler and what its programs need while they run; with them a process "
        "at the defaults takes 0.8 to 1.4 GiB at most on a CPU",
    ]


OF_BENCH = {
    "--out": "qsm bench; here the folder of all runs is --runs",
    "--seeds": "qsm bench; here it is --num-seeds",
}
"""Flags that who has used the other command will try here."""


def parser_of(agent: str, backend: Backend) -> Parser:
    """The parser of what stands behind `qsm train AGENT`, with the defaults of `backend`."""
    return Parser(
        f"qsm train {agent}",
        f"Train {agent} on TASK: {agents.AGENTS[agent].summary}. The same command again resumes.",
        groups={
            "agent": agents.config_class(agent),
            "run": run_config_class(backend),
            "launch": LaunchOptions,
            "output": OutputOptions,
        },
        positionals=[Positional("task", "Task, such as cheetah-run.", hint=". List tasks with: qsm tasks")],
        subject=f"agent {agent!r}",
        foreign=_options_of_others(agent) | OF_BENCH,
        implied=functools.partial(preset_of, agent),
    )


def preset_of(agent: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the preset that is given."""
    return agents.preset_options(agent, given.get("preset", agents.PLAIN))


def _warn(agent: str, runs: Sequence[Member], launch: LaunchOptions, named: Collection[str]) -> None:
    """Says on standard error which of the options that are `named`, or swept, change nothing."""
    given = {*named, *launch.sweep_values}
    lines = [line for run in runs for line in effects.of_agent(agent, run.agent_config, given)]
    for line in dict.fromkeys(lines):
        complain(f"warning: {line}")


def _print_options(groups: dict[str, Any]) -> None:
    for title, options in groups.items():
        print(f"\n{title} options", *show_options(options), sep="\n  ")


def _backend_of(arguments: Sequence[str]) -> Backend:
    """The backend that `arguments` name, whose defaults the parser then takes; it refuses a wrong one."""
    for word, following in itertools.pairwise([*arguments, ""]):
        flag, _, value = word.partition("=")
        if flag.lower() == "--backend" and (value or following) == "mjx":
            return "mjx"
    return "dm_control"


def _options_of_others(agent: str) -> dict[str, str]:
    """Flags of the agents, and one agent that has each: for a flag that `agent` lacks."""
    return {
        flag_of(field.name): f"agent {other!r}"
        for other in agents.AGENTS
        if other != agent
        for field in dataclasses.fields(agents.config_class(other))
    }


def agent_table() -> str:
    """A line for each agent."""
    width = max(map(len, agents.AGENTS))
    return "\n".join(f"  {name:{width}}  {entry.summary}" for name, entry in agents.AGENTS.items())


def preset_table() -> str:
    """Each preset with what it sets, in the words of the command line: for all, then for a family or an agent."""
    lines = ["\nqsm train AGENT TASK --preset NAME; what stands on the line wins over the preset."]
    for name, preset in agents.PRESETS.items():
        lines.append(f"\n{name}: {preset.summary}")
        lines.append("".join(f"  {word}" for word in _as_words(preset.options)))
        for whose, options in preset.of.items():
            lines.append(f"  {whose}:" + "".join(f" {word}" for word in _as_words(options)))
    return "\n".join(line for line in lines if line)


def _as_words(options: Mapping[str, Any]) -> list[str]:
    def word(name: str, value: Any) -> str:
        if isinstance(value, bool):
            return flag_of(name) if value else negated(flag_of(name))
        return f"{flag_of(name)} {','.join(map(str, value)) if isinstance(value, tuple) else value}"

    return [word(name, value) for name, value in options.items()]
