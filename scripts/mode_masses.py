"""How Q-score matching divides its samples between two modes, beside the exact Boltzmann masses.

    python scripts/mode_masses.py [--output results/mode_masses/mode_masses.csv]

No critic and no environment: exp(Q/tau) is a mixture of two Gaussians of std 0.1 at -d and +d, weighted 0.7 and
0.3, and the real score network is trained on the agents' own targets. qsm-clean (10 levels, tau = 1) trains on its
own samples, from a network that was fitted to the two modes with a given left mass, or from a fresh one. qsm as
published (5 levels) has M_q = sigma_1, so tau = 1 at the lowest level, and takes replay actions with that left mass,
or uniform ones. All settings train side by side in one program. docs/qsm-clean.md reads the result.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import agents
from agents.parts import critic, optimizer
from agents.parts.types import Transition
from qsm.command.script import read_arguments

LEFT_WEIGHT, STD = 0.7, 0.1
SEPARATIONS = (0.2, 0.35, 0.5)  # d
STARTS = (0.1, 0.5, 0.9, -1.0)  # left mass; -1 stands for fresh
SEEDS = (0, 1, 2)
BATCH_SIZE, NUM_SAMPLES = 128, 4000
FIT_UPDATES, CHECKPOINTS = 1000, (0, 500, 1000, 2000)  # of the target that is measured
NETWORKS = {"hidden_sizes": (32, 32), "time_embedding_size": 16, "time_hidden_sizes": (16,)}
COLUMNS = ("target", "separation", "start", "seed", "updates", "left_mass", "boltzmann_mass")
MOMENTS = ("left_mean", "left_std", "right_mean", "right_std")


@dataclasses.dataclass(frozen=True)
class Options:
    """Two-mode measurement of both score targets."""

    output: Path = Path("results/mode_masses/mode_masses.csv")


class Setting(NamedTuple):
    """One run: half the distance between modes, left mass at the start and seed."""

    separation: jax.Array
    start: jax.Array
    seed: jax.Array


def log_density(action: Any, separation: Any) -> Any:
    """Q/tau of actions of any shape, up to a constant."""
    left = jnp.log(LEFT_WEIGHT) - 0.5 * jnp.square((action + separation) / STD)
    right = jnp.log(1 - LEFT_WEIGHT) - 0.5 * jnp.square((action - separation) / STD)
    return jnp.logaddexp(left, right)


def boltzmann_mass(separation: float) -> float:
    """Share of exp(Q/tau) on [-1, 1] that lies left of zero."""
    grid = np.linspace(-1, 1, 20001)
    density = np.exp(np.asarray(log_density(grid, separation), np.float64))
    return float(density[grid < 0].sum() / density.sum())


@dataclasses.dataclass(frozen=True)
class MixtureCritic(critic.Critic):
    """Critics of one action whose value is `log_density`; their parameters are the separation."""

    def action_gradient(self, params: Any, observation: jax.Array, action: jax.Array) -> Any:
        value, gradient = jax.value_and_grad(lambda a: log_density(a, params).sum())(action)
        return jnp.broadcast_to(value, action.shape[:1]), gradient


def analytic(name: str, **options: Any) -> Any:
    """Agent `name` on one action, with `MixtureCritic`."""
    plain: Any = agents.make_agent(name, 1, 1, **NETWORKS, **options)
    mixture = MixtureCritic(plain.critic.network, plain.critic.head)
    changed = type(type(plain).__name__, (type(plain),), {"critic": property(lambda self: mixture)})
    return changed(plain.config, 1, 1)


def start_actions(setting: Setting, key: jax.Array) -> jax.Array:
    """Actions `[B, 1]` of both modes with the left mass of `setting`; uniform ones if it is fresh."""
    side_key, noise_key, uniform_key = jax.random.split(key, 3)
    side = jnp.where(jax.random.uniform(side_key, (BATCH_SIZE, 1)) < setting.start, -1.0, 1.0)
    modes = side * setting.separation + STD * jax.random.normal(noise_key, (BATCH_SIZE, 1))
    uniform = jax.random.uniform(uniform_key, (BATCH_SIZE, 1), minval=-1.0)
    return jnp.clip(jnp.where(setting.start < 0, uniform, modes), -0.99, 0.99)


def score_step(agent: Any, state: Any, setting: Setting, clean: jax.Array, key: jax.Array, fit: bool) -> Any:
    """One update of the score network; `fit` learns the distribution of `clean` instead of matching Q's score."""
    observation, denoiser = jnp.zeros((BATCH_SIZE, 1)), agent.denoiser
    if hasattr(state, "average"):
        target, _, _ = agent.score_target(state, setting.separation, observation, clean, key)
    else:
        batch = Transition(observation, clean, clean[:, 0], clean[:, 0], observation)
        scale = state.hyperparameters["score_scale"]
        target, _ = agent.score_target(setting.separation, scale, batch, key)
    if fit:
        root, sigma = (
            jnp.asarray(x, jnp.float32)[target.level - 1][:, None]
            for x in (denoiser.schedule.abar**0.5, denoiser.schedule.sigma)
        )
        target = target._replace(noise=(target.noised - root * clean) / sigma)
    learned, _ = optimizer.descend(denoiser.loss, state.score, 2e-3, observation, target)
    state = state._replace(score=learned)
    if not hasattr(state, "average"):
        return state
    average = optimizer.polyak(state.average, learned.params, state.hyperparameters["draw_rate"])
    return state._replace(average=average)


def train(agent: Any, is_clean: bool, setting: Setting) -> jax.Array:
    """Samples `[C, N]` at each checkpoint of one run."""
    stream = jax.random.fold_in(jax.random.key(0), setting.seed)
    init_key, fit_key, train_key, sample_key = jax.random.split(stream, 4)
    state = agent.init(init_key)
    if is_clean:
        state = state._replace(gradient_size=jnp.ones(()))

    def fit(state: Any, index: jax.Array) -> tuple[Any, None]:
        draw_key, target_key = jax.random.split(jax.random.fold_in(fit_key, index))
        clean = jnp.arctanh(start_actions(setting, draw_key))
        return score_step(agent, state, setting, clean, target_key, fit=True), None

    def match(state: Any, index: jax.Array) -> tuple[Any, None]:
        draw_key, target_key = jax.random.split(jax.random.fold_in(train_key, index))
        if is_clean:
            clean = agent.sample_unsquashed(state, state.average, jnp.zeros((BATCH_SIZE, 1)), draw_key)
        else:
            clean = start_actions(setting, draw_key)
        return score_step(agent, state, setting, clean, target_key, fit=False), None

    if is_clean:
        fitted, _ = jax.lax.scan(fit, state, jnp.arange(FIT_UPDATES))
        state = jax.tree.map(lambda old, new: jnp.where(setting.start < 0, old, new), state, fitted)
    samples = []
    for index, (begin, end) in enumerate(zip((0, *CHECKPOINTS), CHECKPOINTS, strict=False)):
        state, _ = jax.lax.scan(match, state, jnp.arange(begin, end))
        source = state if is_clean else state.score.params
        samples.append(
            agent.sample(source, jnp.zeros((NUM_SAMPLES, 1)), jax.random.fold_in(sample_key, index))
        )
    return jnp.stack(samples)[..., 0]


def rows(target: str, settings: Sequence[tuple[float, float, int]], samples: np.ndarray) -> list[list[Any]]:
    """Lines of the table: masses, and each mode's place and width where it holds at least 1 % of the samples."""
    lines = []
    for (separation, start, seed), run in zip(settings, samples, strict=True):
        for updates, actions in zip(CHECKPOINTS, run, strict=True):
            moments = []
            for side in (actions[actions < 0], actions[actions >= 0]):
                enough = len(side) >= 0.01 * len(actions)
                moments += [f"{side.mean():.3f}", f"{side.std():.3f}"] if enough else ["", ""]
            label = "fresh" if start < 0 else start
            mass, exact = f"{(actions < 0).mean():.3f}", f"{boltzmann_mass(separation):.3f}"
            lines.append([target, separation, label, seed, updates, mass, exact, *moments])
    return lines


def main(options: Options) -> None:
    """Trains every setting under both targets and writes the table."""
    clean = analytic(
        "qsm-clean", inverse_temperature=1.0, gradient_size_rate=0.0, draw_rate=0.02, sample_clip=3.0
    )
    sigma = float(analytic("qsm").denoiser.schedule.sigma[0])
    published = analytic("qsm", score_scale=sigma)
    settings = list(itertools.product(SEPARATIONS, STARTS, SEEDS))
    columns = [jnp.asarray(column) for column in zip(*settings, strict=True)]
    lines = []
    for name, agent, is_clean in (("clean", clean, True), ("published", published, False)):
        run = jax.jit(jax.vmap(lambda *setting, a=agent, c=is_clean: train(a, c, Setting(*setting))))
        lines += rows(name, settings, np.asarray(run(*columns)))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS + MOMENTS, *lines])
    print(f"wrote {len(lines)} lines to {options.output}")


if __name__ == "__main__":
    main(read_arguments(Options, __doc__)["options"])
