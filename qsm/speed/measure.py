"""Measures how fast training runs: over seeds, environments and agents, against limits measured in the same run.

    python scripts/speed.py --output results/speed/NAME.json [--parts PART ...]

- seeds: updates alone, of S seeds in one program.
- precision: the same at each `--matmul-precision`, which a CPU does not heed.
- waterfall: where the time of each agent's update goes, by the part that asked for each operation.
- growth: updates alone over width, batch, denoising steps, replay rows and seeds, each by itself.
- device: the device loop (MJX) of N environments, and of S seeds, beside the same ticks without updates.
- agents: the whole host loop of each agent beside its bare update on a fixed batch.
- host: the host loop (dm_control) of S seeds in one program.
- processes: one process a core, each with one seed of the host loop, all at once.

The parts seeds, precision, waterfall and growth, and the bare updates of agents, need jax, numpy, flax, optax and
etils. The part device needs mujoco, mujoco-mjx, playground, psutil and filelock as well, the loops of agents, host and
processes dm_control; none needs rich. What cannot be imported is skipped, as is what no longer fits into `--minutes`.
What fails is recorded and the rest goes on; the exit status is then 1.

What is compared takes turns in blocks, so that a drift of the machine's speed touches all alike; rates are medians over
blocks, and ratios medians of ratios within a round. Where others slow the machine down for moments, `undisturbed` has
the same of the fastest tenth of the blocks. Each case starts twice, with an empty compilation cache and with what it
left there. `scripts/speed_figure.py` draws the JSON.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import jax

from envs.api import DeviceEnvironment
from qsm.options.run import MatmulPrecision
from qsm.speed import cases, limits, loop_cases
from qsm.speed.bench import Bench, Timed, fastest_tenth, find, ratio
from qsm.speed.options import Options, parse
from qsm.speed.parts import growth, waterfall
from qsm.speed.report import Budget, OutOfTimeError, Report
from qsm.speed.starts import caches

PRECISIONS: tuple[MatmulPrecision, ...] = get_args(MatmulPrecision)


def measure_seeds(bench: Bench, part: str, kind: Any) -> None:
    """S seeds in one program beside one."""
    options = bench.options
    made = []
    for number in options.seeds:
        what = {"part": part, "agent": options.agent, "seeds": number}
        made.append(bench.start(what, functools.partial(kind, f"S={number}", options.sizes(), number)))
    done = bench.compare(made)
    one = find(done, "S=1")
    for timed in done:
        number = timed.what["seeds"]
        # 1 where S seeds cost S times as much as one.
        relative = ratio(timed, one)
        calm = fastest_tenth(timed.times) / fastest_tenth(one.times) / number if one is not None else None
        bench.record_rates(
            timed, time_to_that_of_seeds_alone=relative and relative / number, undisturbed=calm
        )


def measure_host(bench: Bench) -> None:
    """The host loop of S seeds."""
    loop_cases.make_host_env(bench.options.task, seed=0)  # once, and not at every case, says what is missing
    measure_seeds(bench, "host", loop_cases.HostCase)


def measure_precision(bench: Bench) -> None:
    """Updates of the largest number of seeds at each precision of matrix products."""
    options = bench.options
    number = max(options.seeds)
    made = []
    for precision in PRECISIONS:
        what = {"part": "precision", "agent": options.agent, "seeds": number, "matmul_precision": precision}
        make = functools.partial(cases.LearnCase, precision, options.sizes(), number, precision)
        made.append(bench.start(what, make))
    done = bench.compare(made)
    exact = find(done, "float32")
    for timed in done:
        bench.record_rates(timed, timed.case.name, time_to_that_of_float32=ratio(timed, exact))


def device_cases(options: Options, on_cpu: bool) -> list[tuple[int, int]]:
    """Pairs (S, N): N environments of one seed, S seeds with the N in the middle; the largest N last."""
    numbers = sorted(options.num_envs or ((1, 16, 128) if on_cpu else (1, 16, 256, 1024, 4096)))
    middle = numbers[len(numbers) // 2]
    wanted = [(1, number) for number in numbers]
    wanted += [(seeds, middle) for seeds in options.seeds if seeds > 1]
    if not on_cpu and numbers[-2:][0] > middle and max(options.seeds) > 1:
        # An accelerator may have room for seeds where the environments of one alone keep it busy.
        wanted.append((max(options.seeds), numbers[-2]))
    return sorted(wanted, key=lambda pair: pair[1] == numbers[-1])


def measure_device(bench: Bench) -> None:
    """The device loop over environments and over seeds."""
    environment = loop_cases.mjx_environment(bench.options.device_task)
    for seeds, number in device_cases(bench.options, jax.default_backend() == "cpu"):
        measure_device_case(bench, seeds, number, environment)


def measure_device_case(bench: Bench, seeds: int, number: int, environment: DeviceEnvironment) -> None:
    """S seeds with N environments each, beside the same ticks without updates; frees the device as it returns."""
    options = bench.options
    what = {"part": "device", "agent": options.agent, "seeds": seeds, "num_envs": number}
    arguments = (options.sizes(), seeds, number, options.replay_ratio, environment)
    learning = bench.start(what, functools.partial(loop_cases.DeviceCase, "learning", *arguments))
    if learning is None:
        return
    bench.report.update(learning.row, {"replay_ratio": options.replay_ratio})
    idle = None
    with bench.report.guarded(what | {"case": "idle"}):
        case = loop_cases.DeviceCase.without_updates("idle", learning.case)  # type: ignore[arg-type]
        idle = Timed(case, learning.folder, what | {"case": "idle"}, {})
    done = bench.compare([learning, idle])
    if find(done, "learning") is not None:
        # Simulator, acting and replay writes; what is left is learning.
        idle = find(done, "idle")
        bench.record_rates(learning, share_without_updates=None if idle is None else ratio(idle, learning))


def measure_agents(bench: Bench) -> None:
    """The whole loop and the bare update of each agent; the update alone where there is no dm_control."""
    options = bench.options
    has_loop = False
    with bench.report.guarded({"part": "agents", "case": "loop"}):
        loop_cases.make_host_env(options.task, seed=0)
        has_loop = True
    for name in options.agents:
        what = {"part": "agents", "agent": name}
        size = options.sizes(name)
        loop = (
            bench.start(what, functools.partial(loop_cases.HostCase, "loop", size, 1)) if has_loop else None
        )
        make = functools.partial(cases.BareUpdate, "bare", size)
        bare = bench.start(what | {"case": "bare"}, make, add=False)
        done = bench.compare([loop, bare])
        loop, bare = find(done, "loop"), find(done, "bare")
        more: dict[str, Any] = {}
        if bare is not None:
            more = {
                f"bare_{key}": value for key, value in bare.row.items() if key.endswith(("seconds", "start"))
            }
            more["bare_updates_per_second"] = 1 / statistics.median(bare.times)
        if loop is not None:
            bench.record_rates(loop, **more, loop_to_bare_time=ratio(loop, bare))
        elif more:
            bench.report.add(what | more)


def child_arguments(options: Options, seconds: float) -> list[str]:
    """Of a process that measures one seed of the host loop, in at most so many seconds."""
    return [
        *("--parts", "host", "--seeds", "1", "--agent", options.agent, "--task", options.task),
        *("--blocks", str(options.blocks), "--block-seconds", str(options.block_seconds)),
        *("--capacity", str(options.capacity), "--batch-size", str(options.batch_size)),
        *("--hidden-sizes", *map(str, options.hidden_sizes), "--minutes", str(seconds / 60)),
    ]


def measure_processes(bench: Bench) -> None:
    """One process a core, pinned to it, each with one seed of the host loop."""
    loop_cases.make_host_env(bench.options.task, seed=0)
    cores = sorted(os.sched_getaffinity(0))
    arguments = [
        sys.executable,
        "-m",
        "qsm.speed.measure",
        *child_arguments(bench.options, bench.budget.left()),
    ]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path.rstrip(os.pathsep)}
    started: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{core}.json" for core in cores]
        try:
            for core, file in zip(cores, files, strict=True):
                with file.with_suffix(".log").open("wb") as log:
                    command = [*arguments, "--output", str(file)]
                    started.append(subprocess.Popen(command, stdout=log, stderr=log, env=environ))
                # Before it has imported JAX, whose threads inherit it.
                os.sched_setaffinity(started[-1].pid, {core})
            for process, file in zip(started, files, strict=True):
                if process.wait(timeout=max(bench.budget.left(), 1.0)):
                    said = file.with_suffix(".log").read_text(errors="replace").strip()
                    print(said, file=sys.stderr)
                    last = said.rpartition("\n")[2]
                    raise RuntimeError(f"a measuring process ended with status {process.returncode}: {last}")
        except subprocess.TimeoutExpired:
            raise OutOfTimeError("the measuring processes did not end in time") from None
        finally:
            for process in started:
                process.kill()
                process.wait()
        found = [json.loads(file.read_text())["rows"] for file in files]
    names = ("env_steps_per_second", "updates_per_second")
    if not all(rows and set(names) <= rows[0].keys() for rows in found):
        raise OutOfTimeError("the measuring processes did not come to their rates in time")
    total = {name: sum(rows[0][name] for rows in found) for name in names}
    what = {"part": "processes", "agent": bench.options.agent, "processes": len(cores)}
    bench.report.add(what | total)


def measure_limits(bench: Bench) -> None:
    """Matrix products at each precision, and the cost of replay."""
    options, report = bench.options, bench.report
    at: dict[str, dict[str, float]] = {}
    for precision in PRECISIONS:
        with report.guarded({"part": "limits", "matmul_precision": precision}):
            width = options.hidden_sizes[0]
            at[precision] = limits.matmul_rates(options.batch_size, width, options.blocks, precision)
            bench.matmul[precision] = max(at[precision].values())
            for product, rate in at[precision].items():
                report.print_line(f"matrix multiply {product}, {precision}: {rate:,.0f} GFLOP/s")
    report.content |= {
        "matmul_gflop_per_second": at.get("float32", {}),
        "matmul_gflop_per_second_at_precision": at,
    }
    with report.guarded({"part": "limits", "case": "replay"}):
        cost = limits.replay_milliseconds(options.capacity, options.blocks, options.batch_size)
        report.content["replay_milliseconds"] = cost
        report.print_line(
            f"replay, {options.capacity:,} rows, insert and sample of {options.batch_size}: {cost:.3f} ms"
        )


MEASURES: dict[str, Callable[[Bench], None]] = {
    "limits": measure_limits,
    "seeds": lambda bench: measure_seeds(bench, "seeds", cases.LearnCase),
    "precision": measure_precision,
    "waterfall": waterfall.measure,
    "growth": growth.measure,
    "device": measure_device,
    "agents": measure_agents,
    "host": measure_host,
    "processes": measure_processes,
}


def main(arguments: Sequence[str] | None = None, clock: Callable[[], float] = time.monotonic) -> int:
    """Measures, prints, writes the JSON; returns the exit status.

    Args:
      clock: seconds, for `--minutes` and what each part took; what is measured has a clock of its own.
    """
    options = parse(arguments, __doc__)
    budget = Budget(options.minutes, clock)
    report = Report(options.output)
    content = report.content
    report.print_line(
        f"{content['device']} {content['processor']}, {content['cores']} cores, jax {jax.__version__}"
    )
    with caches() as folders, jax.default_matmul_precision("float32"):
        bench = Bench(options, report, budget, folders)
        for name in dict.fromkeys([options.agent, *(options.agents if "agents" in options.parts else ())]):
            with report.guarded({"part": "limits", "agent": name}):
                options.sizes(name).import_agent()
        for part in ("limits", *options.parts):
            began, bench.longest = budget.elapsed(), 0.0
            with report.guarded({"part": part}):
                budget.check()
                MEASURES[part](bench)
            report.part_seconds[part] = budget.elapsed() - began
            report.print_line(f"\n{part} ({report.part_seconds[part]:.0f} s)")
            report.table(part)
            report.write()
    if options.output is not None:
        report.print_line(f"written to {options.output}")
    if failures := report.failures():
        report.print_line(f"failed: {'; '.join(failures)}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
