"""Throughput against seeds and against environments, from what `scripts/speed.py` measured.

    python scripts/speed_figure.py results/speed/*.json --output results/speed/throughput.png

Seeds on the left, environments on the right; both axes are logarithmic.
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

from qsm.command.script import read_arguments
from qsm.options.parser import Positional

matplotlib.use("Agg")
# Okabe and Ito's palette, told apart by color-blind readers and in print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")


@dataclasses.dataclass(frozen=True)
class Options:
    """Draw throughput."""

    output: Path = Path("results/speed/throughput.png")
    """PNG file to write."""


def name_of(report: dict[str, Any]) -> str:
    """The machine, for a person."""
    device = report["device"] if report["platform"] != "cpu" else report["processor"] or "CPU"
    return f"{device}, {report['cores']} cores"


def rows_of(report: dict[str, Any], part: str) -> list[dict[str, Any]]:
    """What was measured in `part`; a case that started and came no further has no rates."""
    return [row for row in report["rows"] if row["part"] == part and row.get("updates_per_second")]


def main() -> None:
    """Draws updates over seeds on the left, environment steps over environments on the right."""
    files = Positional("files", "JSON files of scripts/speed.py, one for each machine.", tuple[Path, ...])
    given = read_arguments(Options, __doc__, [files])
    options = given["options"]
    try:
        reports = [json.loads(file.read_text()) for file in given["files"]]
        reports = [report for report in reports if "rows" in report]
    except (OSError, ValueError, TypeError) as error:
        sys.exit(f"not a report of scripts/speed.py: {error}")
    if not reports:
        sys.exit(
            "no report of scripts/speed.py among the files; make one with: python scripts/speed.py --output FILE"
        )
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    for color, report in zip(COLORS, reports, strict=False):
        machine = name_of(report)
        for part, style, what in (("seeds", "-", "updates alone"), ("host", "--", "host loop")):
            if rows := rows_of(report, part):
                rates = [row["updates_per_second"] for row in rows]
                label = f"{machine}: {what} ({rows[0]['agent']})"
                left.plot([row["seeds"] for row in rows], rates, f"o{style}", color=color, label=label)
        alone = [row for row in rows_of(report, "device") if row["seeds"] == 1]
        if alone:
            numbers = [row["num_envs"] for row in alone]
            label = f"{machine}: device loop ({alone[0]['agent']}, replay ratio {alone[0]['replay_ratio']})"
            right.plot(
                numbers, [row["env_steps_per_second"] for row in alone], "o-", color=color, label=label
            )
            idle = [row["env_steps_per_second"] / (row["share_without_updates"] or math.nan) for row in alone]
            right.plot(numbers, idle, "o:", color=color, label=f"{machine}: the same without updates")
    left.set(title="seeds in one program", xlabel="seeds", ylabel="updates per second, all seeds")
    right.set(title="environments of one seed", xlabel="environments", ylabel="environment steps per second")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        # Whole decades: a narrower axis would make a mountain of every few per cent.
        low, high = axes.get_ylim()
        axes.set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.25, which="both")
        axes.legend(frameon=False, fontsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.savefig(options.output, dpi=150)
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
