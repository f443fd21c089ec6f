"""`qsm actions`: policies of runs and exported files, the actions that they draw at a state, what their critics say."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from envs.tasks import SAME_OBSERVATIONS
from qsm.base.errors import UserError
from qsm.checkpoints.leaves import acting_leaves, leaves_read
from qsm.checkpoints.selection import NEWEST, Which, restore_policy
from qsm.devices import runtime
from qsm.learning.build import SIMULATORS, Built, Simulators, build
from qsm.learning.learner import Learner
from qsm.options.commands import Acting
from qsm.policies.policy import Policy, load_policy
from qsm.record.find import load_run
from qsm.record.run_id import run_id_at

NO_CRITIC = "this agent has no critic"
NOT_KEPT = "no critic was kept here:\nonly what acting reads"


class Source(NamedTuple):
    """A policy as it was found."""

    path: Path  # of its run or file
    agent: str  # with its variant
    label: str  # for a person: agent, seed or file, step
    step: int  # environment steps that it was trained for
    state: Any
    known: Sequence[str] | None  # leaves of the state that were kept, the others are zeros; None: all


class Actor:
    """A policy: draws of it at one state, and the value that its own critic gives to actions there.

    Raises:
      UserError: what drawing reads was not kept.
    """

    def __init__(self, source: Source, built: Built, acting: Acting) -> None:
        self.source, self.task, self.spec = source, built.task, built.spec
        self._agent, self._state = built.agent, source.state
        shape = jax.ShapeDtypeStruct
        observation = shape((1, self.spec.observation_size), np.float32)
        action = shape((1, self.spec.action_size), np.float32)
        draw = self._acting(acting)
        if absent := self._absent(draw, observation, jax.random.key(0)):
            raise UserError(
                f"{source.path}: of step {source.step:,} only what evaluation reads was kept, and {absent} is not "
                "among it; take a checkpoint, or --acting evaluate"
            )
        value = self._agent.action_value
        self.no_value = ""
        """Why there is no value; empty where there is one."""
        if jax.eval_shape(value, source.state, observation, action) is None:
            self.no_value = NO_CRITIC
        elif self._absent(value, observation, action):
            self.no_value = NOT_KEPT
        self._draw, self._value = jax.jit(draw), jax.jit(value)
        is_scaled = getattr(getattr(built.agent, "config", None), "normalize_rewards", False)
        self.value_unit = "normalized reward" if is_scaled else "reward"

    def _acting(self, acting: Acting) -> Callable[..., Any]:
        if acting == "policy":
            return self._agent.sample_policy
        return functools.partial(self._agent.act, mode=acting)

    def _absent(self, function: Callable[..., Any], *inputs: Any) -> str:
        """A leaf that `function` of the state reads and that was not kept; empty where there is none."""
        if self.source.known is None:
            return ""
        read = leaves_read(function, self._state, *inputs)
        return next((name for name in read if name not in self.source.known), "")

    def sample(self, observation: np.ndarray, number: int, key: jax.Array) -> np.ndarray:
        """`number` actions `[number, A]` at `observation` `[O]`.

        Raises:
          UserError: they are not finite.
        """
        actions = np.asarray(self._draw(self._state, _repeated(observation, number), key))
        if not np.isfinite(actions).all():
            raise UserError(
                f"{self.source.path}: at this state the policy of step {self.source.step:,} draws numbers that are not "
                "finite; take an earlier step, or another state"
            )
        return actions

    def value(self, observation: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Values `[G]` of `actions` `[G, A]` at `observation` `[O]`; only where there is a critic."""
        repeated = _repeated(observation, len(actions))
        return np.asarray(self._value(self._state, repeated, np.asarray(actions, np.float32)))

    @functools.cached_property
    def evaluate(self) -> Callable[[np.ndarray, jax.Array], np.ndarray]:
        """The action `[A]` of evaluation at an observation `[O]`."""
        act = jax.jit(self._acting("evaluate"))
        return lambda observation, key: np.asarray(act(self._state, observation[None], key))[0]


def _repeated(observation: np.ndarray, number: int) -> np.ndarray:
    return np.repeat(np.asarray(observation, np.float32)[None], number, axis=0)


def open_actors(
    paths: Sequence[Path],
    choices: Sequence[Which] = (NEWEST,),
    acting: Acting = "policy",
    simulators: Simulators = SIMULATORS,
) -> list[Actor]:
    """The policies of `choices` of each run, and those of exported files, which have one each.

    Args:
      acting: what is drawn. policy: `Agent.sample_policy`; explore, evaluate: `Agent.act` in that mode.

    Raises:
      UserError: no run, no such policy, or policies of several tasks or kinds of observations.
    """
    found = [_read(path) for path in paths]
    for path, (config, _) in zip(paths, found, strict=True):
        _check_alike(paths[0], found[0][0], path, config)
    actors = []
    for path, (config, policy) in zip(paths, found, strict=True):
        built = _built(path, config, simulators)
        sources = _of_run(path, config, built, choices) if policy is None else [_exported(path, policy)]
        actors += [Actor(source, built, acting) for source in sources]
    return actors


def _read(path: Path) -> tuple[Mapping[str, Any], Policy | None]:
    """The options of the run at `path`; or those of a file that `qsm export` wrote, and what is in it."""
    if path.suffix != ".npz":
        return load_run(path).config, None
    policy = load_policy(path)
    it = policy.description
    config: dict[str, Any] = {
        name: getattr(it, name) for name in ("agent", "agent_config", "task", "backend")
    }
    return config | {"run_config": {"action_repeat": it.action_repeat}}, policy


def _check_alike(first: Path, one: Mapping[str, Any], path: Path, other: Mapping[str, Any]) -> None:
    """Raises UserError where two policies see different observations."""
    if other["task"] != one["task"]:
        raise UserError(
            f"{first} is of {one['task']} and {path} of {other['task']}; give policies of one task"
        )
    if other["backend"] != one["backend"] and one["task"] not in SAME_OBSERVATIONS:
        raise UserError(
            f"{one['task']} is observed differently on {one['backend']} and {other['backend']}; give policies of one "
            "backend"
        )


def _of_run(path: Path, config: Mapping[str, Any], built: Built, choices: Sequence[Which]) -> list[Source]:
    # Runs of the first version name no precision.
    runtime.set_precision(config["run_config"].get("matmul_precision", "float32"))
    learner = Learner(built.agent, built.spec, 0, capacity=1)
    identity = run_id_at(path, config)
    sources = []
    for which in choices:
        restored = restore_policy(path, learner, *which)
        # A checkpoint holds everything; a policy kept for its return holds what evaluation reads.
        known = None
        if restored.return_mean is not None:
            known = acting_leaves(built.agent, restored.agent, built.spec.observation_size)
        label = f"{identity.label}, seed {identity.seed}, step {restored.step:,}"
        sources.append(Source(path, identity.label, label, restored.step, restored.agent, known))
    return sources


def _exported(path: Path, policy: Policy) -> Source:
    it = policy.description
    return Source(
        path, it.agent, f"{it.agent}, {path.name}, step {it.step:,}", it.step, policy.state, it.leaves
    )


def _built(path: Path, config: Mapping[str, Any], simulators: Simulators) -> Built:
    try:
        return build(config, simulators=simulators)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: {error}") from error
