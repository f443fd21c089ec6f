"""Gridworlds: the process against its map, the environment against the process, what is refused, save and restore."""

from __future__ import annotations

import re

import numpy as np
import pytest

from envs.api import SimulationError, StepType
from envs.gridworld import ACTIONS, MOVES, TASKS, Gridworld, GridworldEnvironment, make_env, move_of
from envs.tasks import GRIDWORLD_NAMES, check_task, full_return

RIGHT, UP, LEFT, DOWN = range(4)
SMALL = Gridworld.parse(
    """
    S.G
    .#X
    """,
    slip=0.2,
    step_reward=-0.1,
)


def test_a_map_by_hand():
    """States: S 0, floor 1, G 2, floor 3, X 4."""
    np.testing.assert_array_equal(SMALL.states, [[0, 1, 2], [3, -1, 4]])
    np.testing.assert_array_equal(SMALL.cells, [[0, 0], [0, 1], [0, 2], [1, 0], [1, 2]])
    np.testing.assert_array_equal(SMALL.is_terminal, [False, False, True, False, True])
    np.testing.assert_array_equal(SMALL.start, [1, 0, 0, 0, 0])
    # From S: right slips up (stays) or down; up stays, slipping left stays, slipping right goes right.
    np.testing.assert_allclose(SMALL.transition[0, RIGHT], [0.1, 0.8, 0, 0.1, 0])
    np.testing.assert_allclose(SMALL.transition[0, UP], [0.9, 0.1, 0, 0, 0])
    np.testing.assert_allclose(SMALL.transition[0, LEFT], [0.9, 0, 0, 0.1, 0])
    np.testing.assert_allclose(SMALL.transition[0, DOWN], [0.1, 0.1, 0, 0.8, 0])
    # From the cell beside the goal, wall below and above.
    np.testing.assert_allclose(SMALL.transition[1, RIGHT], [0, 0.2, 0.8, 0, 0])
    np.testing.assert_allclose(SMALL.transition[1, UP], [0.1, 0.8, 0.1, 0, 0])
    np.testing.assert_allclose(SMALL.reward[1, [RIGHT, UP]], [0.8 - 0.02, 0.1 - 0.09])
    np.testing.assert_allclose(SMALL.reward[[2, 4]], 0.0)
    np.testing.assert_allclose(SMALL.transition[[2, 4]], np.eye(5)[[2, 4]][:, None].repeat(4, axis=1))


def test_entering_a_trap_costs_one():
    world = Gridworld.parse("XSG")
    np.testing.assert_array_equal(world.reward[1], [1, 0, -1, 0])


def test_without_a_start_an_episode_begins_on_any_floor():
    np.testing.assert_allclose(Gridworld.parse("..#X\n..G#").start, [0.25, 0.25, 0, 0.25, 0.25, 0])


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_a_process_with_a_way_out(task: str):
    world = TASKS[task].world
    np.testing.assert_allclose(world.transition.sum(axis=2), 1.0)
    assert world.transition.min() >= 0
    assert world.start[world.is_terminal].sum() == 0
    check_task(task)
    # A goal ends the episode and moves before it pay nothing: no episode yields more than it.
    assert full_return(task) == world.arrival_reward.max() and world.step_reward == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the map is empty"),
        ("..G\n..", "the map's row 2 has 2 cells and its first 3; make them as long"),
        (".?G", "the map has '?' in row 1, column 2; it may have the characters #.SGX"),
        ("...", "the map has no goal; mark one with G"),
        ("G#X", "the map has no floor to begin on; mark it with . or S"),
        (".#G\n.#.", "row 1, column 1 is cut off from every goal G"),
        ("..G\n###\n.X#", "row 3, column 1 is cut off"),
        ("G..X.", "row 1, column 5 is cut off"),
    ],
)
def test_a_map_that_is_none_is_refused(text: str, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        Gridworld.parse(text)


def test_numbers_that_cannot_be_are_refused():
    for slip in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="slip is"):
            Gridworld.parse(".G", slip)
    with pytest.raises(ValueError, match="step_reward is inf"):
        Gridworld.parse(".G", step_reward=float("inf"))
    with pytest.raises(
        ValueError, match=re.escape("Unknown gridworld 'gridworld-roms'; there are: gridworld-open")
    ):
        make_env("gridworld-roms", 0)
    with pytest.raises(ValueError, match="seed is -1"):
        make_env("gridworld-open", -1)
    with pytest.raises(ValueError, match="action_repeat is 0"):
        make_env("gridworld-open", 0, 0)
    with pytest.raises(ValueError, match="Did you mean 'gridworld-rooms'"):
        check_task("gridworld-roms")
    with pytest.raises(ValueError, match="exists on dm_control only"):
        check_task("gridworld-rooms", "mjx")


@pytest.mark.parametrize(
    ("action", "move"),
    [
        ((1, 0), "right"),
        ((0.2, 0.1), "right"),
        ((0.2, -0.3), "down"),
        ((-0.2, 0.1), "left"),
        ((-0.1, 0.2), "up"),
        ((0.5, 0.5), "right"),
        ((-0.5, 0.5), "left"),
        ((0, 0), "right"),
    ],
)
def test_the_larger_component_is_the_move(action: tuple[float, float], move: str):
    assert MOVES[move_of(np.array(action))] == move
    assert [move_of(action) for action in ACTIONS] == list(range(4))


def test_moves_have_the_directions_of_their_names():
    """On the map as it is drawn: up is to the row before."""
    world = Gridworld.parse("...\n...\n..G")
    middle = world.states[1, 1]
    cells = [world.cells[world.transition[middle, move].argmax()].tolist() for move in range(4)]
    assert dict(zip(MOVES, cells, strict=True)) == {
        "right": [1, 2],
        "up": [0, 1],
        "left": [1, 0],
        "down": [2, 1],
    }


def test_an_episode_by_hand():
    environment = GridworldEnvironment("small", Gridworld.parse("S.\n.G", step_reward=-0.5), 5, seed=0)
    assert environment.spec.observation_entries == (("cell", 4),)
    first = environment.reset()
    assert first.step_type == StepType.FIRST
    np.testing.assert_array_equal(first.observation, [1, 0, 0, 0])
    blocked = environment.step(ACTIONS[UP])
    assert (blocked.step_type, blocked.reward, blocked.discount) == (StepType.MID, -0.5, 1)
    np.testing.assert_array_equal(blocked.observation, [1, 0, 0, 0])
    environment.step(ACTIONS[RIGHT])
    last = environment.step(ACTIONS[DOWN])
    assert (last.step_type, last.reward, last.discount) == (StepType.LAST, 1, 0)
    np.testing.assert_array_equal(last.observation, [0, 0, 0, 1])
    assert last.observation.dtype == last.reward.dtype == np.float32
    with pytest.raises(RuntimeError, match="No episode is under way"):
        environment.step(ACTIONS[DOWN])


def test_a_time_limit_bootstraps_and_action_repeat_stops_there():
    environment = GridworldEnvironment(
        "small", Gridworld.parse("S.G", step_reward=-0.5), 5, 0, action_repeat=3
    )
    environment.reset()
    middle = environment.step(ACTIONS[LEFT])
    assert (middle.step_type, middle.reward) == (StepType.MID, -1.5)
    last = environment.step(ACTIONS[LEFT])
    assert (last.step_type, last.reward, last.discount) == (StepType.LAST, -1.0, 1)
    environment.reset()
    goal = environment.step(ACTIONS[RIGHT])
    assert (goal.step_type, goal.reward, goal.discount) == (StepType.LAST, 0.5, 0)


def test_the_environment_moves_as_the_process_says():
    """Frequencies and mean rewards of random moves are within 5 standard errors."""
    environment, random = GridworldEnvironment("small", SMALL, 100, seed=3), np.random.default_rng(0)
    counts, rewards = np.zeros(SMALL.transition.shape), np.zeros(SMALL.reward.shape)
    step = environment.reset()
    for move in random.integers(4, size=6000):
        if step.step_type == StepType.LAST:
            step = environment.reset()
        state = step.observation.argmax()
        step = environment.step(ACTIONS[move])
        counts[state, move, step.observation.argmax()] += 1
        rewards[state, move] += step.reward
    made = counts.sum(axis=2)
    assert made[~SMALL.is_terminal].min() > 200
    made = np.maximum(made, 1)
    error = 5 * np.sqrt(SMALL.transition * (1 - SMALL.transition) / made[..., None])
    is_left = ~SMALL.is_terminal
    assert np.all(np.abs(counts / made[..., None] - SMALL.transition)[is_left] <= error[is_left] + 1e-12)
    assert np.all(np.abs(rewards / made - SMALL.reward)[is_left] < 5 * 0.6 / np.sqrt(made[is_left]))


def test_starts_are_drawn_as_the_process_says():
    environment = make_env("gridworld-open", 0)
    counts = np.zeros(25)
    for _ in range(2400):
        counts[environment.reset().observation.argmax()] += 1
    assert counts[TASKS["gridworld-open"].world.is_terminal].sum() == 0
    assert np.all(np.abs(counts[~TASKS["gridworld-open"].world.is_terminal] - 100) < 50)


def play(environment: GridworldEnvironment, num_steps: int) -> list[tuple[bytes, ...]]:
    """Steps under fixed random actions, resets where episodes end; what was answered."""
    random, steps, under_way = np.random.default_rng(5), [], False
    for _ in range(num_steps):
        step = environment.step(random.uniform(-1, 1, 2)) if under_way else environment.reset()
        under_way = step.step_type != StepType.LAST
        steps.append(tuple(value.tobytes() for value in step))
    return steps


def test_streams_belong_to_seeds():
    streams = [play(make_env("gridworld-cliff", seed), 60) for seed in (0, 0, 1)]
    assert streams[0] == streams[1] != streams[2]
    environment = make_env("gridworld-cliff", 1)
    environment.reset()
    environment.reseed(0)
    with pytest.raises(RuntimeError, match="No episode is under way"):
        environment.step(ACTIONS[UP])
    assert play(environment, 60) == streams[0]


@pytest.mark.parametrize("num_steps", [0, 1, 40])
def test_a_restored_environment_goes_on_as_the_saved_one(num_steps: int):
    saved_one, other = make_env("gridworld-cliff", 0), make_env("gridworld-cliff", 0)
    play(saved_one, num_steps)
    other.restore(saved_one.save())
    for name, value in saved_one.save().items():
        np.testing.assert_array_equal(other.save()[name], value, err_msg=name)
    if num_steps == 1:  # in mid-episode
        assert [saved_one.step(ACTIONS[UP]).observation.tobytes() for _ in range(9)] == [
            other.step(ACTIONS[UP]).observation.tobytes() for _ in range(9)
        ]
    assert play(saved_one, 60) == play(other, 60)


def test_what_was_not_saved_here_is_not_restored():
    environment = make_env("gridworld-open", 0)
    before = environment.save()
    for changes, message in (
        ({"seed": np.array(1)}, "made with seed 1, this one with 0"),
        ({"state": np.array(25)}, "'state' of the saved environment is 25; it must lie in 0 to 24"),
        ({"steps_left": np.array(26)}, "'steps_left' of the saved environment is 26; it must lie in 0 to 25"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            environment.restore(before | changes)
    assert {name: value.tobytes() for name, value in environment.save().items()} == {
        name: value.tobytes() for name, value in before.items()
    }


def test_actions_that_cannot_be_are_refused():
    environment = make_env("gridworld-open", 0)
    environment.reset()
    with pytest.raises(ValueError, match=re.escape("takes actions of shape (2,), not (1,)")):
        environment.step(np.zeros(1))
    with pytest.raises(SimulationError, match="an action that is not finite"):
        environment.step(np.array([np.nan, 0]))
    with pytest.raises(RuntimeError, match="No episode is under way"):
        environment.step(np.zeros(2))


def test_the_names_are_those_of_the_command_line():
    assert tuple(TASKS) == GRIDWORLD_NAMES
