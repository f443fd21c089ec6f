"""extraction.py: policies learn from critics that do not move, and are measured by known returns and values."""

from __future__ import annotations

import csv
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agents
from agents.config import AgentConfig
from agents.parts import measure
from agents.parts.types import Mean, Metrics, Mode, Sampling
from envs.api import StepType, TimeStep
from qsm.bench.grid import parse_agent
from qsm.command import cli
from qsm.data import replay
from qsm.learning.build import Built, Task
from scripts.critics import extraction
from tests.probe_environments import ActionReward
from tests.run_folders import add

REPLAYED = 0.25
CRITICS: dict[str, Any] = {"hidden_sizes": [8], "critic_layer_norm": True, "normalize_observations": True}


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Explores with 1/2 and evaluates with 3/4, whatever it sees; values an action by twice itself."""

    def reward_scale(self, state: Any) -> float:
        return 1.0

    @property
    def sampling(self) -> Sampling:
        return Sampling(4, 1)

    def discount(self, state: Any) -> float:
        return 0.9

    def act(self, state: Any, observation: jax.Array, key: jax.Array, *, mode: Mode) -> jax.Array:
        return jnp.full((len(observation), 1), 0.5 if mode == "explore" else 0.75)

    def action_value(self, state: Any, observation: jax.Array, action: jax.Array) -> jax.Array:
        return 2 * action[:, 0]


def replayed(num_rows: int, observation_size: int, action_size: int) -> replay.Replay:
    """An episode that goes on, its actions all 1/4."""
    rows = replay.create(num_rows, 1, observation_size, action_size)
    for number in range(num_rows):
        kind = StepType.FIRST if number == 0 else StepType.MID
        seen = np.full((1, observation_size), number / num_rows, np.float32)
        row = TimeStep(np.array([kind]), np.ones(1), np.ones(1), seen)
        rows = replay.insert(rows, jnp.full((1, action_size), REPLAYED), row)
    return rows


def built_with(**options: Any) -> Built:
    """SAC with these options, besides `CRITICS`, as a run's `config.json` has them."""
    task = Task("cartpole-swingup", "dm_control")
    return Built(task, task.agent("sac", agents.config_from_dict("sac", CRITICS | options)))


def test_measures_are_those_of_the_way_to_act():
    environments = [ActionReward(optimum=0.25), ActionReward(optimum=0.5)]
    built = SimpleNamespace(spec=environments[0].spec)
    source = extraction.Source(built, {}, 0, (), replayed(5, 1, 1))  # type: ignore[arg-type]
    explored, evaluated = extraction.measure(Fixed(), (), source, environments, seed=3)  # type: ignore[arg-type]
    returns = np.array([1 - 0.25**2, 1.0])
    told = {"return_mean": returns.mean(), "return_std": returns.std(), "failure_rate": 0}
    assert explored == pytest.approx({"mode": "explore", "advantage": 0.5} | told)
    returns = np.array([1 - 0.5**2, 1 - 0.25**2])
    told = {"return_mean": returns.mean(), "return_std": returns.std(), "failure_rate": 0}
    assert evaluated == pytest.approx({"mode": "evaluate", "advantage": 1.0} | told)


def test_a_policy_learns_and_its_critics_do_not_move():
    built = built_with()
    spec = parse_agent("td3@small:actor_hidden_sizes=4:batch_size=8:critic_learning_rate=1")
    seen = extraction.Source(built, {}, 0, None, replayed(20, built.spec.observation_size, 1))
    agent = extraction.agent_of(seen, spec)
    learned = agent.init(jax.random.key(1))
    source = seen._replace(state=learned)
    before = extraction.fresh(agent, source, jax.random.key(2))
    # Within an update, the policy follows the critics just updated: those of the run, at a rate of zero.
    assert [float(before.hyperparameters[name]) for name in extraction.RATES] == [0.0, 0.0]
    kept = jax.tree.map(np.asarray, (before.critic, before.normalizer, before.actor))
    after, _ = extraction.learn(agent, before, source.replay, jax.random.key(3), 0, 4)
    jax.tree.map(np.testing.assert_array_equal, kept[:2], (after.critic, after.normalizer))
    jax.tree.map(np.testing.assert_array_equal, kept[0].online.params, learned.critic.online.params)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), kept[2], after.actor)
    assert all(jax.tree.leaves(moved.params))


class Still(NamedTuple):
    critic: Any = ()


@dataclasses.dataclass(frozen=True)
class Telling(Fixed):
    """Tells the number of each update, of odd ones besides, and of something that never happens."""

    def update(self, state: Any, batch: Any, key: jax.Array, step: jax.Array) -> tuple[Any, Metrics]:
        number, odd = jnp.asarray(step, jnp.float32), jnp.asarray(step % 2, jnp.float32)
        told = {"number": Mean(number, jnp.ones(())), "odd": Mean(odd * number, odd)}
        return state, told | {"never": measure.skipped()}


def test_metrics_are_those_of_the_last_updates():
    agent: Any = Telling()
    stretches = {
        (0, 250): (199.5, 200.0),
        (250, 260): (254.5, 255.0),
    }  # the last 100, or as many as there are
    for (first, stop), told in stretches.items():
        _, metrics = extraction.learn(agent, Still(), replayed(5, 1, 1), jax.random.key(0), first, stop)
        found = [extraction.mean(metrics.get(name)) for name in ("number", "odd", "never", "unknown")]
        assert found == [*told, None, None]


def test_critics_are_those_of_the_run():
    built = built_with(critic_head="c51", value_bound=7.0)
    source = extraction.Source(built, {}, 0, None, None)  # type: ignore[arg-type]
    spec = parse_agent("qsm@x:critic_head=scalar:hidden_sizes=16,16:denoising_steps=3")
    agent: Any = extraction.agent_of(source, spec)
    options = agent.config
    assert (options.critic_head, options.value_bound, options.critic_hidden_sizes) == ("c51", 7.0, (8,))
    assert options.critic_layer_norm and options.normalize_observations
    assert (options.hidden_sizes, options.denoising_steps) == ((16, 16), 3)


def test_no_option_of_critics_is_forgotten():
    """A new option of all agents about critics, or about what they see, is to be taken from the run too."""
    about = ("critic", "atom", "value_bound", "normalize", "rescale")
    names = {field.name for field in dataclasses.fields(AgentConfig)}
    of_critics = {name for name in names if any(word in name for word in about)}
    assert of_critics == {*extraction.OF_CRITICS, "critic_hidden_sizes", "critic_learning_rate"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"agent_options": {"critic_torso": "batchnorm"}}, "give one with another torso"),
        ({"backend": "mjx"}, "was trained on mjx"),
        ({}, "has no checkpoint"),
    ],
)
def test_runs_that_cannot_be_taken(tmp_path: Path, options: dict[str, Any], told: str):
    run = add(tmp_path, "sac", "cartpole-swingup", 0, {0: 1.0}, **options)
    with pytest.raises(extraction.UserError, match=told):
        extraction.read_source(run.path)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--episodes", "0"], "--episodes is 0; it must be from 1 to 1000"),
        (["--updates", "1"], "--measurements is 2; it must be at most updates, 1"),
    ],
)
def test_what_cannot_be_measured_is_told(
    words: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["extraction.py", "run", *words])
    with pytest.raises(SystemExit):
        extraction.main()
    assert told in capsys.readouterr().err


def test_what_was_measured_is_kept_at_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    row = {"policy": "as trained", "updates": "", "mode": "explore", "return_mean": 3.0, "return_std": 1.0}

    def interrupted(*inputs: Any) -> Iterator[dict[str, Any]]:
        yield row | {"advantage": 0.5}
        raise KeyboardInterrupt

    monkeypatch.setattr(extraction, "read_source", lambda path: None)
    monkeypatch.setattr(extraction, "agent_of", lambda source, spec: None)
    monkeypatch.setattr(extraction, "rows_of", interrupted)
    output = tmp_path / "made" / "table.csv"
    monkeypatch.setattr(sys, "argv", ["extraction.py", "run", "--output", str(output)])
    with pytest.raises(SystemExit) as ended:
        extraction.main()
    assert ended.value.code == 130 and capsys.readouterr().err == "qsm: stopped\n"
    assert output.read_text().splitlines()[1:] == ["as trained,,explore,3,1,0.5"]


@pytest.mark.slow  # trains, and compiles four programs
def test_a_run_is_read_and_every_policy_has_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    small = ["--hidden-sizes", "8", "--batch-size", "16", "--critic-head", "c51", "--normalize-rewards"]
    steps = ["--steps", "1200", "--random-steps", "1000", "--eval-interval", "2000", "--wandb", "disabled"]
    assert not cli.main(["train", "sac", "cartpole-swingup", *small, *steps, "--runs", str(tmp_path)])
    run = tmp_path / "dm_control" / "cartpole-swingup" / "sac" / "seed_0"
    output = tmp_path / "made" / "table.csv"
    variant = "qsm-clean@z30:inverse_temperature=30:hidden_sizes=8"
    words = ["--agents", "td3", variant, "--updates", "6", "--episodes", "1", "--output", str(output)]
    words += ["--metrics", "score/temperature", "policy/q"]
    monkeypatch.setattr(sys, "argv", ["extraction.py", str(run), *words])
    extraction.main()
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["policy"], row["updates"], row["mode"]) for row in rows] == [
        *(("as trained", "", mode) for mode in extraction.MODES),
        *((name, n, mode) for name in ("td3", variant) for n in ("3", "6") for mode in extraction.MODES),
    ]
    assert {row["step"] for row in rows} == {"1200"}
    assert [bool(row["score/temperature"]) for row in rows] == [row["policy"] == variant for row in rows]
    assert all(0 <= float(row["return_mean"]) <= 1000 for row in rows)
