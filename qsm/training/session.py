"""What is done between the steps of a group of runs when it is due: evaluation, metrics, checkpoints, status."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np

from qsm.base.text import own_command
from qsm.checkpoints.best import BestPolicies
from qsm.checkpoints.checkpoint import Saved
from qsm.checkpoints.saver import Saver
from qsm.devices import processes
from qsm.learning.learner import TrainState
from qsm.loops.loop import Loop
from qsm.loops.schedule import Counters, Event
from qsm.record.metrics import MetricWriter
from qsm.record.status import Outcome
from qsm.record.tables import read_csv
from qsm.training.display import Display
from qsm.training.ending import ending
from qsm.training.freeze import Freezer
from qsm.training.group import Group
from qsm.training.resume import Start

PATIENCE = 30.0
"""Seconds that training waits for the checkpoint before, when the next one is due."""


class Session:
    """Evaluates, records and saves every run of a group when it is due."""

    def __init__(self, group: Group, loop: Loop, display: Display) -> None:
        self.group, self.loop, self.display = group, loop, display
        self.saver = Saver(group.checkpoints, loop.learner.num_rows)
        self.freezer = Freezer(group, loop, display.warn, self._close_writer)
        self.step = 0
        self.best = BestPolicies([run.path for run in group.runs], loop.learner, display.warn)
        self.writers: dict[int, MetricWriter] = {}
        self._logged_at = time.perf_counter()
        self._logged_step: int | None = None
        self._evaluation_seconds = 0.0
        self._blocked_seconds = 0.0  # by checkpoints, since the last row
        self._shown_problem: str | None = None
        self._is_late = False
        self._has_ended = False

    @contextmanager
    def writing(self, start: Start) -> Iterator[None]:
        """The files of the runs, open; they lose what lies beyond `start`.

        Raises:
          UserError: one of them is damaged or cannot be written.
        """
        self.step = start.at.step
        with contextlib.ExitStack() as stack:
            with processes.barrier():
                if self.group.is_writer:
                    self._open_writers(stack, start)
                self.best.go_back_to(start.resume_step, self.group.active_runs)
            yield

    def _open_writers(self, stack: contextlib.ExitStack, start: Start) -> None:
        group = self.group
        for i in group.active_runs:
            group.runs[i].record_start(jax.devices()[0].device_kind, self.display.warn)
        if start.resume_step is not None:
            self.display.info(f"resuming at step {self.step:,}")
        for i in group.active_runs:
            run, wandb = group.runs[i], group.members[i].config.wandb
            writer = MetricWriter(run, wandb, start.resume_step, self.display.warn, start.waiting[i])
            self.writers[i] = stack.enter_context(writer)
            run.saved_step = group.checkpoints[i].latest_step
        group.write_status("running", self.step)
        self.display.begin_at_best(best_return([group.runs[i].eval_csv for i in self.writers]))

    def handle(self, event: Event, state: TrainState, at: Counters) -> TrainState:
        """Does what is due at `at`; `state` is as it was but for the sums of metrics."""
        if event == "metrics":
            return self.on_metrics(state, at)
        if event == "evaluation":
            self.on_evaluation(state, at)
        else:
            self.on_checkpoint(state, at)
        return state

    def on_step(self, step: int) -> None:
        """Shows how far the runs are."""
        self.step = step
        self.display.progress(step)

    def on_evaluation(self, state: TrainState, at: Counters) -> None:
        """Evaluates every active run, and keeps the policy of those that were never better."""
        began = time.perf_counter()
        jax.block_until_ready(state.agent)  # what is left of the last update is not evaluation time
        began_evaluating = time.perf_counter()
        results = self.loop.evaluate(state, at.step)
        ended = time.perf_counter()
        seconds = ended - began_evaluating
        returns: list[float | None] = [None] * len(results)
        for i, result in enumerate(results):
            if result is None:
                continue
            metrics = result.metrics() | {"seconds": seconds}
            returns[i] = self.group.last_returns[i] = metrics["return_mean"]
            if i in self.writers:
                self.writers[i].write("eval", at.step, metrics)
        self.group.write_status("running", at.step)
        self.best.offer(at.step, returns, state.agent)
        if done := [result for result in results if result is not None]:
            alone = len(results) == 1
            shown = done[0].returns if alone else [float(np.mean(result.returns)) for result in done]
            self.display.evaluation(at.step, shown, are_of_seeds=not alone)
        self._evaluation_seconds += ended - began

    def on_metrics(self, state: TrainState, at: Counters) -> TrainState:
        """Writes a row of metrics, and freezes the runs that these show to have diverged."""
        state, means = self.loop.learner.drain(state)
        self.freezer.freeze_diverged(at, state, means)
        self.freezer.freeze_failing(at, state, means)
        now = time.perf_counter()
        common = {"loop/num_updates": float(at.num_updates)}
        if self._logged_step is not None:
            seconds = now - self._logged_at - self._evaluation_seconds
            # How long training stood still for checkpoints, and how long the last one took to be written behind it.
            common["checkpoint/blocked_seconds"] = self._blocked_seconds
            common["checkpoint/write_seconds"] = self.saver.seconds
            common["loop/steps_per_second"] = (at.step - self._logged_step) / max(seconds, 1e-9)
        self._logged_at, self._logged_step, self._evaluation_seconds = now, at.step, 0.0
        self._blocked_seconds = 0.0
        self._show_saving()
        for i, writer in self.writers.items():
            writer.write("train", at.step, means[i].values | common)
        return state

    def on_checkpoint(self, state: TrainState, at: Counters) -> None:
        """Begins to write a checkpoint, behind the training."""
        began = time.perf_counter()
        self.freezer.freeze_diverged(at, state, self.loop.learner.means(state))
        # Where a drive does not answer, it is waited for once and not at every interval.
        is_free = self.saver.wait(0.0 if self._is_late else PATIENCE)
        is_late = not processes.broadcast_from_writer(np.array(is_free))
        if is_late and not self._is_late:
            self.display.warn(
                "the last checkpoint is still being written; training goes on, and further ones are left out until it "
                "is done"
            )
        self._is_late = is_late
        self._show_saving()
        if not is_late:
            self._save(state, at)
        self._blocked_seconds += time.perf_counter() - began

    def save_last(self, state: TrainState, at: Counters) -> None:
        """Writes a checkpoint and waits until it is there."""
        self.freezer.freeze_diverged(at, state, self.loop.learner.means(state))
        self.saver.wait()
        self._save(state, at)
        self.saver.wait()
        self._note_saved()

    def _save(self, state: TrainState, at: Counters) -> None:
        """Copies what every active run has learned, and its new rows, and begins to write them."""
        learner = self.loop.learner
        parts = {}
        for i in self.group.active_runs:
            # Rows that may have changed since they were saved are saved anew.
            there = None if learner.agent.sampling.revises else self.group.checkpoints[i].rows_saved
            # On several processes all of them gather, and one writes.
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
        if self.group.is_writer:
            self.saver.start(parts, at)

    def _note_saved(self) -> list[int]:
        """Has the next status of every run name the newest checkpoint once all have it; returns for which it is new."""
        group = self.group
        if not group.is_writer or self.saver.is_busy or self.saver.problem is not None:
            return []
        new = [i for i in group.active_runs if group.runs[i].saved_step != group.checkpoints[i].latest_step]
        for i in new:
            group.runs[i].saved_step = group.checkpoints[i].latest_step
        return new

    def _show_saving(self) -> None:
        """Says once that checkpoints cannot be written, and once that they can be again."""
        for i in self._note_saved():
            self.group.write_status("running", self.step, index=i)
        problem = self.saver.problem
        if problem is not None and self._shown_problem is None:
            self.display.warn(
                f"the checkpoint cannot be written: {problem}. Training goes on and the next one will hold all that "
                "this one would; free space or restore the drive"
            )
            self.display.detail(self.saver.details)
        elif problem is None and self._shown_problem is not None:
            self.display.warn("checkpoints are being written again; nothing was lost")
        self._shown_problem = problem

    def _close_writer(self, index: int) -> None:
        if index in self.writers:
            self.writers.pop(index).close(failed=True)

    # ---- The end -------------------------------------------------------------------------------------------------

    def finish(self, step: int, stop_signal: int) -> Outcome:
        """Notes how the runs ended and says what to do next. Sinks are closed later: wandb may take its time."""
        self._has_ended = True
        group, problem = self.group, self.saver.problem
        active = group.active_runs
        end = ending(
            step,
            step >= group.config.steps,
            [group.runs[i].path for i in active],
            {group.members[i].label: reason for i, reason in group.frozen.items()},
            stop_signal,
            problem,
            group.newest_step if active else None,
            group.returns(),
            own_command(),
        )
        if end.outcome == "unsaved" and self._shown_problem is None:
            self.display.detail(self.saver.details)
        group.write_status(end.state, step, end.message)
        self.display.finish(end.lines)
        return end.outcome

    def fail(self, error: BaseException) -> None:
        """Notes in every run why it ended, and lets the last checkpoint be written; nothing where that is noted."""
        if not self._has_ended:
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            self.group.write_status(state, self.step, reason)
        self.saver.wait(PATIENCE)

    def abandon(self, number: int) -> None:
        """Notes in every run that a second signal ended it at once, unsaved; nothing where it had ended already."""
        if self._has_ended:
            return
        self._has_ended = True
        state = "preempted" if number == signal.SIGTERM else "interrupted"
        message = "a second signal ended it at once; it goes on from its newest checkpoint"
        self.group.write_status(state, self.step, message)


def best_return(tables: Sequence[Path]) -> float:
    """The best mean return in the files `eval.csv` of runs, of several the mean at one step; -inf where there is none.

    Raises:
      UserError: a file cannot be read.
    """
    returns: dict[float, list[float]] = {}
    for table in tables:
        for row in read_csv(table) if table.exists() else ():
            returns.setdefault(row["step"], []).append(row.get("return_mean", math.nan))
    means = [math.fsum(values) / len(values) for values in returns.values()]
    return max((mean for mean in means if not math.isnan(mean)), default=-math.inf)
