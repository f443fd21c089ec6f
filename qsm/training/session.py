"""What happens between the steps of a group of runs: evaluation, metrics, checkpoints, status."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from qsm.base.text import shorten
from qsm.checkpoints.checkpoint import Checkpoints, Saved
from qsm.checkpoints.saver import Saver
from qsm.data.replay import Rows
from qsm.devices import processes
from qsm.learning.learner import FAILURE_RATE, Means, TrainState
from qsm.learning.loop import Loop
from qsm.learning.schedule import Counters, Event
from qsm.record import run_folder
from qsm.record.metrics import MetricWriter
from qsm.record.status import Outcome, State
from qsm.record.tables import WaitingRow
from qsm.training import diagnosis
from qsm.training.display import Display
from qsm.training.group import Member

PATIENCE = 30.0
"""Seconds that training waits for the checkpoint before, when the next one is due."""


class Session:
    """What happens between steps, for every run of the group: evaluation, metrics, checkpoints, status."""

    def __init__(
        self,
        members: Sequence[Member],
        runs: Sequence[run_folder.RunDir],
        loop: Loop,
        display: Display,
        checkpoints: Sequence[Checkpoints],
        held: Sequence[bool],
        start: Counters,
    ) -> None:
        self.members, self.runs, self.loop = members, runs, loop
        self.display, self.checkpoints = display, checkpoints
        self.config = members[0].config
        self.saver = Saver(checkpoints, loop.learner.num_rows)
        self.step = start.step
        self.last_returns: list[float | None] = [run.status().last_return for run in runs]
        self.failures: dict[int, str] = {
            i: runs[i].status().message for i, is_held in enumerate(held) if is_held
        }
        self.writers: dict[int, MetricWriter] = {}
        self.is_writer = processes.is_writer()
        self._logged_at = time.perf_counter()
        self._logged_step: int | None = None
        self._evaluation_seconds = 0.0
        self._blocked_seconds = 0.0  # by checkpoints, since the last row
        self._told_problem: str | None = None
        self._told_failures: set[int] = set()  # runs whose simulation was said to have failed
        self._is_late = False
        self._has_ended = False

    @property
    def going(self) -> list[int]:
        """The runs that are not held."""
        return [i for i in range(len(self.runs)) if i not in self.failures]

    @contextmanager
    def writing(
        self, resume_step: int | None, waiting: Sequence[Mapping[str, Sequence[WaitingRow]]]
    ) -> Iterator[None]:
        """The files of the runs, open.

        Args:
          resume_step: of the checkpoint that training goes on from; None where it begins.
          waiting: for each run, rows of metrics that the checkpoint kept.
        """
        with contextlib.ExitStack() as stack:
            if self.is_writer:
                for i in self.going:
                    run = self.runs[i]
                    writer = MetricWriter(run, self.config.wandb, resume_step, self.display.warn, waiting[i])
                    self.writers[i] = stack.enter_context(writer)
                    run.saved_step = self.checkpoints[i].latest_step
                    run.write_status("running", self.step, self.config.steps, self.last_returns[i])
            yield

    def handle(self, event: Event, state: TrainState, at: Counters) -> TrainState:
        """Does what has become due by `at`; `state` is as it was but for the sums of metrics."""
        if event == "metrics":
            return self.on_metrics(at.step, state, at.num_updates)
        if event == "evaluation":
            self.on_evaluation(at.step, state)
        else:
            self.on_checkpoint(state, at)
        return state

    def on_step(self, step: int) -> None:
        self.step = step
        self.display.progress(step)

    def on_evaluation(self, step: int, state: TrainState) -> None:
        began = time.perf_counter()
        jax.block_until_ready(state.agent)  # what is left of the last update is not evaluation time
        began_evaluating = time.perf_counter()
        results = self.loop.evaluate(state, step)
        ended = time.perf_counter()
        for i, result in enumerate(results):
            if result is None:
                continue
            metrics = result.metrics()
            self.last_returns[i] = metrics["return_mean"]
            if self.is_writer:
                self.writers[i].write("eval", step, metrics | {"seconds": ended - began_evaluating})
                self.runs[i].write_status("running", step, self.config.steps, metrics["return_mean"])
        done = [result for result in results if result is not None]
        if len(self.runs) == 1 and done:
            self.display.evaluation(step, done[0].returns)
        elif done:
            self.display.evaluation(step, [float(np.mean(result.returns)) for result in done])
        self._evaluation_seconds += ended - began

    def on_metrics(self, step: int, state: TrainState, num_updates: int) -> TrainState:
        state, means = self.loop.learner.drain(state)
        self.hold_diverged(Counters(step, num_updates), state, means)
        self._look_at_simulators(Counters(step, num_updates), state, means)
        now = time.perf_counter()
        common = {"loop/num_updates": float(num_updates)}
        if self._logged_step is not None:
            seconds = now - self._logged_at - self._evaluation_seconds
            # How long training stood still for checkpoints, and how long the last one took to be written behind it.
            common["checkpoint/blocked_seconds"] = self._blocked_seconds
            common["checkpoint/write_seconds"] = self.saver.seconds
            common["loop/steps_per_second"] = (step - self._logged_step) / max(seconds, 1e-9)
        self._logged_at, self._logged_step, self._evaluation_seconds = now, step, 0.0
        self._blocked_seconds = 0.0
        self._tell()
        if self.is_writer:
            for i in self.going:
                self.writers[i].write("train", step, means[i].values | common)
        return state

    def on_checkpoint(self, state: TrainState, counters: Counters) -> None:
        """Begins to write a checkpoint, behind the training."""
        began = time.perf_counter()
        self.hold_diverged(counters, state, self.loop.learner.means(state))
        # Where a drive does not answer, it is waited for once and not at every interval.
        is_free = self.saver.wait(0.0 if self._is_late else PATIENCE)
        is_late = not processes.broadcast_from_writer(np.array(is_free))
        if is_late and not self._is_late:
            self.display.warn(
                "the last checkpoint is still being written; training goes on, and further ones are left out until it "
                "is done"
            )
        self._is_late = is_late
        self._tell()
        if not is_late:
            self._save(state, counters)
        self._blocked_seconds += time.perf_counter() - began

    def save_last(self, state: TrainState, counters: Counters) -> None:
        """Writes a checkpoint and waits until it is there."""
        self.hold_diverged(counters, state, self.loop.learner.means(state))
        self.saver.wait()
        self._save(state, counters)
        self.saver.wait()
        self._note_saved()

    def _save(self, state: TrainState, counters: Counters) -> None:
        """Copies what every run that goes on has learned, and its new rows, and begins to write them."""
        learner = self.loop.learner
        parts = {}
        for i in self.going:
            # On several processes all of them gather, and one writes.
            # Rows that may have changed since they were saved are saved anew.
            there = None if learner.agent.sampling.revises else self.checkpoints[i].rows_saved
            since = processes.broadcast_from_writer(
                np.zeros(learner.num_envs, np.uint32) if there is None else there
            )
            parts[i] = Saved(
                learner.placement.member(state.agent, i),
                [learner.rows_since(state, i, since)],
                learner.placement.member(state.metrics, i),
                self.loop.save(state, i),
                self.writers[i].waiting() if i in self.writers else {},
            )
        if self.is_writer:
            self.saver.start(parts, counters)

    def _note_saved(self) -> list[int]:
        """Has the next status of every run name the newest checkpoint once all have it; for which it is new."""
        if not self.is_writer or self.saver.is_busy or self.saver.problem is not None:
            return []
        new = [i for i in self.going if self.runs[i].saved_step != self.checkpoints[i].latest_step]
        for i in new:
            self.runs[i].saved_step = self.checkpoints[i].latest_step
        return new

    def _tell(self) -> None:
        """Says once that checkpoints cannot be written, and once that they can be again."""
        for i in self._note_saved():
            self.runs[i].write_status("running", self.step, self.config.steps, self.last_returns[i])
        problem = self.saver.problem
        if problem is not None and self._told_problem is None:
            self.display.warn(
                f"the checkpoint cannot be written: {problem}. Training goes on and the next one will hold all that "
                "this one would; free space or restore the drive"
            )
            self.display.detail(self.saver.details)
        elif problem is None and self._told_problem is not None:
            self.display.warn("checkpoints are being written again; nothing was lost")
        self._told_problem = problem

    def hold_diverged(self, counters: Counters, state: TrainState, means: Sequence[Means]) -> None:
        """Holds the runs whose numbers are no longer finite and says where; the others go on."""
        learner = self.loop.learner
        for i in self.going:
            values, bad_updates, is_finite = means[i]
            wrong = {name: value for name, value in values.items() if not math.isfinite(value)}
            if not wrong and not bad_updates and is_finite:
                continue
            agent, rows = learner.placement.member(state.agent, i), learner.rows_since(state, i, None)
            found = diagnosis.diagnose(counters.step, counters.num_updates, bad_updates, wrong, agent, rows)
            self._hold(i, counters, found, agent, rows, state)

    def _look_at_simulators(self, counters: Counters, state: TrainState, means: Sequence[Means]) -> None:
        """Warns of the first failed steps of a run's simulation, and holds a run where every step failed."""
        learner = self.loop.learner
        for i in self.going:
            rate = means[i].values.get(FAILURE_RATE, 0.0)
            if rate < 1.0:
                if rate > 0.0 and i not in self._told_failures:
                    self._told_failures.add(i)
                    self.display.warn(
                        f"the simulation of {self.members[i].label} failed in {rate:.2%} of the last steps before "
                        f"{counters.step:,}; those episodes ended there, and the failed steps are not learned from. "
                        f"train.csv goes on counting them ({FAILURE_RATE})"
                    )
                continue
            agent, rows = learner.placement.member(state.agent, i), learner.rows_since(state, i, None)
            found = diagnosis.diagnose(
                counters.step, counters.num_updates, 0, {FAILURE_RATE: rate}, agent, rows
            )
            found = found._replace(cause="the simulation failed at every step since the last row of metrics")
            self._hold(i, counters, found, agent, rows, state)

    def _hold(
        self,
        i: int,
        counters: Counters,
        found: diagnosis.Diagnosis,
        agent: Any,
        rows: Rows,
        state: TrainState,
    ) -> None:
        """Run `i` learns no more; what was found is told, and written with all its numbers."""
        self.failures[i] = f"diverged by step {counters.step:,}: {found.describe()}"
        self.loop.learner.active[i] = False
        newest = self.checkpoints[i].latest_step
        kept = f"its checkpoint of step {newest:,} is kept" if newest is not None else "it has no checkpoint"
        folder = self.runs[i].path / f"diverged_{counters.step}"
        environment = self.loop.save(state, i)
        if self.is_writer:
            try:
                diagnosis.write(folder, found, agent, rows, environment)
                kept += f", and all its numbers are in {folder}"
            except OSError as error:
                kept += f", and its numbers could not be written ({error.strerror or error})"
        self.display.warn(f"{self.members[i].label} {self.failures[i]}; it is held, {kept}")
        if self.is_writer:
            self.runs[i].write_status(
                "diverged", counters.step, self.config.steps, self.last_returns[i], self.failures[i]
            )
            if i in self.writers:
                self.writers.pop(i).close(failed=True)

    def abandon(self, number: int) -> None:
        """Notes in every run that a second signal ended it at once, unsaved; nothing where it had ended already."""
        if self._has_ended or not self.is_writer:
            return
        self._has_ended = True
        state: State = "preempted" if number == signal.SIGTERM else "interrupted"
        message = "a second signal ended it at once; it goes on from its newest checkpoint"
        for i in self.going:
            self.runs[i].write_status(state, self.step, self.config.steps, self.last_returns[i], message)

    def fail(self, error: BaseException) -> None:
        """Notes in every run why it ended; nothing where that is noted already."""
        if self._has_ended:
            return
        state: State = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if self.is_writer:
            for i in self.going:
                self.runs[i].write_status(state, self.step, self.config.steps, self.last_returns[i], reason)

    def finish(self, end: Counters, preempted: bool) -> Outcome:
        """Notes how the runs ended and says what to do next. Sinks are closed later: wandb may take its time."""
        self._has_ended = True
        finished = end.step >= self.config.steps
        stopped: Literal["preempted", "interrupted"] = "preempted" if preempted else "interrupted"
        state: State = "finished" if finished else stopped
        problem, message = self.saver.problem if self.going else None, ""
        if problem is not None:
            if self._told_problem is None:
                self.display.detail(self.saver.details)
            newest = self.checkpoints[self.going[0]].latest_step
            state = "failed"
            message = f"step {end.step:,} could not be saved: {problem}. " + (
                f"The newest checkpoint is of step {newest:,}"
                if newest is not None
                else "There is no checkpoint"
            )
        for i in self.going if self.is_writer else ():
            self.runs[i].write_status(state, end.step, self.config.steps, self.last_returns[i], message)
        lines = [
            f"Failed   {self.members[i].label} {reason}. Try again alone with another --seed or other options"
            for i, reason in self.failures.items()
        ]
        if problem is not None:
            lines += [
                f"Failed   {message}. Free space or restore the drive, then go on with the same command."
            ]
        elif finished and self.going:
            paths = [self.runs[i].path for i in self.going]
            above = Path(os.path.commonpath(paths)) if len(paths) > 1 else paths[0]
            lines += [
                f"Run      {shorten([str(path) for path in paths], 1)}",
                f"Play     qsm eval {paths[0]}",
                f"Look     qsm dashboard {above}",
            ]
        elif self.going:
            lines += [f"Stopped and saved at step {end.step:,}. Go on with the same command."]
        self.display.finish(lines)
        if problem is not None:
            return "unsaved"
        if self.going and not finished:
            return stopped
        return "diverged" if self.failures else "finished"
