"""Figure 2 of the QSM paper: tabular Q-score matching in gridworlds at several inverse temperatures.

    python scripts/paper/gridworld.py

Equation 20, pi <- softmax(alpha Q^pi), is repeated until it stands still, with the exact Q of a known process. Writes
the figure (policy and values in one gridworld; entropy and return against alpha in all), its numbers, soft policy
iteration beside it, and a table of two processes of one state, in which equation 20 goes in a circle or has two fixed
points. docs/paper.md reads them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from agents.tabular import boltzmann, planning
from agents.tabular.mdp import MDP, stay_or_leave
from envs.gridworld import TASKS, Gridworld
from qsm.command.script import read_arguments, write_rows
from qsm.report.styles import RC

matplotlib.use("Agg")

ALPHAS = np.geomspace(0.1, 1000, 25)
ITERATIONS = {
    "equation 20": boltzmann.q_score_matching,
    "soft policy iteration": boltzmann.soft_policy_iteration,
}
LOOKS = {
    "gridworld-open": ("#0072B2", "o"),
    "gridworld-rooms": ("#D55E00", "s"),
    "gridworld-cliff": ("#009E73", "^"),
}
"""Colors of Okabe and Ito, and markers."""
ARROWS = ((1, 0), (0, -1), (-1, 0), (0, 1))  # of the moves, in the figure's coordinates: down is positive


@dataclasses.dataclass(frozen=True)
class Options:
    """Draw Figure 2."""

    task: str = "gridworld-rooms"
    """Gridworld whose policies are drawn."""
    alphas: tuple[str, ...] = ("1", "10", "30", "100")
    """Inverse temperatures that are drawn."""
    discount: float = 0.9
    """Discount factor."""
    output: Path = Path("results/paper")
    """Folder for the figure and the two tables."""


def measure(task: str, alpha: float, discount: float, method: str) -> dict[str, Any]:
    """Where an iteration comes to: a row of the table."""
    world, mdp = TASKS[task].world, process(TASKS[task].world, discount)
    found, best = ITERATIONS[method](mdp, alpha), planning.policy_iteration(mdp)
    value, action_value = planning.evaluate(mdp, found.policy)
    # Undiscounted, over the time limit: what `qsm train` calls the return.
    steps, episode = TASKS[task].episode_steps, MDP(mdp.transition, mdp.reward, 1.0)
    returns = planning.evaluate_steps(episode, np.broadcast_to(found.policy, (steps, *found.policy.shape)))
    greedily = planning.evaluate(mdp, planning.greedy(action_value)).value
    return {
        "task": task,
        "discount": discount,
        "method": method,
        "alpha": alpha,
        "entropy": boltzmann.entropy(found.policy)[~world.is_terminal].mean(),
        "value": world.start @ value,
        "best_value": world.start @ best.value,
        "return": world.start @ returns.value[0],
        "best_return": world.start @ planning.backward_induction(episode, steps).value[0],
        # Of the greedy policy of its Q, in the worst state; without the last bits, which machines differ in.
        "greedy_loss": round(float(np.max(best.value - greedily)), 9),
        "updates": len(found.residuals) - 1,
        "residual": found.residuals[-1],
        "converged": found.converged,
    }


def examples() -> list[dict[str, Any]]:
    """A state that is left, or stayed in by one of many actions: where equation 20 has no single answer."""
    rows = []
    for num_stays, reward, alphas, starts in (
        (100, -1.0, (0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 4.0, 6.0, 10.0), (0.5,)),
        (3, -1.0, (0.01, 0.1, 1.0, 10.0, 100.0), (0.5,)),
        (1, 0.1, (0.1, 0.5, 1.0, 3.0), (0.01, 0.99)),
    ):
        mdp = stay_or_leave(num_stays, reward, 0.99)
        for alpha in alphas:
            for start in starts:
                policy = np.array([[1 - start, *[start / num_stays] * num_stays], [1.0, *[0.0] * num_stays]])
                plain = boltzmann.q_score_matching(mdp, alpha, policy)
                damped = boltzmann.q_score_matching(mdp, alpha, policy, damping=0.5)
                soft = boltzmann.soft_policy_iteration(mdp, alpha, policy)
                rows.append(
                    {
                        "ways_to_stay": num_stays,
                        "stay_reward": reward,
                        "discount": 0.99,
                        "alpha": alpha,
                        "start_stay": start,
                        "converged": plain.converged,
                        "residual": plain.residuals[-1],
                        "updates": len(plain.residuals) - 1,
                        "stay": plain.policy[0, 1:].sum() if plain.converged else "",
                        "damped_converged": damped.converged,
                        "damped_updates": len(damped.residuals) - 1,
                        "damped_stay": damped.policy[0, 1:].sum(),
                        "soft_converged": soft.converged,
                        "soft_stay": soft.policy[0, 1:].sum(),
                    }
                )
    return rows


def process(world: Gridworld, discount: float) -> MDP:
    """The world as a Markov decision process."""
    return MDP(world.transition, world.reward, discount)


def draw_policy(axes: Axes, world: Gridworld, alpha: float, discount: float) -> Any:
    """Arrows whose lengths are probabilities, over the values of the states; returns what the color bar takes."""
    found = boltzmann.q_score_matching(process(world, discount), alpha)
    shown = np.full(world.states.shape, np.nan)
    shown[tuple(world.cells[~world.is_terminal].T)] = found.value[~world.is_terminal]
    image = axes.imshow(shown, cmap="Blues", vmin=0, vmax=1.25)  # the deepest blues would hide the arrows
    for state, (row, column) in enumerate(world.cells):
        if world.is_terminal[state]:
            mark = world.rows[row][column]
            axes.text(column, row, mark, ha="center", va="center", fontsize=13, weight="bold")
            continue
        for (x, y), probability in zip(ARROWS, found.policy[state], strict=True):
            if probability > 0.02:
                length = 0.49 * probability
                axes.arrow(
                    *(column, row, x * length, y * length),
                    width=0.045,
                    head_width=0.2,
                    head_length=min(0.14, length),
                    length_includes_head=True,
                    color="black",
                    linewidth=0,
                )
    for row, column in np.argwhere(world.states < 0):
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color="#555555"))
    axes.set_xticks(np.arange(len(world.rows[0]) + 1) - 0.5, [])
    axes.set_yticks(np.arange(len(world.rows) + 1) - 0.5, [])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(color="white", alpha=1, linewidth=1)
    mean = boltzmann.entropy(found.policy)[~world.is_terminal].mean()
    axes.set_title(f"α = {alpha:g}, entropy {mean:.2f}", fontsize=11)
    return image


def draw_curves(panels: list[Axes], rows: list[dict[str, Any]]) -> None:
    """Entropy and return against alpha, of every gridworld."""
    for task, (color, marker) in LOOKS.items():
        for method, dashes in zip(ITERATIONS, ("-", (0, (2, 1.5))), strict=True):
            curve = [row for row in rows if (row["task"], row["method"]) == (task, method)]
            curve.sort(key=lambda row: row["alpha"])
            is_first = dashes == "-"
            for axes, quantity in zip(panels, ("entropy", "return"), strict=True):
                axes.plot(
                    [row["alpha"] for row in curve],
                    [row[quantity] for row in curve],
                    color=color,
                    linestyle=dashes,
                    marker=marker if is_first else None,
                    markevery=4,
                    markersize=5,
                    label=task.removeprefix("gridworld-") if is_first else None,
                )
        best = next(row["best_return"] for row in rows if row["task"] == task)
        panels[1].axhline(best, color="black", linewidth=1, linestyle=":")
    panels[0].axhline(np.log(4), color="black", linewidth=1, linestyle=":")
    panels[0].text(1000, np.log(4) - 0.03, "the uniform policy", va="top", ha="right", fontsize=9)
    panels[1].text(0.1, 0.965, "the best policy", va="top", fontsize=9)
    panels[0].plot([], [], color="black", label="equation 20")
    panels[0].plot([], [], color="black", linestyle=(0, (2, 1.5)), label="soft policy iteration")
    panels[0].legend(fontsize=9, loc="lower left")
    panels[0].set_ylabel("mean entropy of the policy (nats)")
    panels[1].set_ylabel("expected return of an episode")
    for axes in panels:
        axes.set_xscale("log")
        axes.set_xlabel("inverse temperature α")


def draw(task: str, alphas: list[float], discount: float, rows: list[dict[str, Any]], path: Path) -> None:
    """The figure: policies of `task` above, curves of all gridworlds below."""
    with plt.rc_context(RC):
        figure = plt.figure(figsize=(2.3 * max(4, len(alphas)), 5.6), layout="constrained")
        above = figure.add_subfigure(grid := figure.add_gridspec(2, 1, height_ratios=(1, 1.15))[0])
        below = figure.add_subfigure(grid.get_gridspec()[1])
        panels = above.subplots(1, len(alphas), squeeze=False)[0]
        for axes, alpha in zip(panels, alphas, strict=True):
            image = draw_policy(axes, TASKS[task].world, alpha, discount)
        panels[0].set_ylabel(task)
        above.colorbar(
            image,
            ax=panels,
            label="value of the policy",
            shrink=0.85,
            pad=0.01,
            boundaries=np.linspace(0, 1, 101),
            ticks=[0, 0.5, 1],
        )
        draw_curves(list(below.subplots(1, 2)), rows)
        figure.savefig(path, dpi=100)
    print(f"written to {path}")


def main() -> None:
    """Measures, draws and writes."""
    options = read_arguments(Options, __doc__)["options"]
    if options.task not in TASKS:
        raise SystemExit(f"unknown gridworld '{options.task}'; it must be one of: {', '.join(TASKS)}")
    try:
        alphas = [float(alpha) for alpha in options.alphas]
    except ValueError as error:
        raise SystemExit(f"alphas are numbers such as 1,10,30: {error}") from error
    options.output.mkdir(parents=True, exist_ok=True)
    rows = [
        measure(task, alpha, options.discount, method)
        for task in TASKS
        for method in ITERATIONS
        for alpha in sorted({*ALPHAS.tolist(), *alphas})
    ]
    write_rows(options.output / "gridworld.csv", rows)
    write_rows(options.output / "equation_20.csv", examples())
    draw(options.task, alphas, options.discount, rows, options.output / "gridworld.png")


if __name__ == "__main__":
    main()
