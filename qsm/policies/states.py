"""The states at which `qsm actions` draws: starts of episodes, random states of one, or observations from a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from envs.api import SimulationError, StepType
from qsm.base.errors import UserError, first_line, nearest
from qsm.learning.build import Task
from qsm.policies.actors import Actor

START, RANDOM = "start", "random"
MOST_STATES = 16
SUFFIXES = (".npy", ".csv")


class State(NamedTuple):
    """An observation, and what it is."""

    name: str
    observation: np.ndarray  # [O] float32


def check_state(state: str) -> None:
    """Raises UserError where `state` is neither a name nor a file."""
    if state in (START, RANDOM) or Path(state).is_file():
        return
    if Path(state).suffix in SUFFIXES:
        raise UserError(f"--state is '{state}', and there is no such file")
    raise UserError(
        f"--state is '{state}'; it must be {START}, {RANDOM}, or a file of observations (.npy or .csv)."
        f"{nearest(state, (START, RANDOM))}"
    )


def find_states(state: str, number: int | None, seed: int, actor: Actor) -> list[State]:
    """`number` states, of `actor`'s task and, where they are random, of an episode of its evaluation.

    Args:
      state: start, random, or a file.
      number: None for one start, four random states, or all of a file.

    Raises:
      UserError: a file that holds no observations of this task, or an episode with fewer states.
    """
    if state == START:
        return [
            State(f"start, seed {at}", _Episode(actor.task, at).observation)
            for at in range(seed, seed + (number or 1))
        ]
    if state == RANDOM:
        return _random(actor, number or 4, seed)
    return _from_file(Path(state), number, actor)


class _Episode:
    """One episode of a task on its own simulator, from a start that `seed` determines.

    Raises:
      UserError: no start that was drawn could be simulated.
    """

    def __init__(self, task: Task, seed: int) -> None:
        self.observation: np.ndarray  # [O], where it is
        self._step: Callable[[np.ndarray], bool]
        (self._on_device if task.backend == "mjx" else self._on_host)(task, seed)

    def step(self, action: np.ndarray) -> bool:
        """Whether it goes on after `action` `[A]`."""
        return self._step(action)

    def _on_host(self, task: Task, seed: int) -> None:
        environment = task.host()
        environment.reseed(seed)
        try:
            self.observation = environment.reset().observation
        except SimulationError as error:
            raise UserError(f"{task.name} cannot be begun with --seed {seed}: {first_line(error)}") from error

        def step(action: np.ndarray) -> bool:
            try:
                arrived = environment.step(action)
            except SimulationError:
                return False
            self.observation = arrived.observation
            return bool(arrived.step_type != StepType.LAST)

        self._step = step

    def _on_device(self, task: Task, seed: int) -> None:
        vector, key = task.vector(1), jax.random.key(seed)
        state, first = jax.jit(vector.reset)(key)
        advance = jax.jit(vector.step)
        self.observation = np.asarray(first.observation)[0]

        def step(action: np.ndarray) -> bool:
            nonlocal state
            state, arrival = advance(state, action[None], key)
            self.observation = np.asarray(arrival.time_step.observation)[0]
            return not bool(arrival.is_reset[0])

        self._step = step


def _random(actor: Actor, number: int, seed: int) -> list[State]:
    """States that it acts on in an evaluation episode, drawn without repetition, in their order."""
    episode = _Episode(actor.task, seed)
    seen = [episode.observation]
    while episode.step(actor.evaluate(seen[-1], jax.random.fold_in(jax.random.key(seed), len(seen)))):
        seen.append(episode.observation)
    if number > len(seen):
        raise UserError(
            f"--states is {number}, and the episode of --seed {seed} has {len(seen)} states; ask for no more"
        )
    steps = np.sort(np.random.default_rng(seed).choice(len(seen), number, replace=False)).tolist()
    repeat = actor.spec.action_repeat
    return [State(f"episode of seed {seed}, step {step * repeat:,}", seen[step]) for step in steps]


def _from_file(file: Path, number: int | None, actor: Actor) -> list[State]:
    size = actor.spec.observation_size
    allowed = f"it must hold numbers [N, {size}], the observations of {actor.task.name}"
    try:
        if file.suffix == ".npy":
            found = np.asarray(np.load(file, allow_pickle=False))
        else:
            found = np.loadtxt(file, delimiter=",", ndmin=2)
        found = np.atleast_2d(found).astype(np.float32)
    except OSError as error:
        raise UserError(f"Cannot read {file}: {first_line(error)}") from error
    except (ValueError, TypeError, EOFError) as error:
        raise UserError(f"{file} cannot be read ({first_line(error)}); {allowed}") from error
    if found.ndim != 2 or found.shape[1] != size or not len(found):
        shown = ", ".join(map(str, found.shape))
        raise UserError(f"{file} holds numbers [{shown}]; {allowed}")
    if not np.isfinite(found).all():
        raise UserError(f"{file} holds numbers that are not finite; {allowed}")
    if number is None and len(found) > MOST_STATES:
        raise UserError(
            f"{file} holds {len(found):,} observations, and a figure at most {MOST_STATES}; say how many of the first "
            "with --states"
        )
    return [
        State(f"{file.name}, row {row}", found[row]) for row in range(min(number or len(found), len(found)))
    ]
