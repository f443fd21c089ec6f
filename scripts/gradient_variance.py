"""How much the gradient of a diffusion policy varies from batch to batch, by each way to it, against the levels T.

    python scripts/gradient_variance.py

No learned critic and no environment: Q(s, a) = -|a - tanh(s_1..s_A)|^2, states standard normal, replay actions
uniform, and the same fresh score network for every agent, with its own chain and its own loss: qsm's regression onto
the action gradient, diffusion-ql's gradient of Q through the chain, and diffusion-pg's gradient of log densities, with
and without its baseline. Losses have different scales, so what is compared is the total variance of the gradient over
the squared length of its mean; its square root is the noise of a batch in units of the signal. docs/diffusion-pg.md
reads the result.
"""

from __future__ import annotations

import csv
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import agents
from agents.parts import critic
from agents.parts.types import Transition
from qsm.command.script import read_arguments

matplotlib.use("Agg")

NAMES = ("qsm", "diffusion-ql", "diffusion-pg")
COLUMNS = ("gradient", "levels", "batch_size", "batches", "squared_mean", "variance", "relative_variance")


@dataclasses.dataclass(frozen=True)
class Options:
    """Variance of gradients."""

    levels: tuple[int, ...] = (5, 10, 25, 50)
    batch_size: int = 256
    batches: int = 80
    actions: int = 3
    width: int = 32
    seed: int = 0
    output: Path = Path("results/paper/gradient_variance.csv")
    """CSV file to write; the figure stands beside it."""


class QuadraticCritic(critic.Critic):
    """Critics of value -|a - tanh(s_1..s_A)|^2, whatever their parameters."""

    def value(self, params: Any, observation: jax.Array, action: jax.Array) -> jax.Array:
        value = -jnp.square(action - jnp.tanh(observation)).sum(axis=1)
        return jnp.stack([value, value])


def analytic(name: str, num_levels: int, options: Options) -> Any:
    """Agent `name` with `QuadraticCritic`, at its defaults but for its sizes; equation 9 as it is."""
    values: dict[str, Any] = {"denoising_steps": num_levels, "hidden_sizes": (options.width,) * 2}
    if name == "diffusion-pg":
        values["inward_gradient"] = False
    plain: Any = agents.make_agent(name, options.actions, options.actions, **values)
    quadratic = QuadraticCritic(plain.critic.network, plain.critic.head)
    changed = type(type(plain).__name__, (type(plain),), {"critic": property(lambda self: quadratic)})
    return changed(plain.config, options.actions, options.actions)


def fresh(options: Options) -> Any:
    """Parameters of the score network, which are the same for every agent and number of levels."""
    denoiser = analytic("qsm", 1, options).denoiser
    return jax.jit(lambda key: denoiser.start(key).params)(jax.random.key(options.seed))


def gradients_of(
    name: str, num_levels: int, params: Any, options: Options
) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """`gradients(key)`, the gradient `[P]` of one batch that `key` draws, by each way of agent `name`."""
    agent = analytic(name, num_levels, options)
    hyper, num_states = agent.hyperparameters(), options.batch_size

    def gradients(key: jax.Array) -> dict[str, jax.Array]:
        state_key, action_key, key = jax.random.split(key, 3)
        shape = num_states, options.actions
        observation = jax.random.normal(state_key, shape)
        action = jax.random.uniform(action_key, shape, minval=-1.0)
        batch = Transition(observation, action, action[:, 0], action[:, 0], observation)
        if name == "qsm":
            target, _, _ = agent.score_target((), hyper, batch, key)
            ways = {name: (agent.denoiser.loss, (observation, target))}
        elif name == "diffusion-ql":
            ways = {name: (agent.actor_loss, ((), hyper, batch, key))}
        else:
            num_chains = agent.config.chains_per_state
            observation = jnp.repeat(observation[: num_states // num_chains], num_chains, axis=0)
            states = agent.states(params, hyper, observation, key)
            value = agent.critic.reduced_value((), observation, jnp.tanh(states[0]))
            weights = {name: agent.advantage(value), f"{name}, no baseline": value}
            ways = {
                way: (agent.actor_loss, (hyper, observation, states, weight))
                for way, weight in weights.items()
            }
        return {
            way: jax.flatten_util.ravel_pytree(jax.grad(loss, has_aux=True)(params, *inputs)[0])[0]
            for way, (loss, inputs) in ways.items()
        }

    return gradients


def variance_of(gradients: np.ndarray) -> float:
    """Total variance of one batch's gradient, from `[N, P]` of independent batches."""
    return float(np.asarray(gradients, np.float64).var(axis=0, ddof=1).sum())


def squared_mean_of(gradients: np.ndarray) -> float:
    """Squared length of the mean of gradients `[N, P]`, without what its own noise adds to it in expectation."""
    gradients = np.asarray(gradients, np.float64)
    return float(np.square(gradients.mean(axis=0)).sum()) - variance_of(gradients) / len(gradients)


def draw(found: dict[str, list[tuple[int, float]]], file: Path) -> None:
    """A curve of relative variances over the levels for each way."""
    figure, axes = plt.subplots(figsize=(5.2, 4.0), constrained_layout=True)
    for way, curve in found.items():
        name, _, has_no_baseline = way.partition(", ")
        style = agents.AGENTS[name].style
        face = "none" if has_no_baseline else style.color
        axes.plot(
            *zip(*curve, strict=True),
            color=style.color,
            ls=style.dashes,
            marker=style.marker,
            mfc=face,
            label=way,
        )
    levels = [level for level, _ in next(iter(found.values()))]
    axes.set(xscale="log", yscale="log", xlabel="levels T", ylabel="variance of one batch / squared mean")
    axes.set_xticks(levels, [str(level) for level in levels])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(file, dpi=110)


def main(options: Options) -> None:
    """Measures every way at every number of levels; writes the table and the figure."""
    began, lines, params = time.monotonic(), [], fresh(options)
    found: dict[str, list[tuple[int, float]]] = {}
    keys = jax.random.split(jax.random.key(options.seed + 1), options.batches)
    for num_levels in options.levels:
        for name in NAMES:
            gradients = gradients_of(name, num_levels, params, options)
            drawn = jax.jit(lambda keys, of=gradients: jax.lax.map(of, keys))(keys)
            # All ways of an agent have one mean: that of the first, which varies least.
            squared_mean = squared_mean_of(np.asarray(drawn[name]))
            for way, values in drawn.items():
                variance = variance_of(np.asarray(values))
                found.setdefault(way, []).append((num_levels, variance / squared_mean))
                numbers = [f"{x:.4g}" for x in (squared_mean, variance, variance / squared_mean)]
                lines.append([way, num_levels, options.batch_size, options.batches, *numbers])
                print(f"T = {num_levels:3}  {way:26}  relative variance {numbers[-1]}", flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *lines])
    draw(found, options.output.with_suffix(".png"))
    print(f"{time.monotonic() - began:.0f} s; {options.output} and the figure beside it")


if __name__ == "__main__":
    main(read_arguments(Options, __doc__)["options"])
