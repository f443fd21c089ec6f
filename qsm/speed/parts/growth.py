"""How an update's time grows with each size by itself, the others at their defaults.

A curve without a knee has time in proportion to arithmetic; `time_per_gflop` says where it is not, relative to the
defaults of the same curve: above 1 a size is dearer than its arithmetic.
"""

from __future__ import annotations

import functools
from typing import Any

from qsm.speed import cases
from qsm.speed.bench import Bench, find, ratio
from qsm.speed.cases import Sizes
from qsm.speed.options import AXES

DEFAULTS = {"width": 256, "batch": 256, "denoising_steps": 5, "replay": 100_000, "seeds": 1}
"""Every curve goes through these."""


def vary(sizes: Sizes, axis: str, value: int) -> tuple[Sizes, int]:
    """`sizes` with `value` on `axis`, and the number of seeds."""
    if axis == "width":
        return sizes._replace(hidden_sizes=(value,) * len(sizes.hidden_sizes)), 1
    if axis == "batch":
        return sizes._replace(batch_size=value), 1
    if axis == "denoising_steps":
        return sizes._replace(options={**sizes.options, "denoising_steps": value}), 1
    if axis == "replay":
        return sizes._replace(capacity=value), 1
    return sizes, value


def measure(bench: Bench) -> None:
    """Each curve of `--agent`, its cases in turn; an agent that does not denoise has no curve of denoising steps."""
    base = bench.options.sizes()._replace(
        hidden_sizes=(DEFAULTS["width"],) * 2, batch_size=DEFAULTS["batch"], capacity=DEFAULTS["replay"]
    )
    for axis, values in AXES.items():
        if axis not in bench.options.axes:
            continue
        if axis == "denoising_steps" and not hasattr(base.make_agent(1, 1).config, axis):
            continue
        started = []
        for value in values:
            sizes, num_seeds = vary(base, axis, value)
            what: dict[str, Any] = {"part": "growth", "agent": sizes.agent, "axis": axis, "value": value}
            make = functools.partial(cases.LearnCase, f"{axis} {value}", sizes, num_seeds)
            started.append(bench.start(what, make))
        done = bench.compare(started)
        usual = find(done, f"{axis} {DEFAULTS[axis]}")
        for timed in done:
            # Arithmetic of one seed's update; a unit is an update of each.
            gflop = timed.case.gflop_per_update() * timed.case.updates_per_unit
            relative = ratio(timed, usual)
            per_gflop = None
            if relative and usual is not None and gflop:
                own = usual.case.gflop_per_update() * usual.case.updates_per_unit
                per_gflop = relative * own / gflop
            bench.record_rates(timed, time_to_that_of_defaults=relative, time_per_gflop=per_gflop)
