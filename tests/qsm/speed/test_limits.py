"""What XLA counts of an update."""

from __future__ import annotations

import pytest

import agents
from agents.parts import diffusion
from qsm.speed import limits


def test_levels_of_a_chain_that_runs_as_a_loop_are_counted_each(monkeypatch: pytest.MonkeyPatch):
    """XLA counts the body of a loop once; as many levels one after the other say what they come to."""
    monkeypatch.setattr(limits, "UNROLLED_LEVELS", 4)
    monkeypatch.setattr(diffusion, "UNROLLED_LEVELS", 4)
    agent = agents.make_agent("qsm", 3, 2, hidden_sizes=(16, 16), batch_size=8, denoising_steps=12)
    found = limits.gflop_per_update(agent, 3, 2)
    for module in (limits, diffusion):
        monkeypatch.setattr(module, "UNROLLED_LEVELS", 12)
    assert found == pytest.approx(limits.gflop_per_update(agent, 3, 2), rel=0.04)
    assert found > 1.2 * limits.gflop_per_update(limits.with_length(agent, 4), 3, 2)
