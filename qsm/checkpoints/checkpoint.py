"""Checkpoints of the whole training state of one run, through orbax.

A checkpoint holds the agent's learned state, the metrics since the last row, the environments, the loop's counters, and
the names of the files that hold the rows of the replay buffer (`qsm.data.segments`): all that a run needs to go on as
if it had never stopped. Runs that are trained together are saved apart, in the form of a run trained alone.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import orbax.checkpoint as ocp

from agents.parts.types import Mean, Metrics
from qsm.base.errors import UserError, first_line
from qsm.base.files import read_json
from qsm.checkpoints.arrays import pack, unpack
from qsm.checkpoints.integrity import free_place, is_complete, is_whole, seal
from qsm.checkpoints.leaves import check_shapes, grouped_as, shapes
from qsm.checkpoints.orbax_manager import open_manager
from qsm.data import segments
from qsm.data.replay import Rows
from qsm.data.segments import Segment
from qsm.learning.learner import Learner
from qsm.loops.schedule import Counters
from qsm.record.tables import WaitingRow

_LOGGER = logging.getLogger(__name__)

KEPT = 2
UNREADABLE = (UserError, OSError, ValueError, TypeError, KeyError)
"""What reading a checkpoint raises where it is damaged or of another version."""
FORMAT = 2
"""Of what a checkpoint holds, kept in its `rows`; those of before name none, and have the learned state otherwise."""
LAST_BEFORE = "5b8e0bd"
"""Commit of the last version that wrote and reads format 1, of checkpoints and of exported policies."""


def other_format(what: str, found: Any, here: int = FORMAT) -> str:
    """What to do about a file of a run that is of another format than this version reads."""
    if not isinstance(found, int) or found > here:
        return f"{what} was written by a newer qsm (format {found}; this one reads {here}); update qsm"
    return (
        f"{what} is of an earlier version of qsm (format {found}; this one reads {here}). The run's scores can "
        "still be read; to play it or go on with it, take the version that wrote it (the commit in the run's "
        f"provenance.json, or {LAST_BEFORE}), or train it anew with --overwrite"
    )


class Saved(NamedTuple):
    """What a checkpoint holds of one run, on the host."""

    agent: Any
    replay: Sequence[Rows]  # oldest first; to be saved, those that no file holds yet
    metrics: Metrics
    environment: Mapping[str, np.ndarray]  # see `Loop.save`
    waiting: Mapping[str, Sequence[WaitingRow]] = {}  # see `MetricWriter.waiting`


class Checkpoints:
    """The checkpoints of one run, and the files of replay rows that they name. A context manager.

    Args:
      folder: of the checkpoints; the rows lie beside it in `replay`.

    Attributes:
      latest_step: environment step of the newest checkpoint; None where there is none.
      rows_saved: `[N]` uint32, the number of the first row of the replay buffer that no file holds yet; None where none
        holds any.
    """

    def __init__(self, folder: Path, read_only: bool = False) -> None:
        self._folder = folder
        self._manager = open_manager(folder, read_only)
        self._rows = folder.parent / "replay"
        self._segments: list[Segment] = []  # of the newest checkpoint
        self.latest_step: int | None = None
        self._look()

    def steps(self) -> list[int]:
        """Environment steps of the checkpoints, in their order."""
        return sorted(self._manager.all_steps())

    @property
    def rows_saved(self) -> np.ndarray | None:
        return np.array(self._segments[-1].stop, np.uint32) if self._segments else None

    def set_damaged_aside(self, warn: Callable[[str], None]) -> None:
        """Moves checkpoints that are not as they were written out of the way, into the folder of the run.

        Raises:
          UserError: some were written to their end, and none of those is whole: the run would begin anew; or another
            version of qsm wrote them.
        """
        self.check_format()
        steps = self.steps()
        damaged = {step: what for step in steps if (what := self._damage(step)) is not None}
        complete = [step for step in steps if is_complete(self._folder / str(step))]
        # One alone that has no checksums is a first one, of a run that was killed while it was written.
        if set(steps) <= set(damaged) and (complete or len(steps) > 1):
            raise UserError(
                f"every checkpoint in {self._folder} is damaged ({damaged[steps[-1]]}); nothing was changed. "
                "Restore one from a copy, or begin anew with --overwrite"
            )
        for step, what in damaged.items():
            place = free_place(self._folder.parent / f"damaged_checkpoint_{step}")
            warn(
                f"the checkpoint of step {step:,} is damaged or was not written to its end ({what}); it is kept as "
                f"{place}, and "
                + ("the one before it is taken" if step > steps[0] else "there was none before it")
            )
            os.replace(self._folder / str(step), place)
        if damaged:
            self._manager.reload()
            self._look()

    def check_format(self) -> None:
        """Raises UserError where a checkpoint is of another format than this version of qsm reads."""
        for step in self.steps():
            try:
                found = self._rows_of(step).get("format", 1)
            except UNREADABLE:
                continue  # damaged, which is found out elsewhere
            if found != FORMAT:
                raise UserError(other_format(f"the checkpoint {self._folder / str(step)}", found))

    def go_back_to(self, step: int) -> None:
        """Removes the checkpoints after `step`: the run goes on from there and makes them again."""
        for later in [found for found in self.steps() if found > step]:
            self._manager.delete(later)
        self._look()

    def prune(self) -> None:
        """Removes all but the newest `KEPT` checkpoints, and the rows that none of those names.

        What cannot be removed, or told, stays until it is asked again.
        """
        steps = self.steps()
        try:
            for step in steps[:-KEPT]:
                self._manager.delete(step)
            named = [segment for step in steps[-KEPT:] for segment in self._segments_of(step)]
        except UNREADABLE:
            return  # it may name any file
        segments.remove_others(self._rows, named)

    def save(self, saved: Saved, counters: Counters, capacity: int) -> None:
        """Writes a checkpoint named by its environment step; does nothing where that one exists.

        Args:
          saved: with the rows from `rows_saved` on.
          capacity: rows that the replay buffer holds of each environment; files of older rows are no longer named.

        Raises:
          OSError, ValueError: it could not be written, and nothing of it is left.
        """
        step = counters.step
        if step == self.latest_step:
            return
        metrics = {name: np.stack(mean) for name, mean in saved.metrics.items()}
        try:
            new = [segments.write(self._rows, step, rows) for rows in saved.replay]
            named = self._segments + new
            if named:
                named = segments.still_there(named, np.array(named[-1].stop), capacity)
            items = ocp.args.Composite(
                agent=ocp.args.StandardSave(saved.agent),
                sums=ocp.args.StandardSave({"arrays": pack(metrics)}),
                environment=ocp.args.StandardSave({"arrays": pack(saved.environment)}),
                counters=ocp.args.JsonSave(counters._asdict()),
                rows=ocp.args.JsonSave(
                    {
                        "format": FORMAT,
                        "segments": [segment.as_json() for segment in named],
                        "waiting": dict(saved.waiting),
                    }
                ),
            )
            self._manager.save(step, args=items)
            folder = self._folder / str(step)
            seal(folder)
        except BaseException:
            self.drop(step)
            raise
        self._segments, self.latest_step = named, step

    def drop(self, step: int) -> None:
        """Removes what there is of the checkpoint at `step`: it failed here, or for another run of the group."""
        for path in self._folder.glob(f"{step}*"):
            if path.name.partition(".")[0] == str(step):
                shutil.rmtree(path, ignore_errors=True)
        self._manager.reload()
        self._look()

    def _look(self) -> None:
        """Finds the newest checkpoint, and the rows that it names."""
        steps = self.steps()
        self.latest_step = steps[-1] if steps else None
        try:
            self._segments = self._segments_of(steps[-1]) if steps else []
        except UNREADABLE:
            self._segments = []  # damaged: `set_damaged_aside` has yet to be asked, or only the agent is read

    def _segments_of(self, step: int) -> list[Segment]:
        """Raises one of `UNREADABLE` where they cannot be told."""
        return [Segment.from_json(one) for one in self._rows_of(step)["segments"]]

    def _rows_of(self, step: int) -> dict[str, Any]:
        """What a checkpoint names of the rows of the replay buffer, and holds of those of metrics."""
        rows = read_json(self._folder / str(step) / "rows" / "metadata")
        if not isinstance(rows, dict):
            raise ValueError("rows are not named")
        return rows

    def _damage(self, step: int) -> str | None:
        """What of a checkpoint is not as it was written, its rows included; None where it is whole."""
        folder = self._folder / str(step)
        if not is_whole(folder):
            return str(folder)
        try:
            named = self._segments_of(step)
        except UNREADABLE:
            return None  # of another version: `restore` says so
        for segment in named:
            if not segments.is_whole(self._rows, segment):
                return str(self._rows / segment.name)
        return None

    def restore_agent(self, learner: Learner, step: int) -> Any:
        """The learned state of one seed at `step`.

        Raises:
          UserError: it does not fit `learner`'s agent.
        """
        template = learner.agent_template()
        try:
            # Asked before reading, for orbax would tell of a misfit in pages of warnings.
            saved: Any = self._manager.item_metadata(step)["agent"]
            check_shapes(shapes(saved), shapes(template))
            # As the file has it grouped: of what holds nothing for this agent, an older file may know nothing.
            target = grouped_as(saved, template)
            items = self._manager.restore(
                step, args=ocp.args.Composite(agent=ocp.args.StandardRestore(target))
            )
        except (ValueError, TypeError, KeyError, FileNotFoundError) as error:
            raise UserError(
                f"the checkpoint {self._folder / str(step)} cannot be read: {first_line(error)}"
            ) from error
        return grouped_as(template, items["agent"])

    def restore(self, learner: Learner, step: int) -> tuple[Saved, Counters]:
        """The training state of one seed at `step`.

        Raises:
          UserError: it does not fit `learner`'s agent, or was written by a version of qsm that saved less.
        """
        agent_state = self.restore_agent(learner, step)
        read = ocp.args.StandardRestore
        items = ocp.args.Composite(sums=read(), environment=read(), counters=ocp.args.JsonRestore())
        try:
            found = self._manager.restore(step, args=items)
            rows = [segments.read(self._rows, segment) for segment in self._segments_of(step)]
            waiting = {
                phase: [(int(at), dict(values)) for at, values in some]
                for phase, some in self._rows_of(step).get("waiting", {}).items()
            }
        except UNREADABLE as error:
            raise UserError(
                f"the checkpoint {self._folder / str(step)} cannot be gone on from: "
                f"{first_line(error)}. It can still be played with: qsm eval"
            ) from error
        metrics = {name: Mean(*both) for name, both in unpack(np.asarray(found["sums"]["arrays"])).items()}
        environment = unpack(np.asarray(found["environment"]["arrays"]))
        return Saved(agent_state, rows, metrics, environment, waiting), Counters(**found["counters"])

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manager.close()


def restore_agent(
    folder: Path, learner: Learner, warn: Callable[[str], None] = _LOGGER.warning
) -> tuple[Any, int]:
    """The newest learned state below `folder`, and its environment step; passes over damaged ones.

    Raises:
      UserError: there is none, or it does not fit.
    """
    nothing = UserError(
        f"{folder.parent} has no checkpoint: let its training go on, or resume it with its command; where it was "
        "finished and published without checkpoints, train it again in another folder."
    )
    if not folder.is_dir():
        raise nothing
    with Checkpoints(folder, read_only=True) as checkpoints:
        steps = checkpoints.steps()
        for step in reversed(steps):
            # Whoever trains there may be removing or writing one meanwhile.
            if is_whole(folder / str(step)):
                checkpoints.check_format()
                return checkpoints.restore_agent(learner, step), step
            warn(
                f"the checkpoint {folder / str(step)} is damaged or not complete; the one before it is taken"
            )
    if not steps:
        raise nothing
    raise UserError(f"every checkpoint in {folder} is damaged or not complete; restore one from a copy")
