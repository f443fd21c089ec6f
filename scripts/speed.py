"""How fast training runs: over agents, seeds and environments, against limits measured in the same run.

    python scripts/speed.py --output results/speed/NAME.json [--parts agents seeds precision host device processes]

- agents: the whole host loop of each agent beside its bare update on a fixed batch.
- seeds: updates alone, of S seeds in one program.
- precision: the same at each `--matmul-precision`, which a CPU does not heed.
- host: the host loop (dm_control) of S seeds in one program.
- device: the device loop (MJX) of N environments, and of S seeds, beside the same ticks without updates.
- processes: one process a core, each with one seed of the host loop, all at once.

What is compared takes turns in blocks, so that a drift of the machine's speed touches all alike; rates are medians over
blocks, and ratios medians of ratios within a round. Where others slow the machine down for moments, `undisturbed` has
the same of the fastest tenth of the blocks. `scripts/speed_figure.py` draws the JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import speed_cases as cases  # beside this file
import tyro
from rich.console import Console
from rich.table import Table

from qsm.config import MatmulPrecision
from qsm.rundir import git_commit, package_versions, processor

Part = Literal["agents", "seeds", "precision", "host", "device", "processes"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure training speed."""

    parts: tuple[Part, ...] = get_args(Part)
    """What to measure."""
    agents: tuple[str, ...] = ("qsm", "qsm-clean", "sac", "td3")
    """Agents of the part `agents`, at their defaults."""
    agent: str = "qsm"
    """Agent of the other parts, at its defaults."""
    task: str = "cheetah-run"
    """Task of the host loop; the parts that simulate nothing have its sizes."""
    device_task: str = "cartpole-swingup"
    """Task of the device loop."""
    seeds: tuple[int, ...] = (1, 4, 16)
    """Numbers of seeds S."""
    num_envs: tuple[int, ...] | None = None
    """Numbers of environments N of the device loop; by default up to 128 on a CPU and 4096 elsewhere."""
    replay_ratio: str = "1/16"
    """Updates per environment step in the device loop."""
    blocks: int = 31
    """Blocks of each case, in turn; many short ones, for shared machines stand still for moments."""
    block_seconds: float = 0.1
    """How long a block takes, about."""
    capacity: int = 100_000
    """Rows of each seed's replay buffer."""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """Layers of every network."""
    batch_size: int = 256
    """Transitions in a batch."""
    output: Path | None = None
    """JSON file to write beside the printed tables; written anew after every part."""


class Report:
    """What was measured, printed and written as it comes."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.console = Console(width=None if sys.stdout.isatty() else 160)
        device = jax.devices()[0]
        self.content: dict[str, Any] = {
            "command": " ".join(sys.argv),
            "commit": git_commit(),
            "device": device.device_kind,
            "platform": device.platform,
            "machine": platform.machine(),
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "packages": package_versions(),
            "rows": [],
        }

    def add(self, part: str, rows: list[dict[str, Any]]) -> None:
        """Prints a table of `rows` and writes everything so far."""
        self.content["rows"] += [{"part": part} | row for row in rows]
        names = list(dict.fromkeys(name for row in rows for name in row))
        table = Table(*(name.replace("_", " ") for name in names), title=part)
        for row in rows:
            table.add_row(*(show(row.get(name)) for name in names))
        self.console.print(table)
        if self.options.output is not None:
            self.options.output.parent.mkdir(parents=True, exist_ok=True)
            self.options.output.write_text(json.dumps(self.content, indent=1) + "\n")


def show(value: Any) -> str:
    """Three digits of a number, or thousands."""
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def compare(parts: list[cases.Case], options: Options) -> dict[str, list[float]]:
    """Seconds per unit of each case's blocks: one block of each in turn, after one that is not counted."""
    units = {}
    for case in parts:
        case.run(2)
        pace = case.run(4)
        units[case.name] = max(case.least, min(case.most, int(options.block_seconds / pace)))
    times: dict[str, list[float]] = {case.name: [] for case in parts}
    for _ in range(options.blocks):
        for case in parts:
            times[case.name].append(case.run(units[case.name]))
    return times


def fastest_tenth(times: list[float]) -> float:
    """The time that a tenth of the blocks stay below: what others on the machine did not slow down."""
    return statistics.quantiles(times, n=10, method="inclusive")[0]


def ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median of the ratios within a round."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def rates(case: cases.Case, times: list[float], matmul: float) -> dict[str, Any]:
    """What a case does in a second, summed over its seeds, and what it takes."""
    seconds = statistics.median(times)
    updates = case.updates_per_unit / seconds
    gflops = updates * case.gflop_per_update
    return {
        "env_steps_per_second": case.env_steps_per_unit / seconds or None,
        "updates_per_second": updates or None,
        "updates_per_second_undisturbed": case.updates_per_unit / fastest_tenth(times) or None,
        "gflop_per_second": gflops or None,
        "share_of_matmul_rate": gflops / matmul or None,
        "spread": (max(times) - min(times)) / seconds,
        "program_bytes": case.program_bytes(),
        "compile_seconds": case.compile_seconds,
        "first_step_seconds": case.first_step_seconds,
    }


def measure_agents(options: Options, matmul: float) -> list[dict[str, Any]]:
    """The whole loop and the bare update of each agent."""
    rows = []
    for name in options.agents:
        loop = cases.HostCase("loop", sizes(options, name), 1)
        bare = cases.BareUpdate("bare", sizes(options, name))
        times = compare([loop, bare], options)
        row = rates(loop, times["loop"], matmul)
        bare_seconds = statistics.median(times["bare"])
        row |= {
            "bare_updates_per_second": 1 / bare_seconds,
            "loop_to_bare_time": ratio(times["loop"], times["bare"]),
        }
        rows.append({"agent": name} | row)
    return rows


def measure_seeds(options: Options, matmul: float, kind: type[cases.Case]) -> list[dict[str, Any]]:
    """S seeds in one program beside one."""
    made = [kind(f"S={number}", sizes(options, options.agent), number) for number in options.seeds]  # type: ignore[call-arg]
    times = compare(made, options)
    rows = []
    for number, case in zip(options.seeds, made, strict=True):
        row: dict[str, Any] = {"agent": options.agent, "seeds": number}
        row |= rates(case, times[case.name], matmul)
        # 1 where S seeds cost S times as much as one.
        one = times[made[0].name]
        row["time_to_that_of_seeds_alone"] = ratio(times[case.name], one) / number
        row["undisturbed"] = fastest_tenth(times[case.name]) / fastest_tenth(one) / number
        rows.append(row)
    return rows


def measure_precision(options: Options, matmul: float) -> list[dict[str, Any]]:
    """Updates of the largest number of seeds at each precision of matrix products."""
    number = max(options.seeds)
    size = sizes(options, options.agent)
    made = [cases.LearnCase(name, size, number, name) for name in get_args(MatmulPrecision)]
    times = compare([*made], options)
    rows = []
    for case in made:
        row: dict[str, Any] = {"agent": options.agent, "seeds": number, "matmul_precision": case.precision}
        row |= rates(case, times[case.name], matmul)
        row["time_to_that_of_float32"] = ratio(times[case.name], times["float32"])
        rows.append(row)
    return rows


def measure_device(options: Options, matmul: float) -> list[dict[str, Any]]:
    """Over environments with one seed, then over seeds with the number of environments in the middle."""
    on_cpu = jax.default_backend() == "cpu"
    numbers = options.num_envs or ((1, 16, 128) if on_cpu else (1, 16, 256, 1024, 4096))
    middle = numbers[len(numbers) // 2]
    wanted = [(1, number) for number in numbers]
    wanted += [(seeds, middle) for seeds in options.seeds if seeds > 1]
    environment = cases.mjx_environment(options.device_task)
    rows = []
    for seeds, number in wanted:
        size = sizes(options, options.agent)
        learning = cases.DeviceCase("learning", size, seeds, number, options.replay_ratio, environment)
        idle = cases.DeviceCase.without_updates("idle", learning)
        times = compare([learning, idle], options)
        row: dict[str, Any] = {"agent": options.agent, "seeds": seeds, "num_envs": number}
        row |= rates(learning, times["learning"], matmul)
        row["replay_ratio"] = options.replay_ratio
        # Simulator, acting and replay writes; what is left is learning.
        row["share_without_updates"] = ratio(times["idle"], times["learning"])
        rows.append(row)
    return rows


def measure_processes(options: Options) -> list[dict[str, Any]]:
    """One process a core, pinned to it, each with one seed of the host loop."""
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{core}.json" for core in cores]
        arguments = [f"--agent={options.agent}", f"--task={options.task}", "--parts", "host", "--seeds", "1"]
        arguments += [f"--blocks={options.blocks}", f"--block-seconds={options.block_seconds}"]
        started = [
            subprocess.Popen(
                [sys.executable, __file__, *arguments, "--output", str(file)],
                stdout=subprocess.DEVNULL,
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
            )
            for file in files
        ]
        for core, process in zip(cores, started, strict=True):
            os.sched_setaffinity(process.pid, {core})  # before it has imported JAX, whose threads inherit it
        failed = [process.wait() for process in started]
        if any(failed):
            sys.exit(f"a measuring process ended with status {max(failed)}; its output is above")
        found = [json.loads(file.read_text())["rows"][0] for file in files]
    total = {name: sum(row[name] for row in found) for name in ("env_steps_per_second", "updates_per_second")}
    return [{"agent": options.agent, "processes": len(cores)} | total]


def sizes(options: Options, agent: str) -> cases.Sizes:
    """What the cases have in common."""
    return cases.Sizes(agent, options.task, options.capacity, options.hidden_sizes, options.batch_size)


def main() -> None:
    """Measures, prints the tables, writes the JSON."""
    options = tyro.cli(Options, description=__doc__)
    with tempfile.TemporaryDirectory() as cache:
        # Empty, so that compile times are those of a first start; a program is read back to ask for its memory.
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_default_matmul_precision", "float32")
        report = Report(options)
        products = cases.matmul_rates(options.batch_size, options.hidden_sizes[0], options.blocks)
        matmul = max(products.values())
        cost = cases.replay_milliseconds(options.capacity, options.blocks, options.batch_size)
        report.content |= {"matmul_gflop_per_second": products, "replay_milliseconds": cost}
        kind = f"{report.content['device']} {report.content['processor']}, {report.content['cores']} cores"
        report.console.print(f"{kind}, jax {jax.__version__}")
        for product, rate in products.items():
            report.console.print(f"matrix multiply {product}: {rate:,.0f} GFLOP/s")
        report.console.print(
            f"replay, {options.capacity:,} rows, insert and sample of {options.batch_size}: {cost:.3f} ms"
        )
        for part in options.parts:
            if part == "agents":
                report.add(part, measure_agents(options, matmul))
            elif part == "seeds":
                report.add(part, measure_seeds(options, matmul, cases.LearnCase))
            elif part == "precision":
                report.add(part, measure_precision(options, matmul))
            elif part == "host":
                report.add(part, measure_seeds(options, matmul, cases.HostCase))
            elif part == "device":
                report.add(part, measure_device(options, matmul))
            else:
                report.add(part, measure_processes(options))
        if options.output is not None:
            report.console.print(f"written to {options.output}")


if __name__ == "__main__":
    main()
