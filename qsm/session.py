"""What happens between the steps of a group of runs: evaluation, metrics, checkpoints, status."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from qsm import replay, rundir, runtime
from qsm.checkpoint import Checkpoints, Saved
from qsm.display import Display
from qsm.group import DIVERGED, Member
from qsm.learner import TrainState
from qsm.loop import Counters, Hooks, Loop
from qsm.metrics import MetricWriter

Outcome = Literal["finished", "interrupted", "diverged"]


class Session:
    """What happens between steps, for every run of the group: evaluation, metrics, checkpoints, status."""

    def __init__(
        self,
        members: Sequence[Member],
        runs: Sequence[rundir.RunDir],
        loop: Loop,
        display: Display,
        checkpoints: Sequence[Checkpoints],
        held: Sequence[bool],
        start: Counters,
    ) -> None:
        self.members, self.runs, self.loop = members, runs, loop
        self.display, self.checkpoints = display, checkpoints
        self.config = members[0].config
        self.step = start.step
        self.last_returns: list[float | None] = [run.status().get("last_return") for run in runs]
        self.failures: dict[int, str] = {
            i: str(runs[i].status().get("message", DIVERGED)) for i, is_held in enumerate(held) if is_held
        }
        self.writers: dict[int, MetricWriter] = {}
        self.is_writer = runtime.is_writer()
        self._logged_at = time.perf_counter()
        self._logged_step: int | None = None
        self._evaluation_seconds = 0.0

    @property
    def going(self) -> list[int]:
        """The runs that are not held."""
        return [i for i in range(len(self.runs)) if i not in self.failures]

    @contextmanager
    def writing(self, resume_step: int | None) -> Iterator[None]:
        """The files of the runs, open."""
        with contextlib.ExitStack() as stack:
            if self.is_writer:
                for i in self.going:
                    writer = MetricWriter(self.runs[i], self.config.wandb, resume_step, self.display.warn)
                    self.writers[i] = stack.enter_context(writer)
                    self.runs[i].write_status("running", self.step, self.config.steps, self.last_returns[i])
            yield

    def hooks(self, should_stop: Callable[[], bool]) -> Hooks:
        def nothing_left() -> bool:
            return not self.going or should_stop()

        return Hooks(self.on_step, self.on_evaluation, self.on_metrics, self.on_checkpoint, nothing_left)

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
        self.hold_diverged(step, means)
        now = time.perf_counter()
        common = {"loop/num_updates": float(num_updates)}
        if self._logged_step is not None:
            seconds = now - self._logged_at - self._evaluation_seconds
            common["loop/steps_per_second"] = (step - self._logged_step) / max(seconds, 1e-9)
        self._logged_at, self._logged_step, self._evaluation_seconds = now, step, 0.0
        if self.is_writer:
            for i in self.going:
                self.writers[i].write("train", step, means[i] | common)
        return state

    def on_checkpoint(self, state: TrainState, counters: Counters) -> None:
        self.hold_diverged(counters.step, self.loop.learner.means(state))
        self.save(state, counters)

    def hold_diverged(self, step: int, means: Sequence[dict[str, float]]) -> None:
        """Holds the runs whose numbers are no longer finite and says so; the others go on."""
        for i in self.going:
            wrong = [name for name, value in means[i].items() if not math.isfinite(value)]
            if not wrong:
                continue
            newest = self.checkpoints[i].latest_step
            self.failures[i] = f"{DIVERGED} by step {step:,}: {wrong[0]} is {means[i][wrong[0]]}"
            self.loop.learner.active[i] = False
            kept = (
                f"its checkpoint of step {newest:,} is kept" if newest is not None else "it has no checkpoint"
            )
            self.display.warn(f"{self.members[i].label} {self.failures[i]}; it is held, {kept}")
            if self.is_writer:
                self.runs[i].write_status(
                    "failed", step, self.config.steps, self.last_returns[i], self.failures[i]
                )
                if i in self.writers:
                    self.writers.pop(i).close(failed=True)

    def save(self, state: TrainState, counters: Counters) -> None:
        """Checkpoints every run that goes on, one after the other."""
        placement = self.loop.learner.placement
        for i in self.going:
            # On several processes all of them gather, and one writes.
            saved = Saved(
                placement.member(state.agent, i),
                replay.rows(placement.member(state.replay, i)),
                placement.member(state.metrics, i),
                self.loop.save(state, i),
            )
            if self.is_writer:
                self.checkpoints[i].save(saved, counters)

    def fail(self, error: BaseException) -> None:
        """Notes in every run why it ended."""
        state: rundir.State = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if self.is_writer:
            for i in self.going:
                self.runs[i].write_status(state, self.step, self.config.steps, self.last_returns[i], reason)

    def finish(self, end: Counters) -> Outcome:
        """Notes how the runs ended and says what to do next."""
        finished = end.step >= self.config.steps
        for i in self.going if self.is_writer else ():
            state: rundir.State = "finished" if finished else "interrupted"
            self.runs[i].write_status(state, end.step, self.config.steps, self.last_returns[i])
        lines = [
            f"Failed   {self.members[i].label} {reason}. Try again alone with another --seed or other options"
            for i, reason in self.failures.items()
        ]
        if finished and self.going:
            paths = [self.runs[i].path for i in self.going]
            above = Path(os.path.commonpath(paths)) if len(paths) > 1 else paths[0]
            lines += [
                f"Run      {some([str(path) for path in paths], 1)}",
                f"Play     qsm eval {paths[0]}",
                f"Look     qsm dashboard {above}",
            ]
        elif self.going:
            lines += [f"Stopped and saved at step {end.step:,}. Go on with the same command."]
        self.display.finish(lines)
        if self.going and not finished:
            return "interrupted"
        return "diverged" if self.failures else "finished"


def some(texts: Sequence[str], number: int = 8) -> str:
    """The first of `texts`, and how many there are besides."""
    more = f" and {len(texts) - number} more" if len(texts) > number else ""
    return ", ".join(texts[:number]) + more
