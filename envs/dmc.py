"""The DeepMind Control Suite on the CPU, every task of the installed dm_control, as `HostEnvironment`s.

Tasks are named `domain-task`, dm_control's own underscores kept: `cartpole-swingup_sparse`, `lqr-lqr_2_1`.
Nothing here needs JAX or a display. Frames are drawn in a child process: see `envs.render`.
"""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Mapping

import numpy as np

from envs import snapshot
from envs.api import EnvSpec, SimulationError, StepType, TimeStep, time_step
from envs.headless import control, mujoco, suite
from envs.observations import flatten
from envs.tasks import check_task

ENDLESS_EPISODE_STEPS = 1_000
"""Control steps after which a task without a time limit of its own (lqr) is truncated."""

_UNBOUNDED = 1e10  # dm_control's bound for an actuator that has none (mujoco.mjMAXVAL)
RESET_ATTEMPTS = 10
"""Beginnings of an episode that are drawn until one can be simulated."""

_MAX_SEED = 2**32 - 1  # of numpy.random.RandomState, which the suite draws from
# All that a step depends on and does not compute itself; beyond positions and velocities, mostly the solver's
# warm start. How many numbers that is depends on the model.
_INTEGRATION_STATE = int(mujoco.mjtState.mjSTATE_INTEGRATION)  # pyright: ignore[reportAttributeAccessIssue]


class _Once(logging.Filter):
    """Lets a remark of mujoco's model compiler through once in a process, not once an environment."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        repeated = message in self._said and message.startswith("compiler attribute")
        self._said.add(message)
        return not repeated


logging.getLogger("absl").addFilter(_Once())


def make_env(task: str, seed: int, action_repeat: int = 1, *, renderable: bool = False) -> DmcEnvironment:
    """Loads a task.

    Two environments of equal arguments give bit-identical streams. The lqr tasks draw the stiffness of their
    springs from `seed` too, once: other seeds are other systems there, not only other initial states.

    Args:
        task: a name of `envs.tasks.task_names()`.
        seed: of the task's randomness, 0 to 2**32 - 1.
        action_repeat: control steps for which an action is held.
        renderable: whether `DmcEnvironment.render` will be called, which takes an OpenGL backend.

    Raises:
        ValueError: `task` is unknown, `seed` is out of range, or `action_repeat` is less than 1.
    """
    check_task(task)
    seed, action_repeat = operator.index(seed), operator.index(action_repeat)
    if not 0 <= seed <= _MAX_SEED:
        raise ValueError(f"seed is {seed}; it must lie between 0 and {_MAX_SEED}.")
    if action_repeat < 1:
        raise ValueError(f"action_repeat is {action_repeat}; it must be 1 or more control steps.")
    domain, _, name = task.partition("-")
    environment = suite.load(domain, name, task_kwargs={"random": seed})
    if not renderable:
        _forbid_rendering(environment.physics)
    return DmcEnvironment(task, environment, seed, action_repeat)


def _forbid_rendering(physics: mujoco.Physics) -> None:
    """Makes `physics.contexts` None instead of creating an OpenGL context when it is read.

    quadruped-escape makes a new terrain every episode and uploads it to the graphics card
    `if physics.contexts`, but reading that property creates the context, or fails without a backend. The
    simulation has the terrain by then and does not depend on the upload.
    """
    physics_class = type(physics)
    physics.__class__ = type(physics_class.__name__, (physics_class,), {"contexts": None})


class DmcEnvironment:
    """A dm_control environment with flat float32 observations and actions in [-1, 1].

    - Observations are the entries of the suite's observation dictionary in its order, scalars included.
    - Actions are scaled from [-1, 1] to the bounds of each actuator and clipped; an actuator without bounds
      (lqr) is given [-1, 1] itself.
    - A time limit ends an episode with LAST and discount 1, a termination with LAST and discount 0. Of the
      suite only lqr terminates, and only lqr has no time limit: it is cut off after `ENDLESS_EPISODE_STEPS`.
    - Action repeat holds the action, sums rewards, multiplies discounts and stops at LAST.
    - A diverging simulation raises `SimulationError`, and the episode is over; at the beginning of an episode it
      first draws another.
    """

    def __init__(self, task: str, environment: control.Environment, seed: int, action_repeat: int):
        """Wraps `environment`, loaded with `seed`; use `make_env`."""
        self._environment = environment
        self._step = environment.step
        self._seed = seed
        actions = environment.action_spec()
        bounded = (actions.minimum > -_UNBOUNDED) & (actions.maximum < _UNBOUNDED)
        self._low = np.where(bounded, actions.minimum, -1.0).astype(np.float64)
        self._high = np.where(bounded, actions.maximum, 1.0).astype(np.float64)
        self._center = (self._high + self._low) / 2
        self._half_range = (self._high - self._low) / 2
        # Nearly every task: the scaling would be two array operations a step for nothing.
        self._scales = bool(np.any(self._center != 0) or np.any(self._half_range != 1))
        # The limit in control steps has no public name in dm_control; LAST is the first step to reach it.
        limit = environment._step_limit
        entries = environment.observation_spec().items()
        sizes = tuple((name, math.prod(entry.shape)) for name, entry in entries)
        self._spec = EnvSpec(
            task=task,
            observation_size=sum(size for _, size in sizes),
            action_size=actions.shape[0],
            episode_steps=ENDLESS_EPISODE_STEPS if limit == math.inf else math.ceil(limit),
            action_repeat=action_repeat,
            action_low=tuple(self._low.tolist()),
            action_high=tuple(self._high.tolist()),
            observation_entries=sizes,
        )
        self._action_shape = actions.shape
        self._steps_left = 0  # control steps to the time limit; 0 also when no episode is under way
        # As it was just before the last reset, for `restore` to reset again; None before the first.
        self._random_at_reset: snapshot.RandomDict | None = None

    @property
    def spec(self) -> EnvSpec:
        """Sizes and timing; `episode_steps` counts control steps whatever the action repeat."""
        return self._spec

    @property
    def control_timestep(self) -> float:
        """Simulated seconds of one control step."""
        return self._environment.control_timestep()

    @property
    def physics(self) -> mujoco.Physics:
        """The simulation itself, to look at; stepping it directly breaks the episode."""
        return self._environment.physics

    def reset(self) -> TimeStep:
        """Starts a new episode, drawn from the task's own seeded stream, and returns its FIRST time step.

        A beginning that cannot be simulated is drawn again.

        Raises:
            SimulationError: none of `RESET_ATTEMPTS` beginnings can be simulated.
        """
        self._steps_left = 0
        why = "an observation is not finite"
        for _ in range(RESET_ATTEMPTS):
            # Of the attempt that succeeds: `restore` repeats that one alone, as a reset leaves nothing of those before.
            self._random_at_reset = self._environment.task.random.get_state(legacy=False)
            try:
                flat = flatten(self._environment.reset().observation)
            except control.PhysicsError as error:
                why = str(error)
                continue
            if np.isfinite(flat).all():
                self._steps_left = self._spec.episode_steps
                return time_step(StepType.FIRST, 0.0, 1.0, flat)
        raise SimulationError(
            f"{self._spec.task} cannot begin an episode: {RESET_ATTEMPTS} beginnings failed ({why.rstrip('.')})."
        )

    def reseed(self, seed: int) -> None:
        """Draws later episodes from `seed`; the task itself stays (lqr keeps the springs it was made with)."""
        # The suite reads the stream through a property without a setter.
        self._environment.task._random = np.random.RandomState(seed)
        self._steps_left = 0

    def step(self, action: np.ndarray) -> TimeStep:
        """Applies `action` `[A]` for `action_repeat` control steps; values outside [-1, 1] are clipped.

        Raises:
            ValueError: `action` has another shape than `[A]`.
            RuntimeError: no episode is under way.
            SimulationError: the simulation diverged; only `reset` is possible now.
        """
        action = np.asarray(action)
        if action.shape != self._action_shape:
            raise ValueError(
                f"{self._spec.task} takes actions of shape {self._action_shape}, not {action.shape}."
            )
        if self._steps_left == 0:
            raise RuntimeError("No episode is under way: call reset() first, and again after LAST.")
        if self._scales:
            action = self._center + self._half_range * action
        # Clipped after the scaling, so that rounding cannot push a full action out of bounds.
        action = np.maximum(np.minimum(action, self._high), self._low)

        reward, discount, repeats_left = 0.0, 1.0, self._spec.action_repeat
        while True:
            try:
                step_type, step_reward, step_discount, observation = self._step(action)
            except control.PhysicsError as error:
                self._steps_left = 0
                raise SimulationError(str(error)) from error
            reward += step_reward
            discount *= step_discount
            # dm_control's StepType is another enumeration; its LAST has the same value.
            self._steps_left = 0 if step_type == StepType.LAST else self._steps_left - 1
            repeats_left -= 1
            if self._steps_left == 0 or repeats_left == 0:
                break
        last = self._steps_left == 0
        flat = flatten(observation)
        if not (math.isfinite(reward) and np.isfinite(flat).all()):
            self._steps_left = 0
            raise SimulationError(f"{self._spec.task} returned an observation or reward that is not finite.")
        return time_step(StepType.LAST if last else StepType.MID, reward, discount, flat)

    def save(self) -> dict[str, np.ndarray]:
        """Returns all that `restore` needs to go on bit for bit, at any time, and disturbs nothing.

        A few kilobytes of numbers and booleans; names, shapes and dtypes are the same at any time.
        """
        random = self._environment.task.random.get_state(legacy=False)
        return {
            "task": np.array(list(self._spec.task.encode()), np.uint8),  # a text would not be plain numbers
            "seed": np.array(self._seed, np.int64),
            "action_repeat": np.array(self._spec.action_repeat, np.int64),
            "was_reset": np.array(self._random_at_reset is not None),
            "steps_left": np.array(self._steps_left, np.int64),
            "physics": self.physics.get_state(_INTEGRATION_STATE),
            **snapshot.random_arrays("random", random),
            **snapshot.random_arrays("random_at_reset", self._random_at_reset or random),
        }

    def restore(self, saved: Mapping[str, np.ndarray]) -> None:
        """Puts a fresh environment of the same task, seed and action repeat where the saved one was.

        Steps and resets then answer bit for bit what they would have answered there, with the same versions
        of MuJoCo, dm_control and NumPy on the same kind of processor. Costs one `reset`.

        Raises:
            ValueError: `saved` is of an environment made with other arguments, or not what `save` returns;
                this environment is as it was.
        """
        snapshot.check(saved, self.save())
        snapshot.check_range(saved, "steps_left", self._spec.episode_steps if saved["was_reset"] else 0)
        random_now = snapshot.random_dict(saved, "random")
        random_at_reset = snapshot.random_dict(saved, "random_at_reset")
        random = self._environment.task.random
        if saved["was_reset"]:
            # A reset may edit the model (targets, terrain, gains) and leave heights and weights with the task;
            # from the same random state it does so again, also for a later reset to find them.
            random.set_state(random_at_reset)
            self.reset()
            self.physics.set_state(saved["physics"], _INTEGRATION_STATE)
            # Between steps dm_control has all that depends on positions and velocities up to date, and begins
            # the next step with its second half, from the forces on.
            model, data = self.physics.model.ptr, self.physics.data.ptr
            mujoco.mj_step1(model, data)  # pyright: ignore[reportAttributeAccessIssue]
        random.set_state(random_now)
        self._steps_left = int(saved["steps_left"])
        # Only looked at while an episode is under way, and then the two add up.
        self._environment._step_count = self._spec.episode_steps - self._steps_left

    def render(self, width: int, height: int, camera: int | str = 0) -> np.ndarray:
        """Draws the present state: `[height, width, 3]` uint8.

        Only for an environment made `renderable`, in a process whose MUJOCO_GL names a working backend:
        `envs.render` sees to both.
        """
        return self._environment.physics.render(height=height, width=width, camera_id=camera)
