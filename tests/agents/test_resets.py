"""Resets: when they happen, and what they leave."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.agents.analytic import distance, initial, small_agent, small_batch, update
from tests.keys import check_keys


@pytest.mark.slow
def test_networks_begin_anew_at_every_interval():
    agent = small_agent("td3", reset_interval=4, normalize_observations=True)
    state = initial(agent)
    moved, _ = update(agent, state, step=1)
    moved = moved._replace(
        normalizer=moved.normalizer._replace(mean=moved.normalizer.mean + 7),
        hyperparameters=moved.hyperparameters | {"target_rate": np.float32(0.3)},
    )
    gone, _ = update(agent, moved, step=3)
    assert int(gone.critic.online.optimizer.count) == 2
    kept = {"normalizer": moved.normalizer, "hyperparameters": moved.hyperparameters}
    for step in (4, 8):
        renewed, _ = update(agent, moved, step=step)
        assert int(renewed.critic.online.optimizer.count) == 1  # the update that follows the reset
        assert distance(renewed.normalizer, moved.normalizer) == 0.0
        assert float(renewed.hyperparameters["target_rate"]) == pytest.approx(0.3)
        assert distance(renewed.critic.online.params, moved.critic.online.params) > 0.1
        # Nothing is left of the networks that were.
        other, _ = update(agent, initial(agent, seed=5)._replace(**kept), step=step)
        assert distance(other, renewed) == 0.0
    # Each with networks of its own.
    other, _ = update(agent, moved, step=4, seed=2)
    assert distance(other.critic.online.params, renewed.critic.online.params) > 0.1
    # None before the first update.
    first, _ = update(agent, moved, step=0)
    assert int(first.critic.online.optimizer.count) == 2


def test_no_key_is_used_twice_and_equal_options_are_equal_agents():
    agent = small_agent("td3", reset_interval=4)
    assert agent == small_agent("td3", reset_interval=4) and hash(agent) == hash(
        small_agent("td3", reset_interval=4)
    )
    assert isinstance(agent, type(small_agent("td3"))) and type(agent).__name__ == "TD3"
    check_keys(agent.update, initial(agent), small_batch(0), jax.random.key(1), np.int32(1))
