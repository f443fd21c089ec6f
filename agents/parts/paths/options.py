"""Options of an agent whose chains may be weighted. Imports no JAX."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from agents.conditions import Conditions, is_off, one_of
from agents.config import ALL_LEVELS, FEWER_LEVELS, INFINITY, DiffusionConfig, Limits, check_chains

Fit = Literal["unit", "spread", "residual"]
RATE = "temperature_learning_rate"
PATH_FLOATS = (
    "tempering_share",
    "fit_rate",
    "target_entropy_per_action",
    "effective_floor",
    RATE,
)
READ_BY: dict[str, tuple[str, ...]] = {
    "clean": (),
    "fitted": ("fit_rate", "drift_limit"),
    "weighted": PATH_FLOATS,
}
"""What each target keeps as hyperparameters, whatever the temperature."""
TUNED = ("spread", "entropy")
"""Temperatures that are learned."""

WEIGHTED = one_of("target", "weighted")
NOT_CLEAN = one_of("target", "fitted", "weighted")
OF_ENTROPY = WEIGHTED & one_of("temperature", "entropy")
OF_SPREAD = NOT_CLEAN & one_of("temperature", "spread")
ANCESTRAL = one_of("acting_sampler", "ancestral")


@dataclasses.dataclass(frozen=True)
class PathConfig(DiffusionConfig):
    """Options of a diffusion agent before a tanh that may fit its chains' variances to the policy, and weight them by
    exp(Q/tau) over their likelihood.
    """

    inverse_temperature: float = 10.0
    """Length of the critic's action gradient in the score target on average; with temperature=component this times the
    root of the number of action components; with temperature=fixed 1 / tau."""
    sample_clip: float = 3.0
    """Bound of the clean action, before its tanh, that the sampler may imply at any step."""
    target: Literal["clean", "fitted", "weighted"] = "clean"
    """Score target: of drawn actions as they come; with variances that are fitted to the policy, for temperatures
    however low; or with those and actions weighted by their chains."""
    chains_per_state: int = 8
    """Chains drawn at each of batch_size / chains_per_state states, among which weights are normalised."""
    tempering_share: float = 0.333
    """Share of a state's chains that stays effective: weights are tempered down to it, mean over states."""
    step_fit: Fit = "residual"
    """What sets the variances of a chain's steps: unit spread (beta_t), the policy's spread, or errors by level."""
    target_fit: Fit = "residual"
    """What sets the mixture of both noise predictions in the score target; with unit it is that of clean."""
    fit_rate: float = 0.01
    """Rate of the running means of spread and errors, per update."""
    drift_limit: float = 1.75
    """Root mean square step of target fitted along Q's gradient, in std of what a noised action leaves open; longer
    ones are shortened for that update, as if tau were higher. Between 1, where nothing narrows, and 2, where policies
    begin to swing."""
    act_with_chain: bool = True
    """Act with the chain that is trained on, fitted variances and a last step with noise, not the plain sampler, unless
    acting_sampler or acting_steps ask for another."""
    temperature: Literal["gradient", "component", "fixed", "spread", "entropy"] = "gradient"
    """Hold tau to the length of the action gradient, or to its size per action component, so that inverse_temperature
    means the same in 1 and in 38 of them; or leave it as given, whatever the gradient (fixed: for normalized rewards);
    or tune it, beginning as with gradient, to a spread or an entropy of the policy (spread: not with target clean;
    entropy: with weighted)."""
    target_spread: float = 0.2
    """Std of an action component within a state that a tuned temperature holds the policy to (uniform: 0.58)."""
    target_entropy_per_action: float = -0.5
    """Entropy bound that a tuned temperature holds the policy to, nats per action component (uniform: 0.69)."""
    effective_floor: float = 0.4
    """Share of effective chains below which a tuned temperature rises, whatever the entropy."""
    temperature_learning_rate: float = 3e-4
    """Adam's learning rate for the log of a tuned temperature."""
    critic_target: Literal["plain", "entropy", "soft"] = "plain"
    """Value of the next state: Q, Q + tau ell, or tau log mean exp(Q/tau + ell) over target_samples chains."""

    limits: ClassVar[Limits] = DiffusionConfig.limits | {
        "inverse_temperature": (0, INFINITY),
        "sample_clip": (0.1, INFINITY),
        "chains_per_state": (2, 4096),
        "tempering_share": (0, 1),
        "fit_rate": (0, 1),
        "drift_limit": (0.1, INFINITY),
        "target_spread": (0.001, 1),
        "target_entropy_per_action": (-INFINITY, INFINITY),
        "effective_floor": (0, 1),
        "temperature_learning_rate": (0, 10),
    }
    conditions: ClassVar[Conditions] = DiffusionConfig.conditions | {
        # Fitted chains have variances of their own: only another way down to act has these.
        "step_variance": one_of("target", "clean")
        | (ANCESTRAL & is_off("act_with_chain"))
        | (ANCESTRAL & FEWER_LEVELS),
        "chains_per_state": WEIGHTED,
        "tempering_share": WEIGHTED,
        "step_fit": NOT_CLEAN,
        "target_fit": NOT_CLEAN,
        "fit_rate": NOT_CLEAN,
        "drift_limit": one_of("target", "fitted"),
        "act_with_chain": NOT_CLEAN & ANCESTRAL & ALL_LEVELS,
        "target_spread": OF_SPREAD,
        "target_entropy_per_action": OF_ENTROPY,
        "effective_floor": OF_ENTROPY | (WEIGHTED & OF_SPREAD),
        "temperature_learning_rate": OF_ENTROPY | OF_SPREAD,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target == "weighted":
            if self.batch_size % self.chains_per_state:
                raise ValueError(
                    f"chains_per_state is {self.chains_per_state}; it must divide batch_size, {self.batch_size}"
                )
            check_chains(self)
        elif self.temperature == "entropy":
            raise ValueError(
                f"temperature is 'entropy', which needs target 'weighted'; target is {self.target!r}"
            )
        elif self.critic_target != "plain":
            raise ValueError(
                f"critic_target is {self.critic_target!r}, which needs target 'weighted'; target is {self.target!r}"
            )
        elif self.target == "clean" and self.temperature == "spread":
            # Where the policy overshoots it is wide, however low the temperature is.
            raise ValueError(
                "temperature is 'spread', which needs target 'fitted' or 'weighted'; target is 'clean'"
            )
        elif self.target == "fitted" and "spread" in (self.step_fit, self.target_fit):
            raise ValueError(
                "step_fit or target_fit is 'spread', which needs target 'weighted'; target is 'fitted'"
            )
        if not self.inverse_temperature and (self.temperature in TUNED or self.critic_target != "plain"):
            option = "temperature" if self.temperature in TUNED else "critic_target"
            raise ValueError(
                f"{option} is {getattr(self, option)!r}, which needs inverse_temperature above 0: at 0 tau is infinite"
            )

    @property
    def constants(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What nothing reads is no hyperparameter: a checkpoint from before there was such an option is read."""
        read = READ_BY[self.target]
        if self.temperature == "spread":
            read += ("target_spread", RATE)
        known = (*PATH_FLOATS, "drift_limit", "target_spread")
        return (*DiffusionConfig.constants, *(name for name in known if name not in read))

    @property
    def initial(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A tuned temperature begins at inverse_temperature, and is what is learned from then on."""
        return ("inverse_temperature",) if self.temperature in TUNED else ()
