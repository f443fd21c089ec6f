"""Which chains an agent's options ask for."""

from __future__ import annotations

from agents.parts import score
from agents.parts.paths.fitted import FittedChains
from agents.parts.paths.options import PathConfig
from agents.parts.paths.plain import PlainChains
from agents.parts.paths.weighted import WeightedChains

KINDS: dict[str, type[PlainChains]] = {
    "clean": PlainChains,
    "fitted": FittedChains,
    "weighted": WeightedChains,
}


def chains_of(config: PathConfig, denoiser: score.Denoiser) -> PlainChains:
    """The chains of `denoiser` that learn from the target of `config`."""
    return KINDS[config.target](config, denoiser)
