"""How an update's time grows with each size, from the part `growth` of `scripts/speed.py`.

    python scripts/growth_figure.py results/speed/growth_cpu.json --output results/speed/growth.png

One panel an axis, a curve an agent; the dotted line is the time in proportion to arithmetic. Of a curve that several
files have, the last file's is drawn.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter

import agents
from qsm.command.script import read_arguments
from qsm.options.parser import Positional
from qsm.speed.options import AXES
from qsm.speed.parts.growth import DEFAULTS

matplotlib.use("Agg")


@dataclasses.dataclass(frozen=True)
class Options:
    """Draw growth."""

    output: Path = Path("results/speed/growth.png")
    """PNG file to write."""


def key_of(row: dict[str, Any]) -> tuple[str, str]:
    """The curve that a row is of."""
    return row["agent"], row["axis"]


def main() -> None:
    """Draws milliseconds of an update of all seeds over each size, both axes logarithmic."""
    files = Positional("files", "JSON files of scripts/speed.py.", tuple[Path, ...])
    given = read_arguments(Options, __doc__, [files])
    try:
        reports = [json.loads(file.read_text()) for file in given["files"]]
        curves: dict[tuple[str, str], list[dict[str, Any]]] = {}  # of the last file that has one
        for report in reports:
            rows = [
                row for row in report["rows"] if row["part"] == "growth" and row.get("updates_per_second")
            ]
            curves |= {key: [row for row in rows if key_of(row) == key] for key in map(key_of, rows)}
    except (OSError, ValueError, TypeError, KeyError) as error:
        sys.exit(f"not a report of scripts/speed.py: {error}")
    if not curves:
        sys.exit("no growth there; measure it with: python scripts/speed.py --parts growth --output FILE")
    figure, panels = plt.subplots(1, len(AXES), figsize=(3.4 * len(AXES), 3.4), constrained_layout=True)
    for axes, axis in zip(panels, AXES, strict=True):
        shown = {name: curve for (name, of), curve in curves.items() if of == axis}
        highest, lowest = 0.0, math.inf
        for name, curve in shown.items():
            values = [row["value"] for row in curve]
            seeds = values if axis == "seeds" else [1] * len(values)
            taken = [1e3 * n / row["updates_per_second"] for n, row in zip(seeds, curve, strict=True)]
            highest, lowest = max(highest, *taken), min(lowest, *taken)
            style = agents.AGENTS[name].style
            axes.plot(values, taken, color=style.color, marker=style.marker, ls=style.dashes, label=name)
            usual = next((i for i, value in enumerate(values) if value == DEFAULTS[axis]), None)
            if usual is not None and all(row.get("time_per_gflop") for row in curve):
                own = curve[usual]["time_per_gflop"]
                ideal = [time * own / row["time_per_gflop"] for time, row in zip(taken, curve, strict=True)]
                axes.plot(values, ideal, color=style.color, ls=":", lw=1)
        axes.set(title=axis.replace("_", " "), xscale="log", yscale="log")
        axes.set_xticks(AXES[axis], [f"{value:,}" if value < 1e4 else f"{value:.0e}" for value in AXES[axis]])
        axes.xaxis.set_minor_formatter(NullFormatter())
        if (
            shown and highest < 10 * lowest
        ):  # a decade, for ticks that can be read and noise that looks like it
            middle = math.sqrt(highest * lowest)
            axes.set_ylim(middle / 4, middle * 4)
            axes.set_yticks(
                [one for one in (1, 2, 5, 10, 20, 50, 100, 200, 500) if middle / 4 < one < middle * 4]
            )
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.25)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[0].set_ylabel("milliseconds of an update (of all seeds)")
    panels[0].legend(frameon=False)
    figure.savefig(given["options"].output, dpi=130)
    print(f"written to {given['options'].output}")


if __name__ == "__main__":
    main()
