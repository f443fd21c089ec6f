"""MuJoCo Playground's tasks: names, what they share with dm_control, and their steps on real MJX.

Compiling MJX takes many seconds a program, so there are few of them, of the smallest models.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import sys
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from dm_control import suite

from envs import dmc, mjx, tasks
from envs.api import StepType
from envs.vector import VectorEnvironment

QUICK = ("cartpole-swingup", "cheetah-run", "pendulum-swingup", "walker-run")
# Where dm_control keeps what Playground moves as a mocap body.
TARGETS = {"finger": "site_xpos", "fish": "geom_xpos", "reacher": "geom_xpos", "swimmer": "geom_xpos"}

bindings: Any = mujoco  # its functions have no declared types
# Without the optimizer compiling takes two thirds of the time, and steps are few here.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def pendulum() -> mjx.MjxEnvironment:
    return mjx.make_env("pendulum-swingup")


def test_warp_is_not_imported_and_can_be_later():
    mjx.playground_suite()
    assert not importlib.import_module("mujoco.mjx.warp").WARP_INSTALLED
    assert not {"warp", "mujoco.mjx.third_party.mujoco_warp"} & set(sys.modules)  # None would forbid it


def test_names_are_playground_s():
    assert importlib.metadata.version("playground") == tasks.MJX_RECORDED_VERSION
    assert set(tasks.MJX_NAMES.values()) == set(mjx.playground_suite().ALL_ENVS)
    assert len(tasks.MJX_NAMES) == len(set(tasks.MJX_NAMES.values())) == 25
    names = tasks.task_names("mjx")
    assert names == tuple(name for name in tasks.RECORDED_NAMES if name in tasks.MJX_NAMES)
    assert set(names) > tasks.SAME_OBSERVATIONS


def check_against_dm_control(task: str) -> None:
    """At equal positions, velocities, actions and targets: observation, reward, sizes and timing."""
    ours: Any = mjx.load_playground(task)
    domain, _, name = task.partition("-")
    theirs = suite.load(domain, name, task_kwargs={"random": 0})
    physics, model = theirs.physics, ours.mj_model
    np.testing.assert_array_equal(model.actuator_ctrlrange, np.tile([-1.0, 1.0], (model.nu, 1)))
    np.testing.assert_array_equal(model.actuator_ctrlrange, physics.model.actuator_ctrlrange)
    config = ours._config
    assert config.episode_length // config.action_repeat == 1_000
    assert config.ctrl_dt == pytest.approx(theirs.control_timestep())
    assert ours.n_substeps * config.sim_dt == pytest.approx(config.ctrl_dt)

    random, differences = np.random.default_rng(0), []
    for _ in range(3):
        theirs.reset()
        physics.data.qpos[:] += 0.05 * random.standard_normal(model.nq)
        physics.data.qvel[:] = random.standard_normal(model.nv)
        bindings.mj_normalizeQuat(model, physics.data.qpos)
        physics.data.ctrl[:] = random.uniform(-1, 1, model.nu)
        physics.forward()
        data = bindings.MjData(model)
        data.qpos[:], data.qvel[:], data.ctrl[:] = physics.data.qpos, physics.data.qvel, physics.data.ctrl
        if model.nmocap:
            data.mocap_pos[0] = getattr(physics.named.data, TARGETS[domain])["target"]
        # The kinematics by mujoco itself: only Playground's own functions are looked at.
        bindings.mj_forward(model, data)
        device_data = importlib.import_module("mujoco.mjx").put_data(model, data, impl="jax")
        with jax.numpy_rank_promotion("allow"):
            observation = ours._get_obs(device_data, {})
            reward = ours._get_reward(device_data, jnp.asarray(data.ctrl, jnp.float32), {}, {})
        expected = np.concatenate([np.ravel(x) for x in theirs.task.get_observation(physics).values()])
        assert isinstance(observation, jax.Array) and observation.shape == expected.shape
        differences.append(np.abs(observation - expected).max())
        assert float(reward) == pytest.approx(theirs.task.get_reward(physics), abs=1e-5)
    assert (max(differences) < 1e-5) == (task in tasks.SAME_OBSERVATIONS)


@pytest.mark.parametrize("task", QUICK)
def test_observations_and_rewards_at_equal_states(task: str):
    check_against_dm_control(task)


@pytest.mark.slow
@pytest.mark.parametrize("task", [task for task in tasks.MJX_NAMES if task not in QUICK])
def test_observations_and_rewards_at_equal_states_of_the_others(task: str):
    check_against_dm_control(task)


@pytest.mark.slow
def test_cartpole_steps_are_nearly_dm_control_s():
    ours, theirs = mjx.make_env("cartpole-swingup"), dmc.make_env("cartpole-swingup", seed=0)
    # The names of observations are dm_control's own.
    assert ours.spec == dataclasses.replace(theirs.spec, observation_entries=())
    first = theirs.reset()
    state = jit(ours.reset)(jax.random.key(0))
    data = theirs.physics.data
    # The warm start belongs to another state, but there is no constraint to solve here.
    qpos, qvel = (jnp.asarray(value, jnp.float32) for value in (data.qpos, data.qvel))
    state = state._replace(physics=state.physics._replace(qpos=qpos, qvel=qvel))
    step, former = jit(ours.step), first
    for action in np.random.default_rng(1).uniform(-1.5, 1.5, (20, 1)).astype(np.float32):  # clipped by both
        state, arrival = step(state, jnp.asarray(action)), theirs.step(action)
        # Euler here, Runge-Kutta there.
        np.testing.assert_allclose(state.physics.qpos, data.qpos, atol=0.02)
        np.testing.assert_allclose(state.physics.qvel, data.qvel, atol=0.1)
        assert float(state.reward) == pytest.approx(float(arrival.reward), abs=0.01)
        # The cart's position is new, the pole's angle that of one simulation step before.
        assert state.observation[0] == state.physics.qpos[0]
        np.testing.assert_allclose(state.observation[1:3], former.observation[1:3], atol=0.02)
        former = arrival
        assert state.valid and state.discount == 1
    broken = step(state._replace(physics=state.physics._replace(qvel=state.physics.qvel * jnp.nan)), action)
    assert not broken.valid


@pytest.mark.slow
def test_an_episode_of_1000_steps_and_environments_that_do_not_touch(pendulum: mjx.MjxEnvironment):
    environment = VectorEnvironment(pendulum, 2)
    actions = jnp.asarray(np.random.default_rng(2).uniform(-1, 1, (1_001, 2, 1)), jnp.float32)

    @jit
    def program(key: jax.Array) -> Any:
        begun, first = environment.reset(key)

        def tick(state: Any, action: jax.Array) -> Any:
            state, arrival = environment.step(state, action, key)
            return state, (arrival, state.current)

        return begun, first, jax.lax.scan(tick, begun, actions)[1]

    begun, first, (arrivals, states) = program(jax.random.key(3))
    assert pendulum.spec.episode_steps == 1_000
    expected = np.full((1_001, 2), StepType.MID)
    expected[999] = StepType.LAST
    np.testing.assert_array_equal(arrivals.time_step.step_type, expected)
    np.testing.assert_array_equal(arrivals.is_reset, expected == StepType.LAST)
    assert (arrivals.time_step.discount == 1).all() and arrivals.is_valid.all()
    assert not np.allclose(first.observation[0], first.observation[1])
    assert not np.allclose(arrivals.first.observation[999], first.observation)

    step = jit(pendulum.step)
    for env in range(2):
        state = jax.tree.map(lambda leaf, env=env: leaf[env], begun.current)
        for tick in range(10):
            state = step(state, actions[tick, env])
            together = jax.tree.map(lambda leaf, env=env, tick=tick: leaf[tick, env], states)
            jax.tree.map(
                lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6),
                state,
                together,
            )


def test_bad_arguments(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="Unknown task") as error:
        mjx.make_env("cheeta-run")
    message = "Unknown task 'cheeta-run'. Did you mean 'cheetah-run'? List tasks with: qsm tasks"
    assert str(error.value) == message
    with pytest.raises(ValueError, match="dog-run") as error:
        mjx.make_env("dog-run")
    assert str(error.value) == "Task 'dog-run' exists on dm_control only; drop --backend mjx"
    with pytest.raises(ValueError, match="Unknown backend 'brax'; it must be one of: dm_control, mjx"):
        tasks.check_task("cheetah-run", "brax")
    with pytest.raises(ValueError, match="action_repeat is 0; it must be 1 or more"):
        mjx.make_env("cheetah-run", action_repeat=0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the extra packages") as error:
        mjx.make_env("cheetah-run")
    assert str(error.value) == (
        "--backend mjx needs the extra packages mujoco-mjx and playground; "
        "install them with: pip install 'qsm[mjx]'"
    )
