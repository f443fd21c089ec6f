"""scripts/paper/samplers.py: its loop against the library's, its targets against chance, its table against the code."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.parts import diffusion
from agents.parts.samplers.steps import Sampler, steps_of
from scripts.paper import samplers

RESULTS = Path(__file__).parents[2] / "results" / "paper"
TARGETS = {(target.name, len(target.std)): target for target in samplers.targets()}


@pytest.mark.parametrize("sampler", [Sampler("ancestral", 3), Sampler("dpm++", 4)])
def test_its_loop_is_that_of_the_agents(sampler: Sampler):
    chain = diffusion.make_schedule("vp", 8)
    table = steps_of(sampler, chain.alpha, chain.abar)
    key, slope = jax.random.key(0), jnp.asarray(np.sqrt(chain.abar[table.level - 1]), jnp.float32)
    # The host's loop takes the noise from the last row on.
    noise = jax.random.normal(key, (1 if table.std is None else sampler.num_steps, 50, 2))
    rows = iter(np.asarray(noise)[[0, *range(len(noise) - 1, 0, -1)]])
    mine = samplers.go_down(
        table, lambda abar, x: np.float32(np.sqrt(abar)) * np.tanh(x), lambda: next(rows).copy()
    )
    predict = lambda index, x: slope[index] * jnp.tanh(x)  # noqa: E731
    theirs = diffusion.sample(chain, predict, key, (50, 2), sampler=sampler)
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_noise_of_a_mixture_is_the_slope_of_its_noised_density():
    target, abar, step = TARGETS["mixture", 2], 0.4, 1e-4
    point = np.array([[0.2, -0.3]])

    def log_density(x: np.ndarray) -> float:
        variance = abar * np.square(target.std) + 1 - abar
        away = x - np.sqrt(abar) * target.center
        parts = np.exp(-0.5 * (np.square(away) / variance).sum(axis=1)) / np.sqrt(np.prod(variance))
        return float(np.log(target.weight @ parts))

    slopes = [(log_density(point + one) - log_density(point - one)) / (2 * step) for one in step * np.eye(2)]
    np.testing.assert_allclose(
        target.noise(abar, point.astype(np.float32))[0], -np.sqrt(1 - abar) * np.array(slopes), rtol=1e-3
    )


@pytest.mark.parametrize("name", ["gaussian", "mixture"])
def test_the_target_itself_is_near_and_a_shift_is_measured(name: str):
    target = TARGETS[name, 2]
    ruler, samples = samplers.Ruler(target, 4000), target.draw(4000, np.random.default_rng(0))
    itself = ruler.measure(samples, ruler.sorted(samples))
    assert (
        itself["w1"] < 0.012
        and itself["w1_to_chain"] == 0.0
        and itself["std_ratio"] == pytest.approx(1, abs=0.03)
    )
    assert itself["upper_mass"] == pytest.approx(itself["upper_mass_exact"], abs=0.02)
    shift = np.array([0.5, 0.0])
    moved = ruler.measure(samples + shift, ruler.sorted(samples))
    expected = np.abs(ruler.directions @ shift).mean()
    assert moved["w1_to_chain"] == pytest.approx(expected, rel=1e-6)
    assert moved["w1"] == pytest.approx(expected, abs=0.012)
    assert moved["mean_error"] == pytest.approx(0.5, abs=0.02)


def test_the_committed_table_is_what_the_script_makes():
    with (RESULTS / "samplers.csv").open() as file:
        table = list(csv.DictReader(file))
    assert {(row["target"], int(row["dimensions"])) for row in table} == set(TARGETS)
    rows = [
        row for row in table if (row["target"], row["dimensions"], row["levels"]) == ("mixture", "1", "10")
    ]
    made: list[dict[str, Any]] = samplers.measure(TARGETS["mixture", 1], samplers.Options(), (10,))
    for row, one in zip(rows, made, strict=True):
        for name, text in row.items():
            if isinstance(one[name], float):
                assert float(text) == pytest.approx(one[name], rel=2e-3, abs=2e-4), name
            else:
                assert text == str(one[name]), name


def test_few_steps_of_dpm_solver_down_many_levels_beat_a_short_chain():
    """What docs/samplers.md says, of every target in the committed table."""
    with (RESULTS / "samplers.csv").open() as file:
        table = list(csv.DictReader(file))

    def distance(target: str, size: int, levels: int, sampler: str, steps: int) -> float:
        wanted = {"target": target, "dimensions": size, "levels": levels, "sampler": sampler, "steps": steps}
        (row,) = (row for row in table if all(row[name] == str(value) for name, value in wanted.items()))
        return float(row["w1"])

    for target, size in TARGETS:
        here = target, size
        assert distance(*here, 100, "dpm++", 5) < 0.5 * distance(*here, 5, "ancestral", 5)
        assert distance(*here, 100, "dpm++", 10) < distance(*here, 100, "ancestral", 10)
        assert distance(*here, 100, "dpm++", 2) > 0.8 * distance(*here, 100, "ancestral", 2)
