"""The kernels of an update on an NVIDIA H100, counted on a machine that has none.

XLA compiles for a card that is only described, if JAX's CUDA plugin is installed. With one seed an update on a card
takes about as long as its kernels are many; how long they take is not known here.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import importlib.util
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
from jax.experimental import topologies

import agents
from agents import PLAIN, PresetName
from envs.api import EnvSpec
from qsm.base.errors import UserError
from qsm.learning import seeds
from qsm.learning.learner import Learner
from qsm.speed.parts import waterfall

CAPACITY = 20_000
PLUGINS = {"jax_plugins.xla_cuda13": 13, "jax_plugins.xla_cuda12": 12}
"""JAX's CUDA plugins, and the version of CUDA each is for."""
COMPILER_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
"""Without what a compiler tries out on the card; the matrix products are the library's."""
COPIES = ("copy", "transpose", "slice", "concatenate")
CARD = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
runtime_version {{ major: {cuda} }}
dnn_version_info {{ major: 9 minor: 7 }}
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  memory_bandwidth: 3352320000000
  device_memory_size: 84929347584
}}
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """Count the kernels of an update on a card that is not there."""

    agents: tuple[str, ...] = ("qsm", "qsm-clean", "sac", "td3")
    """Agents, with cheetah-run's sizes."""
    preset: PresetName = PLAIN
    """Named set of options for all agents."""
    seeds: tuple[int, ...] = (1,)
    """Numbers of seeds in one program."""

    limits: ClassVar[dict[str, tuple[float, float]]] = {}


def count(agent: str, num_seeds: int, preset: PresetName) -> list[dict[str, Any]]:
    """A row for each part of an update and kind of kernel, the most first; those of branches and of a dispatch besides.

    Raises:
      UserError: an agent is unknown, or the plugin is not installed.
    """
    if agent not in agents.AGENTS:
        raise UserError(f"there is no agent {agent!r}; there are: {', '.join(agents.AGENTS)}")
    program = compiled(agents.make_agent(agent, 17, 6, preset=preset), num_seeds)
    what = {"agent": agent, "preset": preset, "seeds": num_seeds}
    return [what | row for row in rows(program)]


def rows(program: str) -> list[dict[str, Any]]:
    """A row for each place, part and kind of the kernels in a compiled program's text, the most first."""
    places = waterfall.places(program)
    numbers = collections.Counter(
        (places[one.computation], one.part, kind_of(name, one.kind))
        for name, one in waterfall.launched(program).items()
    )
    found = [
        {"of": place, "part": part, "kind": kind, "kernels": number}
        for (place, part, kind), number in numbers.most_common()
    ]
    return sorted(found, key=lambda row: row["of"], reverse=True)


def kind_of(name: str, kind: str) -> str:
    """What a kernel does, as far as its name and kind say: product, copy, reduction, or elementwise."""
    if kind == "custom-call" or "gemm" in name:
        return "product"
    if kind in COPIES or name.startswith("wrapped_"):
        return "copy"
    return "reduction" if "reduce" in name else "elementwise"


def compiled(agent: Any, num_seeds: int) -> str:
    """The text of the program that learns, as compiled for the card."""
    card = _card()
    all_seeds = list(range(num_seeds)) if num_seeds > 1 else 0
    learner = Learner(agent, EnvSpec("sizes", 17, 6, 1000, 1), all_seeds, capacity=CAPACITY)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=card), learner.learn_shapes()
    )
    with _all_at_once(num_seeds):
        traced = jax.jit(learner.group.learn, donate_argnums=0).trace(*shapes)
    text = traced.lower(lowering_platforms=("cuda",)).compile(COMPILER_OPTIONS).as_text()
    assert text is not None
    return text


@contextlib.contextmanager
def _all_at_once(num_seeds: int) -> Iterator[None]:
    """Traces programs as on a card, where not even many seeds take turns, though this process has a CPU alone."""
    before, seeds.CPU_SEEDS = seeds.CPU_SEEDS, num_seeds
    try:
        yield
    finally:
        seeds.CPU_SEEDS = before


@functools.cache
def _card() -> jax.sharding.Sharding:
    there = [cuda for plugin, cuda in PLUGINS.items() if _is_installed(plugin)]
    if not there:
        raise UserError(
            "JAX's CUDA plugin is not installed: pip install 'jax[cuda12]', or make setup ACCELERATOR=cuda"
        )
    described = topologies.get_topology_desc(
        platform="cuda", target_config=CARD.format(cuda=there[0]), topology="1x1x1"
    )
    mesh = topologies.make_mesh(described, (1,), ("card",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def _is_installed(module: str) -> bool:
    package = module.partition(".")[0]
    return importlib.util.find_spec(package) is not None and importlib.util.find_spec(module) is not None
