"""Theorem 4.1, Corollary 4.2 and equation 1 of the QSM paper where Q is known: what rises, how far, and what does not.

    python scripts/paper/theory.py

State and action flow together as the paper's theory has them, in a linear-quadratic problem with exact values: a score
that is turned towards grad_a Q in a ball (equation 37), or everywhere, in continuous time and in the steps of equation
6; scores that are matched to alpha grad_a Q again and again; the policy of a linear-quadratic process whose actions are
moved along grad_a Q. Beside it the stationary densities of Langevin steps, of a Gaussian and of a double well. Writes
two figures and their tables; docs/paper.md reads them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from agents.exact import flows, line, linear_quadratic
from agents.exact.flows import Flow
from agents.exact.linear_quadratic import Policy, Process
from agents.parts import boltzmann
from qsm.command.script import read_arguments, write_rows
from qsm.report.styles import RC

matplotlib.use("Agg")

FLOW = Flow(np.array([[-0.2, 0.6, 1.0, 0.0], [-0.6, -0.2, 0.0, 0.7]]), np.diag([1.0, 0.6]), 0.4)
"""Two components of a state that turns and slows down, pushed by two of an action; rho = 0.4."""
SCORE = np.array([[-0.2, 0.3, -1.2, 0.4], [-0.3, -0.2, -0.3, -1.0]])
CENTER = np.array([1.0, 0.5, -0.3, 0.8])
"""A score that follows the state badly, and a state and action at which it is at a right angle to grad_a Q, almost."""
RADII = (0.01, 0.03, 0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
STEPS = ((0.2, 1), (0.1, 1), (0.05, 1), (0.05, 4))
"""Time that a step of the state takes, and steps of the action in it."""
PROCESS = Process(
    np.array([[0.9, 0.3], [-0.2, 0.9]]),
    np.array([[0.5, 0.1], [0.0, 0.4]]),
    0.01 * np.eye(2),
    np.diag([1.0, 0.5]),
    np.diag([0.3, 0.6]),
    0.9,
)
POLICY = Policy(np.array([[-0.4, 0.2], [0.2, -0.1]]), 0.04 * np.eye(2))
GAUSSIAN = 0.3, 0.5  # mean and standard deviation
SIZES = (0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
GRID = np.linspace(-2.8, 2.8, 1121)
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")


@dataclasses.dataclass(frozen=True)
class Options:
    """Check the theory."""

    chains: int = 20_000
    """Chains of Langevin steps that are simulated."""
    iterations: int = 20
    """Updates of a score that is matched again and again."""
    seed: int = 0
    """Of the draws."""
    output: Path = Path("results/paper")
    """Folder for the figures and the tables."""


def balls(seed: int) -> list[dict[str, Any]]:
    """Values before and after the construction of Theorem 4.1, at its center and at starts all over its ball."""
    value, rng = flows.evaluate(FLOW, SCORE), np.random.default_rng(seed)
    directions = rng.normal(size=(100, 4))
    directions *= rng.uniform(size=(100, 1)) ** 0.25 / np.linalg.norm(directions, axis=1, keepdims=True)
    speed = float(np.linalg.norm(np.concatenate([FLOW.drift, SCORE]) @ CENTER))
    rows = []
    for radius in RADII:
        starts = np.concatenate([CENTER[None], CENTER + radius * directions])
        bump = flows.Bump(FLOW, SCORE, CENTER, radius)
        # Far longer than it takes to leave the ball; the path runs down to the origin, and does not come back.
        time = min(15.0, 15 * radius / speed)
        after = flows.simulate(FLOW, bump.field(), starts, time, value, radius / speed / 4)
        change = after - value.value(starts)
        rows.append(
            {
                "construction": "ball",
                "step": 0.0,
                "action_steps": "",
                "size": radius,
                "before": float(value.value(CENTER)),
                "after": float(after[0]),
                "mean_change": float(change[1:].mean()),
                "least_change": float(change.min()),
            }
        )
    return rows


def everywhere() -> list[dict[str, Any]]:
    """Psi + size grad_a Q at once in all states and actions, in continuous time and in steps, as far as it has a value.

    Values at the center, their mean over z ~ N(0, I), and the least change of any z of length one.
    """
    rows = []
    for step, action_steps in ((0.0, 0), *STEPS):

        def evaluate(score: np.ndarray, step: float = step, action_steps: int = action_steps) -> Any:
            if step:
                return flows.evaluate_steps(FLOW, score, step, action_steps)
            return flows.evaluate(FLOW, score)

        before = evaluate(SCORE)
        gradient = flows.action_gradient(FLOW, before)
        for size in np.geomspace(0.01, 1000, 51).tolist():
            try:
                after = evaluate(SCORE + size * gradient)
            except ValueError:  # of infinite cost, and so for any larger size
                break
            change = after.matrix - before.matrix
            rows.append(
                {
                    "construction": "everywhere",
                    "step": step,
                    "action_steps": action_steps or "",
                    "size": size,
                    "before": float(before.value(CENTER)),
                    "after": float(after.value(CENTER)),
                    "mean_change": float(np.trace(change)),
                    "least_change": float(np.linalg.eigvalsh(change).min()),
                }
            )
    return rows


def moved_actions() -> list[dict[str, Any]]:
    """The policy of a process with its actions moved by size grad_a Q: what the theorem becomes without a flow.

    Values and their mean change at s ~ N(0, 0.16 I), and the least change of any state of length one or less.
    """
    values = linear_quadratic.evaluate(PROCESS, POLICY)
    spread = 0.16 * np.eye(2)
    curvature = -2 * np.linalg.eigvalsh(values.action_value.matrix[2:, 2:])
    limit = 2 / curvature.max()
    rows = []
    for share in (0.01, 0.03, 0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0):
        moved = linear_quadratic.transported(POLICY, values.action_value, share * limit)
        try:
            after = linear_quadratic.evaluate(PROCESS, moved).value
        except ValueError:
            break
        change = after.matrix - values.value.matrix
        constant = after.constant - values.value.constant
        rows.append(
            {
                "construction": "moved actions",
                "step": 1.0,
                "action_steps": "",
                "size": share * limit,
                "before": values.value.mean(spread),
                "after": after.mean(spread),
                "mean_change": after.mean(spread) - values.value.mean(spread),
                "least_change": constant + min(0.0, float(np.linalg.eigvalsh(change).min())),
            }
        )
    return rows


def matching(iterations: int) -> list[dict[str, Any]]:
    """Psi <- alpha grad_a Q^Psi, again and again, and ways to take smaller steps; means over z ~ N(0, I)."""
    z = np.random.default_rng(0).normal(size=(2000, 4))
    ways = [("match", alpha, np.inf) for alpha in (0.1, 1.0, 10.0)]
    ways += [("match at a price", 1.0, 1.0), ("add", 0.1, np.inf)]
    rows = []
    for way, alpha, price in ways:
        score = SCORE
        for iteration in range(iterations + 1):
            value = flows.evaluate(FLOW, score, price)
            gradient = flows.action_gradient(FLOW, value)
            rows.append(
                {
                    "way": way,
                    "alpha": alpha,
                    "iteration": iteration,
                    "value": float(np.trace(value.matrix)),
                    "cosine": float(flows.cosine(z @ score.T, z @ gradient.T).mean()),
                    "value_of_best_at_price": float(np.trace(flows.best(FLOW, alpha)[1].matrix)),
                    "value_of_best_at_half_price": float(np.trace(flows.best(FLOW, 2 * alpha)[1].matrix)),
                }
            )
            score = score + alpha * gradient if way == "add" else alpha * gradient
    return rows


def langevin(chains: int, seed: int) -> list[dict[str, Any]]:
    """Stationary moments of Langevin steps with score alpha grad Q, by quadrature and drawn, beside exp(alpha Q)."""
    mean, std = GAUSSIAN
    densities = {
        "gaussian": (1.0, lambda x: -((x - mean) ** 2) / (2 * std**2), lambda x: -(x - mean) / std**2),
        "double well, alpha 1": (1.0, line.double_well, line.double_well_gradient),
        "double well, alpha 3": (3.0, line.double_well, line.double_well_gradient),
    }
    rows = []
    for name, (alpha, value, gradient) in densities.items():
        exact = line.density(lambda x, alpha=alpha, value=value: alpha * value(x), GRID)
        last = None
        for step in SIZES:
            score = _scaled(alpha, gradient)
            found = line.stationary(score, GRID, step)
            drawn = _draw(score, found, step, chains, seed)
            error = line.total_variation(found, exact, GRID)
            rows.append(
                {
                    "density": name,
                    "step": step,
                    "variance": line.moments(found, GRID)[1],
                    "closed_form": std**2 / (1 - step / (4 * std**2)) if name == "gaussian" else "",
                    "variance_drawn": float(drawn.var()),
                    "variance_of_density": line.moments(exact, GRID)[1],
                    "mean": round(
                        line.moments(found, GRID)[0], 9
                    ),  # without the last bits, which machines differ in
                    "mean_drawn": float(drawn.mean()),
                    "mean_of_density": line.moments(exact, GRID)[0],
                    "total_variation": error,
                    "order": round(float(np.log(last[1] / error) / np.log(last[0] / step)), 6)
                    if last
                    else "",
                }
            )
            last = step, error
    return rows


def _scaled(alpha: float, gradient: Any) -> Any:
    return lambda x: alpha * gradient(x)


def _draw(score: Any, start: np.ndarray, step: float, chains: int, seed: int) -> np.ndarray:
    """Where chains of the sampler are after a time of 2 that began in the density `start`, `[N]`."""
    begun = np.random.default_rng(seed).choice(GRID, p=start / start.sum(), size=(chains, 1))
    sizes = jnp.full(round(2 / step), step)
    steps = jax.jit(lambda u, key: boltzmann.langevin(score, u, key, sizes, float(GRID[-1])))
    return np.asarray(steps(jnp.asarray(begun, jnp.float32), jax.random.key(seed)), np.float64)


def draw_improvements(rows: list[dict[str, Any]], matched: list[dict[str, Any]], path: Path) -> None:
    """Four panels: a ball, everywhere, matching, and moved actions."""
    with plt.rc_context(RC):
        figure, axes = plt.subplots(2, 2, figsize=(10, 7.4), layout="constrained")
        _draw_changes(axes[0, 0], [row for row in rows if row["construction"] == "ball"])
        axes[0, 0].set_yscale("symlog", linthresh=0.01)
        axes[0, 0].set(title="Turned in a ball (equation 37)", xlabel="radius of the ball", xscale="log")
        for color, (step, action_steps) in zip(COLORS, ((0.0, ""), *STEPS), strict=True):
            curve = [
                row
                for row in rows
                if (row["construction"], row["step"], row["action_steps"])
                == ("everywhere", step, action_steps)
            ]
            label = f"steps of {step:g}, K = {action_steps}" if step else "continuous time"
            sizes, means = ([row[name] for row in curve] for name in ("size", "mean_change"))
            dashes = "--" if action_steps != 1 and step else "-"
            axes[0, 1].plot(sizes, means, color=color, linestyle=dashes, label=label)
            if step:
                axes[0, 1].plot(sizes[-1], means[-1], "x", color=color, markersize=9, markeredgewidth=2)
        axes[0, 1].set(title="Ψ + ε ∇Q everywhere (×: then infinite)", xlabel="ε", xscale="log")
        axes[0, 1].set_ylabel("mean change of Q")
        axes[0, 1].legend(fontsize=9)
        for color, (way, alpha) in zip(
            COLORS, dict.fromkeys((row["way"], row["alpha"]) for row in matched), strict=True
        ):
            curve = [row["value"] for row in matched if (row["way"], row["alpha"]) == (way, alpha)]
            text = {
                "match": "Ψ ← α∇Q",
                "match at a price": "the same, moves at a price",
                "add": "Ψ ← Ψ + α∇Q",
            }
            axes[1, 0].plot(curve, color=color, marker=".", label=f"{text[way]}, α = {alpha:g}")
        axes[1, 0].set(
            title="Again and again",
            xlabel="update",
            ylabel="mean of Q",
            ylim=(-7.2, 0),
            xticks=range(0, len(curve), 5),
        )
        axes[1, 0].legend(fontsize=8.5, ncols=2, loc="lower right", handlelength=1.4, columnspacing=1)
        _draw_changes(axes[1, 1], [row for row in rows if row["construction"] == "moved actions"], False)
        axes[1, 1].set(
            title="Actions of a process moved by ε ∇Q", xlabel="ε", xlim=(0, 1.2), ylim=(-1.2, 1.4)
        )
        figure.savefig(path, dpi=100)
    print(f"written to {path}")


def _draw_changes(axes: Axes, rows: list[dict[str, Any]], has_center: bool = True) -> None:
    sizes = [row["size"] for row in rows]
    if has_center:
        changes = [row["after"] - row["before"] for row in rows]
        axes.plot(sizes, changes, color=COLORS[0], marker="o", label="at the center")
    means, least = ([row[name] for row in rows] for name in ("mean_change", "least_change"))
    axes.plot(sizes, means, color=COLORS[1], marker="s", markersize=4, label="mean")
    axes.plot(sizes, least, color=COLORS[2], marker="^", markersize=4, linestyle="--", label="least")
    axes.axhline(0, color="black", linewidth=1)
    axes.set_ylabel("change of Q" if has_center else "change of V")
    axes.legend(fontsize=9)


def draw_langevin(rows: list[dict[str, Any]], path: Path) -> None:
    """Densities of a double well at three sizes of step, and the error of all against the size."""
    with plt.rc_context(RC):
        figure, axes = plt.subplots(1, 2, figsize=(10, 3.9), layout="constrained")
        axes[0].plot(GRID, line.density(line.double_well, GRID), color="black", label="exp(Q)")
        for color, step in zip(COLORS, (0.1, 0.05, 0.02), strict=False):
            found = line.stationary(line.double_well_gradient, GRID, step)
            axes[0].plot(GRID, found, color=color, linestyle="--", label=f"steps of {step:g}")
        axes[0].set(
            xlabel="action", ylabel="stationary density", xlim=(-2.4, 2.4), title="Double well, α = 1"
        )
        axes[0].legend(fontsize=9, loc="upper left")
        for color, name in zip(COLORS, dict.fromkeys(row["density"] for row in rows), strict=False):
            curve = [row for row in rows if row["density"] == name]
            sizes, errors = ([row[key] for row in curve] for key in ("step", "total_variation"))
            axes[1].plot(sizes, errors, color=color, marker="o", markersize=4, label=name)
        axes[1].plot(SIZES, np.array(SIZES) * 0.12, color="black", linestyle=":", label="first order")
        axes[1].set(
            xscale="log", yscale="log", xlabel="size η of a step", ylabel="total variation from exp(αQ)"
        )
        axes[1].legend(fontsize=9)
        figure.savefig(path, dpi=100)
    print(f"written to {path}")


def main() -> None:
    """Computes, draws and writes."""
    options = read_arguments(Options, __doc__)["options"]
    options.output.mkdir(parents=True, exist_ok=True)
    improved = balls(options.seed) + everywhere() + moved_actions()
    matched = matching(options.iterations)
    write_rows(options.output / "theory_improvement.csv", improved)
    write_rows(options.output / "theory_matching.csv", matched)
    draw_improvements(improved, matched, options.output / "theory_improvement.png")
    stationary = langevin(options.chains, options.seed)
    write_rows(options.output / "theory_langevin.csv", stationary)
    draw_langevin(stationary, options.output / "theory_langevin.png")


if __name__ == "__main__":
    main()
