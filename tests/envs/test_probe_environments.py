"""The probes' own promises: known rewards, discounts and observations, and a seeded stream."""

from __future__ import annotations

import numpy as np
import pytest

from envs.api import HostEnvironment, StepType
from tests.probe_environments import (
    ActionReward,
    ConstantReward,
    DelayedReward,
    ObservationReward,
    ProbeEnvironment,
    TruncatedReward,
)

PROBES = (ConstantReward, ObservationReward, DelayedReward, ActionReward, TruncatedReward)
ZERO = np.zeros(1, np.float32)


def play(environment: HostEnvironment, action: float = 0.0) -> list[tuple[float, float, float]]:
    """One episode: (observation acted on, reward, discount) of every step."""
    steps, time_step = [], environment.reset()
    assert time_step.step_type == StepType.FIRST
    while time_step.step_type != StepType.LAST:
        observation = float(time_step.observation[0])
        time_step = environment.step(np.array([action], np.float32))
        steps.append((observation, float(time_step.reward), float(time_step.discount)))
    return steps


@pytest.mark.parametrize("probe", PROBES)
def test_contract(probe: type[ProbeEnvironment]):
    environment = probe(seed=0)
    spec = environment.spec
    assert (spec.observation_size, spec.action_size, spec.action_repeat) == (1, 1, 1)
    with pytest.raises(RuntimeError, match="reset"):
        environment.step(ZERO)
    first = environment.reset()
    second = environment.step(ZERO)
    for time_step in (first, second):
        assert time_step.observation.shape == (1,)
        assert time_step.observation.dtype == time_step.reward.dtype == time_step.discount.dtype == np.float32
        assert time_step.step_type.dtype == np.int8
    with pytest.raises(ValueError, match="shape"):
        environment.step(np.zeros(2, np.float32))
    assert len(play(environment)) == spec.episode_steps
    with pytest.raises(RuntimeError, match="after LAST"):
        environment.step(ZERO)


def test_constant_reward():
    assert play(ConstantReward()) == [(0, 1, 0)]


def test_observation_reward_is_balanced_and_seeded():
    streams = []
    for seed in (0, 0, 1):
        environment = ObservationReward(seed)
        episodes = [play(environment) for _ in range(400)]
        assert all(reward == observation and discount == 0 for [(observation, reward, discount)] in episodes)
        streams.append([episode[0][0] for episode in episodes])
    assert streams[0] == streams[1] != streams[2]
    assert set(streams[0]) == {-1.0, 1.0}
    assert abs(np.mean(streams[0])) < 0.2  # four standard deviations of 400 fair draws


def test_delayed_reward():
    assert play(DelayedReward()) == [(0, 0, 1), (1, 1, 0)]


@pytest.mark.parametrize(
    ("optimum", "action", "reward"),
    [
        (0.5, 0.5, 1.0),
        (0.5, 0.0, 0.75),
        (-0.5, 1.0, -1.25),
        (1.0, 0.25, 0.25),
        (-1.0, 0.25, -0.25),
        (1.0, 7.0, 1.0),
    ],
)
def test_action_reward(optimum: float, action: float, reward: float):
    assert play(ActionReward(optimum=optimum), action) == [(0, reward, 0)]


def test_action_reward_needs_a_reachable_optimum():
    with pytest.raises(ValueError, match=r"optimum is 1\.5"):
        ActionReward(optimum=1.5)


def test_truncation_keeps_its_discount():
    assert play(TruncatedReward(episode_steps=3)) == [(0, 1, 1)] * 3
    with pytest.raises(ValueError, match="episode_steps is 0"):
        TruncatedReward(episode_steps=0)
