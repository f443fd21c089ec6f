"""The command `qsm actions`: what policies draw at states, in a figure and in numbers."""

from __future__ import annotations

import csv
import functools
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsm.base.errors import UserError, first_line
from qsm.base.files import replace_file
from qsm.command.start import start_jax
from qsm.options.commands import ActionsOptions
from qsm.options.parser import Parser, Positional
from qsm.record.find import load_run

if TYPE_CHECKING:
    from qsm.checkpoints.selection import Which
    from qsm.policies.actors import Actor
    from qsm.policies.states import State
    from qsm.report.action_figures import Drawn
    from qsm.report.figures import Rows

COLUMNS = ("component", "modes", "at -1", "at 1", "mean", "std", "entropy")


def actions(arguments: Sequence[str]) -> int:
    """`qsm actions RUN... [options]`."""
    parser = Parser(
        "qsm actions",
        "Draw the density of a policy's actions at chosen states, with its critic beside it; count its modes, and what "
        "lies at the bounds.",
        groups={"actions": ActionsOptions},
        positionals=[
            Positional("run", "Folders of runs on one task, or files of qsm export.", tuple[Path, ...])
        ],
    )
    given = parser.parse(arguments)
    paths, options = given["run"], given["actions"]
    for path in paths:
        if path.suffix != ".npz":
            load_run(path)  # before what takes long
    table = _check_output(options.out)
    start_jax()
    from qsm.policies.actors import open_actors
    from qsm.policies.states import check_state, find_states
    from qsm.report.action_figures import action_figure, choose

    check_state(options.state)
    actors = open_actors(paths, _choices(options), options.acting)
    states = find_states(options.state, options.states, options.seed, actors[0])
    drawn = [_draw(actor, states, options) for actor in actors]
    figure, rows = action_figure(drawn, choose(drawn, options.components, actors[0].task.name))
    image = io.BytesIO()
    figure.savefig(image, format=options.out.suffix[1:].lower(), dpi=150)
    _write(options.out, image.getvalue())
    _write(table, _table(rows))
    for line in _lines(rows):
        print(line)
    print(f"\n{options.out} (the numbers: {table})")
    return 0


def _choices(options: ActionsOptions) -> list[Which]:
    from qsm.checkpoints.selection import Which

    if options.steps is not None:
        return [Which(step=step) for step in options.steps]
    return [Which(options.best, options.step)]


def _draw(actor: Actor, states: Sequence[State], options: ActionsOptions) -> list[Drawn]:
    """What it draws at each of `states`: by the same keys as any other policy."""
    import jax

    from qsm.report.action_figures import Drawn

    found = []
    for place, state in enumerate(states):
        key = jax.random.fold_in(jax.random.key(options.seed), place)
        samples = actor.sample(state.observation, options.samples, key)
        value = None if actor.no_value else functools.partial(actor.value, state.observation)
        source = actor.source
        drawn = Drawn(source.agent, source.label, source.step, state.name, samples, value, actor.value_unit)
        found.append(drawn._replace(no_value=actor.no_value))
    return found


def _table(rows: Rows) -> bytes:
    """As CSV, NaN as nothing."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = {name: f"{cell:.6g}" if isinstance(cell, float) else cell for name, cell in row.items()}
        writer.writerow({name: "" if cell == "nan" else cell for name, cell in cells.items()})
    return text.getvalue().encode()


def _lines(rows: Rows) -> list[str]:
    """A table for each policy and state."""
    lines: list[str] = []
    for row in rows:
        if row["component"] == 0:
            lines += ["", _head(row), "  ".join(f"{name:>9}" for name in COLUMNS)]
        cells = [row["component"], row["modes"], f"{row['at_low']:.1%}", f"{row['at_high']:.1%}"]
        cells += [f"{row[name]:.3f}" for name in ("mean", "std", "entropy")]
        lines.append("  ".join(f"{cell:>9}" for cell in cells))
    return lines[1:]


def _head(row: Mapping[str, Any]) -> str:
    together = f"{row['joint_modes']} mode{'' if row['joint_modes'] == 1 else 's'}"
    if row["joint_share"] < 1:
        together += f" with {row['joint_share']:.0%} of the samples"
    value = "; no critic there" if math.isnan(row["value_mean"]) else f"; mean Q {row['value_mean']:.4g}"
    return f"{row['policy']}; {row['state']}: {together}{value}"


def _check_output(out: Path) -> Path:
    """Where the numbers go; raises UserError where either file would replace something else."""
    table = out.with_suffix(".csv")
    for file in (out, table):
        if os.path.exists(file) and not os.path.isfile(file):
            raise UserError(f"--out is '{out}', and {file} is no file; name another")
    if os.path.isfile(table) and not _is_ours(table):
        raise UserError(
            f"--out is '{out}', and its numbers would replace {table}, which is another table; name another file"
        )
    return table


def _is_ours(table: Path) -> bool:
    try:
        with table.open(errors="replace") as file:
            return file.readline().startswith("policy,state,step,component,")
    except OSError:
        return False


def _write(file: Path, data: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, data)
    except OSError as error:
        raise UserError(
            f"Cannot write {file}: {first_line(error)}. Name a file that can be written with --out"
        ) from error
