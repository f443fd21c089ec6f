"""The `qsm` command. Commands import what they need when they run, so that help and slips answer at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import agents
from qsm.base.errors import UserError, check_words, first_line, nearest
from qsm.base.version import __version__
from qsm.command import actions, bench, output, show, start, train
from qsm.record.status import EXIT_STATUS, MISTAKE

BROKEN_PIPE = 141  # 128 + SIGPIPE


class Command(NamedTuple):
    """A command of `qsm`, with its usage and a line on what it does."""

    run: Callable[[Sequence[str]], int]
    usage: str
    summary: str


COMMANDS = {
    "train": Command(train.train, "AGENT TASK [options]", "train an agent on a task, or resume"),
    "eval": Command(show.evaluate, "RUN [options]", "evaluate a trained agent, or film it"),
    "export": Command(show.export, "RUN [options]", "write a trained policy to one small file"),
    "actions": Command(
        actions.actions, "RUN... [options]", "draw the actions of policies at states, and their critics"
    ),
    "runs": Command(show.runs, "[FOLDER]", "list the runs: how far, how good, why they stopped"),
    "bench": Command(
        bench.bench, "SUITE|TASK... [options]", "train agents x tasks x seeds; again: what is missing"
    ),
    "report": Command(
        show.report, "FOLDER... [options]", "compare runs: one page with figures, and their CSV"
    ),
    "sync": Command(show.sync, "[FOLDER]", "upload to wandb what was recorded offline"),
    "tasks": Command(show.tasks, "[options]", "list the tasks"),
    "agents": Command(show.list_agents, "[options]", "list the agents, and presets of their options"),
    "dashboard": Command(show.dashboard, "[RUNS] [options]", "show learning curves in the browser"),
}


def run(arguments: Sequence[str]) -> int:
    """Runs the command that `arguments` name; raises UserError for a mistake in them."""
    check_words(arguments)
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        print("usage: qsm COMMAND ...\n\nOnline reinforcement learning of diffusion policies.\n")
        for command, entry in COMMANDS.items():
            print(f"  qsm {command + ' ' + entry.usage:32}  {entry.summary}")
        print(f"\n  {'qsm COMMAND --help':36}  options of a command\n  qsm --version")
        print("\nexample: qsm train qsm cheetah-run --seed 3 --steps 1e6")
        return 0
    if name == "--version":
        print(f"qsm {__version__}")
        return 0
    if name not in COMMANDS:
        if name in agents.AGENTS:
            raise UserError(f"Unknown command '{name}'. Did you mean 'qsm train {' '.join(arguments)}'?")
        what = "option" if name.startswith("-") else "command"
        meant = nearest(name, [*COMMANDS, "--help", "--version"])
        raise UserError(f"Unknown {what} '{name}'.{meant} Commands: {', '.join(COMMANDS)}")
    return COMMANDS[name].run(arguments[1:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `qsm` and returns its exit status: 2 for a mistake, told in one line. Bugs keep their traceback.

    Args:
      arguments: None for those of this process, which then runs nothing else.
    """
    output.prepare()
    if arguments is None:
        start.is_own_process = True
        arguments = sys.argv[1:]
    try:
        try:
            status = run(arguments)
        except SystemExit:  # after --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # a closed pipe or a full disk shows here and not at interpreter exit
        return status
    except UserError as error:
        output.complain(f"error: {error}")
        return MISTAKE
    except KeyboardInterrupt:
        output.complain("interrupted")
        return EXIT_STATUS["interrupted"]
    except BrokenPipeError:
        output.discard()  # as `qsm tasks | head`: nobody reads on
        return BROKEN_PIPE
    except OSError as error:
        if not output.is_lost():
            raise
        output.discard()
        output.complain(f"error: standard output cannot be written: {first_line(error)}")
        return 1
    except Exception as error:
        envs = sys.modules.get("envs.api")  # not imported for this: it brings NumPy
        if envs is None or not isinstance(error, envs.SimulationError):
            raise
        output.complain(f"error: {error}")
        return 1
