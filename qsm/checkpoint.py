"""Checkpoints of the whole training state, through orbax.

A checkpoint holds three items: the agent's learned state, the rows of the replay buffer, and the loop's counters. The
environment is not in it: a resumed run starts a new episode, and no transition is formed across the seam.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from qsm import replay
from qsm.errors import UserError
from qsm.learner import Learner, TrainState

KEPT = 2


class Counters(NamedTuple):
    """Where the loop is."""

    step: int  # environment steps made
    num_updates: int


class Checkpoints:
    """The checkpoints of one run, the newest `KEPT` of them. A context manager."""

    def __init__(self, folder: Path) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
        self._folder = folder
        handlers = {
            "agent": ocp.StandardCheckpointHandler(),
            "replay": ocp.StandardCheckpointHandler(),
            "counters": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers)

    @property
    def latest_step(self) -> int | None:
        """Environment step of the newest checkpoint; None where there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, counters: Counters) -> None:
        """Writes a checkpoint named by its environment step; does nothing where that one exists."""
        if counters.step == self.latest_step:
            return
        items = ocp.args.Composite(
            agent=ocp.args.StandardSave(state.agent),
            replay=ocp.args.StandardSave(replay.rows(state.replay)),
            counters=ocp.args.JsonSave(counters._asdict()),
        )
        self._manager.save(counters.step, args=items)

    def restore_agent(self, learner: Learner) -> Any:
        """The newest learned state.

        Raises:
          UserError: it does not fit `learner`'s agent.
        """
        step = self.latest_step
        assert step is not None, "ask latest_step first"
        template = jax.eval_shape(learner.init_agent)
        try:
            # Asked before reading, for orbax would tell of a misfit in pages of warnings.
            _check_shapes(_shapes(self._manager.item_metadata(step)["agent"]), _shapes(template))
            items = self._manager.restore(
                step, args=ocp.args.Composite(agent=ocp.args.StandardRestore(template))
            )
        except (ValueError, TypeError, KeyError, FileNotFoundError) as error:
            reason = str(error).splitlines()[0][:200]
            raise UserError(f"the checkpoint {self._folder / str(step)} cannot be read: {reason}") from error
        return items["agent"]

    def restore(self, learner: Learner) -> tuple[TrainState, Counters]:
        """The newest training state.

        Raises:
          UserError: it does not fit `learner`'s agent.
        """
        agent_state = self.restore_agent(learner)
        items = self._manager.restore(
            self.latest_step,
            args=ocp.args.Composite(replay=ocp.args.StandardRestore(), counters=ocp.args.JsonRestore()),
        )
        return learner.restore(agent_state, items["replay"]), Counters(**items["counters"])

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manager.close()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each leaf, by its path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in leaves}


def _check_shapes(there: dict[str, tuple[int, ...]], here: dict[str, tuple[int, ...]]) -> None:
    """Raises ValueError, naming the first leaf that differs."""
    for name in (*here, *there):
        if there.get(name) != here.get(name):
            saved, built = there.get(name, "absent"), here.get(name, "absent")
            raise ValueError(f"{name} is {saved} there and {built} in this agent")


def restore_agent(folder: Path, learner: Learner) -> tuple[Any, int]:
    """The newest learned state below `folder`, and its environment step.

    Raises:
      UserError: there is none, or it does not fit.
    """
    nothing = UserError(
        f"{folder.parent} has no checkpoint yet; let the training go on, or resume it with its command."
    )
    if not folder.is_dir():
        raise nothing
    with Checkpoints(folder) as checkpoints:
        step = checkpoints.latest_step
        if step is None:
            raise nothing
        return checkpoints.restore_agent(learner), step
