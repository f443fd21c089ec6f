"""Named sets of options, to train agents with by one word. Imports no JAX. What each is for: docs/critics.md."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

PresetName = Literal["paper", "strong", "simba", "simbav2", "crossq", "xqc", "bro"]
PLAIN = "paper"
"""The preset that changes nothing."""


class Preset(NamedTuple):
    """What a preset is, and what it sets."""

    summary: str
    options: dict[str, Any]  # of every agent that has them
    of: dict[str, dict[str, Any]] = {}  # noqa: RUF012  what differs for a family of agents, or for one agent


_SIMBA: dict[str, Any] = {
    "critic_torso": "simba",
    "normalize_observations": True,
}
_DISTRIBUTION: dict[str, Any] = {
    "critic_head": "c51",
    "normalize_rewards": True,
    # SAC's entropy is part of its values: 4 nats at a temperature of 1 would come to 400, far beyond the atoms.
    "initial_temperature": 0.01,
}
PRESETS: dict[PresetName, Preset] = {
    "paper": Preset("each agent as its paper has it, with plain critics: the defaults", {}),
    "strong": Preset(
        "one setting for all agents and tasks: plain critics with LayerNorm that learn distributions",
        # Values spread through target critics by 1 - discount of their rate: 20,000 updates at the usual .005.
        {**_DISTRIBUTION, "critic_layer_norm": True, "normalize_observations": True, "target_rate": 0.02},
        {
            # Its scale in sizes of the gradient, which normalised rewards make small; and the best of a few actions.
            "qsm": {"relative_scale": True, "score_scale": 1.0, "eval_samples": 8},
            # A target that stays off the bounds and a temperature that tunes itself, for critics young and old and for
            # tasks of 1 to 38 action components; what such a policy can follow is set by the errors of its network.
            # One action in evaluation: the best of eight finds errors of the critics.
            "qsm-clean": {
                "target": "fitted",
                "temperature": "spread",
                "prediction": "velocity",
                "score_learning_rate": 1e-3,
            },
        },
    ),
    "simba": Preset(
        "SimBa (Lee et al. 2024)",
        {
            **_SIMBA,
            "critic_hidden_sizes": (512, 512),
            "actor_torso": "simba",
            "actor_hidden_sizes": (128,),
            "weight_decay": 1e-2,
            "critic_learning_rate": 1e-4,
            "actor_learning_rate": 1e-4,
            "score_learning_rate": 1e-4,
            "temperature_learning_rate": 1e-4,
            "initial_temperature": 0.01,
        },
        {"diffusion": {"actor_hidden_sizes": (256, 256)}},
    ),
    "simbav2": Preset(
        "SimbaV2 (Lee et al. 2025)",
        {
            **_DISTRIBUTION,
            "critic_torso": "simbav2",
            "normalize_observations": True,
            "critic_hidden_sizes": (512, 512),
            "actor_torso": "simbav2",
            "actor_hidden_sizes": (128,),
            "critic_learning_rate": 1e-4,
            "actor_learning_rate": 1e-4,
            "score_learning_rate": 1e-4,
            "temperature_learning_rate": 1e-4,
        },
        # No sphere for a score network, whose first layer is taken apart.
        {"diffusion": {"actor_torso": "simba", "actor_hidden_sizes": (256, 256)}},
    ),
    "crossq": Preset(
        "CrossQ (Bhatt et al. 2024): batch normalisation and no target critics",
        {
            "critic_torso": "batchnorm",
            "critic_hidden_sizes": (2048, 2048),
            "critic_learning_rate": 1e-3,
            "actor_learning_rate": 1e-3,
            "temperature_learning_rate": 1e-3,
            "adam_beta1": 0.5,
            "policy_delay": 3,
            "target_entropy_per_action": -1.0,
        },
    ),
    "xqc": Preset(
        "batch and weight normalisation with a cross-entropy, after XQC (Palenicek et al. 2025)",
        {
            **_DISTRIBUTION,
            "critic_torso": "batchnorm",
            "critic_weight_norm": True,
            "critic_hidden_sizes": (512, 512, 512),
        },
    ),
    "bro": Preset(
        "regularised SAC with resets, after BRO (Nauman et al. 2024): for a replay ratio of 2 or more",
        {
            "critic_torso": "simba",
            "critic_hidden_sizes": (512, 512),
            "critic_reduction": "mean",
            "weight_decay": 1e-4,
            "reset_interval": 250_000,
        },
    ),
}
assert tuple(PRESETS) == get_args(PresetName)


def label_of(preset: PresetName) -> str | None:
    """The name of runs with `preset` that are given none: none for the one that changes nothing."""
    return None if preset == PLAIN else preset


def options_of(preset: PresetName, agent: str, family: str) -> dict[str, Any]:
    """What `preset` sets for `agent` of `family`, whether it has every such option or not."""
    entry = PRESETS[preset]
    return {**entry.options, **entry.of.get(family, {}), **entry.of.get(agent, {})}
