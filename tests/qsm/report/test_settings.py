"""Whether a comparison is like for like is read from the runs; an agent looks the same everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents import AGENTS, Style
from qsm.report import styles
from qsm.report.results import Comparison, gather
from qsm.report.sections import report
from qsm.report.settings import not_default, shared_settings, varying
from tests.run_folders import add, leave_undrawn, line


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_undrawn(monkeypatch)


def test_what_is_no_default_is_listed_for_every_agent(tmp_path: Path) -> None:
    add(tmp_path, "qsm", "cheetah-run", 0, line(1), wandb="disabled")
    add(tmp_path, "qsm", "cheetah-run", 0, line(1), name="hot", agent_options={"score_scale": 120.0})
    add(tmp_path, "sac", "cheetah-run", 3, line(1), steps=100_000, matmul_precision="bfloat16")
    comparison = Comparison(gather([tmp_path])[0])
    assert not_default(comparison, "qsm") == ["steps = 30,000"]
    assert not_default(comparison, "qsm@hot") == ["steps = 30,000", "score scale = 120.0"]
    assert not_default(comparison, "sac") == ["matmul precision = bfloat16"]
    page = report([tmp_path], tmp_path / "report").read_text()
    assert "<td>qsm@hot</td><td>steps = 30,000; score scale = 120.0</td>" in page
    assert "all others are the agents' defaults" not in page and "vary within an agent" not in page


def test_the_defaults_are_those_of_the_simulator(tmp_path: Path) -> None:
    add(tmp_path, "sac", "cheetah-run", 0, line(1), backend="mjx", steps=1_000_000, num_envs=64)
    comparison = Comparison(gather([tmp_path])[0])
    assert not_default(comparison, "sac") == ["num envs = 64"]


def test_an_option_that_no_version_here_has_is_no_default(tmp_path: Path) -> None:
    add(tmp_path, "sac", "cheetah-run", 0, line(1), steps=100_000)
    [one], _ = gather([tmp_path])
    newer = one._replace(config={**one.config} | {"agent_config": one.config["agent_config"] | {"later": 1}})
    assert not_default(Comparison([newer]), "sac") == ["later = 1"]
    other = one._replace(agent="ppo", config={**one.config} | {"agent": "ppo", "agent_config": {"clip": 0.2}})
    assert not_default(Comparison([other]), "ppo") == ["clip = 0.2"]


@pytest.mark.parametrize("place", [("cheetah-run", 1), ("walker-run", 0)])
def test_settings_that_vary_within_an_agent_are_flagged(tmp_path: Path, place: tuple[str, int]) -> None:
    """Over seeds, and over tasks."""
    for agent in ("qsm", "sac"):
        add(tmp_path, agent, "cheetah-run", 0, line(1))
        add(tmp_path, agent, *place, line(1), replay_ratio="2", agent_options={"discount": 0.98})
    comparison = Comparison(gather([tmp_path])[0])
    where = f"{place[0]} seed {place[1]}"
    assert varying(comparison, "sac") == [
        f"replay ratio is 1 (cheetah-run seed 0) and 2 ({where})",
        f"discount is 0.99 (cheetah-run seed 0) and 0.98 ({where})",
    ]
    # Both agents have both values: the row is marked all the same.
    [ratio] = [one for one in shared_settings(comparison) if one.name == "replay ratio"]
    assert ratio.values == ["1 / 2", "1 / 2"] and ratio.differs
    page = report([tmp_path], tmp_path / "report").read_text()
    assert '<tr class="differs"><td>replay ratio</td><td>1 / 2</td><td>1 / 2</td></tr>' in page
    assert (
        "These vary within an agent" in page
        and f"sac: discount is 0.99 (cheetah-run seed 0) and 0.98 ({where})" in page
    )
    assert "not like for like" in page


def test_a_variant_looks_the_same_whoever_is_beside_it() -> None:
    # Written down here, so that no later version gives it another look unawares.
    assert styles.style_of("qsm@hot") == Style("#117733", (0, (4, 4)), "p")
    bases = {entry.style for entry in AGENTS.values()}
    for label in (f"sac@{number}" for number in range(50)):
        look = styles.style_of(label)
        assert look.color not in {base.color for base in bases}
        assert look.dashes not in {base.dashes for base in bases}
        assert look.marker not in {base.marker for base in bases}


def test_variants_of_one_colour_are_told(tmp_path: Path) -> None:
    labels = [f"qsm@{number}" for number in range(200)]
    first = styles.style_of(labels[0])
    same = next(label for label in labels[1:] if styles.style_of(label) == first)
    alike = next(
        label
        for label in labels[1:]
        if styles.style_of(label).color == first.color and styles.style_of(label).dashes != first.dashes
    )
    [told] = styles.collisions(["qsm", labels[0], alike, "sac"])
    assert (
        told.startswith(f"{labels[0]} and {alike} have the same color; dashes") and "tell them apart" in told
    )
    assert "nothing tells them apart" in styles.collisions([labels[0], same])[0]
    assert styles.collisions(["qsm", "qsm-clean", "sac", "td3"]) == []
    for label in (labels[0], alike):
        add(tmp_path, "qsm", "cheetah-run", 0, line(1), name=label.partition("@")[2])
    assert "have the same color" in report([tmp_path], tmp_path / "report").read_text()
