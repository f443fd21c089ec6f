"""What runs have reached, compared as they are: shares, steps and times that hold for all, and their figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qsm.base.errors import UserError
from qsm.report import figures, intervals
from qsm.report.results import Comparison, bench_command, finished, gather, hours_of
from qsm.report.run_sections import show_hours
from qsm.report.styles import new_figure, step_axis
from tests.run_folders import STEPS, add, line, two_agents


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 20)


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    return two_agents(tmp_path / "bench")


def test_returns_of_a_maze_are_shares_of_its_goal(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for seed in (0, 1):
        add(root, "qsm", "gridworld-cliff", seed, line(-0.5))
        add(root, "qsm", "cheetah-run", seed, line(250))
    results = gather([root])[0]
    maze = Comparison([one for one in results if one.task == "gridworld-cliff"])
    np.testing.assert_array_equal(maze.normalized("qsm")["gridworld-cliff"], [-0.5, -0.5])
    np.testing.assert_array_equal(maze.normalized_curves("qsm")[1]["gridworld-cliff"][:, -1], [-0.5, -0.5])
    bars, _ = figures.aggregates(maze)
    assert bars.get_supxlabel() == "return at step 30,000"
    assert bars.axes[0].get_xlim() == (-0.5, 1.5)  # the gap to 1 is 1.5
    for figure, _ in (figures.learning_curves(maze, "gridworld-cliff"), figures.sample_efficiency(maze)):
        assert figure.axes[0].get_ylim()[0] == -0.5

    both = Comparison(results)
    _, rows = figures.aggregates(both)
    assert [row["value"] for row in rows if row["statistic"] == "mean"] == [pytest.approx((0.25 - 0.5) / 2)]
    assert both.score_name == "return / most of its task"


def test_a_variant_is_an_agent_of_its_own(tmp_path: Path) -> None:
    add(tmp_path, "qsm", "cheetah-run", 0, line(1))
    add(tmp_path, "qsm", "cheetah-run", 0, line(2), name="hot")
    add(tmp_path, "sac", "cheetah-run", 0, line(2))
    results, problems = gather([tmp_path])
    assert Comparison(results).agents == ["qsm", "qsm@hot", "sac"] and not problems


def test_the_same_run_in_two_folders_is_refused_and_a_damaged_one_left_out(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        add(tmp_path / folder, "sac", "cheetah-run", 0, line(1))
    assert len(gather([tmp_path / "a", tmp_path / "a"])[0]) == 1
    with pytest.raises(UserError, match="both sac on cheetah-run with seed 0"):
        gather([tmp_path])
    run = add(tmp_path / "a", "sac", "cheetah-run", 1, line(1))
    (run.path / "config.json").write_text("{")
    results, problems = gather([tmp_path / "a"])
    assert len(results) == 1 and len(problems) == 1 and "damaged" in problems[0]


def test_aggregates_are_over_tasks_that_every_agent_has_and_steps_that_all_runs_share(bench: Path) -> None:
    comparison = Comparison(gather([bench])[0])
    assert comparison.common_tasks() == ["cheetah-run", "walker-run"]
    steps, curves = comparison.normalized_curves("td3")
    assert steps.tolist() == [0, 10_000, 20_000, 30_000]
    assert {task: values.shape for task, values in curves.items()} == {
        "cheetah-run": (3, 4),
        "walker-run": (1, 4),
    }
    assert curves["walker-run"][0, -1] == pytest.approx(0.2)
    early = Comparison(gather([bench])[0], step=10_000)
    assert early.scores("walker-run", "td3").tolist() == pytest.approx([9.0, 200 / 3])
    assert len(early.missing()) == 1
    alone = [one for one in gather([bench])[0] if (one.task, one.agent) != ("walker-run", "td3")]
    assert Comparison(alone).common_tasks() == ["cheetah-run"]


def test_runs_are_compared_at_the_length_that_most_of_them_have_reached(bench: Path) -> None:
    results = gather([bench])[0]
    longer = [
        one._replace(config={**one.config, "run_config": {**one.config["run_config"], "steps": 40_000}})
        for one in results
    ]
    assert Comparison([results[0], *longer[1:]]).step == STEPS  # none of them is there yet
    reached = [one._replace(returns={**one.returns, 40_000: 1.0}) for one in longer]
    assert Comparison([*results[:6], *reached[6:]]).step == STEPS
    assert Comparison(reached).step == 40_000
    assert Comparison(longer, step=7).step == 7


def test_the_median_of_an_even_number_is_the_lower_one(tmp_path: Path) -> None:
    for seed, slope in enumerate((40, 10, 30, 20)):
        add(tmp_path, "sac", "fish-swim", seed, line(slope))
    comparison = Comparison(gather([tmp_path])[0])
    median = comparison.median("fish-swim", "sac")
    assert median is not None and median.seed == 3 and comparison.median("fish-swim", "td3") is None


def test_hours_are_of_training_and_evaluation() -> None:
    rate = "loop/steps_per_second"
    training = [
        {"step": 1000.0},
        {"step": 2000.0, rate: 100.0},
        {"step": 3000.0},
        {"step": 4000.0, rate: 50.0},
    ]
    evaluations = [{"step": step, "seconds": 5.0} for step in (0.0, 1500.0, 4000.0, 5000.0)]
    found = hours_of(training, evaluations)
    assert found == pytest.approx({0: 5 / 3600, 1500: 25 / 3600, 4000: (10 + 10 + 20 + 20 + 15) / 3600})
    assert (
        hours_of(training, [{"step": 0.0, "return_mean": 1.0}]) == {} and hours_of([], evaluations[1:]) == {}
    )


def test_compiling_an_evaluation_is_no_time_of_training() -> None:
    rate = "loop/steps_per_second"
    # Started at 0 and, from the checkpoint there, at 2000.
    training = [
        {"step": 1000.0},
        {"step": 2000.0, rate: 100.0},
        {"step": 3000.0},
        {"step": 4000.0, rate: 100.0},
    ]
    spent = {0.0: 60.0, 1000.0: 5.0, 2000.0: 7.0, 3000.0: 90.0, 4000.0: 6.0}
    found = hours_of(training, [{"step": step, "seconds": seconds} for step, seconds in spent.items()])
    assert [round(3600 * hours) for hours in found.values()] == [6, 21, 38, 54, 70]
    alone = [{"step": 0.0, "seconds": 60.0}]
    assert hours_of(training, alone) == pytest.approx({0: 60 / 3600})


@pytest.mark.parametrize(("last", "labels"), [(300, ["0", "150", "300"]), (50_000, ["0", "25k", "50k"])])
def test_steps_are_in_thousands_where_there_are_some(last: int, labels: list[str]) -> None:
    _, axes = new_figure(3)
    step_axis(axes, last)
    assert axes.xaxis.get_major_formatter().format_ticks([0, last / 2, last]) == labels


def test_figures_fit_a_phone_and_no_legend_covers_a_curve(bench: Path) -> None:
    comparison = Comparison(gather([bench])[0])
    bars, _ = figures.aggregates(comparison)
    assert len(bars.axes) == 4 and len({round(axes.get_position().x0, 2) for axes in bars.axes}) == 2
    for draw in (figures.sample_efficiency, figures.profile, figures.time_efficiency):
        figure, _ = draw(comparison)
        assert figure.axes[0].get_legend() is None and len(figure.legends) == 1


@pytest.mark.parametrize(
    ("hours", "text"),
    [(1 / 3600, "1.0 s"), (40 / 3600, "40 s"), (0.25, "15 min"), (3.5, "3 h 30 min"), (100, "4 d 4 h")],
)
def test_time_is_shown_in_the_unit_that_suits_it(hours: float, text: str) -> None:
    assert show_hours(hours) == text


@pytest.mark.parametrize(
    ("hours", "unit"), [(0.01, (3600, "seconds")), (0.5, (60, "minutes")), (2, (1, "hours"))]
)
def test_time_is_drawn_in_the_unit_that_suits_it(hours: float, unit: tuple[int, str]) -> None:
    assert figures.time_unit(hours) == unit


def test_who_has_few_seeds_is_told_by_agent_and_who_has_none_apart(bench: Path) -> None:
    for seed in range(5):
        add(bench, "sac", "cheetah-run", seed, line(1))
    add(bench, "sac", "walker-run", 0, {0: 1.0})
    comparison = Comparison(gather([bench])[0])
    assert comparison.few(5) == [
        "qsm: 3 on cheetah-run, 3 on walker-run",
        "td3: 3 on cheetah-run, 1 on walker-run",
    ]
    assert comparison.few(3) == ["td3: 1 on walker-run"] and comparison.few(1) == []
    assert comparison.without_scores() == ["sac on walker-run"]


def test_runs_count_as_finished_where_they_were_evaluated_at_the_step(tmp_path: Path) -> None:
    for seed in (0, 1):
        add(tmp_path, "qsm", "cheetah-run", seed, line(10))
    add(tmp_path, "qsm", "cheetah-run", 2, line(10, 20_000))  # on its way
    add(tmp_path, "qsm", "cheetah-run", 0, line(90), backend="mjx")
    add(tmp_path, "qsm", "cheetah-run", 0, line(10), name="hot")
    results, task = gather([tmp_path])[0], ["cheetah-run"]
    found = finished(results, task, ["qsm", "qsm@hot"], STEPS, [tmp_path])
    seeds = {place: [one.seed for one in runs] for place, runs in found.items()}
    assert seeds == {("cheetah-run", "qsm"): [0, 1], ("cheetah-run", "qsm@hot"): [0]}
    assert {one.backend for runs in found.values() for one in runs} == {"dm_control"}
    assert len(finished(results, task, ["qsm"], 20_000, [tmp_path])["cheetah-run", "qsm"]) == 3
    with pytest.raises(
        UserError, match=r"no finished run of sac on cheetah-run below .*: make them with `qsm bench "
    ):
        finished(results, task, ["qsm", "sac"], STEPS, [tmp_path])
    assert "--steps 12345 " in bench_command(task, ["sac"], 12_345)
