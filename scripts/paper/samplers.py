"""How far acting with fewer steps is from what it should draw, on targets whose scores are known.

    python scripts/paper/samplers.py

A Gaussian and a mixture of two Gaussians in 1, 2 and 6 dimensions; the noise at every level of the chain is predicted
exactly, so that all of the error is the sampler's. For each number of levels T, sampler and number of steps N:
distances to the target and to the whole ancestral chain of T levels, and errors of mean, spread and mode mass. The
milliseconds of an action of the real network go to a table of their own, for they are of this machine.
docs/samplers.md reads the result.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import agents
from agents.parts.diffusion import Schedule, make_schedule
from agents.parts.samplers.steps import Sampler, Steps, steps_of
from qsm.command.script import read_arguments, write_rows
from qsm.report.styles import RC
from qsm.speed.limits import SPEC, action_milliseconds

matplotlib.use("Agg")

LEVELS = (5, 10, 20, 50, 100)
STEPS = (1, 2, 3, 5, 10, 20, 50, 100)
SAMPLERS = {
    "ancestral": Sampler("ancestral"),
    "ddim, eta 1": Sampler("ddim", eta=1.0),
    "ddim, eta 0": Sampler("ddim"),
    "dpm++": Sampler("dpm++"),
}
LOOKS = {
    "ancestral": ("#0072B2", "-", "o"),
    "ddim, eta 1": ("#56B4E9", (0, (4, 2)), "s"),
    "ddim, eta 0": ("#E69F00", (0, (1, 1)), "^"),
    "dpm++": ("#D55E00", "-.", "D"),
}
"""Colors of Okabe and Ito, dashes and markers."""
TARGET = "the target itself"
DIRECTIONS = 16


@dataclasses.dataclass(frozen=True)
class Options:
    """Samplers on analytic targets."""

    schedule: str = "vp"
    """Noise schedule of the chain."""
    samples: int = 10_000
    """Draws of each sampler."""
    seed: int = 0
    """Seed of the draws."""
    output: Path = Path("results/paper")
    """Folder for the tables and the figure."""


class Target(NamedTuple):
    """A mixture of Gaussians with one diagonal covariance."""

    name: str
    weight: np.ndarray  # [K]
    center: np.ndarray  # [K, D]
    std: np.ndarray  # [D]

    def noise(self, abar: float, noised: np.ndarray) -> np.ndarray:
        """E[eps | a_t] like a_t `[N, D]`: -sigma grad log p_t, where each part of p_t is a Gaussian again."""
        variance = (abar * np.square(self.std) + 1 - abar).astype(np.float32)
        away = noised[:, None] - (np.sqrt(abar) * self.center).astype(np.float32)  # [N, K, D]
        logits = np.log(self.weight).astype(np.float32) - 0.5 * (np.square(away) / variance).sum(axis=2)
        share = np.exp(logits - logits.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        return np.float32(np.sqrt(1 - abar)) * (share[:, :, None] * away).sum(axis=1) / variance

    def quantiles(self, direction: np.ndarray, number: int) -> np.ndarray:
        """`number` quantiles, in the middles of equal shares, of its projection, a mixture on the line."""
        center, std = self.center @ direction, np.sqrt(np.square(self.std * direction).sum())
        grid = np.linspace(center.min() - 6 * std, center.max() + 6 * std, 4001)
        shares = [
            weight * _normal_cdf((grid - at) / std) for weight, at in zip(self.weight, center, strict=True)
        ]
        return np.interp((np.arange(number) + 0.5) / number, np.sum(shares, axis=0), grid)

    def draw(self, number: int, draws: np.random.Generator) -> np.ndarray:
        """Samples `[number, D]`."""
        part = draws.choice(len(self.weight), number, p=self.weight)
        return self.center[part] + self.std * draws.normal(size=(number, len(self.std)))


_normal_cdf = np.vectorize(NormalDist().cdf, otypes=[float])


def targets() -> list[Target]:
    """Both in each number of dimensions, with another spread in each."""
    found = []
    for size in (1, 2, 6):
        std = np.geomspace(0.1, 0.4, size) if size > 1 else np.array([0.2])
        diagonal = np.ones(size) / np.sqrt(size)
        found.append(Target("gaussian", np.array([1.0]), 0.3 * diagonal[None], std))
        both = np.stack([-0.5 * diagonal, 0.5 * diagonal])
        found.append(Target("mixture", np.array([0.7, 0.3]), both, std / 2))
    return found


def go_down(
    table: Steps, predict: Callable[[float, np.ndarray], np.ndarray], noise: Callable[[], np.ndarray]
) -> np.ndarray:
    """a_0 like what `noise()` draws, by `table` and `predict(abar, a_t)`: `diffusion.sample` on the host."""
    noised, before = noise(), np.float32(0.0)
    for i in reversed(range(len(table.level))):
        root, sigma = table.root_abar[i], table.sigma[i]
        clean = (noised - np.float32(sigma) * predict(root**2, noised)) / np.float32(root)
        noised = np.float32(table.weight_clean[i]) * clean + np.float32(table.weight_noised[i]) * noised
        if table.weight_before is not None:
            noised += np.float32(table.weight_before[i]) * before
        if table.std is not None and i > 0:
            noised += np.float32(table.std[i]) * noise()
        before = clean
    return noised


class Ruler:
    """Distances to a target, by the same directions for all."""

    def __init__(self, target: Target, samples: int) -> None:
        self.target, size = target, len(target.std)
        directions = np.random.default_rng(1).normal(size=(DIRECTIONS, size)) if size > 1 else np.ones((1, 1))
        self.directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        self._quantiles = np.stack([target.quantiles(one, samples) for one in self.directions])
        mean = target.weight @ target.center
        self.mean = mean
        self.std = np.sqrt(np.square(target.std) + target.weight @ np.square(target.center - mean))
        self._along = np.ones(size) / np.sqrt(size)
        spread = np.sqrt(np.square(target.std * self._along).sum())
        self.upper = float(target.weight @ _normal_cdf(target.center @ self._along / spread))

    def sorted(self, samples: np.ndarray) -> np.ndarray:
        """Projections `[directions, N]` in order."""
        return np.sort(self.directions @ samples.T, axis=1)

    def measure(self, samples: np.ndarray, whole: np.ndarray) -> dict[str, float]:
        """What a row says of `samples` `[N, D]`, with `whole` the projections of the whole chain's, in order."""
        projected = self.sorted(samples)
        return {
            "w1": float(np.abs(projected - self._quantiles).mean()),
            "w1_to_chain": float(np.abs(projected - whole).mean()),
            "mean_error": float(np.linalg.norm(samples.mean(axis=0) - self.mean)),
            "std_ratio": float((samples.std(axis=0) / self.std).mean()),
            "upper_mass": float((samples @ self._along > 0).mean()),
            "upper_mass_exact": self.upper,
        }


def measure(target: Target, options: Options, levels: Sequence[int] = LEVELS) -> list[dict[str, Any]]:
    """The rows of one target: every way down every chain; each has draws of its own, whatever else is measured."""
    ruler, shape = Ruler(target, options.samples), (options.samples, len(target.std))
    rows = []
    for num_levels in levels:
        chain = make_schedule(options.schedule, num_levels)  # type: ignore[arg-type]

        def down(sampler: Sampler, *place: int, chain: Schedule = chain) -> np.ndarray:
            draws = np.random.default_rng((options.seed, chain.num_levels, sampler.num_steps, *place))
            noise = functools.partial(draws.standard_normal, shape, np.float32)
            return go_down(steps_of(sampler, chain.alpha, chain.abar), target.noise, noise)

        whole = ruler.sorted(down(Sampler(), len(SAMPLERS)))
        for num_steps in (steps for steps in STEPS if steps <= num_levels):
            for place, (name, sampler) in enumerate(SAMPLERS.items()):
                samples = down(sampler._replace(num_steps=num_steps), place)
                row = described(target, num_levels, name, num_steps)
                rows.append(row | ruler.measure(samples, whole))
    return rows


def chance(target: Target, options: Options, repeats: int = 20) -> dict[str, Any]:
    """The row of draws of the target itself, mean of `repeats`: what so many samples leave of every error."""
    ruler, draws = Ruler(target, options.samples), np.random.default_rng(options.seed)
    found = []
    for _ in range(repeats):
        one, other = (target.draw(options.samples, draws) for _ in range(2))
        found.append(ruler.measure(one, ruler.sorted(other)))
    return described(target, "", TARGET, "") | {
        name: float(np.mean([row[name] for row in found])) for name in found[0]
    }


def described(target: Target, levels: Any, sampler: str, steps: Any) -> dict[str, Any]:
    """What a row is about."""
    about = {"target": target.name, "dimensions": len(target.std)}
    return about | {"levels": levels, "sampler": sampler, "steps": steps}


def costs(repeats: int = 500) -> list[dict[str, Any]]:
    """Milliseconds of one action of qsm with its default network on this machine (`action_milliseconds`)."""
    rows = []
    for num_levels, sampler, num_steps in (
        *((levels, "ancestral", levels) for levels in LEVELS),
        *((100, "dpm++", steps) for steps in (5, 10, 20)),
    ):
        way = {"denoising_steps": num_levels, "acting_sampler": sampler, "acting_steps": num_steps}
        agent = agents.make_agent("qsm", SPEC.observation_size, SPEC.action_size, **way)
        rows.append(
            {
                "levels": num_levels,
                "sampler": sampler,
                "evaluations": num_steps,
                "milliseconds_on_this_machine": action_milliseconds(agent, repeats),
            }
        )
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Distance to the target against the steps down 100 levels, by target and dimensions."""
    with plt.rc_context(RC):
        figure, panels = plt.subplots(
            2, 3, figsize=(9.6, 5.6), layout="constrained", sharex=True, sharey="row"
        )
        for line, name in zip(panels, ("gaussian", "mixture"), strict=True):
            for axes, size in zip(line, (1, 2, 6), strict=True):
                here = [row for row in rows if (row["target"], row["dimensions"]) == (name, size)]
                for sampler, (color, dashes, marker) in LOOKS.items():
                    curve = [row for row in here if row["sampler"] == sampler and row["levels"] == LEVELS[-1]]
                    axes.plot(
                        [row["steps"] for row in curve],
                        [row["w1"] for row in curve],
                        color=color,
                        linestyle=dashes,
                        marker=marker,
                        markersize=4.5,
                        label=sampler,
                    )
                (floor,) = (row["w1"] for row in here if row["sampler"] == TARGET)
                axes.axhline(floor, color="black", linestyle=":", linewidth=1, label="samples of the target")
                axes.set(xscale="log", yscale="log")
                axes.set_xticks(STEPS, [str(steps) for steps in STEPS])
                axes.minorticks_off()
                axes.set_title(f"{name}, {size} dimension{'s' if size > 1 else ''}", fontsize=10)
            line[0].set_ylabel("Wasserstein-1 to the target")
        for axes in panels[1]:
            axes.set_xlabel("steps down 100 levels = network calls")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        figure.savefig(path, dpi=100)
    print(f"written to {path}")


def main(options: Options) -> None:
    """Measures, draws and writes."""
    options.output.mkdir(parents=True, exist_ok=True)
    rows = [row for target in targets() for row in (*measure(target, options), chance(target, options))]
    write_rows(options.output / "samplers.csv", rows, digits=4)
    draw(rows, options.output / "samplers.png")
    write_rows(options.output / "samplers_cost.csv", costs(), digits=4)


if __name__ == "__main__":
    main(read_arguments(Options, __doc__)["options"])
