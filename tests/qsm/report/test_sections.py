"""The page says what the runs hold: nothing of two simulators together, nothing missing filled in."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from qsm.base.errors import UserError
from qsm.command import cli
from qsm.report import figures, intervals
from qsm.report.results import Comparison, gather
from qsm.report.sections import report
from tests.run_folders import STEPS, add, leave_undrawn, line, table, two_agents

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 20)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_undrawn(monkeypatch)


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    return two_agents(tmp_path / "bench")


class Links(HTMLParser):
    """Every address that a page names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_beside_it(
    bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    assert cli.main(["report", str(bench), "--out", str(out)]) == 0
    assert str(out / "index.html") in capsys.readouterr().out
    page = (out / "index.html").read_text()
    links = Links(page)
    assert not links.open and links.found and all(link.startswith("data:") for link in links.found)
    inline = [base64.b64decode(link.partition("base64,")[2]) for link in links.found if "text/csv" in link]
    assert sorted(inline) == sorted(file.read_bytes() for file in (out / "data").iterdir())
    names = {file.stem for file in (out / "figures").iterdir()}
    assert all(
        (out / "figures" / f"{name}.{form}").stat().st_size for name in names for form in ("png", "svg")
    )
    assert {"dm_control_cheetah-run", "dm_control_aggregates", "dm_control_profile"} <= names
    assert "fewer than five seeds" in page and "backend" not in page.partition("<h3>")[0]
    for text in ("td3 seed 1: not trained", "td3 seed 0: evaluated up to step 10,000 (preempted)"):
        assert f"walker-run {text}" in page
    assert "2 of 12 runs have no evaluation at step 30,000" in page
    assert "<li>td3: 3 on cheetah-run, 1 on walker-run</li>" in page and "no place there" not in page


@pytest.mark.usefixtures("undrawn")
def test_the_numbers_are_those_of_the_runs(bench: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    assert cli.main(["report", str(bench), "--out", str(out)]) == 0
    page = (out / "index.html").read_text()
    assert "<td>cheetah-run</td><td>301 ± 1 (3)</td><td>101 ± 1 (3)</td>" in page
    assert "<td>walker-run</td><td>501 ± 1 (3)</td><td>200 (1 of 3)</td>" in page
    evaluations = table(out / "data" / "dm_control_evaluations.csv")
    assert len(evaluations) == 10 * 4 + 2
    assert {"task": "walker-run", "agent": "td3", "seed": "0", "step": "10000", "return": "9"} in evaluations
    # The curve of td3 on walker-run ends where its seed 0 ends.
    curve = table(out / "data" / "dm_control_walker-run.csv")
    assert [row["step"] for row in curve if row["agent"] == "td3"] == ["0", "10000"]
    [row] = [row for row in curve if row["agent"] == "qsm" and row["step"] == "30000"]
    assert float(row["iqm"]) == 501 and 500 <= float(row["low"]) <= float(row["high"]) <= 502
    bars = {
        (row["agent"], row["statistic"]): row for row in table(out / "data" / "dm_control_aggregates.csv")
    }
    assert float(bars["qsm", "mean"]["value"]) == pytest.approx((0.301 + 0.501) / 2)
    # Three seeds on one task and one on the other weigh the same.
    assert float(bars["td3", "mean"]["value"]) == pytest.approx((0.101 + 0.2) / 2, abs=1e-5)
    assert float(bars["td3", "IQM"]["value"]) == pytest.approx(
        (0.101 / 12 + 0.102 / 6 + 0.2 / 4) * 2, abs=1e-5
    )
    [pair] = table(out / "data" / "dm_control_improvement.csv")
    # td3 has one seed on walker-run, which is no certainty.
    assert (pair["agent"], pair["over"], pair["value"], pair["low"]) == ("qsm", "td3", "1", "")
    speeds = table(out / "data" / "dm_control_speed.csv")
    assert [(row["agent"], row["steps_per_second"]) for row in speeds] == [("qsm", "151"), ("td3", "151")]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("tasks", "most"),
    [
        (["cheetah-run"], "1,000"),
        (["gridworld-open"], "1"),
        (["cheetah-run", "gridworld-open"], "1,000 in the suite and 1 in a gridworld"),
    ],
)
def test_the_page_says_what_an_episode_yields(tmp_path: Path, tasks: list[str], most: str) -> None:
    for task in tasks:
        add(tmp_path / "runs", "sac", task, 0, line(0.75 if "grid" in task else 750))
    page = report([tmp_path / "runs"], tmp_path / "report").read_text()
    assert f"an episode yields at most {most}. Bands" in page
    for task in tasks:
        assert f"<td>{task}</td><td>{'0.75' if 'grid' in task else '750'} (1)</td>" in page


@pytest.mark.usefixtures("undrawn")
def test_two_simulators_share_no_table_and_no_figure(tmp_path: Path) -> None:
    root, out = tmp_path / "runs", tmp_path / "report"
    add(root, "sac", "cheetah-run", 0, line(100))
    add(root, "sac", "cheetah-run", 0, line(700), backend="mjx")
    assert cli.main(["report", str(root), "--out", str(out)]) == 0
    page = (out / "index.html").read_text()
    host, device = page.split("<h2>")[1:]
    assert host.startswith("Simulator: dm_control") and device.startswith("Simulator: mjx")
    assert "<td>100 (1)</td>" in host and "<td>700 (1)</td>" in device and "700 (1)" not in host
    assert len(table(out / "data" / "mjx_evaluations.csv")) == len(line(1))


@pytest.mark.usefixtures("undrawn")
def test_runs_of_different_settings_are_marked(tmp_path: Path) -> None:
    root, out = tmp_path / "runs", tmp_path / "report"
    add(root, "sac", "cheetah-run", 0, line(100))
    add(root, "qsm", "cheetah-run", 0, line(100), action_repeat=2)
    assert cli.main(["report", str(root), "--out", str(out)]) == 0
    page = (out / "index.html").read_text()
    assert '<tr class="differs"><td>action repeat</td><td>2</td><td>1</td></tr>' in page
    assert page.count('class="differs"') == 1 and "not like for like" in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "No folder"),
        (["{tmp}/empty"], "no evaluated run"),
        (["{tmp}/runs", "--reference", "nowhere.csv"], "cannot be read"),
        (
            ["{tmp}/runs", "--at-step", "7"],
            "--at-step is 7, where no run has an evaluation; there are some at 0; 10,000;",
        ),
        (["{tmp}/runs", "--out", "{tmp}/file"], "which is a file; name a folder for the page"),
        (["{tmp}/runs", "--out", "{tmp}/file/below"], "is a file; name a folder for the page"),
        (["{tmp}/runs", "--out", "/proc/report"], "choose a folder that you may write to with --out"),
    ],
)
def test_mistakes_are_told_and_leave_no_page(
    tmp_path: Path,
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add(tmp_path / "runs", "sac", "cheetah-run", 0, line(1))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", *(word.format(tmp=tmp_path) for word in words)]) == 2
    [told] = capsys.readouterr().err.splitlines()
    assert said in told and "run folder" not in told and not (tmp_path / "report").exists()


def test_of_many_steps_the_first_and_the_last_are_named(tmp_path: Path) -> None:
    add(tmp_path, "sac", "cheetah-run", 0, line(1, 500_000), steps=500_000)
    with pytest.raises(UserError, match=r"0; 10,000; 20,000; .*\.\.\..* 490,000; 500,000$") as error:
        report([tmp_path], tmp_path / "report", step=7)
    assert len(str(error.value)) < 250


@pytest.mark.slow
def test_a_report_at_step_0_is_drawn(bench: Path, tmp_path: Path) -> None:
    """Warnings of matplotlib would fail it."""
    assert "Return at step 0" in report([bench], tmp_path / "report", step=0).read_text()


@pytest.mark.usefixtures("undrawn")
def test_videos_are_of_the_median_seed_and_one_that_cannot_be_made_is_told(
    bench: Path, tmp_path: Path
) -> None:
    filmed: list[Path] = []

    def film(run: Path, file: Path) -> str:
        if "td3" in str(run):
            raise UserError("no <OpenGL> here")
        filmed.append(run)
        file.write_bytes(b"video")
        return "return 7"

    add(tmp_path / "more", "td3", "fish-swim", 0, {0: 1.0})  # without a score
    page = report([bench, tmp_path / "more"], tmp_path / "report", film=film).read_text()
    assert [run.name for run in filmed] == ["seed_1", "seed_1"]
    assert 'src="videos/dm_control_cheetah-run_qsm.mp4"' in page and "qsm, seed 1: return 7" in page
    assert page.count("no &lt;OpenGL&gt; here") == 2
    assert sorted(file.name for file in (tmp_path / "report" / "videos").iterdir()) == [
        "dm_control_cheetah-run_qsm.mp4",
        "dm_control_walker-run_qsm.mp4",
    ]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_one_seed_has_no_interval_anywhere_and_the_page_says_which(bench: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    page = report([bench], out).read_text()
    assert "One seed says nothing of others" in page and "<li>td3 on walker-run</li>" in page
    assert "Hollow: no interval" in page
    for name in ("aggregates", "sample_efficiency", "profile", "time_efficiency"):
        for row in table(out / "data" / f"dm_control_{name}.csv"):
            assert bool(row["low"]) == bool(row["high"]) == (row["agent"] == "qsm")
    figure, _ = figures.aggregates(Comparison(gather([bench])[0]))
    faces = [str(one.get_markerfacecolor()) for one in figure.axes[0].lines if one.get_marker() in ("o", "D")]
    assert faces == ["#0072B2", "white"]
    alone = tmp_path / "alone"
    add(alone, "sac", "cheetah-run", 0, line(1))
    add(alone, "sac", "cheetah-run", 1, line(2))
    assert "One seed says" not in (whole := report([alone], out).read_text()) and "Hollow" not in whole


@pytest.mark.usefixtures("undrawn")
def test_curves_of_several_lengths_are_drawn_to_their_own_ends(tmp_path: Path) -> None:
    root, out = tmp_path / "runs", tmp_path / "report"
    for seed in (0, 1):
        add(root, "qsm", "cheetah-run", seed, line(100))
        add(root, "sac", "cheetah-run", seed, line(100, 60_000), steps=60_000)
    add(root, "sac", "cheetah-run", 2, line(100, 50_000), steps=60_000)
    page = report([root], out).read_text()
    for name in ("cheetah-run", "sample_efficiency"):
        curves = table(out / "data" / f"dm_control_{name}.csv")
        ends = {agent: max(int(r["step"]) for r in curves if r["agent"] == agent) for agent in ("qsm", "sac")}
        assert ends == {"qsm": 30_000, "sac": 50_000}
    assert "several lengths (30,000, 60,000 steps)" in page and "Return at step 30,000" in page
    assert "compare at step 30,000, and at another with --at-step" in page
    assert "Marked rows differ between agents or runs: steps. All runs are compared at step 30,000." in page
    figure, _ = figures.learning_curves(Comparison(gather([root])[0]), "cheetah-run")
    assert figure.axes[0].get_xlim()[1] == pytest.approx(60_000, rel=0.02)  # the faint seeds go on


@pytest.mark.usefixtures("undrawn")
def test_runs_without_an_evaluation_are_missing_cells(bench: Path, tmp_path: Path) -> None:
    run = add(bench, "qsm", "walker-run", 3, {})
    run.write_status("failed", 12, STEPS, message="disk full\nand more")
    add(bench, "td3", "walker-run", 3, {}).eval_csv.unlink()
    add(bench, "sac", "fish-swim", 0, {}).write_status("interrupted", 0, STEPS)
    page = report([bench], tmp_path / "report").read_text()
    assert "walker-run qsm seed 3: no evaluation yet (failed: disk full and more)" in page
    assert "walker-run td3 seed 3: no evaluation yet (preempted)" in page
    assert "fish-swim sac seed 0: no evaluation yet (interrupted)" in page and "Left out" not in page
    assert '<td>fish-swim</td><td class="missing">missing (0 of 4)</td>' in page
    assert "<td>501 ± 1 (3 of 4)</td>" in page
    # Who has no seed is not among those with few.
    assert (
        "<li>qsm: 3 on cheetah-run, 3 on walker-run</li>" in page
        and "<li>sac" not in page.partition("no place")[0]
    )
    assert "no seed on a task at step 30,000" in page and "<li>sac on fish-swim</li>" in page
    # What has no score anywhere keeps nothing from being put together.
    bars = table(tmp_path / "report" / "data" / "dm_control_aggregates.csv")
    assert {row["agent"] for row in bars} == {"qsm", "td3"}


@pytest.mark.usefixtures("undrawn")
def test_seeds_that_are_expected_and_were_never_begun_are_missing(tmp_path: Path) -> None:
    for seed in (5, 7):
        add(tmp_path, "sac", "cheetah-run", seed, line(9))
    out = tmp_path / "report"
    assert cli.main(["report", str(tmp_path), "--out", str(out), "--seeds", "4"]) == 0
    page = (out / "index.html").read_text()
    assert "2 of 4 runs have no evaluation" in page and "(2 of 4)" in page
    assert "cheetah-run sac seed 6: not trained" in page and "cheetah-run sac seed 8: not trained" in page
    assert "(2)" in report([tmp_path], tmp_path / "report", seeds=1).read_text()


@pytest.mark.usefixtures("undrawn")
def test_speeds_are_told_apart_by_hardware(tmp_path: Path) -> None:
    root, out = tmp_path / "runs", tmp_path / "report"
    for seed in (0, 1):
        add(root, "sac", "cheetah-run", seed, line(100), processor="Fast")
    page = report([root], out).read_text()
    assert "as loaded as it was" in page and "On cpu, Fast, " in page
    curve = table(out / "data" / "dm_control_time_efficiency.csv")
    # 10,000 steps at 100 and at 101 a second, and two evaluations of 36 s.
    hours = ((10_000 / 100 + 10_000 / 101) / 2 + 72) / 3600
    assert float(curve[1]["hours"]) == pytest.approx(hours, rel=1e-4)
    add(root, "sac", "cheetah-run", 2, line(100), processor="Slow")
    page = report([root], tmp_path / "both").read_text()
    rows = table(tmp_path / "both" / "data" / "dm_control_speed.csv")
    assert [(row["hardware"].split(", ")[1], row["runs"], row["timed"]) for row in rows] == [
        ("Fast", "2", "2"),
        ("Slow", "1", "1"),
    ]
    assert "several kinds of hardware" in page
    assert not (tmp_path / "both" / "data" / "dm_control_time_efficiency.csv").exists()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("cells", "title", "texts"),
    [
        ([("sac", "cheetah-run", 0)], "One run", ("<p>1 run, collected", "<h3>Over 1 task</h3>")),
        (
            [("sac", "cheetah-run", 0), ("sac", "cheetah-run", 1)],
            "1 agent on 1 task",
            ("<p>2 runs, collected", "<h3>Over 1 task</h3>", "(2 starts)"),
        ),
        (
            [("sac", "cheetah-run", 0), ("td3", "cheetah-run", 0), ("sac", "walker-run", 0)],
            "2 agents on 2 tasks",
            ("1 of 4 runs has no evaluation at step 30,000 and is missing from",),
        ),
    ],
)
def test_one_is_one_and_more_are_many(
    tmp_path: Path, cells: list[tuple[str, str, int]], title: str, texts: tuple[str, ...]
) -> None:
    for agent, task, seed in cells:
        add(tmp_path / "runs", agent, task, seed, line(100))
    page = report([tmp_path / "runs"], tmp_path / "out").read_text()
    assert f"<h1>{title}</h1>" in page
    for text in texts:
        assert text in page


@pytest.mark.slow
def test_a_home_that_cannot_be_written_is_no_matter(tmp_path: Path) -> None:
    add(tmp_path / "runs", "sac", "cheetah-run", 0, line(100))
    home = tmp_path / "home"
    home.write_text("a file")  # root could write to a folder without the permission to
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "MPL"))}
    done = subprocess.run(
        [sys.executable, "-m", "qsm", "report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")],
        env=environment | {"HOME": str(home / "me"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1 and "index.html" in done.stdout
