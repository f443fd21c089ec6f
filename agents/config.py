"""The options that every agent shares, and the check that each option lies inside its limits."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from typing import Any, ClassVar, Literal

from agents.conditions import Condition, Conditions, above, is_on, left_out, one_of, other_than, without
from agents.parts.types import Sampling
from agents.presets import PresetName

Limits = dict[str, tuple[float, float]]
SamplerName = Literal["ancestral", "ddim", "dpm++"]
StepVariance = Literal["beta", "posterior"]
Prediction = Literal["noise", "velocity"]
INFINITY = math.inf
FEWEST_STATES = 2
"""States that an update learns from at least, where several chains are drawn at each."""
DISTRIBUTIONS = ("c51", "two_hot", "hl_gauss")
"""Heads of critics that learn a distribution over atoms."""


def check_limits(config: Any, limits: Limits) -> None:
    """Holds each number (or each entry of a tuple) of `config` to its inclusive `limits`; all must be finite, or None.

    Raises:
      ValueError: naming the field, its value and what is allowed.
    """
    for name, (low, high) in limits.items():
        value = getattr(config, name)
        for entry in value if isinstance(value, tuple) else (value,):
            if entry is not None and not (math.isfinite(entry) and low <= entry <= high):
                allowed = f"at least {low:.10g}" if high == INFINITY else f"from {low:.10g} to {high:.10g}"
                raise ValueError(f"{name} is {value}; it must be {allowed}")


@functools.cache
def _choices(kind: type) -> dict[str, tuple[Any, ...]]:
    """What each field of `kind` typed `Literal` may be; kept, for to read annotations takes milliseconds."""
    hints = typing.get_type_hints(kind)
    return {name: typing.get_args(h) for name, h in hints.items() if typing.get_origin(h) is typing.Literal}


def check_chains(config: Any) -> None:
    """Holds a batch to the chains of `FEWEST_STATES` states, from which an update then learns.

    Raises:
      ValueError: it has fewer; says what to change.
    """
    size, chains = config.batch_size, config.chains_per_state
    if size // chains < FEWEST_STATES:
        fewer = size // FEWEST_STATES
        lower = (
            f", or lower chains_per_state to {fewer}" if fewer >= config.limits["chains_per_state"][0] else ""
        )
        raise ValueError(
            f"chains_per_state is {chains}; batch_size, {size}, must hold the chains of {FEWEST_STATES} states or "
            f"more: raise batch_size to {FEWEST_STATES * chains}{lower}"
        )


def check_choices(config: Any) -> None:
    """Holds each field of `config` typed `Literal` to its choices.

    Raises:
      ValueError: naming the field, its value and what is allowed.
    """
    for name, choices in _choices(type(config)).items():
        if getattr(config, name) not in choices:
            allowed = ", ".join(choices)
            raise ValueError(f"{name} is {getattr(config, name)!r}; it must be one of {allowed}")


ALL_LEVELS = Condition(
    "{acting_steps} is 0 or {denoising_steps}",
    lambda config: config.acting_steps in (0, config.denoising_steps),
)
FEWER_LEVELS = Condition(
    "{acting_steps} is from 1 to below {denoising_steps}",
    lambda config: 0 < config.acting_steps < config.denoising_steps,
)
"""How many levels of a chain are visited to act."""


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    """Options of every agent, with one default for all so that comparisons are fair.

    Whole numbers, choices and switches shape the program; every float but those in `constants` is a hyperparameter
    that the agent keeps in `State.hyperparameters`, so one compiled program serves any value of it.
    """

    preset: PresetName = "paper"
    """Named set of options that those not given are taken from: qsm agents --presets."""
    batch_size: int = 256
    """Transitions in an update."""
    discount: float = 0.99
    """Discount factor gamma per decision."""
    n_step: int = 1
    """Steps of reward before bootstrapping."""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of actor and critics."""
    num_critics: int = 2
    """Members of the critic ensemble."""
    critic_torso: Literal["mlp", "simba", "simbav2", "batchnorm"] = "mlp"
    """Kind of the hidden layers of the critics; batchnorm does without target critics (docs/critics.md)."""
    critic_hidden_sizes: tuple[int, ...] | None = None
    """Widths of the critics' hidden layers, or of their blocks, which are equal; none: the widths of both."""
    critic_layer_norm: bool = False
    """Layer normalisation after each hidden layer of the critics with torso mlp."""
    critic_weight_norm: bool = False
    """Hidden kernels of columns of length one, for the critics with torso batchnorm."""
    critic_head: Literal["scalar", "c51", "two_hot", "hl_gauss"] = "scalar"
    """What the critics learn: a number, or a distribution over atoms, with the target projected or spread over them."""
    num_atoms: int = 101
    """Atoms of a critic that learns a distribution."""
    value_bound: float = 5.0
    """Largest value of an atom, and of the discounted returns of normalized rewards."""
    atom_smoothing: float = 0.75
    """Std of a target of head hl_gauss, in distances between atoms."""
    critic_reduction: Literal["min", "mean", "mean_std"] = "min"
    """One value of all critics, for targets and actors: the smallest, the mean, or the mean less some std."""
    critic_pessimism: float = 1.0
    """Standard deviations that mean_std takes off the mean."""
    actor_torso: Literal["mlp", "simba", "simbav2"] = "mlp"
    """Kind of the hidden layers of the actor."""
    actor_hidden_sizes: tuple[int, ...] | None = None
    """Widths of the actor's hidden layers, or of its blocks, which are equal; none: the widths of both."""
    critic_learning_rate: float = 3e-4
    """Adam's learning rate for the critics."""
    target_rate: float = 0.005
    """Polyak rate of the target critics, per update."""
    normalize_observations: bool = False
    """Bring observations to mean zero and variance one, by running statistics of all that were made."""
    normalize_rewards: bool = False
    """Divide rewards so that running discounted returns have standard deviation one at most and stay in the bound."""
    rescale_targets: bool = False
    """Bring values of the next state to the scale that rewards are divided by now: what target critics say was learned
    at earlier scales, which are smaller where returns rise."""
    adam_beta1: float = 0.9
    """Adam's decay of its mean of gradients."""
    weight_decay: float = 0.0
    """Decay of kernels per update, times the learning rate (AdamW)."""
    gradient_clip: float = 0.0
    """Longest gradient of a network; 0: as it is."""
    learning_rate_decay_steps: int = 0
    """Updates over which the learning rates of critics and actor fall linearly; 0: they stay."""
    last_learning_rate: float = 0.1
    """Share of the learning rates that they fall to."""
    reset_interval: int = 0
    """Updates after which all networks begin anew, statistics and replay buffer apart; 0: never."""

    limits: ClassVar[Limits] = {
        "batch_size": (1, 2**20),
        "discount": (0, 1),
        "n_step": (1, 100),
        "hidden_sizes": (1, 2**16),
        "num_critics": (1, 64),
        "critic_learning_rate": (0, 10),
        "target_rate": (0, 1),
        "critic_hidden_sizes": (1, 2**16),
        "num_atoms": (2, 2**12),
        "value_bound": (1e-6, 1e9),
        "atom_smoothing": (1e-3, 100),
        "critic_pessimism": (0, 100),
        "actor_hidden_sizes": (1, 2**16),
        "adam_beta1": (0, 0.9999),
        "weight_decay": (0, 10),
        "gradient_clip": (0, 1e9),
        "learning_rate_decay_steps": (0, INFINITY),
        "last_learning_rate": (0, 1),
        "reset_interval": (0, INFINITY),
    }

    conditions: ClassVar[Conditions] = {
        "hidden_sizes": left_out("critic_hidden_sizes") | left_out("actor_hidden_sizes"),
        "critic_layer_norm": one_of("critic_torso", "mlp"),
        "critic_weight_norm": one_of("critic_torso", "batchnorm"),
        "num_atoms": one_of("critic_head", *DISTRIBUTIONS),
        "value_bound": one_of("critic_head", *DISTRIBUTIONS) | is_on("normalize_rewards"),
        "rescale_targets": is_on("normalize_rewards"),
        "atom_smoothing": one_of("critic_head", "hl_gauss"),
        "critic_pessimism": one_of("critic_reduction", "mean_std"),
        "target_rate": other_than("critic_torso", "batchnorm"),
        # Kernels on a sphere are not pulled.
        "weight_decay": other_than("critic_torso", "simbav2") | other_than("actor_torso", "simbav2"),
        "last_learning_rate": above("learning_rate_decay_steps", 0),
    }
    """Options that are read only where others allow it; all others are always read."""

    constants: ClassVar[tuple[str, ...]] = (
        *("value_bound", "atom_smoothing", "critic_pessimism"),
        *("adam_beta1", "weight_decay", "gradient_clip", "last_learning_rate"),
    )
    """Floats that shape the program, and are no hyperparameters."""
    initial: ClassVar[tuple[str, ...]] = ()
    """Hyperparameters that only a fresh state depends on."""

    def __post_init__(self) -> None:
        check_limits(self, self.limits)
        check_choices(self)
        for name in ("hidden_sizes", "critic_hidden_sizes", "actor_hidden_sizes"):
            if getattr(self, name) == ():
                raise ValueError(f"{name} is empty; it must hold at least one width")
        for part in ("critic", "actor"):
            kind, sizes = getattr(self, f"{part}_torso"), getattr(self, f"{part}_hidden_sizes")
            name = "hidden_sizes" if sizes is None else f"{part}_hidden_sizes"
            if kind.startswith("simba") and len(set(sizes or self.hidden_sizes)) > 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; it must hold equal widths, of the blocks of {kind}"
                )

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.batch_size, self.n_step)

    def hyperparameters(self) -> dict[str, float]:
        """The float options by name, without `constants`: they shape nothing and may be swept along the seed axis."""
        # By the default's type: an option given as 50 is as much a float as 50.0.
        return {
            field.name: float(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if isinstance(field.default, float) and field.name not in self.constants
        }


@dataclasses.dataclass(frozen=True)
class DiffusionConfig(AgentConfig):
    """Options of every agent whose policy is a diffusion chain."""

    actor_torso: Literal["mlp", "simba"] = "mlp"
    """Kind of the hidden layers of the score network."""
    denoising_steps: int = 5
    """Levels T of the diffusion chain."""
    schedule: Literal["vp", "cosine", "linear", "geometric"] = "vp"
    """Noise schedule of the chain."""
    beta_min: float = 0.1
    """Noise rate at the start of the vp schedule."""
    beta_max: float = 10.0
    """Noise rate at the end of the vp schedule."""
    prediction: Prediction = "noise"
    """What the score network predicts and is regressed in: the noise in an action, or its velocity, which tells the
    clean action as well at high levels as at low ones."""
    step_variance: StepVariance = "beta"
    """Variance of a reverse step: beta_t, or the smaller posterior variance."""
    acting_sampler: SamplerName = "ancestral"
    """How the chain is gone down to act, exploring or in evaluation: with its own noise, by DDIM, or by DPM-Solver++.
    Learning always goes down the whole chain."""
    acting_steps: int = 0
    """Steps of the chain that acts, at most denoising_steps; 0: one for each level."""
    ddim_eta: float = 0.0
    """Noise of a step of DDIM: 0 for none, 1 for that of the chain with the posterior variance."""
    score_learning_rate: float = 3e-4
    """Adam's learning rate for the score network, before its cosine decay."""
    score_decay_steps: int = 2_000_000
    """Updates over which the score network's learning rate decays to zero."""
    score_layer_norm: bool = False
    """Layer normalisation after each hidden layer of the score network."""
    time_embedding_size: int = 64
    """Size of the learnable Fourier embedding of the noise level (even)."""
    time_hidden_sizes: tuple[int, ...] = (128, 128)
    """Widths of the MLP that turns the embedding into a time code."""
    action_noise: float = 0.1
    """Std of Gaussian noise added to actions while exploring and in critic targets."""
    explore_samples: int = 1
    """Actions sampled while exploring, of which the one with the largest smaller-critic value is taken."""
    target_samples: int = 1
    """Actions sampled for a critic target, of which the one with the largest smaller-target-critic value is taken."""
    eval_samples: int = 1
    """Actions sampled in evaluation, of which the one with the largest smaller-critic value is taken."""

    # The schedule and the steps are fixed when compiled.
    constants: ClassVar[tuple[str, ...]] = (*AgentConfig.constants, "beta_min", "beta_max", "ddim_eta")
    limits: ClassVar[Limits] = AgentConfig.limits | {
        "denoising_steps": (1, 1000),
        "beta_min": (1e-6, 1000),
        "beta_max": (1e-6, 1000),
        "acting_steps": (0, 1000),
        "ddim_eta": (0, 1),
        "score_learning_rate": (0, 10),
        "score_decay_steps": (1, INFINITY),
        "time_embedding_size": (2, 2**16),
        "time_hidden_sizes": (1, 2**16),
        "action_noise": (0, INFINITY),
        "explore_samples": (1, 4096),
        "target_samples": (1, 4096),
        "eval_samples": (1, 4096),
    }
    conditions: ClassVar[Conditions] = without(AgentConfig.conditions, "weight_decay") | {
        "beta_min": one_of("schedule", "vp"),
        "beta_max": one_of("schedule", "vp"),
        "ddim_eta": one_of("acting_sampler", "ddim"),
        "score_layer_norm": one_of("actor_torso", "mlp"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.time_embedding_size % 2:
            raise ValueError(
                f"time_embedding_size is {self.time_embedding_size}; it must be even (cosines and sines)"
            )
        if self.acting_steps > self.denoising_steps:
            raise ValueError(
                f"acting_steps is {self.acting_steps}; it must be at most denoising_steps, {self.denoising_steps}, or "
                "0 for all of them"
            )
