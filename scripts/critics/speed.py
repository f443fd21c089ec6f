"""What each kind of critic costs: milliseconds of an update, in turns, for a busy machine slows all of them.

taskset -c 0 python scripts/critics/speed.py [--agents sac qsm-clean] [--kinds mlp simba ...]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import agents
from agents.parts.types import Transition
from qsm.speed.limits import SPEC

BLOCK, BLOCKS = 20, 7  # updates in a block, and blocks of each kind
SIMBA = {"critic_torso": "simba", "critic_head": "c51"}
KINDS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "simba": {"critic_torso": "simba"},
    "simbav2": {"critic_torso": "simbav2"},
    "batchnorm": {"critic_torso": "batchnorm"},
    "c51": {"critic_head": "c51"},
    "two_hot": {"critic_head": "two_hot"},
    "hl_gauss": {"critic_head": "hl_gauss"},
    "batchnorm+c51": {"critic_torso": "batchnorm", "critic_head": "c51"},
    "simba-128x1+c51": {**SIMBA, "critic_hidden_sizes": (128,)},
    "simba-128x2+c51": {**SIMBA, "critic_hidden_sizes": (128, 128)},
    "strong": {"preset": "strong"},
}
"""What is compared; widths are the default's, 256 and 256, where they are not named."""


def batch_of(size: int) -> Transition:
    """Random transitions."""
    keys = jax.random.split(jax.random.key(0), 4)
    observation, next_observation = (
        jax.random.normal(key, (size, SPEC.observation_size)) for key in keys[:2]
    )
    action = jnp.tanh(jax.random.normal(keys[2], (size, SPEC.action_size)))
    return Transition(
        observation, action, jax.random.normal(keys[3], (size,)), jnp.full(size, 0.99), next_observation
    )


def compiled(name: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """`BLOCK` updates as one program, and a state that it has been run on."""
    agent = agents.make_agent(name, SPEC.observation_size, SPEC.action_size, **options)
    batch = batch_of(agent.sampling.batch_size)

    def block(state: Any, key: jax.Array) -> Any:
        def one(i: jax.Array, state: Any) -> Any:
            return agent.update(state, batch, jax.random.fold_in(key, i), i + 1)[0]

        return jax.lax.fori_loop(0, BLOCK, one, state)

    program = jax.jit(block)
    return program, jax.block_until_ready(program(jax.jit(agent.init)(jax.random.key(0)), jax.random.key(1)))


def measure(name: str, kinds: list[str]) -> dict[str, np.ndarray]:
    """Milliseconds of an update of agent `name`, `[BLOCKS]` for each kind."""
    programs = {kind: compiled(name, KINDS[kind]) for kind in kinds}
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(BLOCKS):
        for kind, (program, state) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(state, jax.random.key(turn)))
            found[kind].append(1e3 * (time.perf_counter() - start) / BLOCK)
    return {kind: np.array(values) for kind, values in found.items()}


def main() -> None:
    """Prints a line for each kind: median and ratio to the first in the same turn, with what it ranged over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", nargs="+", default=["sac", "qsm-clean"], choices=agents.AGENTS)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    given = parser.parse_args()
    for name in given.agents:
        found = measure(name, given.kinds)
        first = found[given.kinds[0]]
        for kind, values in found.items():
            ratio = values / first
            print(
                f"{name:10} {kind:16} {np.median(values):8.2f} ms {1e3 / np.median(values):8.0f} updates/s"
                f"   {np.median(ratio):5.2f} times ({ratio.min():.2f} to {ratio.max():.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
