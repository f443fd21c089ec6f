"""The DeepMind Control tasks of MuJoCo Playground, simulated by MJX on the accelerator, as `DeviceEnvironment`s.

Playground re-implements 25 tasks of the suite; models, rewards, control timesteps and the 1,000 steps of an episode
are the suite's. Measured on playground 0.2.0 and mujoco 3.17.0, this is not:

- Solver: 1 to 4 iterations of the constraint solver (dm_control: 100 to 200), and damping integrated explicitly.
- Integrator: acrobot and cartpole use Euler (dm_control RK4), finger implicitfast (Euler) and pyramidal friction
  cones (elliptic).
- Simulation timestep in seconds: finger 0.005 (dm_control 0.01), fish 0.002 (0.004), pendulum 0.01 (0.02),
  reacher 0.005 (0.02), swimmer 0.003 (0.002).
- Starts: ball_in_cup and humanoid always start from one and the same state, pendulum in half of the circle only, and
  finger may start in contact with the spinner.
- After a step, `qpos` and `qvel` are new, but what follows from them (orientations, distances, sensors, and with
  them rewards) is of one simulation step earlier: of a whole control step earlier in acrobot, cartpole, cheetah and
  point_mass, where the two are as long.
- Observations that are ordered or defined otherwise: see `envs.tasks.SAME_OBSERVATIONS`.

So scores of the two backends are to be compared with care.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import io
import logging
import math
import operator
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.api import DeviceState, EnvSpec
from envs.tasks import MJX_NAMES, check_task

if TYPE_CHECKING:
    from mujoco_playground import MjxEnv

_PACKAGES = ("mujoco.mjx", "mujoco_playground")
_WARP = ("warp", "mujoco.mjx.third_party.mujoco_warp")


@functools.lru_cache(maxsize=8)
def make_env(task: str, action_repeat: int = 1) -> MjxEnvironment:
    """Loads a task, once in a process; takes some seconds the first time, for Playground's imports.

    Args:
        task: a name of `envs.tasks.task_names("mjx")`.
        action_repeat: control steps for which an action is held, by `envs.vector`.

    Raises:
        ValueError: `task` is unknown, `action_repeat` is less than 1, or the packages are not installed.
    """
    check_task(task, "mjx")
    action_repeat = operator.index(action_repeat)
    if action_repeat < 1:
        raise ValueError(f"action_repeat is {action_repeat}; it must be 1 or more control steps.")
    # Found without importing them, so that an import that fails is not taken for a missing package.
    if any(importlib.util.find_spec(package) is None for package in _PACKAGES):
        raise ValueError(
            "--backend mjx needs the extra packages mujoco-mjx and playground; "
            "install them with: pip install 'qsm[mjx]'"
        )
    return MjxEnvironment(task, load_playground(task), action_repeat)


def playground_suite() -> ModuleType:
    """Playground's module `dm_control_suite`, imported without a warning and mended where it is broken."""
    with _without_warp(), warnings.catch_warnings():
        # Playground imports brax, which imports jaxopt, which says so; nothing here uses either.
        warnings.filterwarnings("ignore", "JAXopt is no longer maintained", DeprecationWarning)
        from mujoco_playground import dm_control_suite
    mujoco: Any = importlib.import_module("mujoco")
    # Playground 0.2.0 compares versions as strings, takes mujoco 3.17 for older than 3.3, and asks for the
    # method's former name: without this neither reacher task loads.
    if not hasattr(mujoco.MjSpec, "find_body"):
        mujoco.MjSpec.find_body = mujoco.MjSpec.body
    return dm_control_suite


@contextlib.contextmanager
def _without_warp() -> Iterator[None]:
    """Lets MJX be imported without Warp, which nothing here simulates with, and which takes two thirds of the import.

    Where somebody has imported MJX before, there is nothing to save, and nothing is changed.
    """
    missing = [] if "mujoco.mjx" in sys.modules else [name for name in _WARP if name not in sys.modules]
    try:
        sys.modules.update(dict.fromkeys(missing))  # type: ignore[arg-type]  # None: not to be imported
        with contextlib.redirect_stdout(io.StringIO()) if missing else contextlib.nullcontext():
            importlib.import_module("mujoco.mjx")  # prints that there is no Warp
        yield
    finally:
        for name in missing:
            sys.modules.pop(name, None)


def load_playground(task: str) -> MjxEnv:
    """Playground's environment of `task`, on the JAX implementation of MJX."""
    suite = playground_suite()
    mujoco: Any = importlib.import_module("mujoco")
    # Unless someone (dm_control) listens, mujoco writes what the compiler remarks about a model, such as the use
    # of a deprecated attribute by the cheetah's, to a file in the working directory.
    listener = mujoco.get_mju_user_warning()
    if listener is None:
        mujoco.set_mju_user_warning(logging.getLogger(__name__).info)
    try:
        # The default implementation, warp, needs an NVIDIA graphics card.
        return suite.load(MJX_NAMES[task], config_overrides={"impl": "jax"})
    finally:
        mujoco.set_mju_user_warning(listener)


class MjxPhysics(NamedTuple):
    """What MJX's step reads of `mjx.Data`; it computes the rest anew.

    A hundred times smaller than the whole, which counts where starts are stored, selected and saved.
    """

    qpos: jax.Array  # [nq]
    qvel: jax.Array  # [nv]
    act: jax.Array  # [na]
    qacc_warmstart: jax.Array  # [nv], where the constraint solver starts
    mocap_pos: jax.Array  # [nmocap, 3], targets
    mocap_quat: jax.Array  # [nmocap, 4]


class MjxEnvironment:
    """One of Playground's tasks; observations are Playground's own arrays `[O]`, in its order.

    - Actions `[A]` in [-1, 1] are clipped, and scaled to the bounds of each actuator (of the recorded version all
      are [-1, 1], as in dm_control).
    - No task terminates: Playground's `done` says only that the simulation has become NaN, which is `valid` here.
    - Made of values fixed at construction, and hashed by identity.
    """

    def __init__(self, task: str, environment: MjxEnv, action_repeat: int):
        """Wraps `environment`; use `make_env`."""
        from mujoco import mjx

        self._environment: Any = environment  # what is read of it has no declared type, or no public name
        model, config = self._environment.mj_model, self._environment._config
        self._make_data = functools.partial(mjx.make_data, model, impl="jax")
        self._forward = mjx.forward
        bounds = model.actuator_ctrlrange.T
        low, high = bounds.astype(np.float32)
        self._center, self._half_range = (high + low) / 2, (high - low) / 2
        # Tasks with a target place it after the kinematics of their reset: the first observation would show
        # the target where the model file has it.
        self._observes_anew = model.nmocap > 0
        # Each traced once, for all programs that hold it: tracing MJX takes seconds.
        self._traced_reset, self._traced_step = jax.jit(self._reset), jax.jit(self._step)
        with jax.numpy_rank_promotion("allow"):
            # Not of a reset: its trace takes seconds, which a start whose programs are kept has no other need of.
            observation = jax.eval_shape(lambda: self._environment._get_obs(self._make_data(), {}))
        self._spec = EnvSpec(
            task=task,
            observation_size=observation.shape[0],
            action_size=model.nu,
            episode_steps=config.episode_length // config.action_repeat,
            action_repeat=action_repeat,
            action_low=tuple(bounds[0].tolist()),
            action_high=tuple(bounds[1].tolist()),
        )

    @property
    def spec(self) -> EnvSpec:
        """Sizes and timing; `episode_steps` counts control steps whatever the action repeat."""
        return self._spec

    @property
    def step_bytes(self) -> int:
        """Bytes of `mjx.Data`, which every step makes anew: more than XLA's temporary arrays of the step."""
        leaves = jax.tree.leaves(jax.eval_shape(self._make_data))
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)

    def identity(self) -> tuple[str, ...]:
        """What tells its programs from those of another: the model, as mujoco compiled it, and the task's settings."""
        mujoco: Any = importlib.import_module("mujoco")
        model = self._environment.mj_model
        content = np.empty(mujoco.mj_sizeModel(model), np.uint8)
        mujoco.mj_saveModel(model, None, content)
        name = f"{type(self._environment).__module__}.{type(self._environment).__qualname__}"
        settings = self._environment._config.to_json()
        return name, settings, str(self._spec), hashlib.sha256(content.tobytes()).hexdigest()

    @property
    def playground(self) -> MjxEnv:
        """Playground's environment itself, to look at."""
        return self._environment

    def reset(self, key: jax.Array) -> DeviceState:
        """The beginning of an episode, drawn from a typed key."""
        return self._traced_reset(key)

    def step(self, state: DeviceState, action: jax.Array) -> DeviceState:
        """Applies `action` `[A]` for one control step; values outside [-1, 1] are clipped."""
        return self._traced_step(state, action)

    def _reset(self, key: jax.Array) -> DeviceState:
        # Playground uses keys twice in some resets, which old-style keys are not checked for.
        with jax.numpy_rank_promotion("allow"):
            state = self._environment.reset(jax.random.key_data(key))
            data, observation = state.data, state.obs
            if self._observes_anew:
                data = self._forward(self._environment.mjx_model, data)
                observation = self._environment._get_obs(data, {})
        return _device_state(data, observation, jnp.zeros(()))

    def _step(self, state: DeviceState, action: jax.Array) -> DeviceState:
        from mujoco_playground import State

        action = self._center + self._half_range * jnp.clip(action, -1, 1)
        data = self._make_data().replace(**state.physics._asdict())
        # A task reads nothing but the data. It writes terms of its reward into `metrics`, hence a fresh one.
        before = State(data, state.observation, state.reward, jnp.zeros(()), metrics={}, info={})
        with jax.numpy_rank_promotion("allow"):
            after = self._environment.step(before, action)
        return _device_state(after.data, after.obs, after.reward)


def _device_state(data: Any, observation: Any, reward: jax.Array) -> DeviceState:
    """Of `mjx.Data` and what was made of it."""
    return DeviceState(
        physics=MjxPhysics(*(getattr(data, field) for field in MjxPhysics._fields)),
        observation=observation.astype(jnp.float32),
        reward=reward.astype(jnp.float32),
        discount=jnp.ones((), jnp.float32),
        valid=jnp.isfinite(data.qpos).all() & jnp.isfinite(data.qvel).all(),
    )
