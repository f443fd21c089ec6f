"""Published curves: what is drawn, what the page says of it, and what our baselines are held against."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from qsm.base.errors import UserError
from qsm.command import cli
from qsm.report import figures
from qsm.report.reference import Point, beside, floor_of, read_reference
from qsm.report.results import Comparison, gather
from qsm.report.sections import report
from tests.run_folders import add, leave_undrawn, line, table

HEAD = "source,path,task,env_steps,algo,mean,std,n_seeds,action_repeat"
DRAWN = f"""{HEAD}
there,x,cheetah-run,10000,SAC,50,10,5,1
there,x,cheetah-run,30000,SAC,90,10,4,1
elsewhere,x,cheetah-run,30000,SAC,200,,10,2
few,x,cheetah-run,30000,SAC,1000,0,2,1
later,x,cheetah-run,40000,SAC,400,0,5,1
later,x,walker-run,40000,SAC,400,0,5,1
"""
FLOORS = f"""{HEAD}
like,x,cheetah-run,100000,SAC,200,80,3,1
other,x,cheetah-run,100000,"SAC(jaxrl,RR1)",300,190,10,1
resets,x,cheetah-run,100000,"SAC(jaxrl,RR1+resets)",10,1,10,1
faster,x,cheetah-run,100000,SAC,90,50,10,2
single,x,walker-walk,100000,SAC,10,,1,1
two,x,walker-walk,100000,SAC,10,1,2,1
faster,x,walker-walk,100000,SAC,800,100,3,2
unknown,x,walker-walk,100000,SAC,800,50,3,?
low,x,cheetah-run,100000,TD3(SpinningUp),195,154.7,8,1
low,x,cheetah-run,30000,TD3(SpinningUp),20,5,8,1
"""


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_undrawn(monkeypatch)


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """Two seeds of sac and td3 on two tasks, to step 30,000."""
    for seed in (0, 1):
        for agent in ("sac", "td3"):
            for task in ("cheetah-run", "walker-run"):
                add(tmp_path / "bench", agent, task, seed, line(100 + seed))
    return tmp_path / "bench"


def test_points_keep_their_own_number_of_seeds(tmp_path: Path) -> None:
    file = tmp_path / "reference.csv"
    file.write_text(DRAWN)
    there, elsewhere, *_ = read_reference(file)
    assert there.points == {10_000: Point(50.0, 10.0, 5), 30_000: Point(90.0, 10.0, 4)}
    assert np.isnan(elsewhere.points[30_000].std) and elsewhere.points[30_000].low == 200
    assert str(there) == "there (n = 4 to 5, action repeat 1)"
    # A point of too few seeds is left out, not the curve that it is part of.
    file.write_text(DRAWN.replace("90,10,4", "90,10,2"))
    [curve] = beside(read_reference(file), "cheetah-run", 20_000)["SAC"]
    assert list(curve.points) == [10_000]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "lacks the column 'source'"),
        ("source,task\n", "lacks the column 'env_steps'"),
        (DRAWN.replace("90,10,4", "much,10,4"), "line 3: could not convert"),
        (DRAWN.replace("90,10,4", "90,10,"), "line 3: invalid literal"),
        (DRAWN + "short,row\n", "line 8"),
        ("\0", "reference"),
    ],
)
def test_a_wrong_reference_is_told_in_one_line(tmp_path: Path, content: str, complaint: str) -> None:
    file = tmp_path / "reference.csv"
    file.write_text(content)
    with pytest.raises(UserError, match=re.escape(complaint)):
        read_reference(file)


def test_the_caption_names_what_is_drawn_and_nothing_else(bench: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "reference.csv", tmp_path / "report"
    file.write_text(DRAWN)
    assert cli.main(["report", str(bench), "--out", str(out), "--reference", str(file)]) == 0
    page = (out / "index.html").read_text()
    [caption] = re.findall(r"<figcaption>(cheetah-run: .*?)</figcaption>", page)
    assert "(sac 2, td3 2)" in caption and "sample standard deviation over a source&#x27;s seeds" in caption
    sources = ["SAC: elsewhere (n = 10, action repeat 2)", "SAC: there (n = 4 to 5, action repeat 1)"]
    assert re.findall("<li>(.*?)</li>", caption) == sources
    assert "few" not in caption and "later" not in caption
    [caption] = re.findall(r"<figcaption>(walker-run: .*?)<a", page)
    assert (
        "Nothing published up to step 30,000" in caption and "later" not in caption and "grey" not in caption
    )
    assert "Published" not in report([bench], tmp_path / "without").read_text().replace("Nothing", "")


def test_the_numbers_of_published_bands_lie_behind_the_figure(bench: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "reference.csv", tmp_path / "report"
    file.write_text(DRAWN)
    report([bench], out, file)
    rows = table(out / "data" / "dm_control_cheetah-run.csv")
    theirs = [row for row in rows if row["agent"] == "published SAC"]
    columns = ("step", "low", "high", "mean", "std", "seeds", "source", "action_repeat")
    assert [tuple(row[name] for name in columns) for row in theirs] == [
        ("10000", "40", "60", "50", "10", "5", "there", "1"),
        ("30000", "80", "200", "90", "10", "4", "there", "1"),
        ("30000", "80", "200", "200", "", "10", "elsewhere", "2"),
    ]


def test_published_points_show_where_one_agent_goes_on_for_longer(bench: Path, tmp_path: Path) -> None:
    file = tmp_path / "reference.csv"
    file.write_text(DRAWN)
    add(bench, "sac", "walker-run", 2, line(100, 60_000), steps=60_000)
    page = report([bench], tmp_path / "report", file).read_text()
    assert "later (n = 5, action repeat 1)" in page
    comparison = Comparison(gather([bench])[0])
    shown = beside(read_reference(file), "walker-run", comparison.last_step("walker-run"))
    figure, _ = figures.learning_curves(comparison, "walker-run", shown)
    [legend] = figure.legends
    assert figure.axes[0].get_legend() is None
    names = [text.get_text().strip() for text in legend.get_texts()]
    assert names == ["sac (n = 3)", "td3 (n = 2)", "published SAC (1 source)", ""]


@pytest.mark.parametrize(
    ("agent", "task", "value", "source"),
    [
        (
            "sac",
            "cheetah-run",
            110,
            "other",
        ),  # lower than `like`; of action repeat 2 and of resets would be lower yet
        ("td3", "cheetah-run", 40.3, "low"),
        ("sac", "walker-walk", 700, "faster"),  # at action repeat 1 there are only one and two seeds
        ("td3", "walker-walk", None, ""),
    ],
)
def test_floors(tmp_path: Path, agent: str, task: str, value: float | None, source: str) -> None:
    file = tmp_path / "reference.csv"
    file.write_text(FLOORS)
    found = floor_of(read_reference(file), agent, task, 100_000)
    if value is None:
        assert found is None
    else:
        assert found is not None and found.value == pytest.approx(value)
        assert found.reference.source == source


def test_baselines_are_held_against_the_floors(tmp_path: Path) -> None:
    file, root, out = tmp_path / "reference.csv", tmp_path / "runs", tmp_path / "report"
    file.write_text(FLOORS)
    for seed, slope in enumerate((30, 36)):  # 100 and 120 at step 100,000
        add(root, "sac", "cheetah-run", seed, line(slope, 100_000), steps=100_000)
        add(root, "sac", "cheetah-run", seed, line(slope - 3, 100_000), name="slow", steps=100_000)
        add(root, "td3", "walker-walk", seed, line(slope, 100_000), steps=100_000)
        for agent, task in (("td3", "cheetah-run"), ("sac", "walker-walk"), ("qsm", "walker-walk")):
            add(root, agent, task, seed, line(slope))
    page = report([root], out, file).read_text()
    rows = table(out / "data" / "dm_control_floors.csv")
    found = {(row["task"], row["agent"]): row for row in rows}
    assert {key: row["verdict"] for key, row in found.items()} == {
        ("cheetah-run", "sac"): "above",
        ("cheetah-run", "sac@slow"): "below",
        ("cheetah-run", "td3"): "ours not there yet",
        ("walker-walk", "sac"): "ours not there yet",
        ("walker-walk", "sac@slow"): "ours not there yet",
        ("walker-walk", "td3"): "none published",
    }
    sac = found["cheetah-run", "sac"]
    assert (sac["step"], sac["seeds"], sac["mean"], sac["floor"]) == ("100000", "2", "110", "110")
    assert (sac["algorithm"], sac["published_seeds"], sac["action_repeat"]) == ("SAC(jaxrl,RR1)", "10", "1")
    assert "300.0 - 190.0: SAC(jaxrl,RR1) of other (n = 10, action repeat 1)" in page
    assert "faster (n = 3, action repeat 2)" in page and "none published" in page
    # Where the report compares at another step that is published, there too.
    report([root], out, file, step=30_000)
    steps = {
        row["step"]: row for row in table(out / "data" / "dm_control_floors.csv") if row["agent"] == "td3"
    }
    assert set(steps) == {"30000", "100000"}
    report([root], out, file, step=20_000)
    assert {row["step"] for row in table(out / "data" / "dm_control_floors.csv")} == {"100000"}


def test_without_a_reference_or_a_baseline_nothing_is_held_against_it(bench: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "reference.csv", tmp_path / "report"
    file.write_text(FLOORS)
    assert "Held against" not in report([bench], out).read_text()
    add(tmp_path / "qsm", "qsm", "cheetah-run", 0, line(1))
    assert "Neither sac nor td3 is among the agents" in report([tmp_path / "qsm"], out, file).read_text()
    add(tmp_path / "mjx", "sac", "cheetah-run", 0, line(1), backend="mjx")
    assert "Held against" not in report([tmp_path / "mjx"], out, file).read_text()
