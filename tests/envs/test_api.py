"""What every environment says of itself."""

from __future__ import annotations

import dataclasses

import pytest

from envs.api import EnvSpec

SPEC = EnvSpec("quadruped-run", 78, 2, 1000, 1, action_low=(-1.0, -1.0), action_high=(1.1, 1.0))


def test_bounds_are_those_of_the_agent_by_default():
    plain = EnvSpec("probe", observation_size=1, action_size=3, episode_steps=5, action_repeat=1)
    assert plain.action_low == (-1, -1, -1)
    assert plain.action_high == (1, 1, 1)


def test_specs_are_values():
    assert hash(SPEC) == hash(dataclasses.replace(SPEC))
    assert dataclasses.replace(SPEC, action_high=(1.1, 1.2)) != SPEC


@pytest.mark.parametrize(
    ("low", "high"), [((-1.0,), (1.0, 1.0)), ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0)), ((-1.0, 1.0), (1.0, 1.0))]
)
def test_impossible_bounds_are_refused(low: tuple[float, ...], high: tuple[float, ...]):
    with pytest.raises(ValueError, match="quadruped-run's 2 actions"):
        dataclasses.replace(SPEC, action_low=low, action_high=high)
