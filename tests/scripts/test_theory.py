"""The theory of docs/paper.md: committed tables against the code, and what the page says of them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.paper import alignment, theory

RESULTS = Path(__file__).parents[2] / "results" / "paper"


def table(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open() as file:
        return list(csv.DictReader(file))


def assert_same(rows: list[dict[str, str]], made: list[dict[str, Any]]) -> None:
    for row, one in zip(rows, made, strict=True):
        assert row.keys() == made[0].keys()
        for name, text in row.items():
            if isinstance(one[name], float):
                assert float(text) == pytest.approx(one[name], rel=1e-4, abs=1e-7), name
            else:
                assert text == str(one[name]), name


def test_the_committed_tables_are_what_the_script_makes():
    rows = [row for row in table("theory_improvement.csv") if row["construction"] != "ball"]
    assert_same(rows, theory.everywhere() + theory.moved_actions())
    matched = table("theory_matching.csv")
    assert_same([row for row in matched if int(row["iteration"]) <= 3], theory.matching(3))


def test_balls_rise_in_proportion_and_fall_where_they_are_large():
    rows = [row for row in table("theory_improvement.csv") if row["construction"] == "ball"]
    assert tuple(float(row["size"]) for row in rows) == theory.RADII
    rises = np.array([float(row["after"]) - float(row["before"]) for row in rows])
    assert rises[2] / rises[0] == pytest.approx(10, rel=0.02) and rises[0] > 0
    assert all(float(row["least_change"]) > 0 for row in rows[:5])
    assert rises[-3] < 0 and float(rows[-3]["mean_change"]) < 0


def test_langevin_tables_agree_with_the_closed_form_and_their_draws():
    rows = table("theory_langevin.csv")
    assert {row["density"] for row in rows} >= {"gaussian", "double well, alpha 1"}
    for row in rows:
        if row["closed_form"]:
            assert float(row["variance"]) == pytest.approx(float(row["closed_form"]), rel=1e-4)
        # Four standard errors of 20,000 draws; a variance of the wells has a smaller one than a Gaussian's.
        variance = float(row["variance"])
        assert float(row["mean_drawn"]) == pytest.approx(
            float(row["mean"]), abs=4 * np.sqrt(variance / 20_000)
        )
        assert float(row["variance_drawn"]) == pytest.approx(variance, rel=4 * np.sqrt(2 / 20_000))


def test_the_page_says_what_the_alignment_tables_hold():
    angles, policies = table("theory_alignment.csv"), table("theory_policies.csv")
    page = (RESULTS.parents[1] / "docs" / "paper.md").read_text()
    for variant in alignment.VARIANTS:
        for critic in ("exact", "learned"):
            last = [row for row in policies if (row["agent"], row["critic"]) == (variant, critic)][-1]
            assert last["updates"] == "2000"
            mine = [
                float(row["gradient"])
                for row in angles
                if (row["agent"], row["critic"], row["updates"], row["actions"])
                == (variant, critic, "2000", "policy")
            ]
            assert len(mine) == 5
            name = variant.partition(",")[0]
            line = next(
                line
                for line in page.splitlines()
                if line.startswith(f"| `{name}`{variant[len(name) :]}") and f"| {critic} |" in line
            )
            least, largest = (float(x) for x in line.split("|")[3].split(" to "))
            assert (least, largest) == pytest.approx((min(mine), max(mine)), abs=6e-3)
            assert float(line.split("|")[4]) == pytest.approx(float(last["value"]), abs=6e-3)
