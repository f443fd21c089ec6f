"""How Q-score matching divides its samples between two modes, beside the exact Boltzmann masses.

    python scripts/mode_masses.py --dimensions 1 --output results/mode_masses/1_dimension.csv

No critic and no environment: exp(Q) is a mixture of two Gaussians of std 0.1 at -d and +d, weighted 0.7 and 0.3, in
the first component of the action and a Gaussian of std 0.3 in every other, and the real score network is trained on
the agents' own targets at temperature tau. qsm-clean trains on its own samples, from a network that was fitted to the
two modes with a given left mass, or from a fresh one; pieces of its weighted target are added one by one. qsm as
published takes replay actions with that left mass, or uniform ones, at two scales M_q: the one with tau at its lowest
level, and 0.02. The settings of one target train side by side in one program. docs/qsm-clean.md reads the result.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import agents
from agents.parts import critic, optimizer, score
from agents.parts.paths.plain import Drawn
from agents.parts.types import Transition
from qsm.command.script import read_arguments

LEFT_WEIGHT, STD, OTHER_STD = 0.7, 0.1, 0.3
NUM_SAMPLES, FIT_UPDATES = 4000, 1000
NETWORKS: dict[str, Any] = {"time_embedding_size": 16, "time_hidden_sizes": (16,)}
PLAIN = {"step_fit": "unit", "target_fit": "unit", "act_with_chain": False}
TARGETS: dict[str, tuple[str, dict[str, Any]]] = {
    "published": ("qsm", {}),  # M_q = sigma_1 / tau
    "published-0.02": ("qsm", {}),
    "clean": ("qsm-clean", {}),
    "weighted-1": ("qsm-clean", {"target": "weighted", **PLAIN}),
    "weighted-1-2": ("qsm-clean", {"target": "weighted", "target_fit": "unit"}),
    "weighted-1-2-3": ("qsm-clean", {"target": "weighted"}),
    "weighted-geometric": (
        "qsm-clean",
        {"target": "weighted", "schedule": "geometric", "denoising_steps": 20},
    ),
    "weighted-velocity": ("qsm-clean", {"target": "weighted", "prediction": "velocity"}),
}
"""Agent and options of each target; pieces are path weights (1), step variances (2) and mixture (3) fitted."""
COLUMNS = (
    *("target", "dimensions", "tau", "separation", "start", "seed", "updates", "left_mass", "exact_mass"),
    *("left_std", "exact_left_std", "right_std", "exact_right_std", "other_std", "exact_other_std"),
    *("effective_share", "log_normalizer", "exact_log_normalizer"),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Two-mode measurement of score targets."""

    dimensions: int = 1
    targets: tuple[str, ...] = tuple(TARGETS)
    separations: tuple[str, ...] = ("0.2", "0.35", "0.5")
    starts: tuple[str, ...] = ("0.1", "0.5", "0.9", "fresh")  # left mass, or a fresh network
    taus: tuple[str, ...] = ("1", "2.5")
    num_seeds: int = 1
    updates: int = 2000
    batch_size: int = 128
    width: int = 64
    output: Path = Path("results/mode_masses/1_dimension.csv")


class Setting(NamedTuple):
    """One run: temperature, half the distance between modes, left mass at the start (-1: fresh) and seed."""

    tau: jax.Array
    separation: jax.Array
    start: jax.Array
    seed: jax.Array


def log_density(action: Any, separation: Any) -> Any:
    """Q `[...]` of actions `[..., A]`, up to a constant."""
    first = action[..., 0]
    left = jnp.log(LEFT_WEIGHT) - 0.5 * jnp.square((first + separation) / STD)
    right = jnp.log(1 - LEFT_WEIGHT) - 0.5 * jnp.square((first - separation) / STD)
    return jnp.logaddexp(left, right) - 0.5 * jnp.square(action[..., 1:] / OTHER_STD).sum(axis=-1)


def exact(separation: float, tau: float) -> dict[str, float]:
    """Masses and stds of exp(Q/tau) on [-1, 1], and the logs of its integral over a component, by integration."""
    grid = np.linspace(-1, 1, 20001)
    density = np.exp(np.asarray(log_density(grid[:, None], separation), np.float64) / tau)
    other = np.exp(-0.5 * np.square(grid / OTHER_STD) / tau)

    def std(of: np.ndarray) -> float:
        mean = (grid * of).sum() / of.sum()
        return float(np.sqrt((np.square(grid - mean) * of).sum() / of.sum()))

    left = density * (grid < 0)
    logs = [float(np.log(x.sum() * (grid[1] - grid[0]))) for x in (density, other)]
    stds = {"left_std": std(left), "right_std": std(density - left), "other_std": std(other)}
    return {"mass": float(left.sum() / density.sum()), **stds, "log": logs[0], "log_other": logs[1]}


@dataclasses.dataclass(frozen=True)
class MixtureCritic(critic.Critic):
    """Critics whose value is `log_density`; their parameters are the separation."""

    def action_gradient(self, params: Any, observation: jax.Array, action: jax.Array) -> Any:
        gradient = jax.grad(lambda a: log_density(a, params).sum())(action)
        return log_density(action, params), gradient


def analytic(target: str, options: Options) -> Any:
    """The agent of `target`, with `MixtureCritic`."""
    name, values = TARGETS[target]
    values = NETWORKS | values | {"hidden_sizes": (options.width,) * 2, "batch_size": options.batch_size}
    if name == "qsm-clean":
        values |= {"gradient_size_rate": 0.0, "draw_rate": 0.02}
    plain: Any = agents.make_agent(name, 1, options.dimensions, **values)
    mixture = MixtureCritic(plain.critic.network, plain.critic.head)
    changed = type(type(plain).__name__, (type(plain),), {"critic": property(lambda self: mixture)})
    return changed(plain.config, 1, options.dimensions)


def start_state(agent: Any, target: str, setting: Setting, key: jax.Array) -> Any:
    """A fresh state at the temperature of `setting`."""
    state = agent.init(key)
    if target.startswith("published"):
        scale = 0.02 if target == "published-0.02" else float(agent.denoiser.schedule.sigma[0])
        hyper = state.hyperparameters | {"score_scale": scale / setting.tau}
        return state._replace(hyperparameters=hyper)
    hyper = state.hyperparameters | {"inverse_temperature": 1 / setting.tau}
    return state._replace(hyperparameters=hyper, gradient_size=jnp.ones(()))


def start_actions(setting: Setting, key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Actions `[B, A]` of both modes with the left mass of `setting`; uniform ones if it is fresh."""
    side_key, noise_key, uniform_key = jax.random.split(key, 3)
    side = jnp.where(jax.random.uniform(side_key, shape[:1]) < setting.start, -1.0, 1.0)
    stds = jnp.sqrt(setting.tau) * jnp.where(jnp.arange(shape[1]) == 0, STD, OTHER_STD)
    modes = stds[None] * jax.random.normal(noise_key, shape)
    modes = modes.at[:, 0].add(side * setting.separation)
    uniform = jax.random.uniform(uniform_key, shape, minval=-1.0)
    return jnp.clip(jnp.where(setting.start < 0, uniform, modes), -0.99, 0.99)


def regress(agent: Any, state: Any, observation: jax.Array, target: Any, rate: Any) -> Any:
    """One step of the score network, and of the slow one where there is one."""
    learned, _ = optimizer.descend(agent.denoiser.loss, state.score, rate, observation, target)
    state = state._replace(score=learned)
    if not hasattr(state, "average"):
        return state
    average = optimizer.polyak(state.average, learned.params, state.hyperparameters["draw_rate"])
    return state._replace(average=average)


def on_policy_step(
    agent: Any, state: Any, setting: Setting, observation: jax.Array, key: jax.Array, rate: Any
) -> tuple[Any, jax.Array]:
    """One update of qsm-clean's score network on its own samples; effective share and log normalizer, if any."""
    draw_key, target_key = jax.random.split(key)
    hyper, ell = state.hyperparameters, None
    if agent.config.target == "weighted":
        clean, ell = agent.chains.paths(state.paths, state.average, observation, draw_key, hyper)
    else:
        clean = agent.sample_unsquashed(state, state.average, observation, draw_key)
    target, _, metrics = agent.score_target(state, setting.separation, observation, clean, target_key, ell)
    paths, _ = agent.chains.follow(
        state.paths, state.average, observation, Drawn(clean, clean, ell), target, metrics, hyper
    )
    state = regress(agent, state, observation, target, rate)._replace(paths=paths)
    names = ("path/effective_share", "path/log_normalizer")
    return state, jnp.stack([metrics[n].total if n in metrics else jnp.full((), jnp.nan) for n in names])


def replay_step(
    agent: Any, state: Any, setting: Setting, observation: jax.Array, key: jax.Array, rate: Any
) -> tuple[Any, jax.Array]:
    """One update of published QSM's score network on replay actions."""
    draw_key, target_key = jax.random.split(key)
    action = start_actions(setting, draw_key, (observation.shape[0], agent.action_size))
    batch = Transition(observation, action, action[:, 0], action[:, 0], observation)
    target, _, _ = agent.score_target(setting.separation, state.hyperparameters, batch, target_key)
    return regress(agent, state, observation, target, rate), jnp.full(2, jnp.nan)


def fit(agent: Any, state: Any, setting: Setting, observation: jax.Array, key: jax.Array) -> Any:
    """`state` with a score network that was fitted to the two modes of `setting`; as it is if that is fresh."""

    def step(state: Any, index: jax.Array) -> tuple[Any, None]:
        draw_key, noise_key = jax.random.split(jax.random.fold_in(key, index))
        action = start_actions(setting, draw_key, (observation.shape[0], agent.action_size))
        noised = agent.denoiser.add_noise(jnp.arctanh(action), noise_key)
        return regress(agent, state, observation, score.ScoreTarget(*noised), 2e-3), None

    fitted, _ = jax.lax.scan(step, state, jnp.arange(FIT_UPDATES))
    return jax.tree.map(lambda old, new: jnp.where(setting.start < 0, old, new), state, fitted)


def train(target: str, options: Options, settings: list[Any]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Samples `[S, N, A]` of all settings after each quarter of the updates, and means `[S, 2]` of what was measured.

    One program serves all quarters, for compiling takes longer than running.
    """
    agent, is_published = analytic(target, options), target.startswith("published")
    observation, quarter = jnp.zeros((options.batch_size, 1)), options.updates // 4
    step = replay_step if is_published else on_policy_step
    starts_fresh = is_published or all(start < 0 for _, _, start, _ in settings)

    def stream(setting: Setting, purpose: int) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(0), setting.seed), purpose)

    def prepare(setting: Setting) -> Any:
        state = start_state(agent, target, setting, stream(setting, 0))
        return state if starts_fresh else fit(agent, state, setting, observation, stream(setting, 1))

    def advance(state: Any, setting: Setting, begin: jax.Array) -> tuple[Any, jax.Array]:
        def match(state: Any, index: jax.Array) -> tuple[Any, jax.Array]:
            rate = 2e-3 * (0.5 * (1 + jnp.cos(jnp.pi * index / options.updates)) + 0.05)
            key = jax.random.fold_in(stream(setting, 2), index)
            return step(agent, state, setting, observation, key, rate)

        state, trace = jax.lax.scan(match, state, begin + jnp.arange(quarter))
        return state, trace[-200:].mean(axis=0)

    def draw(state: Any, setting: Setting, index: jax.Array) -> jax.Array:
        source = state.score.params if is_published else state
        key = jax.random.fold_in(stream(setting, 3), index)
        return agent.sample(source, jnp.zeros((NUM_SAMPLES, 1)), key)

    all_settings = Setting(*(jnp.asarray(column) for column in zip(*settings, strict=True)))
    state = jax.jit(jax.vmap(prepare))(all_settings)
    advance_all, draw_all = (jax.jit(jax.vmap(f, in_axes=(0, 0, None))) for f in (advance, draw))
    samples = [draw_all(state, all_settings, 0)]
    measured = [jnp.full((len(settings), 2), jnp.nan)]
    for index in range(4):
        state, means = advance_all(state, all_settings, index * quarter)
        samples.append(draw_all(state, all_settings, index + 1))
        measured.append(means)
    return [np.asarray(x) for x in samples], [np.asarray(x) for x in measured]


def rows(target: str, options: Options, settings: list[Any], samples: Any, measured: Any) -> list[list[Any]]:
    """Lines of the table; a mode's width where it holds at least 1 % of the samples."""
    lines = []
    for i, (tau, separation, start, seed) in enumerate(settings):
        right = exact(separation, tau)
        log_exact = right["log"] + (options.dimensions - 1) * right["log_other"]
        for quarter, (run, means) in enumerate(zip(samples, measured, strict=True)):
            actions, (share, log_normalizer) = run[i], means[i]
            updates = quarter * (options.updates // 4)
            first, others = actions[:, 0], actions[:, 1:]
            sides = (first[first < 0], first[first >= 0])
            stds = [f"{side.std():.3f}" if len(side) >= 0.01 * len(first) else "" for side in sides]
            stds.append(f"{others.std():.3f}" if options.dimensions > 1 else "")
            exact_stds = [f"{right[name]:.3f}" for name in ("left_std", "right_std", "other_std")]
            line = [
                target,
                options.dimensions,
                tau,
                separation,
                "fresh" if start < 0 else start,
                seed,
                updates,
            ]
            line += [f"{(first < 0).mean():.3f}", f"{right['mass']:.3f}"]
            line += [entry for pair in zip(stds, exact_stds, strict=True) for entry in pair]
            line += ["" if np.isnan(x) else f"{x:.2f}" for x in (share, log_normalizer)]
            lines.append([*line, f"{log_exact:.2f}"])
    return lines


def main(options: Options) -> None:
    """Trains every setting under each target and writes the table."""
    values = [[float(x) for x in texts] for texts in (options.taus, options.separations)]
    starts = [-1.0 if text == "fresh" else float(text) for text in options.starts]
    settings = list(itertools.product(*values, starts, range(options.num_seeds)))
    lines = []
    for target in options.targets:
        began = time.monotonic()
        lines += rows(target, options, settings, *train(target, options, settings))
        options.output.parent.mkdir(parents=True, exist_ok=True)
        with options.output.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *lines])
        print(
            f"{target}: {time.monotonic() - began:.0f} s, {len(lines)} lines in {options.output}", flush=True
        )


if __name__ == "__main__":
    main(read_arguments(Options, __doc__)["options"])
