"""A run divided over eight devices is the run on one, whether seeds or environments and batches are divided."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.sac import SAC, SACConfig
from envs.vector import VectorEnvironment
from qsm.learning.learner import Learner
from qsm.learning.placement import Placement
from qsm.learning.programs import TrainState
from qsm.learning.seeds import CPU_SEEDS, each_seed
from qsm.loops.device_loop import DeviceLoop
from qsm.loops.schedule import Counters
from qsm.options.run import RunConfig
from tests.probe_device_environments import ActionReward

TICKS, UPDATES = 4, 10
CONFIG = SACConfig(hidden_sizes=(8,), batch_size=16)


class Double(SAC):
    """SAC in float64, where that is switched on."""

    def init(self, key: jax.Array) -> Any:
        return jax.tree.map(
            lambda leaf: leaf.astype(float) if leaf.dtype == np.float32 else leaf, super().init(key)
        )


def advanced(num_devices: int | None, seeds: tuple[int, ...], num_envs: int) -> TrainState:
    """An agent after random ticks and `UPDATES` updates."""
    agent = Double(CONFIG, 2, 1)
    environment = VectorEnvironment(ActionReward(episode_steps=3), num_envs)
    placement = Placement(num_devices, len(seeds), num_envs, 16)
    learner = Learner(agent, environment.spec, seeds, 64 * num_envs, num_envs, placement)
    random_steps = TICKS * num_envs
    config = RunConfig(
        steps=10**6, random_steps=random_steps, replay_ratio=f"{UPDATES}/{num_envs}", num_envs=num_envs
    )
    loop = DeviceLoop(learner, environment, config)
    state, at = loop.tick(loop.begin(), Counters(0, 0), TICKS)
    state, at = loop.tick(state, at, 1)
    assert at.num_updates == UPDATES
    return state


def close(one: Any, other: Any, rtol: float) -> None:
    def compare(path: Any, a: Any, b: Any) -> None:
        scale = np.abs(b).max(initial=0)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(compare, jax.device_get(one), jax.device_get(other))


@pytest.mark.parametrize(
    ("seeds", "num_envs"),
    [pytest.param(tuple(range(8)), 2, marks=pytest.mark.slow), ((3,), 8)],
    ids=["seeds", "batch"],
)
@pytest.mark.parametrize(
    ("x64", "rtol"),
    [pytest.param(False, 1e-4, marks=pytest.mark.slow), (True, 1e-9)],
    ids=["float32", "float64"],
)
def test_eight_devices_learn_what_one_learns(seeds: tuple[int, ...], num_envs: int, x64: bool, rtol: float):
    assert len(jax.devices()) == 8
    with jax.enable_x64(x64):
        one = advanced(None, seeds, num_envs)
        eight = advanced(8, seeds, num_envs)
    leaf = eight.agent.critic.online.params["params"]
    leaf = jax.tree.leaves(leaf)[0]
    assert len(leaf.sharding.device_set) == 8
    rows = eight.replay.reward
    assert rows.sharding.shard_shape(rows.shape)[0 if len(seeds) == 8 else 2] == 1  # divided, not copied
    if x64:
        assert leaf.dtype == np.float64
    close(eight.agent, one.agent, rtol)
    close(eight.metrics, one.metrics, rtol)
    np.testing.assert_array_equal(eight.replay.step_type, one.replay.step_type)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((9, 9, 1, 1), "there are 8 devices here"),
        ((4, 3, 8, 6), "divides neither the 3 seeds nor both the 8 environments and the batch of 6"),
        ((4, 3, 2, 8), "choose numbers that it divides"),
    ],
)
def test_impossible_divisions_are_told(arguments: tuple[int, ...], message: str):
    with pytest.raises(ValueError, match=message):
        Placement(*arguments)


def test_seeds_are_divided_before_environments():
    assert Placement(4, 8, 8, 256).mode == "seeds"
    assert Placement(4, 6, 8, 256).mode == "batch"
    assert Placement(1, 1, 1, 1).mode == Placement().mode == "one"


@pytest.mark.parametrize("num_seeds", [1, CPU_SEEDS, CPU_SEEDS + 1, 2 * CPU_SEEDS + 3])
def test_each_seed_is_computed_as_if_alone(num_seeds: int):
    """One alone, some together, and more than that in turns, with a last turn of fewer."""

    def program(key: jax.Array, table: dict[str, jax.Array], step: jax.Array) -> dict[str, jax.Array]:
        noise = jax.random.normal(jax.random.fold_in(key, step), table["weights"].shape)
        return {
            "weights": table["weights"] @ table["weights"].T + noise @ noise.T,
            "count": table["count"] + step,
        }

    keys = jax.random.split(jax.random.key(0), num_seeds)
    table = {
        "weights": jnp.arange(num_seeds * 6, dtype=jnp.float32).reshape(num_seeds, 2, 3),
        "count": jnp.arange(num_seeds),
    }
    together = jax.jit(each_seed(program, (0, 0, None)))(jax.random.clone(keys), table, 7)
    for i in range(num_seeds):
        alone = program(keys[i], jax.tree.map(lambda leaf, i=i: leaf[i], table), jnp.asarray(7))
        for name, expected in alone.items():
            np.testing.assert_allclose(together[name][i], expected, rtol=1e-6)
