"""Ends of episodes, fresh starts, non-finite simulations and action repeat of environments stepped together."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.api import DeviceEnvironment, DeviceState, StepType
from envs.vector import Arrival, VectorEnvironment, VectorState
from tests.probe_device_environments import ActionReward, Counter, Fragile, Terminating

KEY = 7  # of every run
# Without the optimizer compiling takes half the time, nearly all of it spent on the hashing of keys.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
# Shared where a test runs one program several times: probes are hashed by identity.
COUNTER = Counter(episode_steps=2)
FRAGILE = Fragile(episode_steps=5)


def zeros(num_steps: int, num_envs: int) -> jax.Array:
    return jnp.zeros((num_steps, num_envs, 1))


def play(
    environment: VectorEnvironment, state: VectorState, actions: jax.Array, key: jax.Array
) -> tuple[VectorState, tuple[Arrival, VectorState]]:
    """Steps under `actions` `[T, N, A]`: the state in the end, arrivals and states `[T, ...]`."""

    def tick(state: VectorState, action: jax.Array) -> tuple[VectorState, tuple[Arrival, VectorState]]:
        state, arrival = environment.step(state, action, key)
        return state, (arrival, state)

    return jax.lax.scan(tick, state, actions)


@functools.partial(jit, static_argnums=0)
def program(device: DeviceEnvironment, key: jax.Array, actions: jax.Array) -> Any:
    """A run from its reset: the FIRST steps, then arrivals and states `[T, N, ...]`."""
    environment = VectorEnvironment(device, actions.shape[1])
    state, first = environment.reset(key)
    _, (arrivals, states) = play(environment, state, actions, key)
    return first, arrivals, states


def run(device: DeviceEnvironment, actions: jax.Array, seed: int = KEY) -> tuple[Any, Arrival, VectorState]:
    """`program` of one seed, as NumPy arrays."""
    return jax.tree.map(np.asarray, program(device, jax.random.key(seed), actions))


def assert_equal(left: Any, right: Any) -> None:
    """Bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_a_time_limit_keeps_the_last_observation_and_discount_1():
    first, arrivals, states = run(Counter(episode_steps=3), zeros(7, 2))
    assert (first.step_type == StepType.FIRST).all() and (first.observation[:, 1] == 0).all()
    step = arrivals.time_step
    for env in range(2):
        np.testing.assert_array_equal(step.observation[:, env, 1], [1, 2, 3, 1, 2, 3, 1])
        np.testing.assert_array_equal(step.step_type[:, env], [1, 1, 2, 1, 1, 2, 1])
        np.testing.assert_array_equal(arrivals.is_reset[:, env], [0, 0, 1, 0, 0, 1, 0])
        np.testing.assert_array_equal(states.elapsed[:, env], [1, 2, 0, 1, 2, 0, 1])
    assert (step.discount == 1).all() and (step.reward == 1).all() and arrivals.is_valid.all()
    ends = arrivals.is_reset
    assert (arrivals.first.step_type == StepType.FIRST).all()
    assert (arrivals.first.observation[ends][:, 1] == 0).all()
    # What is acted on next: the new episode's first observation, else the arrival's.
    np.testing.assert_array_equal(states.current.observation, arrivals.first.observation)
    np.testing.assert_array_equal(states.current.observation[~ends], step.observation[~ends])


def test_types_are_those_of_the_host():
    first, arrivals, _ = run(Counter(), zeros(1, 2))
    for step in (first, arrivals.time_step, arrivals.first):
        assert [field.dtype for field in step] == [np.int8, np.float32, np.float32, np.float32]


def test_a_termination_has_discount_0_and_every_episode_another_start():
    num_steps, num_envs = 60, 5
    first, arrivals, states = run(Terminating(longest=7), zeros(num_steps, num_envs))
    step, ends = arrivals.time_step, arrivals.is_reset
    assert ends.sum() > 50 and (ends.sum(axis=1) < num_envs).any()  # staggered
    np.testing.assert_array_equal(step.step_type == StepType.LAST, ends)
    np.testing.assert_array_equal(step.discount, np.where(ends, 0, 1))
    # Observations count on to the end, and the episode's own draw stays.
    draw, count = first.observation[:, 0].copy(), np.zeros(num_envs)
    for tick in range(num_steps):
        count += 1
        np.testing.assert_array_equal(step.observation[tick], np.stack([draw, count], axis=1))
        draw = np.where(ends[tick], arrivals.first.observation[tick, :, 0], draw)
        count[ends[tick]] = 0
    starts = np.concatenate([first.observation[:, 0], arrivals.first.observation[ends][:, 0]])
    assert len(set(starts.tolist())) == len(starts)
    assert states.num_refills[-1] > 3
    assert (states.available >= 0).all() and (states.available < num_envs).all()


@pytest.mark.parametrize("num_envs", [1, 4])
def test_starts_are_drawn_only_when_the_pool_is_too_small(num_envs: int):
    drawn = 0

    def count(_: Any) -> None:
        nonlocal drawn
        drawn += 1

    class Counted(Terminating):
        def reset(self, key: jax.Array) -> DeviceState:
            state = super().reset(key)
            jax.debug.callback(count, state.physics.draw)
            return state

    _, arrivals, states = run(Counted(longest=6), zeros(40, num_envs))
    jax.effects_barrier()
    assert drawn == num_envs * states.num_refills[-1]
    available, num_refills = 0, 1
    for tick in range(40):
        needed = arrivals.is_reset[tick].sum()
        if needed > available:
            available, num_refills = num_envs, num_refills + 1
        available -= needed
        assert (states.available[tick], states.num_refills[tick]) == (available, num_refills)


@pytest.mark.parametrize("action", [1.0, -1.0])
def test_a_non_finite_simulation_starts_anew_and_leaves_the_others_alone(action: float):
    actions = zeros(6, 3).at[2, 1].set(action)
    first, arrivals, states = run(FRAGILE, actions)
    _, undisturbed, _ = run(FRAGILE, zeros(6, 3))
    expected = np.ones((6, 3), bool)
    expected[2, 1] = False
    np.testing.assert_array_equal(arrivals.is_valid, expected)
    assert arrivals.is_reset[2].tolist() == [False, True, False]
    assert arrivals.time_step.step_type[2].tolist() == [StepType.MID] * 3
    # The environment begins another episode, whose time limit counts from there.
    assert arrivals.first.observation[2, 1, 1] == 0
    assert arrivals.first.observation[2, 1, 0] not in first.observation[:, 0]
    np.testing.assert_array_equal(states.elapsed[:, 1], [1, 2, 0, 1, 2, 3])
    for env in (0, 2):  # up to the end of their episode: the next start is another one of the pool
        for field, same in zip(arrivals.time_step, undisturbed.time_step, strict=True):
            np.testing.assert_array_equal(field[:5, env], same[:5, env])
    for leaf in jax.tree.leaves((arrivals, states.current, states.pool)):
        assert np.isfinite(leaf).all()


def test_a_simulation_that_breaks_within_a_repeat_starts_anew():
    _, arrivals, states = run(Fragile(episode_steps=9, action_repeat=3), jnp.ones((1, 2, 1)))
    assert not arrivals.is_valid.any() and arrivals.is_reset.all()
    assert (states.elapsed == 0).all() and np.isfinite(arrivals.time_step.observation).all()


def test_action_repeat_sums_and_stops_at_the_limit():
    actions = jnp.full((4, 2, 1), 0.8)
    _, arrivals, states = run(ActionReward(episode_steps=7, action_repeat=3), actions)
    each = 0.75
    for env in range(2):
        np.testing.assert_allclose(
            arrivals.time_step.reward[:, env], [3 * each, 3 * each, each, 3 * each], 1e-6
        )
        np.testing.assert_array_equal(arrivals.time_step.observation[:, env, 1], [3, 6, 7, 3])
        np.testing.assert_array_equal(arrivals.time_step.step_type[:, env], [1, 1, 2, 1])
        np.testing.assert_array_equal(states.elapsed[:, env], [3, 6, 0, 3])
    assert (arrivals.time_step.discount == 1).all()


def test_action_repeat_stops_at_a_termination():
    _, arrivals, _ = run(Terminating(longest=6, action_repeat=4), zeros(30, 3))
    step, ends = arrivals.time_step, arrivals.is_reset
    np.testing.assert_array_equal(step.discount, np.where(ends, 0, 1))
    lengths = step.observation[..., 1]
    assert set(lengths[~ends].tolist()) == {4.0} and set(lengths[ends].tolist()) == {1, 2, 3, 4, 5, 6}
    # One reward a control step: 4 for a whole repeat, the rest where the episode ended within it.
    np.testing.assert_array_equal(step.reward, np.where(lengths > 4, lengths - 4, lengths))


def test_seeds_together_are_each_alone():
    device, seeds, actions = Terminating(longest=5), [11, 12], zeros(25, 3)
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    together = jax.vmap(program, in_axes=(None, 0, None))(device, keys, actions)
    together = jax.tree.map(np.asarray, together)
    # The two need fresh starts at different ticks, so one is computed along with the other in vain.
    refilled = np.diff(together[2].num_refills, axis=1)
    assert (refilled[0] != refilled[1]).any()
    for lane, seed in enumerate(seeds):
        assert_equal(jax.tree.map(lambda leaf, lane=lane: leaf[lane], together), run(device, actions, seed))


def test_resumed_from_a_saved_state_is_going_on():
    environment = VectorEnvironment(Terminating(longest=5), 3)
    actions = zeros(12, 3)
    go_on = jit(lambda state, key: play(environment, state, actions, key))
    state, _ = jit(environment.reset)(jax.random.key(KEY))
    halfway, _ = go_on(state, jax.random.key(KEY))
    saved = jax.tree.map(np.asarray, halfway)  # what a checkpoint would hold
    end, told = go_on(halfway, jax.random.key(KEY))
    same_end, same_told = go_on(jax.tree.map(jnp.asarray, saved), jax.random.key(KEY))
    assert_equal((end, told), (same_end, same_told))
    assert end.num_refills > halfway.num_refills


def test_starts_depend_on_the_key_only():
    first, arrivals, _ = run(COUNTER, zeros(4, 2))
    other_actions = run(COUNTER, zeros(4, 2) + 1)
    assert_equal((first, arrivals), other_actions[:2])
    other_key = run(COUNTER, zeros(4, 2), seed=KEY + 1)
    assert not np.array_equal(first.observation, other_key[0].observation)


def test_the_state_may_be_donated():
    environment = VectorEnvironment(Counter(episode_steps=2), 2)
    state, _ = jit(environment.reset)(jax.random.key(KEY))
    step = jit(environment.step, donate_argnums=0)
    for _ in range(3):
        state, arrival = step(state, jnp.zeros((2, 1)), jax.random.key(KEY))
        np.testing.assert_array_equal(environment.observation(state), arrival.first.observation)


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_envs is 0; it must be 1 or more"):
        VectorEnvironment(Counter(), 0)
    assert VectorEnvironment(Counter(), 2).spec.task == "Counter"


@pytest.mark.parametrize(("episode_steps", "repeat"), [(5, 1), (5, 2), (4, 2), (1, 1), (3, 7)])
def test_environments_are_put_out_of_step_uniformly_and_in_whole_actions(episode_steps: int, repeat: int):
    environment = VectorEnvironment(Counter(episode_steps, repeat), 3000)
    state, _ = environment.reset(jax.random.key(0))
    after = environment.put_out_of_step(state, jax.random.key(1))
    expected = list(range(0, episode_steps, repeat))
    values, counts = np.unique(after.elapsed, return_counts=True)
    assert values.tolist() == expected
    assert after.elapsed.dtype == state.elapsed.dtype
    assert np.all(np.abs(counts - 3000 / len(expected)) < 5 * np.sqrt(3000))
    jax.tree.map(np.testing.assert_array_equal, after._replace(elapsed=state.elapsed), state)
