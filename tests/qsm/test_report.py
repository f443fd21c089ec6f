"""The page says what the runs hold: nothing of two simulators together, nothing missing filled in."""

from __future__ import annotations

import base64
import csv
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import agents
from qsm import cli, statistics
from qsm.config import RunConfig
from qsm.errors import UserError
from qsm.report import report
from qsm.results import Comparison, gather, read_reference
from qsm.rundir import RunDir, resolved_config, run_path

STEPS = 30_000


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 20)


def add(
    root: Path,
    agent: str,
    task: str,
    seed: int,
    returns: Mapping[int, float],
    backend: str = "dm_control",
    name: str | None = None,
    **options: int,
) -> RunDir:
    """A run folder with these evaluations."""
    config = RunConfig(seed=seed, steps=STEPS, **options)  # type: ignore[arg-type]
    resolved = resolved_config(agent, task, backend, agents.config_class(agent)(), config)
    run = RunDir.create_or_open(run_path(backend, task, agent, seed, name, root), resolved, ["qsm"])
    run.record_start("cpu")
    lines = [f"{step},{value}" for step, value in returns.items()]
    run.eval_csv.write_text("\n".join(["step,return_mean", *lines, ""]))
    run.train_csv.write_text(f"step,loop/steps_per_second\n1000,{100 + seed}\n2000,{200 + seed}\n3000,\n")
    finished = STEPS in returns
    run.write_status("finished" if finished else "preempted", max(returns, default=0), STEPS)
    return run


def line(slope: float) -> dict[int, float]:
    return {step: slope * step / STEPS for step in range(0, STEPS + 1, 10_000)}


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """Two agents on two tasks; td3 misses seed 1 of walker-run, and its seed 0 there stopped early."""
    root = tmp_path / "bench"
    for seed in (0, 1, 2):
        add(root, "qsm", "cheetah-run", seed, line(300 + seed))
        add(root, "qsm", "walker-run", seed, line(500 + seed))
        add(root, "td3", "cheetah-run", seed, line(100 + seed))
    add(root, "td3", "walker-run", 0, {0: 1.0, 10_000: 9.0})
    add(root, "td3", "walker-run", 2, line(200))
    return root


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as rows:
        return list(csv.DictReader(rows))


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


def test_the_numbers_are_those_of_the_runs(bench: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    assert cli.main(["report", str(bench), "--out", str(out)]) == 0
    page = (out / "index.html").read_text()
    assert "<td>cheetah-run</td><td>301 ± 1 (3)</td><td>101 ± 1 (3)</td>" in page
    assert "<td>walker-run</td><td>501 ± 1 (3)</td><td>200 (1)</td>" in page
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
    assert float(bars["td3", "mean"]["value"]) == pytest.approx((0.1 + 0.101 + 0.102 + 0.2) / 4, abs=1e-5)
    [pair] = table(out / "data" / "dm_control_improvement.csv")
    assert (pair["agent"], pair["over"], pair["value"], pair["low"]) == ("qsm", "td3", "1", "1")
    speeds = table(out / "data" / "dm_control_speed.csv")
    assert [(row["agent"], row["steps_per_second"]) for row in speeds] == [("qsm", "151"), ("td3", "151")]


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


def test_runs_of_different_settings_are_marked(tmp_path: Path) -> None:
    root, out = tmp_path / "runs", tmp_path / "report"
    add(root, "sac", "cheetah-run", 0, line(100))
    add(root, "qsm", "cheetah-run", 0, line(100), action_repeat=2)
    assert cli.main(["report", str(root), "--out", str(out)]) == 0
    page = (out / "index.html").read_text()
    assert '<tr class="differs"><td>action repeat</td><td>2</td><td>1</td></tr>' in page
    assert page.count('class="differs"') == 1 and "not like for like" in page


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
    steps, curves = comparison.normalised_curves("td3")
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


REFERENCE = """source,path,task,env_steps,algo,mean,std,n_seeds,action_repeat
there,x,cheetah-run,10000,SAC,50,10,5,1
there,x,cheetah-run,30000,SAC,90,10,5,1
elsewhere,x,cheetah-run,30000,SAC,200,,10,2
few,x,cheetah-run,30000,SAC,1000,0,2,1
"""


def test_published_curves_are_drawn_with_their_sources(bench: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "reference.csv", tmp_path / "report"
    file.write_text(REFERENCE)
    found = read_reference(file)
    assert found[0].points == {10_000: (50.0, 10.0), 30_000: (90.0, 10.0)} and found[0].seeds == 5
    assert np.isnan(found[1].points[30_000][1])
    assert cli.main(["report", str(bench), "--out", str(out), "--reference", str(file)]) == 0
    page = (out / "index.html").read_text()
    assert "elsewhere (action repeat 2); there (action repeat 1)" in page and "few (" not in page


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "lacks the column 'source'"),
        ("source,task\n", "lacks the column 'env_steps'"),
        (REFERENCE.replace("90,10,5", "much,10,5"), "line 3: could not convert"),
        (REFERENCE.replace("90,10,5", "90,10,"), "line 3: invalid literal"),
        (REFERENCE + "short,row\n", "line 6"),
        ("\0", "reference"),
    ],
)
def test_a_wrong_reference_is_told_in_one_line(tmp_path: Path, content: str, complaint: str) -> None:
    file = tmp_path / "reference.csv"
    file.write_text(content)
    with pytest.raises(UserError, match=re.escape(complaint)):
        read_reference(file)


@pytest.mark.parametrize(
    "words", [["nowhere"], ["{tmp}"], ["{tmp}", "--reference", "nowhere.csv"], ["--at-step", "5"]]
)
def test_mistakes_are_told_and_leave_no_page(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", *(word.format(tmp=tmp_path) for word in words)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and not (tmp_path / "report").exists()


def test_runs_are_compared_at_the_steps_that_most_of_them_were_to_train_for(bench: Path) -> None:
    results = gather([bench])[0]
    longer = [
        one._replace(config={**one.config, "run_config": {**one.config["run_config"], "steps": 10**6}})
        for one in results
    ]
    assert Comparison([*results[1:], longer[0]]).step == STEPS
    assert Comparison([results[0], *longer[1:]]).step == 10**6
    assert Comparison(longer, step=7).step == 7


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


def test_the_median_of_an_even_number_is_the_lower_one(tmp_path: Path) -> None:
    for seed, slope in enumerate((40, 10, 30, 20)):
        add(tmp_path, "sac", "fish-swim", seed, line(slope))
    comparison = Comparison(gather([tmp_path])[0])
    median = comparison.median("fish-swim", "sac")
    assert median is not None and median.seed == 3 and comparison.median("fish-swim", "td3") is None
