"""Theorem 4.3 of the QSM paper in practice: the angle between an agent's score and grad_a Q along training.

    python scripts/paper/alignment.py

`qsm` and `qsm-clean` with their own networks and updates, in a linear-quadratic process: once with the exact Q of the
linear Gaussian policy closest to their own in the place of critics, found anew as the policy changes, and once with the
critics that they learn. At every level of noise, at actions of the policy and at uniform ones, the cosine between the
score network and grad_a Q; and what the policy returns, beside the best. Writes a figure and two tables; docs/paper.md
reads them.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

import agents
from agents.exact import alignment, linear_quadratic
from agents.exact.learning import Course
from agents.exact.linear_quadratic import Process
from agents.exact.quadratic import Quadratic
from qsm.command.script import read_arguments, write_rows
from qsm.report.styles import RC

matplotlib.use("Agg")

PROCESS = Process(
    np.array([[0.9, 0.3], [-0.2, 0.9]]),
    np.array([[0.5, 0.1], [0.0, 0.4]]),
    0.01 * np.eye(2),
    np.diag([1.0, 0.5]),
    np.diag([0.3, 0.6]),
    0.9,
)
COURSE = Course(PROCESS, 0.4)
"""The best policy's actions lie within the agents' bounds at 98.6 % of these states."""
NETWORKS: dict[str, Any] = {
    "hidden_sizes": (64, 64),
    "time_hidden_sizes": (32,),
    "time_embedding_size": 32,
    "denoising_steps": 5,
    "discount": PROCESS.discount,
    "score_learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "target_rate": 0.01,
    "action_noise": 0.0,
}
VARIANTS: dict[str, tuple[str, dict[str, float]]] = {
    "qsm, scale 1": ("qsm", {"score_scale": 1.0}),
    "qsm, scale 50": ("qsm", {"score_scale": 50.0}),
    "qsm-clean": ("qsm-clean", {}),
}
CHECKPOINTS = (0, 50, 100, 200, 400, 700, 1000, 1500, 2000)
COLORS = ("#000000", "#0072B2", "#009E73", "#E69F00", "#D55E00")


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure alignment."""

    updates: int = 2000
    """Updates of each agent."""
    evaluation_interval: int = 50
    """Updates after which the exact Q is found anew."""
    states: int = 256
    """States at which angles are measured."""
    seed: int = 0
    """Of networks and draws."""
    output: Path = Path("results/paper")
    """Folder for the figure and the tables."""


class Study(NamedTuple):
    """One agent and what is asked of it, compiled."""

    init: Any  # key -> state
    learn: Any  # state, update -> state after `evaluation_interval` more
    fit: Any  # state -> states `[N, S]` and the policy's actions `[N, A]`
    measure: Any  # state, the exact Q -> cosines by kind of action, and of the critic's gradient with the exact one
    value: Any  # state -> the policy's return


@functools.cache
def study(name: str, has_exact_critic: bool, options: Options) -> Study:
    """The programs of agent `name`, which serve any value of its hyperparameters."""
    agent: Any = agents.make_agent(name, 2, 2, **NETWORKS)
    if has_exact_critic:
        agent = alignment.with_quadratic_critic(agent)
    key = jax.random.key(options.seed + 1)
    squashes = hasattr(agent, "sample_unsquashed")

    def fit(state: Any) -> tuple[jax.Array, jax.Array]:
        state_key, act_key = jax.random.split(jax.random.fold_in(key, 1))
        observation = COURSE.states(4096, state_key)
        return observation, agent.act(state, observation, act_key, mode="evaluate")

    def measure(state: Any, exact: Quadratic) -> tuple[dict[str, alignment.Cosines], jax.Array]:
        keys = jax.random.split(jax.random.fold_in(key, 2), 4)
        observation = COURSE.states(options.states, keys[0])
        uniform = jax.random.uniform(keys[1], (options.states, 2), minval=-0.99, maxval=0.99)
        params, tau = state.score.params, None
        if squashes:
            drawn = {"uniform": jnp.arctanh(uniform)}
            drawn["policy"] = agent.sample_unsquashed(state, params, observation, keys[2])
            tau = agent.temperature(state, state.gradient_size)
        else:
            drawn = {"uniform": uniform, "policy": agent.sample(params, observation, keys[2])}

        def value(observation: jax.Array, action: jax.Array) -> jax.Array:
            joint = jnp.concatenate([observation, action])
            return joint @ exact.matrix @ joint

        cosines = {
            kind: alignment.score_cosines(agent, params, value, observation, actions, keys[3], tau)
            for kind, actions in drawn.items()
        }
        _, learned = agent.critic.action_gradient(state.critic.online.params, observation, uniform)
        gradient = jax.vmap(jax.grad(value, argnums=1))(observation, uniform)
        return cosines, alignment.cosine(learned, gradient)

    return Study(
        jax.jit(agent.init),
        jax.jit(lambda state, first: COURSE.learn(agent, state, key, first, options.evaluation_interval)),
        jax.jit(fit),
        jax.jit(measure),
        jax.jit(lambda state: COURSE.value(agent, state, jax.random.fold_in(key, 3), 1024, 60)),
    )


def follow(variant: str, has_exact_critic: bool, options: Options) -> tuple[list[Any], list[Any]]:
    """Trains one agent; rows of cosines and rows of policies, at the checkpoints."""
    name, chosen = VARIANTS[variant]
    programs = study(name, has_exact_critic, options)
    state = programs.init(jax.random.key(options.seed))
    hyper = {option: jnp.asarray(value, jnp.float32) for option, value in chosen.items()}
    state = state._replace(hyperparameters=state.hyperparameters | hyper)
    best, spread = linear_quadratic.best(PROCESS), COURSE.spread**2 * np.eye(2)
    best_value = linear_quadratic.evaluate(PROCESS, best).value.mean(spread)
    angles, policies = [], []
    for updates in range(0, options.updates + 1, options.evaluation_interval):
        is_shown = updates in CHECKPOINTS or updates == options.updates
        if has_exact_critic or is_shown:
            states, actions = (np.asarray(x, np.float64) for x in programs.fit(state))
            policy, share = linear_quadratic.fit(states, actions)
            exact = linear_quadratic.evaluate(PROCESS, policy).action_value
            known = alignment.critic_state(exact)
        if has_exact_critic:
            state = state._replace(critic=known)
        if is_shown:
            of = {"agent": variant, "critic": "exact" if has_exact_critic else "learned", "updates": updates}
            cosines, of_critic = programs.measure(state, known.target)
            angles += [of | row for row in rows_of(cosines)]
            policies.append(
                of
                | {
                    "value": float(programs.value(state)),
                    "best_value": best_value,
                    "saturation": float((np.abs(actions) > 0.99).mean()),
                    "gain_error": float(np.linalg.norm(policy.gain - best.gain) / np.linalg.norm(best.gain)),
                    "linear_share": share,
                    "critic_cosine": float(of_critic),
                }
            )
        if updates < options.updates:
            state = programs.learn(state, jnp.asarray(updates))
    last = policies[-1]
    print(
        f"{variant}, {last['critic']} critic: value {last['value']:.3f}, the best {best_value:.3f}",
        flush=True,
    )
    return angles, policies


def rows_of(cosines: dict[str, alignment.Cosines]) -> list[dict[str, Any]]:
    """One row for each kind of action and level."""
    return [
        {"actions": kind, "level": level + 1}
        | {name: "" if values is None else float(values[level]) for name, values in found._asdict().items()}
        for kind, found in cosines.items()
        for level in range(len(found.gradient))
    ]


def draw(rows: list[dict[str, Any]], policies: list[dict[str, Any]], path: Path) -> None:
    """Cosines along training, a column for each variant and a row for each critic; below, what the policies return."""
    with plt.rc_context(RC):
        figure, axes = plt.subplots(3, len(VARIANTS), figsize=(11, 8.6), layout="constrained", sharex=True)
        for column, variant in enumerate(VARIANTS):
            for line, critic in enumerate(("exact", "learned")):
                chosen = [row for row in rows if (row["agent"], row["critic"]) == (variant, critic)]
                draw_cosines(axes[line, column], chosen)
                axes[line, column].set_title(f"{variant}: {critic} critic", fontsize=11)
                returns = [row for row in policies if (row["agent"], row["critic"]) == (variant, critic)]
                axes[2, column].plot(
                    [row["updates"] for row in returns],
                    [row["value"] for row in returns],
                    color=COLORS[line + 1],
                    linestyle=("-", "--")[line],
                    marker="o",
                    markersize=4,
                    label=f"{critic} critic",
                )
            best = policies[0]["best_value"]
            axes[2, column].axhline(best, color="black", linewidth=1, linestyle=":", label="the best policy")
            axes[2, column].set(xlabel="updates", yscale="symlog", ylim=(-20, -0.5))
            axes[2, column].set_yticks([-20, -10, -5, -2, -1], ["-20", "-10", "-5", "-2", "-1"])
            axes[2, column].minorticks_off()
        for line in range(2):
            axes[line, 0].set_ylabel("cosine of score and exact ∇Q")
        axes[2, 0].set_ylabel("discounted return")
        axes[2, 0].legend(fontsize=9)
        axes[0, 0].legend(fontsize=9, loc="lower right", ncols=2)
        figure.savefig(path, dpi=100)
    print(f"written to {path}")


def draw_cosines(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """A curve for each level: at actions of the policy, and dashed at uniform ones."""
    for level, color in enumerate(COLORS, start=1):
        for kind, dashes in (("policy", "-"), ("uniform", "--")):
            curve = [row for row in rows if (row["level"], row["actions"]) == (level, kind)]
            updates, cosines = ([row[name] for row in curve] for name in ("updates", "gradient"))
            label = f"t = {level}" if kind == "policy" else None
            axes.plot(updates, cosines, color=color, linestyle=dashes, label=label)
    axes.plot([], [], color="black", linestyle="--", label="uniform actions")
    axes.set_ylim(-0.45, 1.05)


def main() -> None:
    """Trains, measures, draws and writes."""
    options = read_arguments(Options, __doc__)["options"]
    if options.updates % options.evaluation_interval:
        raise SystemExit(f"updates is {options.updates}; it must be a multiple of --evaluation-interval")
    options.output.mkdir(parents=True, exist_ok=True)
    angles, policies = [], []
    for variant in VARIANTS:
        for has_exact_critic in (True, False):
            more, others = follow(variant, has_exact_critic, options)
            angles, policies = angles + more, policies + others
    write_rows(options.output / "theory_alignment.csv", angles)
    write_rows(options.output / "theory_policies.csv", policies)
    draw(angles, policies, options.output / "theory_alignment.png")


if __name__ == "__main__":
    main()
