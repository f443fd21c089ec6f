"""`qsm actions` as a person meets it: which policies, at which states, its figure and its numbers, its mistakes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

import agents
from envs import gridworld
from qsm.base.errors import UserError
from qsm.checkpoints.best import BestPolicies
from qsm.checkpoints.checkpoint import Checkpoints, Saved
from qsm.checkpoints.selection import Which
from qsm.command.cli import main
from qsm.learning.build import Simulators
from qsm.learning.learner import Learner
from qsm.loops.schedule import Counters
from qsm.options.run import RunConfig
from qsm.policies.actors import NOT_KEPT, Actor, open_actors
from qsm.policies.export import export
from qsm.policies.states import find_states
from qsm.record.config_file import resolved_config
from qsm.record.run_folder import RunDir
from tests.probe_device_environments import Counter
from tests.run_folders import table

TASK = "gridworld-open"  # of two components, and quick to step
SMALL = {"hidden_sizes": (8,), "denoising_steps": 2, "time_embedding_size": 4, "time_hidden_sizes": (4,)}
SPEC = gridworld.make_env(TASK, 0, 1).spec


def config_of(name: str, **given: Any) -> Any:
    known = agents.config_class(name).__dataclass_fields__
    return agents.config_of(name, **{key: value for key, value in SMALL.items() if key in known} | given)


def agent_of(name: str, **given: Any) -> Any:
    return agents.build(name, config_of(name, **given), SPEC.observation_size, SPEC.action_size)


@functools.cache
def fresh(name: str, step: int) -> Any:
    """A learned state that its step tells from others."""
    return jax.device_get(jax.jit(agent_of(name).init)(jax.random.key(step)))


def a_run(root: Path, name: str, steps: tuple[int, ...] = (10,), task: str = TASK, **given: Any) -> Path:
    """A run with a fresh policy in each of its checkpoints."""
    path = root / name / "seed_0"
    resolved = resolved_config(name, task, "dm_control", config_of(name, **given), RunConfig())
    RunDir.create_or_open(path, resolved)
    for step in steps:
        with Checkpoints(path / "checkpoints") as checkpoints:
            checkpoints.save(Saved(fresh(name, step), [], {}, {}), Counters(step, 0), 8)
    return path


def keep_best(run: Path, name: str, step: int, **given: Any) -> None:
    learner = Learner(agent_of(name, **given), SPEC, 0, capacity=1)
    states = jax.tree.map(lambda leaf: leaf[None], fresh(name, step))
    BestPolicies([run], learner, pytest.fail).offer(step, [1.0], states)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tests only read."""
    return a_run(tmp_path_factory.mktemp("runs"), "td3", (10, 20))


@pytest.fixture(scope="module")
def actor(shared: Path) -> Actor:
    return open_actors([shared], [Which(step=10)])[0]  # whose episodes last to the time limit


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures that would be written; drawing takes most of the time."""
    figures: list[Figure] = []

    def save(self: Figure, file: Any, **options: Any) -> None:
        figures.append(self)
        file.write(options["format"].encode())

    monkeypatch.setattr(Figure, "savefig", save)
    return figures


def test_policies_of_several_runs_are_drawn_at_the_same_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], undrawn: list[Figure]
):
    runs = [str(a_run(tmp_path, name)) for name in ("qsm", "td3")]
    out = tmp_path / "made" / "actions.svg"
    assert main(["actions", *runs, "--samples", "200", "--states", "2", "--out", str(out)]) == 0
    assert out.read_bytes() == b"svg"
    rows = table(out.with_suffix(".csv"))
    names = [(row["policy"], row["state"], row["component"]) for row in rows]
    assert names == [
        (f"{name}, seed 0, step 10", f"start, seed {seed}", str(component))
        for name in ("qsm", "td3")
        for seed in (0, 1)
        for component in (0, 1)
    ]
    # A deterministic policy without its noise is a point.
    assert all(float(row["std"]) < 1e-6 and row["modes"] == "1" for row in rows if "td3" in row["policy"])
    assert all(float(row["std"]) > 0.1 for row in rows if "qsm" in row["policy"])
    assert all(row["value_mean"] and row["samples"] == "200" for row in rows)
    printed = capsys.readouterr().out
    assert "td3, seed 0, step 10; start, seed 1: 1 mode; mean Q" in printed and str(out) in printed
    [figure] = undrawn
    assert sum("component" in axes.get_xlabel() for axes in figure.axes) == 8  # density and critic of each


def test_steps_of_a_run_stand_one_below_the_other(shared: Path, tmp_path: Path, undrawn: list[Figure]):
    out = tmp_path / "a.png"
    shown = ["--components", "1", "--out", str(out)]
    assert main(["actions", str(shared), "--steps", "20,10", *shown]) == 0
    means = {row["step"]: float(row["mean"]) for row in table(tmp_path / "a.csv") if row["component"] == "1"}
    assert list(means) == ["20", "10"] and means["20"] != means["10"]
    assert main(["actions", str(shared), *shown]) == 0  # its own table is replaced
    assert {row["step"] for row in table(tmp_path / "a.csv")} == {"20"}
    assert [len(figure.axes) for figure in undrawn] == [4, 2]


@pytest.mark.slow
def test_what_was_kept_without_a_critic_is_drawn_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], undrawn: list[Figure]
):
    bare = a_run(tmp_path / "a", "qsm")
    choosing = a_run(tmp_path / "b", "qsm", (), eval_samples=4)
    keep_best(bare, "qsm", 5)
    keep_best(choosing, "qsm", 5, eval_samples=4)
    of_bare = open_actors([bare], [Which(), Which(best=True)])
    assert [(actor.source.step, actor.no_value) for actor in of_bare] == [(10, ""), (5, NOT_KEPT)]
    # Choosing the best of four samples reads the critic, so that it was kept.
    [actor] = open_actors([choosing], [Which(best=True)])
    assert actor.no_value == ""
    file = export(bare).path
    [exported] = open_actors([file])
    assert (exported.source.step, exported.no_value) == (10, NOT_KEPT)
    observation = np.zeros(SPEC.observation_size, np.float32)
    key = jax.random.key(0)
    np.testing.assert_allclose(
        exported.sample(observation, 50, key), of_bare[0].sample(observation, 50, key), atol=1e-5
    )
    with pytest.raises(UserError, match=r"hyperparameters.action_noise is not among it; take a checkpoint"):
        open_actors([bare], [Which(best=True)], "explore")
    assert len(open_actors([bare], [Which(best=True)], "evaluate")) == 1
    capsys.readouterr()
    assert main(["actions", str(file), "--samples", "100", "--out", str(tmp_path / "a.png")]) == 0
    assert "; no critic there\n" in capsys.readouterr().out
    assert len(undrawn) == 1 and all(row["value_mean"] == "" for row in table(tmp_path / "a.csv"))


def test_random_states_are_those_of_an_evaluation_episode(actor: Actor):
    states = find_states("random", 6, 3, actor)
    steps = [int(state.name.rpartition(" ")[2]) for state in states]
    assert steps == sorted(set(steps)) and len(steps) == 6
    environment = gridworld.make_env(TASK, 0, 1)
    environment.reseed(3)
    seen = [environment.reset().observation]
    for _ in range(SPEC.episode_steps - 1):
        seen.append(environment.step(actor.evaluate(seen[-1], jax.random.key(0))).observation)
    for step, state in zip(steps, states, strict=True):
        np.testing.assert_array_equal(state.observation, seen[step])
    with pytest.raises(UserError, match="--states is 26, and the episode of --seed 3 has 25 states"):
        find_states("random", 26, 3, actor)
    [start] = find_states("start", None, 3, actor)
    np.testing.assert_array_equal(start.observation, seen[0])
    assert [state.name for state in find_states("start", 2, 3, actor)] == ["start, seed 3", "start, seed 4"]


def test_observations_come_from_a_file(actor: Actor, tmp_path: Path):
    given = np.eye(SPEC.observation_size)[:3]
    np.save(tmp_path / "s.npy", given)
    np.savetxt(tmp_path / "s.csv", given, delimiter=",")
    for name in ("s.npy", "s.csv"):
        states = find_states(str(tmp_path / name), None, 0, actor)
        assert [state.name for state in states] == [f"{name}, row {row}" for row in range(3)]
        np.testing.assert_array_equal([state.observation for state in states], given)
        assert len(find_states(str(tmp_path / name), 2, 0, actor)) == 2
    np.save(tmp_path / "one.npy", given[1])
    assert len(find_states(str(tmp_path / "one.npy"), None, 0, actor)) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((2, 3)), r"holds numbers \[2, 3\]; it must hold numbers \[N, 25\]"),
        (np.zeros((0, 25)), r"holds numbers \[0, 25\]"),
        (np.full((1, 25), np.nan), "not finite"),
        (np.zeros((17, 25)), "holds 17 observations, and a figure at most 16; say how many"),
        (np.array(["a"]), r"cannot be read .*\[N, 25\]"),
        (np.array([{}], object), "cannot be read"),
    ],
)
def test_a_file_of_anything_else_is_refused(content: np.ndarray, message: str, actor: Actor, tmp_path: Path):
    np.save(tmp_path / "s.npy", content, allow_pickle=True)
    with pytest.raises(UserError, match=message):
        find_states(str(tmp_path / "s.npy"), None, 0, actor)
    (tmp_path / "s.csv").write_text("height,speed\n1,2\n")
    with pytest.raises(UserError, match=r"s\.csv cannot be read"):
        find_states(str(tmp_path / "s.csv"), None, 0, actor)


@pytest.mark.slow
def test_states_of_a_device_environment_are_found(tmp_path: Path):
    simulators = Simulators(lambda *given: pytest.fail("the host's"), lambda task, repeat: Counter(5, repeat))
    config = agents.config_of("td3", hidden_sizes=(8,))
    resolved = resolved_config("td3", "cartpole-swingup", "mjx", config, RunConfig())
    run = RunDir.create_or_open(tmp_path / "run", resolved).path
    agent = agents.build("td3", config, 2, 1)
    with Checkpoints(run / "checkpoints") as checkpoints:
        state = jax.device_get(agent.init(jax.random.key(0)))
        checkpoints.save(Saved(state, [], {}, {}), Counters(10, 0), 8)
    [actor] = open_actors([run], simulators=simulators)
    found = find_states("random", 5, 0, actor)
    np.testing.assert_array_equal(found[0].observation, find_states("start", None, 0, actor)[0].observation)
    assert len({state.observation.tobytes() for state in found}) == 5


RUN = "RUN"  # stands for a run that is there
MISTAKES = {
    "none": "There is no folder none",
    "empty": "has no checkpoint: ",
    f"{RUN} --steps 10,7": "has no policy of step 7; there are checkpoints of step 10 and 20",
    f"{RUN} --steps 10 --best": "--steps are given and another policy is asked for too; leave out --best and --step",
    f"{RUN} --best": "has no best policy",
    f"{RUN} --components 0,5": "--components names 5; an action of gridworld-open has components 0 to 1",
    f"{RUN} --components 1,1": "--components is 1,1; it must name each once",
    f"{RUN} --state strat": "--state is 'strat'; it must be start, random, or a file of observations (.npy or .csv)",
    f"{RUN} --state s.npy": "--state is 's.npy', and there is no such file",
    f"{RUN} --out a.txt": "--out is 'a.txt'; it must be a file .png",
    f"{RUN} elsewhere": "is of gridworld-open and elsewhere of gridworld-cliff; give policies of one task",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_takes_one_line(
    line: str,
    shared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    for folder, task in (("empty", TASK), ("elsewhere", "gridworld-cliff")):
        if folder in line:
            a_run(tmp_path, "td3", (), task).rename(tmp_path / folder)
    words = [str(shared) if word == RUN else word for word in line.split()]
    assert main(["actions", *words]) == 2
    printed = capsys.readouterr()
    assert MISTAKES[line] in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert not (tmp_path / "actions.png").exists()


def test_another_table_is_not_replaced(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other = tmp_path / "a.csv"
    other.write_text("mine,1\n")
    assert main(["actions", str(shared), "--out", str(tmp_path / "a.png")]) == 2
    assert "would replace" in capsys.readouterr().err and other.read_text() == "mine,1\n"
    (tmp_path / "b.png").mkdir()
    assert main(["actions", str(shared), "--out", str(tmp_path / "b.png")]) == 2
    assert "is no file" in capsys.readouterr().err


def test_each_start_has_a_seed_of_its_own(actor: Actor, monkeypatch: pytest.MonkeyPatch):
    seeds: list[int] = []
    environment = type(gridworld.make_env(TASK, 0, 1))
    monkeypatch.setattr(environment, "reseed", lambda self, seed: seeds.append(seed))
    find_states("start", 3, 5, actor)
    find_states("random", 1, 9, actor)
    assert seeds == [5, 6, 7, 9]
