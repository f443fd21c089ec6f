"""What the outputs of a critic mean: their value, the target they are regressed onto, and the error.

Equations and sources: docs/critics.md.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

ReductionName = Literal["min", "mean", "mean_std"]
Spread = Literal["c51", "two_hot", "hl_gauss"]


@dataclasses.dataclass(frozen=True)
class Reduction:
    """Many members' values as one.

    Args:
      name: the smallest (Fujimoto et al. 2018), the mean (Nauman et al. 2024), or the mean less some standard
        deviations.
      pessimism: how many of them.
    """

    name: ReductionName = "min"
    pessimism: float = 1.0

    def __call__(self, values: jax.Array) -> jax.Array:
        """`[E, B]` to `[B]`."""
        if self.name == "min":
            return values.min(axis=0)
        return values.mean(axis=0) - self.deviation(values)

    def deviation(self, values: jax.Array) -> jax.Array:
        """What is taken off the mean, `[B]`; the standard deviation is that of a population."""
        if self.name != "mean_std":
            return jnp.zeros(values.shape[1:])
        # Where members agree its gradient would be infinite.
        return self.pessimism * jnp.sqrt(values.var(axis=0) + 1e-12)


class Head(Protocol):
    """Reads the outputs `[E, B, K]` of E critics."""

    @property
    def reduction(self) -> Reduction:
        """How the values of the members become the one that targets and actors are given."""
        ...

    @property
    def output_size(self) -> int:
        """K."""
        ...

    def value(self, out: jax.Array) -> jax.Array:
        """Values `[E, B]`."""
        ...

    def target(
        self, reward: jax.Array, discount: jax.Array, next_out: jax.Array, bonus: jax.Array | None
    ) -> Any:
        """What `errors` is given, `[B, ...]`.

        Args:
          next_out: the target critics' at (s', a').
          bonus: `[B]`, added to the values there before members are reduced to one: an entropy bonus. None for 0.
        """
        ...

    def target_value(self, target: Any) -> jax.Array:
        """The value `[B]` that a target stands for."""
        ...

    def errors(self, out: jax.Array, target: Any) -> jax.Array:
        """The loss `[E, B]` of each member on each transition."""
        ...


@dataclasses.dataclass(frozen=True)
class Scalar:
    """One number, with a squared error."""

    output_size: int = 1
    reduction: Reduction = Reduction()

    def value(self, out: jax.Array) -> jax.Array:
        return out.squeeze(-1)

    def target(
        self, reward: jax.Array, discount: jax.Array, next_out: jax.Array, bonus: jax.Array | None
    ) -> jax.Array:
        """y = r + discount * reduce_i (Q'_i(s', a') + bonus), `[B]`."""
        return backup(self.reduction, reward, discount, self.value(next_out), bonus)

    def target_value(self, target: jax.Array) -> jax.Array:
        return target

    def errors(self, out: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.square(self.value(out) - target[None])


@dataclasses.dataclass(frozen=True)
class Categorical:
    """Logits of the return at fixed, evenly spaced atoms, with a cross-entropy.

    Args:
      output_size: atoms K, at least 2, from -`bound` to `bound`.
      bound: v, in the units of the rewards of a batch; values beyond it are moved to it.
      spread: what becomes of a target. `c51` projects r + discount * (z + bonus) of the next return's distribution
        (Bellemare et al. 2017, section 4). `two_hot` and `hl_gauss` spread its mean, over the two nearest atoms or as a
        Gaussian (Farebrother et al. 2024, section 3).
      smoothing: standard deviation of that Gaussian, in distances between atoms.
      reduction: `min` takes the distribution of the member of the smallest mean, as SimbaV2 does; the others mix the
        members' distributions, shifted by what `mean_std` takes off.
    """

    output_size: int
    bound: float
    spread: Spread = "c51"
    smoothing: float = 0.75
    reduction: Reduction = Reduction()

    @property
    def atoms(self) -> np.ndarray:
        """z `[K]`."""
        return np.linspace(-self.bound, self.bound, self.output_size, dtype=np.float32)

    @property
    def distance(self) -> float:
        """Between two atoms."""
        return 2 * self.bound / (self.output_size - 1)

    def value(self, out: jax.Array) -> jax.Array:
        return jax.nn.softmax(out) @ self.atoms

    @jax.named_scope("critic_projection")
    def target(
        self, reward: jax.Array, discount: jax.Array, next_out: jax.Array, bonus: jax.Array | None
    ) -> jax.Array:
        """Probabilities `[B, K]` of the atoms."""
        probabilities = jax.nn.softmax(next_out)
        values = probabilities @ self.atoms
        if self.spread == "two_hot":
            return self.near(backup(self.reduction, reward, discount, values, bonus))
        if self.spread == "hl_gauss":
            return self.smoothed(backup(self.reduction, reward, discount, values, bonus))
        mixed, shift = self.mixed(probabilities, values)
        shift = shift if bonus is None else shift + bonus
        reached = reward[:, None] + discount[:, None] * (self.atoms[None] + shift[:, None])
        # One pass over the atoms is a tenth of the work on a CPU; elsewhere sums in no order would change the numbers.
        return jax.lax.platform_dependent(mixed, reached, cpu=self.scattered, default=self.gathered)

    def gathered(self, mass: jax.Array, value: jax.Array) -> jax.Array:
        """Masses `[B, J]` at values `[B, J]` as the atoms' `[B, K]`: each atom collects from all of them."""
        return (mass[:, :, None] * self.near(value)).sum(axis=1)

    def scattered(self, mass: jax.Array, value: jax.Array) -> jax.Array:
        """The same, each value giving to the two atoms beside it."""
        place = (jnp.clip(value, -self.bound, self.bound) + self.bound) / self.distance
        below = jnp.clip(jnp.floor(place), 0, self.output_size - 2)
        upper = mass * (place - below)
        row, column = jnp.arange(mass.shape[0])[:, None], below.astype(jnp.int32)
        empty = jnp.zeros((mass.shape[0], self.output_size))
        return empty.at[row, column].add(mass - upper).at[row, column + 1].add(upper)

    def mixed(self, probabilities: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One distribution `[B, K]` of those `[E, B, K]` of the members, with means `[E, B]`, and its shift `[B]`."""
        if self.reduction.name != "min":
            return probabilities.mean(axis=0), -self.reduction.deviation(values)
        smallest = values.argmin(axis=0)[None, :, None]
        return jnp.take_along_axis(probabilities, smallest, axis=0)[0], jnp.zeros(values.shape[1:])

    def near(self, value: jax.Array) -> jax.Array:
        """Values `[...]` as weights `[..., K]` of the atoms on either side, whose mean is the value, or the bound."""
        atoms = self.atoms[(None,) * value.ndim]
        offset = jnp.abs(jnp.clip(value, -self.bound, self.bound)[..., None] - atoms)
        return jnp.maximum(1 - offset / self.distance, 0.0)

    def smoothed(self, value: jax.Array) -> jax.Array:
        """Values `[B]` as the masses `[B, K]` that a Gaussian around each has in the atoms' cells; they sum to one."""
        edges = np.append(self.atoms - self.distance / 2, self.atoms[-1] + self.distance / 2)
        centred = edges[None] - jnp.clip(value, -self.bound, self.bound)[:, None]
        below = jax.scipy.special.ndtr(centred / (self.smoothing * self.distance))
        return jnp.diff(below, axis=1) / (below[:, -1:] - below[:, :1])

    def target_value(self, target: jax.Array) -> jax.Array:
        return target @ self.atoms

    def errors(self, out: jax.Array, target: jax.Array) -> jax.Array:
        return -(target[None] * jax.nn.log_softmax(out)).sum(axis=-1)


def backup(
    reduction: Reduction, reward: jax.Array, discount: jax.Array, values: jax.Array, bonus: jax.Array | None
) -> jax.Array:
    """r + discount * reduce_i (Q'_i(s', a') + bonus) `[B]`, from values `[E, B]`."""
    values = values if bonus is None else values + bonus[None]
    return reward + discount * reduction(values)
