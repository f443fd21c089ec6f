"""Growth over each size: one size changes at a time, and what a curve says of arithmetic."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qsm.speed.bench import Bench, Timed
from qsm.speed.cases import Sizes
from qsm.speed.options import parse
from qsm.speed.parts import growth
from qsm.speed.parts.growth import AXES, DEFAULTS, vary


@pytest.mark.parametrize("axis", AXES)
def test_one_size_changes_and_the_defaults_lie_on_every_curve(axis: str):
    base = parse([]).sizes()
    assert DEFAULTS[axis] in AXES[axis]
    value = AXES[axis][0]
    sizes, num_seeds = vary(base, axis, value)
    changed = {name for name in Sizes._fields if getattr(sizes, name) != getattr(base, name)}
    expected = {
        "width": "hidden_sizes", "batch": "batch_size", "denoising_steps": "options", "replay": "capacity"
    }  # fmt: skip
    assert changed == ({expected[axis]} if axis in expected else set())
    assert num_seeds == (value if axis == "seeds" else 1)


def test_a_denoising_step_reaches_the_agent():
    sizes, _ = vary(parse(["--agent", "qsm"]).sizes(), "denoising_steps", 3)
    assert sizes.make_agent(2, 1).config.denoising_steps == 3


class Linear:
    """Arithmetic in proportion to the batch, time to its square."""

    def __init__(self, batch: int) -> None:
        self.name, self.batch, self.updates_per_unit = f"batch {batch}", batch, 1.0

    def gflop_per_update(self) -> float:
        return 1e-3 * self.batch


def test_time_per_arithmetic_is_beside_that_of_the_defaults(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(growth, "AXES", {"batch": (64, 256, 512)})
    found: dict[int, dict[str, Any]] = {}

    class Fake(Bench):
        def start(self, what: dict[str, Any], make: Any, add: bool = True) -> Timed:
            case: Any = Linear(what["value"])
            return Timed(case, SimpleNamespace(), what, {}, [case.batch**2 * 1e-9] * 3)  # type: ignore[arg-type]

        def compare(self, started: Any) -> list[Timed]:
            return list(started)

        def record_rates(self, timed: Timed, precision: str = "float32", **more: Any) -> None:
            found[timed.what["value"]] = more

    other = parse(["--agent", "td3", "--axes", "width"])
    growth.measure(Fake(other, *(None,) * 3))  # type: ignore[arg-type]
    assert not found  # not asked for
    growth.measure(Fake(parse(["--agent", "td3"]), *(None,) * 3))  # type: ignore[arg-type]
    assert {value: row["time_to_that_of_defaults"] for value, row in found.items()} == pytest.approx(
        {64: 1 / 16, 256: 1.0, 512: 4.0}
    )
    assert {value: row["time_per_gflop"] for value, row in found.items()} == pytest.approx(
        {64: 0.25, 256: 1.0, 512: 2.0}
    )
