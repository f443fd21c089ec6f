"""The best evaluated policy of each run: one small file of what acting reads, beside the checkpoints.

`RUN/best/STEP.npz` holds the parameters by name and, as JSON in `description`, the format, the environment step and the
mean return of the evaluation. Each file was better than all before it, so that the newest is the best. An older one
stays as long as a checkpoint is kept that a resumed run may go back to: it was the best by then.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qsm.base.errors import UserError, first_line
from qsm.base.files import remove_quietly, replace_file
from qsm.checkpoints.arrays import DAMAGED_ARCHIVE
from qsm.checkpoints.checkpoint import FORMAT, other_format
from qsm.checkpoints.leaves import acting_leaves, filled, named_leaves
from qsm.devices import processes
from qsm.learning.learner import Learner

FOLDER = "best"
DESCRIPTION = "description"


class BestPolicies:
    """Keeps the best evaluated policy of every run that is trained together.

    `training.session` makes one when the runs are open, calls `go_back_to` with the step that training goes on from,
    before anything is evaluated, and `offer` at each evaluation, on every process:

        self.best = BestPolicies([run.path for run in runs], loop.learner, display.warn)
        self.best.go_back_to(resume_step)  # None where the runs begin
        self.best.offer(step, [None if result is None else result.metrics()["return_mean"] for result in results],
                        state.agent)

    A file that cannot be written is warned of once and never ends the training; the next better policy is kept in its
    place where it can be.

    Args:
      runs: folder of each.
      warn: called with one line.
    """

    def __init__(self, runs: Sequence[Path], learner: Learner, warn: Callable[[str], None]) -> None:
        self._folders = [run / FOLDER for run in runs]
        self._checkpoints = [run / "checkpoints" for run in runs]
        self._learner = learner
        self._warn = warn
        self._has_warned = False
        self._names = acting_leaves(learner.agent, learner.agent_template(), learner.spec.observation_size)
        self.returns = [self._best_return(folder) for folder in self._folders]
        """Mean return of each run's best policy; minus infinity where none is kept."""

    def go_back_to(self, step: int | None, runs: Iterable[int] | None = None) -> None:
        """Removes what was kept after `step`, as those evaluations are made again; None where the runs begin anew.

        Args:
          runs: indices of those that go on; None for all. What the others kept stays.
        """
        if processes.is_writer():
            for folder in self._folders if runs is None else [self._folders[i] for i in runs]:
                for later in [found for found in kept_steps(folder) if step is None or found > step]:
                    remove_quietly(_file(folder, later))
        self.returns = [self._best_return(folder) for folder in self._folders]

    def offer(self, step: int, returns: Sequence[float | None], agents: Any) -> None:
        """Keeps the policies that are better than the best of their run.

        Args:
          step: environment step of the evaluation.
          returns: mean return of each run, None where it was not evaluated.
          agents: learned states `[S, ...]`, as they are on the devices.
        """
        is_better = [
            value is not None and value > best for value, best in zip(returns, self.returns, strict=True)
        ]
        # On several processes all of them gather, and one writes.
        better = np.flatnonzero(processes.broadcast_from_writer(np.array(is_better, np.int32)))
        if not len(better):
            return
        leaves = named_leaves(agents)
        read = {name: leaves[name] for name in self._names}
        for i in better.tolist():
            value = returns[i]
            arrays = self._learner.placement.member(read, i)
            if value is not None and (not processes.is_writer() or self._write(i, step, value, arrays)):
                self.returns[i] = value

    def _write(self, index: int, step: int, value: float, arrays: Mapping[str, np.ndarray]) -> bool:
        """Whether the policy was kept."""
        folder = self._folders[index]
        description = json.dumps({"format": FORMAT, "step": step, "return_mean": value})
        content = io.BytesIO()
        described = {DESCRIPTION: np.frombuffer(description.encode(), np.uint8), **arrays}
        np.savez(content, allow_pickle=False, **described)  # type: ignore[arg-type]
        try:
            folder.mkdir(exist_ok=True)
            replace_file(_file(folder, step), content.getvalue())
        except OSError as error:
            if not self._has_warned:
                self._warn(
                    f"the best policy cannot be kept in {folder}: {first_line(error)}. Training goes on, and the next "
                    "better one is kept where there is room again"
                )
            self._has_warned = True
            return False
        self._prune(index)
        return True

    def _prune(self, index: int) -> None:
        """Removes what was the best neither lately nor by a checkpoint, one that is being written included."""
        steps = kept_steps(self._folders[index])
        needed = set(steps[-2:])
        for path in self._checkpoints[index].glob("*"):
            checkpoint = path.name.partition(".")[0]
            if checkpoint.isdigit():
                needed.update([step for step in steps if step <= int(checkpoint)][-1:])
        for step in set(steps) - needed:
            remove_quietly(_file(self._folders[index], step))

    def _best_return(self, folder: Path) -> float:
        for step in reversed(kept_steps(folder)):
            try:
                return _read(_file(folder, step))[0]["return_mean"]
            except UserError:
                continue  # damaged: the next one that is better than what is left takes its place
        return -np.inf


def kept_steps(folder: Path) -> list[int]:
    """Environment steps of the policies in the folder `best` of a run, in their order; the last is the best."""
    return sorted(int(path.stem) for path in folder.glob("*.npz") if path.stem.isdigit())


def restore_best(folder: Path, learner: Learner, step: int) -> tuple[Any, float]:
    """The learned state of which acting reads what was kept at `step`, the rest zeros; and its mean return.

    Raises:
      UserError: the file cannot be read, or does not hold what this agent's acting reads.
    """
    file = _file(folder, step)
    description, arrays = _read(file)
    template = learner.agent_template()
    try:
        state = filled(template, arrays)
    except ValueError as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}") from error
    needed = acting_leaves(learner.agent, template, learner.spec.observation_size)
    if absent := [name for name in needed if name not in arrays]:
        raise UserError(
            f"{file} holds what the run's own evaluation reads, and {absent[0]} is not among it; take a checkpoint for "
            "these options, or leave them as the run has them"
        )
    return state, description["return_mean"]


def _file(folder: Path, step: int) -> Path:
    return folder / f"{step}.npz"


def _read(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Description and arrays; every byte is checked against its checksum."""
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        description = json.loads(arrays.pop(DESCRIPTION).tobytes())
        found = description["format"]
        if found == FORMAT:
            description["return_mean"] = float(description["return_mean"])
    except OSError as error:
        raise UserError(f"Cannot read {file}: {error.strerror or error}.") from error
    except DAMAGED_ARCHIVE as error:
        raise UserError(
            f"{file} is damaged; take a checkpoint in its place, with --step or without --best"
        ) from error
    if found != FORMAT:
        raise UserError(other_format(str(file), found))
    return description, arrays
