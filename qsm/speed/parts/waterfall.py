"""Where the time of an update goes: each operation of the compiled program, counted for the part that asked for it.

Parts are the `jax.named_scope`s of `agents.parts` and `qsm.learning.programs`, and a network that has none. The
compiler merges operations; what it merged counts for the part that most of it comes from. Times are those of the
profiler that JAX brings.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from qsm.speed import cases
from qsm.speed.bench import Bench

PARTS = (
    "replay_store",
    "replay_sample",
    "policy_sample",
    "sampler",
    "spread",
    "action_noise",
    "critic_target",
    "critic_regress",
    "critic_value",
    "critic_action_gradient",
    "add_noise",
    "score_loss",
    "DeterministicActor",
    "adam",
    "polyak",
)
RANDOM = ("threefry", "random_bits")
"""Names of the primitives that draw random bits, whoever asks for them."""
OTHER = "other"
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id")
"""Operations that compute nothing."""
CONTAINERS = ("while", "conditional", "call")
"""Operations whose time is that of others, which are listed by themselves."""

_OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(?.*?\)?) ([\w\-]+)\(([^)]*)\)(.*)$")
_CALLED = re.compile(
    r"(body|condition|to_apply|branch_computations|true_computation|false_computation)"
    r"=\{?(%?[^,}\s]+(?:, %[^,}\s]+)*)"
)
_SHAPE = re.compile(r"\w+\[([\d,]*)\]")


class Operation(NamedTuple):
    """One operation of a compiled program."""

    kind: str  # as the compiler calls it: fusion, dot, copy, ...
    part: str
    gflop: float  # of its matrix products
    computation: (
        str  # that it stands in: the program itself, a loop's body, what was merged into one operation, ...
    )


def part_of(name: str) -> str:
    """The part that an operation's name (`jit(f)/critic_regress/transpose(jvp(...))/dot`) says it belongs to."""
    if any(primitive in name for primitive in RANDOM):
        return "random"
    found = [(at, part) for part in PARTS if (at := name.rfind(part)) >= 0]
    if not found:
        return OTHER
    part = max(found)[1]
    if part in ("adam", "polyak"):
        return part
    return f"{part} backward" if "transpose(" in name else part


def operations(program: str) -> dict[str, Operation]:
    """The operations of a compiled program, by name.

    Args:
      program: its text, `jitted.lower(...).compile().as_text()`.
    """
    shapes: dict[str, str] = {}
    products: dict[str, float] = collections.defaultdict(float)  # GFLOP by computation
    parts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    found: dict[str, Operation] = {}
    calls: dict[str, str] = {}
    computation = ""
    for line in program.splitlines():
        if line and not line[0].isspace():
            computation = line.removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%")
            continue
        match = _OPERATION.match(line)
        if match is None:
            continue
        name, shape, kind, operands, rest = match.groups()
        shapes[name] = shape
        gflop = _dot_gflop(shape, operands, rest, shapes) if kind == "dot" else 0.0
        products[computation] += gflop
        if called := re.search(r"calls=%?([\w.\-]+)", rest):
            calls[name] = called[1]
        named = re.search(r'op_name="([^"]*)"', rest)
        part = part_of(named[1] if named else "")
        found[name] = Operation(kind, part, gflop, computation)
        if part != OTHER:
            parts[computation][part] += 1
    for name, called in calls.items():
        most = parts[called].most_common(1)
        found[name] = found[name]._replace(
            gflop=products[called], part=most[0][0] if most else found[name].part
        )
    return found


def launched(program: str) -> dict[str, Operation]:
    """The operations that a compiled program starts one by one, by name; those of a loop's body are listed once.

    On an accelerator each is a kernel. What is merged into another, or is a reduction's own sum, starts nothing.

    Args:
      program: its text, `jitted.lower(...).compile().as_text()`.
    """
    inner = set(re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", program))
    # What `call` calls is a sequence of operations like any other.
    inner -= set(re.findall(r" call\(.*to_apply=%?([\w.\-]+)", program))
    return {
        name: operation
        for name, operation in operations(program).items()
        if operation.computation not in inner and operation.kind not in (*FREE, *CONTAINERS)
    }


Place = Literal["dispatch", "update", "branch"]


def places(program: str) -> dict[str, Place]:
    """How often the computations of a compiled program run: once a dispatch, in each turn of its loops, or as decided.

    A loop's turn has what its body and its condition call; what only a branch of a `cond` calls is of that branch.
    """
    loops, calls, branches = (collections.defaultdict[str, set[str]](set) for _ in range(3))
    computation = entry = ""
    for line in program.splitlines():
        if line and not line[0].isspace():
            computation = line.removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%")
            entry = computation if line.startswith("ENTRY ") else entry
            continue
        for name, listed in _CALLED.findall(line):
            kind = loops if name in ("body", "condition") else calls if name == "to_apply" else branches
            kind[computation] |= {called.strip(" %") for called in listed.split(",")}

    def reached(names: set[str], *kinds: Mapping[str, set[str]]) -> set[str]:
        found: set[str] = set()
        while names:
            found |= names
            names = set().union(*(kind.get(name, set()) for name in names for kind in kinds)) - found
        return found

    once = reached({entry}, calls)
    repeated = reached(set().union(*(loops.get(name, set()) for name in once)), calls, loops)
    all_of_them = reached({entry}, calls, loops, branches)
    return {
        name: "dispatch" if name in once else "update" if name in repeated else "branch"
        for name in all_of_them
    }


def _dot_gflop(shape: str, operands: str, rest: str, shapes: Mapping[str, str]) -> float:
    first = operands.split(", %")[0]
    own = _SHAPE.search(first) or _SHAPE.search(shapes.get(first.lstrip("%").split(" ")[-1].lstrip("%"), ""))
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
    if own is None or contracted is None:
        raise ValueError(f"a product whose sizes cannot be read: {operands} {rest}")
    sizes = _numbers(own[1])
    return 2e-9 * math.prod(_numbers(shape)) * math.prod(sizes[i] for i in _numbers(f"[{contracted[1]}]"))


def _numbers(shape: str) -> list[int]:
    inner = _SHAPE.search(shape)
    text = inner[1] if inner else shape.strip("[]")
    return [int(number) for number in text.split(",") if number]


class Taken(NamedTuple):
    """What an operation took while a profile was made."""

    seconds: float
    times: int  # that it ran


def profile(run: Callable[[], Any]) -> dict[str, Taken]:
    """What each operation, by its name, takes while `run` runs and is waited for."""
    found: dict[str, Taken] = collections.defaultdict(lambda: Taken(0.0, 0))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        (file,) = Path(folder).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                for event in line.events:
                    operation = dict(event.stats).get("hlo_op")
                    if operation is not None:
                        taken = found[str(operation)]
                        found[str(operation)] = Taken(
                            taken.seconds + event.duration_ns / 1e9, taken.times + 1
                        )
    return found


@dataclasses.dataclass
class Share:
    """What one part takes of an update."""

    milliseconds: float = 0.0
    product_milliseconds: float = 0.0  # of the operations that hold its matrix products
    gflop: float = 0.0
    operations: float = 0.0  # that run


def shares(program: str, profiled: Mapping[str, Taken], num_updates: int) -> dict[str, Share]:
    """Each part's share of one of `num_updates` updates, the longest first.

    Raises:
      ValueError: a profile of another program.
    """
    known = operations(program)
    if not set(profiled) & set(known):
        raise ValueError("the profile names no operation of this program")
    found: dict[str, Share] = collections.defaultdict(Share)
    for name, taken in profiled.items():
        operation = known.get(name, Operation("", OTHER, 0.0, ""))
        if operation.kind in CONTAINERS:
            continue
        share = found[operation.part]
        milliseconds = 1e3 * taken.seconds / num_updates
        share.milliseconds += milliseconds
        share.gflop += operation.gflop * taken.times / num_updates
        share.operations += taken.times / num_updates
        if operation.gflop:
            share.product_milliseconds += milliseconds
    return dict(sorted(found.items(), key=lambda item: -item[1].milliseconds))


def measure(bench: Bench) -> None:
    """The parts of each agent's update, as it runs in training from a full buffer; and what is between operations."""
    options = bench.options
    for name in options.agents:
        what = {"part": "waterfall", "agent": name}
        make = functools.partial(cases.LearnCase, "learn", options.sizes(name), 1)
        for timed in bench.compare([bench.start(what, make, add=False)]):
            with bench.report.guarded(what):
                case, number = timed.case, max(timed.units, 10)
                assert isinstance(case, cases.LearnCase)
                bench.caches.use(timed.folder)
                program = case.compiled().as_text()
                found = shares(program, profile(functools.partial(case.run, number)), number)
                for row in rows(found, 1e3 * statistics.median(timed.times)):
                    bench.report.add(what | row)


def rows(found: Mapping[str, Share], milliseconds: float) -> list[dict[str, Any]]:
    """A row for each part of an update that takes so many `milliseconds` when it is not profiled."""
    made = [
        {
            "of": part,
            "share": share.milliseconds / milliseconds,
            "milliseconds": share.milliseconds,
            "operations": share.operations,
            "gflop": share.gflop or None,
            "product_milliseconds": share.product_milliseconds or None,
            "product_gflop_per_second": 1e3 * share.gflop / share.product_milliseconds
            if share.product_milliseconds
            else None,
        }
        for part, share in found.items()
    ]
    # On several cores operations that do not need each other run at the same time: then it may be negative.
    total = sum(share.milliseconds for share in found.values())
    between = milliseconds - total
    made.append(
        {"of": "between operations less overlap", "share": between / milliseconds, "milliseconds": between}
    )
    return made
