"""What the tests of metrics share."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.config import AgentConfig
from qsm.options.run import RunConfig
from qsm.record.config_file import resolved_config
from qsm.record.run_folder import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A new run's folder."""
    path = tmp_path / "sac" / "seed_0"
    return RunDir.create_or_open(
        path, resolved_config("sac", "walker-walk", "dm_control", AgentConfig(), RunConfig())
    )


@pytest.fixture
def warnings() -> list[str]:
    """Collects what a sink warns of."""
    return []
