"""Gridworlds: mazes drawn as text, known as a Markov decision process, and stepped as a `HostEnvironment`.

A map has a character a cell; what lies outside of it is wall.

    #  wall                              S  floor where episodes begin; without one, they begin on any floor
    .  floor                             G  goal: entering it pays 1 and ends the episode
                                         X  trap: entering it pays -1 and ends the episode

There are four moves, to the right, up, to the left and down. A move into a wall stays where it is. With probability
`slip` a move goes to one of its two sides instead, either as likely.

Agents with continuous actions see a cell as a one-hot vector over all cells that are no wall, row by row, and act in
[-1, 1]^2: the component of larger magnitude is the axis of the move (x to the right, y up; x where they are equal), its
sign the direction (0 is to the right).
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Mapping

import numpy as np

from envs import snapshot
from envs.api import EnvSpec, SimulationError, StepType, TimeStep, time_step

MOVES = ("right", "up", "left", "down")
"""Names of the actions of the process, by number; its sides are the moves before and after."""

ACTIONS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)], np.float32)
"""The middle of the continuous actions `[4, 2]` that mean each move."""

_STEPS = np.array([(0, 1), (-1, 0), (0, -1), (1, 0)])  # rows and columns; row 0 is at the top
_WALL, _FLOOR, _START = "#", ".", "S"
_ENDS = {"G": 1.0, "X": -1.0}  # rewards of entering a cell that ends the episode
_MAX_SEED = 2**32 - 1  # of numpy.random.RandomState


@dataclasses.dataclass(frozen=True)
class Gridworld:
    """A map and its dynamics. States are the S cells that are no wall, row by row.

    The discount is no part of it: it is an option of whoever plans or learns.

    Raises:
      ValueError: a map that is none, floor from which no goal can be reached, or a slip outside [0, 1].
    """

    rows: tuple[str, ...]
    slip: float = 0.0  # probability of moving to a side instead
    step_reward: float = 0.0  # of a move that enters neither goal nor trap

    @classmethod
    def parse(cls, text: str, slip: float = 0.0, step_reward: float = 0.0) -> Gridworld:
        """From a map of one line a row; space around lines and around the map is ignored."""
        return cls(tuple(line.strip() for line in text.strip().splitlines()), slip, step_reward)

    def __post_init__(self) -> None:
        _check_map(self.rows)
        if not 0.0 <= self.slip <= 1.0:
            raise ValueError(f"slip is {self.slip}; it is a probability and must lie in [0, 1]")
        if not np.isfinite(self.step_reward):
            raise ValueError(f"step_reward is {self.step_reward}; it must be finite")
        if (cut_off := ~self._reaches_goal()).any():
            row, column = self.cells[np.flatnonzero(cut_off)[0]]
            raise ValueError(
                f"the map's row {row + 1}, column {column + 1} is cut off from every goal G; open a wall, or make it #"
            )

    @functools.cached_property
    def cells(self) -> np.ndarray:
        """Row and column of every state, `[S, 2]`."""
        return np.argwhere(self._characters != _WALL)

    @functools.cached_property
    def states(self) -> np.ndarray:
        """The state of every cell of the map, `[rows, columns]`; -1 for walls."""
        states = np.full(self._characters.shape, -1)
        states[tuple(self.cells.T)] = np.arange(len(self.cells))
        return states

    @functools.cached_property
    def is_terminal(self) -> np.ndarray:
        """Whether an episode ends on arrival, `[S]` bool."""
        return np.isin(self._kinds, list(_ENDS))

    @functools.cached_property
    def arrival_reward(self) -> np.ndarray:
        """What arriving at a state from another or from itself pays, `[S]`."""
        return np.array([_ENDS.get(kind, self.step_reward) for kind in self._kinds])

    @functools.cached_property
    def start(self) -> np.ndarray:
        """Probability that an episode begins in a state, `[S]`."""
        begins = self._kinds == _START
        begins = begins if begins.any() else ~self.is_terminal
        return begins / begins.sum()

    @functools.cached_property
    def transition(self) -> np.ndarray:
        """P(s' | s, a), `[S, 4, S]`; a terminal state leads to itself."""
        ends = np.stack([self._moved(move) for move in range(len(MOVES))], axis=1)  # [S, 4]
        straight = np.eye(len(self.cells))[ends]
        aside = (np.roll(straight, 1, axis=1) + np.roll(straight, -1, axis=1)) / 2
        transition = (1.0 - self.slip) * straight + self.slip * aside
        transition[self.is_terminal] = np.eye(len(self.cells))[self.is_terminal, None]
        return transition

    @functools.cached_property
    def reward(self) -> np.ndarray:
        """Expected reward of a move, `[S, 4]`; 0 in a terminal state."""
        return np.where(self.is_terminal[:, None], 0.0, self.transition @ self.arrival_reward)

    @functools.cached_property
    def _characters(self) -> np.ndarray:
        return np.array([list(row) for row in self.rows])

    @functools.cached_property
    def _kinds(self) -> np.ndarray:
        return self._characters[tuple(self.cells.T)]

    def _moved(self, move: int) -> np.ndarray:
        """Where `move` leads from every state if it does not slip, `[S]`."""
        walled = np.pad(self.states, 1, constant_values=-1)
        ahead = walled[tuple((self.cells + 1 + _STEPS[move]).T)]
        return np.where(ahead < 0, np.arange(len(self.cells)), ahead)

    def _reaches_goal(self) -> np.ndarray:
        """From which states moves that do not slip lead to a goal, `[S]` bool; traps lead nowhere, and need not."""
        reaches = self._kinds == "G"
        for _ in self.cells:  # a way is no longer than there are cells
            for move in range(len(MOVES)):
                reaches = reaches | (reaches[self._moved(move)] & ~self.is_terminal)
        return reaches | self.is_terminal


def _check_map(rows: tuple[str, ...]) -> None:
    """Raises ValueError unless `rows` are as long as each other, of known characters, with a goal and floor."""
    allowed = _WALL + _FLOOR + _START + "".join(_ENDS)
    if not rows or not rows[0]:
        raise ValueError("the map is empty; draw a row of cells a line, of the characters " + allowed)
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise ValueError(
                f"the map's row {number} has {len(row)} cells and its first {len(rows[0])}; make them as long"
            )
        for column, character in enumerate(row, 1):
            if character not in allowed:
                raise ValueError(
                    f"the map has {character!r} in row {number}, column {column}; it may have the characters {allowed}"
                )
    cells = "".join(rows)
    if "G" not in cells:
        raise ValueError("the map has no goal; mark one with G")
    if not {_FLOOR, _START} & set(cells):
        raise ValueError("the map has no floor to begin on; mark it with . or S")


@dataclasses.dataclass(frozen=True)
class _Task:
    world: Gridworld
    episode_steps: int


_OPEN = """
    ....G
    .....
    .....
    .....
    .....
"""
_ROOMS = """
    ...#..G
    .......
    ...#...
    #.###.#
    ...#...
    .......
    ...#...
"""
_CLIFF = """
    ........
    ........
    ........
    SXXXXXXG
"""
TASKS = {
    # Goals that are equally near by several ways; by a pair of doors each; and a short way along a cliff.
    "gridworld-open": _Task(Gridworld.parse(_OPEN), 25),
    "gridworld-rooms": _Task(Gridworld.parse(_ROOMS), 50),
    "gridworld-cliff": _Task(Gridworld.parse(_CLIFF, slip=0.1), 50),
}


def move_of(action: np.ndarray) -> int:
    """The move, by its place in `MOVES`, that a continuous `action` `[2]` means."""
    axis = int(abs(action[1]) > abs(action[0]))
    return axis if action[axis] >= 0 else axis + 2


def make_env(task: str, seed: int, action_repeat: int = 1) -> GridworldEnvironment:
    """A gridworld by its name.

    Raises:
      ValueError: `task` is none of `TASKS`, `seed` is out of range, or `action_repeat` is less than 1.
    """
    if task not in TASKS:
        raise ValueError(f"Unknown gridworld '{task}'; there are: {', '.join(TASKS)}")
    return GridworldEnvironment(task, TASKS[task].world, TASKS[task].episode_steps, seed, action_repeat)


class GridworldEnvironment:
    """A gridworld that is stepped with continuous actions `[2]` and observed as a one-hot vector `[S]` float32.

    The time limit ends an episode with LAST and discount 1, a goal or trap with LAST and discount 0. Action repeat
    makes the same move again, sums rewards and stops at LAST.
    """

    def __init__(
        self, task: str, world: Gridworld, episode_steps: int, seed: int, action_repeat: int = 1
    ) -> None:
        """Steps `world` under the name `task`; errors as of `make_env`."""
        seed, action_repeat = operator.index(seed), operator.index(action_repeat)
        if not 0 <= seed <= _MAX_SEED:
            raise ValueError(f"seed is {seed}; it must lie between 0 and {_MAX_SEED}.")
        if action_repeat < 1:
            raise ValueError(f"action_repeat is {action_repeat}; it must be 1 or more control steps.")
        num_states = len(world.cells)
        self.world = world
        self._seed = seed
        self._random = np.random.RandomState(seed)  # whose state `snapshot` lays out
        self._spec = EnvSpec(
            task=task,
            observation_size=num_states,
            action_size=2,
            episode_steps=episode_steps,
            action_repeat=action_repeat,
            observation_entries=(("cell", num_states),),
        )
        self._state = 0
        self._steps_left = 0  # control steps to the time limit; 0 also when no episode is under way

    @property
    def spec(self) -> EnvSpec:
        """Sizes and timing; `episode_steps` counts control steps whatever the action repeat."""
        return self._spec

    @property
    def state(self) -> int:
        """The state that the episode is in."""
        return self._state

    def reset(self) -> TimeStep:
        """Starts an episode in a state drawn from `Gridworld.start`."""
        self._state = int(self._random.choice(self._spec.observation_size, p=self.world.start))
        self._steps_left = self._spec.episode_steps
        return time_step(StepType.FIRST, 0.0, 1.0, self._observe())

    def reseed(self, seed: int) -> None:
        """Draws later episodes from `seed`; ends the episode under way."""
        self._random = np.random.RandomState(seed)
        self._steps_left = 0

    def step(self, action: np.ndarray) -> TimeStep:
        """Makes the move that `action` `[2]` means, `action_repeat` times.

        Raises:
          ValueError: `action` has another shape than `[2]`.
          RuntimeError: no episode is under way.
          SimulationError: `action` is not finite; only `reset` is possible now.
        """
        action = np.asarray(action)
        if action.shape != (2,):
            raise ValueError(f"{self._spec.task} takes actions of shape (2,), not {action.shape}.")
        if self._steps_left == 0:
            raise RuntimeError("No episode is under way: call reset() first, and again after LAST.")
        if not np.isfinite(action).all():
            self._steps_left = 0
            raise SimulationError(f"{self._spec.task} was given an action that is not finite: {action}.")
        move, reward, has_ended = move_of(action), 0.0, False
        for _ in range(min(self._spec.action_repeat, self._steps_left)):
            moves = self.world.transition[self._state, move]
            self._state = int(self._random.choice(len(moves), p=moves))
            self._steps_left -= 1
            reward += self.world.arrival_reward[self._state]
            has_ended = bool(self.world.is_terminal[self._state])
            if has_ended:
                self._steps_left = 0
                break
        step_type = StepType.LAST if self._steps_left == 0 else StepType.MID
        return time_step(step_type, reward, 0.0 if has_ended else 1.0, self._observe())

    def save(self) -> dict[str, np.ndarray]:
        """Returns all that `restore` needs to go on bit for bit, at any time, and disturbs nothing."""
        return {
            "task": np.array(list(self._spec.task.encode()), np.uint8),
            "seed": np.array(self._seed, np.int64),
            "action_repeat": np.array(self._spec.action_repeat, np.int64),
            "state": np.array(self._state, np.int64),
            "steps_left": np.array(self._steps_left, np.int64),
            **snapshot.random_arrays("random", self._random.get_state(legacy=False)),
        }

    def restore(self, saved: Mapping[str, np.ndarray]) -> None:
        """Puts a fresh environment, made with the same arguments, where the saved one was.

        Raises:
          ValueError: `saved` is of an environment made with other arguments, or not what `save` returns; this
            environment is as it was.
        """
        snapshot.check(saved, self.save())
        snapshot.check_range(saved, "state", self._spec.observation_size - 1)
        snapshot.check_range(saved, "steps_left", self._spec.episode_steps)
        self._random.set_state(snapshot.random_dict(saved, "random"))
        self._state, self._steps_left = int(saved["state"]), int(saved["steps_left"])

    def _observe(self) -> np.ndarray:
        observation = np.zeros(self._spec.observation_size, np.float32)
        observation[self._state] = 1.0
        return observation
