"""An exported policy acts alike with JAX and with NumPy alone, on arrays and on the simulator's own observations."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agents
from agents.config import AgentConfig
from agents.parts.types import Mode
from envs.api import EnvSpec
from qsm.base.errors import UserError
from qsm.checkpoints.selection import Restored
from qsm.policies import numpy_policy
from qsm.policies.export import policy_file
from qsm.policies.numpy_policy import DESCRIPTION, NumpyPolicy, PolicyError
from qsm.policies.policy import Policy, load_policy
from tests.tally_agent import TallyAgent

ROOT = Path(__file__).parents[3]
ENTRIES = (("position", 3), ("height", 1), ("velocity", 1))
SPEC = EnvSpec("probe-walk", 5, 2, 10, 1, (-1.0, -2.0), (1.1, 4.0), ENTRIES)
SMALL: dict[str, Any] = {"hidden_sizes": (16, 16)}
FEW_LEVELS: dict[str, Any] = {"time_embedding_size": 4, "time_hidden_sizes": (4,)}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    # Critics that take part in acting.
    "qsm": [
        {
            "eval_samples": 3,
            "denoising_steps": 4,
            "acting_sampler": "dpm++",
            "acting_steps": 3,
            "critic_torso": "batchnorm",
            "critic_head": "c51",
        }
    ],
    "qsm-clean": [
        {"denoising_steps": 4, "prediction": "velocity", "acting_sampler": "dpm++", "acting_steps": 2}
    ],
    "sac": [{}],
    "td3": [{}],
}
MORE: dict[str, list[dict[str, Any]]] = {
    "qsm": [{"denoising_steps": 4, "acting_sampler": "ddim", "acting_steps": 2, "ddim_eta": 0.5}],
    "qsm-clean": [
        {"eval_samples": 2, "denoising_steps": 2, "score_layer_norm": True},
        {"denoising_steps": 2, "actor_torso": "simba", "eval_samples": 2, "critic_torso": "simbav2"},
    ],
    "diffusion-ql": [{"denoising_steps": 2, "eval_samples": 4}],
    # The gradient of the critics takes part in acting.
    "langevin": [{"langevin_steps": 3}],
    "diffusion-pg": [{"denoising_steps": 2}],
    "sac": [{"actor_torso": "simbav2", "normalize_rewards": True, "normalize_observations": True}],
    "td3": [{"actor_torso": "simba"}],
}
"""Of which there is one of its kind above, or which compile for long: slow tests."""
CASES = [
    *((name, options) for name in agents.AGENTS for options in OPTIONS.get(name, [])),
    *(
        pytest.param(name, options, marks=pytest.mark.slow)
        for name in agents.AGENTS
        for options in MORE.get(name, [] if name in OPTIONS else [{}])
    ),
]


def content(name: str, options: dict[str, Any], spec: EnvSpec = SPEC, agent: Any = None) -> bytes:
    """The file of an agent whose parameters were drawn, for to initialize it would compile it."""
    few = FEW_LEVELS if agents.AGENTS[name].family == "diffusion" else {}
    config = agents.config_class(name)(**SMALL, **few, **options)
    agent = agent or agents.build(name, config, spec.observation_size, spec.action_size)
    shapes = jax.eval_shape(agent.init, jax.random.key(1))
    draws = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        values = 0.3 * draws.normal(size=leaf.shape)
        is_variance = "var" in jax.tree_util.keystr(path)
        return (np.abs(values) + 0.5 if is_variance else values).astype(leaf.dtype)

    state = jax.tree_util.tree_map_with_path(draw, shapes)
    if isinstance(config, AgentConfig):
        given = {name: np.float32(value) for name, value in config.hyperparameters().items()}
        state = state._replace(hyperparameters=given)
    config_values = {"agent": name, "agent_config": json.loads(json.dumps(dataclasses.asdict(config)))}
    run = config_values | {"task": spec.task, "backend": "dm_control"}
    return policy_file(run, spec, agent, Restored(state, 1200, 87.5), ENTRIES)[0]


@functools.cache
def sac() -> bytes:
    return content("sac", {})


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_the_same_draws_give_the_same_actions(name: str, options: dict[str, Any], tmp_path: Path):
    file = write(tmp_path / "policy.npz", content(name, options))
    one, other = load_policy(file, seed=5), numpy_policy.load_policy(file, seed=5)
    assert one.description == other.description
    assert other.description.program is not None, other.description.problem
    observations = np.random.default_rng(0).normal(size=(6, 5))
    for given in (observations, observations[0], observations[:1], observations):
        expected, found = one(given), other(given)
        assert found.dtype == np.float32 and found.shape == expected.shape == (*given.shape[:-1], 2)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    for policy in (one, other):
        first = (policy.reset(8), policy(observations))[1]
        again = (policy.reset(8), policy(observations))[1]
        np.testing.assert_array_equal(first, again)
        if agents.AGENTS[name].family in ("diffusion", "energy"):
            assert np.abs(policy(observations) - first).max() > 1e-3  # drawn anew


ALONE = """
import importlib.abc, sys

class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        allowed = ("qsm", "qsm.base", "qsm.base.version", "qsm.policies")
        allowed += ("qsm.policies.numpy_policy", "qsm.policies.numpy_operations")
        first = name.partition(".")[0]
        if name not in allowed and first != "numpy" and first not in sys.stdlib_module_names:
            raise ImportError(f"{name} is not to be had here")

sys.meta_path.insert(0, Nothing())
from qsm.policies.numpy_policy import load_policy
policy = load_policy(sys.argv[1], seed=4)
print(policy([[0.1, -0.2, 0.3, 0.4, 0.5], [1, 2, 3, 4, 5]]).tolist())
try:
    import jax
except ImportError:
    print("alone")
"""


def test_numpy_is_all_it_takes(tmp_path: Path):
    file = write(tmp_path / "policy.npz", content("qsm", {"eval_samples": 2, "denoising_steps": 2}))
    command = [sys.executable, "-c", ALONE, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    actions, alone = done.stdout.splitlines()
    expected = load_policy(file, seed=4)([[0.1, -0.2, 0.3, 0.4, 0.5], [1, 2, 3, 4, 5]])
    np.testing.assert_allclose(json.loads(actions), expected, atol=1e-5)
    assert alone == "alone"


@pytest.fixture(params=[load_policy, numpy_policy.load_policy], ids=["jax", "numpy"])
def policy(request: pytest.FixtureRequest, tmp_path: Path) -> Policy | NumpyPolicy:
    return request.param(write(tmp_path / "policy.npz", sac()))


def test_the_file_says_what_the_simulator_takes_and_gives(policy: Policy | NumpyPolicy):
    said = policy.description
    assert (said.task, said.step, said.return_mean) == ("probe-walk", 1200, 87.5)
    assert said.observation == [["position", 3], ["height", 1], ["velocity", 1]]
    shown = repr(said)
    assert "task: probe-walk\n" in shown and "operations>" in shown and "dot_general" not in shown
    np.testing.assert_array_equal(policy.action_low, [-1.0, -2.0])
    np.testing.assert_allclose(
        policy.scale([[-1, -1], [0, 0], [1, 1], [0.5, 9]]), [[-1, -2], [0.05, 1], [1.1, 4], [0.575, 4]]
    )


def test_a_dictionary_is_flattened_in_the_order_of_training(policy: Policy | NumpyPolicy):
    flat = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    entries = {"velocity": np.array([0.5]), "position": flat[:3], "height": 0.4}  # in another order
    np.testing.assert_array_equal(policy(entries), policy(flat))
    for wrong, message in (
        ({"position": flat[:3]}, "has the entries position; this policy takes position, height, velocity"),
        (entries | {"position": flat}, "position has 5 numbers; this policy takes 3"),
        (entries | {"height": "tall"}, "is no array of numbers|is a ndarray that is no array"),
    ):
        with pytest.raises(ValueError, match=message):
            policy(wrong)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.zeros(4), r"have shape \(4,\); this policy takes \[5\] or \[B, 5\]"),
        (np.zeros((1, 2, 5)), r"have shape \(1, 2, 5\)"),
        (3.0, r"have shape \(\)"),
        ([1, 2, float("nan"), 4, 5], "NaN or infinite"),
        (np.full((2, 5), np.inf), "NaN or infinite"),
        (None, "the observation is a NoneType that is no array of numbers"),
        ("forward", "is a str that is no array of numbers"),
        ([[1, 2], [3]], "is a list that is no array of numbers"),
        (np.zeros(5, complex), "is a ndarray that is no array of numbers"),
    ],
)
def test_what_is_no_observation_is_told_in_one_line(
    policy: Policy | NumpyPolicy, observation: Any, message: str
):
    with pytest.raises(ValueError, match=message) as refusal:
        policy(observation)
    assert len(str(refusal.value).splitlines()) == 1
    policy.reset(0)
    np.testing.assert_array_equal(policy(np.zeros(5)).shape, (2,))


def test_a_policy_without_a_name_for_its_entries_takes_no_dictionary(tmp_path: Path):
    spec = dataclasses.replace(SPEC, observation_entries=())
    data = content("td3", {}, spec)
    changed = changed_description(data, observation=[])
    policy = numpy_policy.load_policy(write(tmp_path / "policy.npz", changed))
    with pytest.raises(ValueError, match="this policy takes none: it takes an array"):
        policy({"position": np.zeros(5)})


def changed_description(data: bytes, **changes: Any) -> bytes:
    with np.load(io.BytesIO(data)) as file:
        arrays = dict(file)
    described = json.loads(arrays[DESCRIPTION].tobytes()) | changes
    arrays[DESCRIPTION] = np.frombuffer(json.dumps(described).encode(), np.uint8)
    new = io.BytesIO()
    np.savez(new, allow_pickle=False, **arrays)  # type: ignore[arg-type]
    return new.getvalue()


def test_what_numpy_cannot_load_is_told_in_one_line(tmp_path: Path):
    file, data = tmp_path / "policy.npz", sac()
    with np.load(io.BytesIO(data)) as content:
        program = json.loads(content[DESCRIPTION].tobytes())["program"]
    evil = {
        "version": 1,
        "parameters": [],
        "block": {"inputs": 3, "steps": [["os.system", [0], [3], {}]], "results": [3]},
    }
    for wrong, message in (
        (b"text", "is no policy, or is damaged"),
        (data[:-100], "is no policy, or is damaged"),
        (changed_description(data, format=1), "by an earlier qsm .* qsm export RUN"),
        (changed_description(data, format=3), "by a newer qsm"),
        (
            changed_description(data, program=program | {"version": 2}),
            r"operations are of version 2, .* take numpy_pol",
        ),
        (changed_description(data, program=evil), "is damaged"),
        (changed_description(data, program=[]), "is damaged"),
        (changed_description(data, observation_size="5"), "is damaged"),
        (changed_description(data, action_low=[0]), "is damaged"),
    ):
        with pytest.raises(PolicyError, match=message) as refusal:
            numpy_policy.load_policy(write(file, wrong))
        assert len(str(refusal.value).splitlines()) == 1 and str(file) in str(refusal.value)
    with pytest.raises(PolicyError, match="Cannot read"):
        numpy_policy.load_policy(tmp_path / "none.npz")
    with pytest.raises(UserError, match="is no policy, or is damaged"):
        load_policy(write(file, changed_description(data, action_low=[0])))


@dataclasses.dataclass(frozen=True)
class Sorting(TallyAgent):
    """Does what NumPy's operations do not have."""

    def act(self, state: Any, observation: jax.Array, key: jax.Array, *, mode: Mode) -> jax.Array:
        return jnp.sort(observation)[:, :2]


@dataclasses.dataclass(frozen=True)
class Alike(TallyAgent):
    """Acts for another number of observations as nobody would."""

    def act(self, state: Any, observation: jax.Array, key: jax.Array, *, mode: Mode) -> jax.Array:
        return observation[:, :2] * (10.0 if observation.shape[0] in (1, 3) else 1.0)


@pytest.mark.parametrize(
    ("agent", "problem"),
    [(Sorting(2), "sort is none of the operations"), (Alike(2), "actions differ by ")],
)
def test_a_policy_that_numpy_cannot_run_is_exported_and_says_so(agent: Any, problem: str, tmp_path: Path):
    file = write(tmp_path / "policy.npz", content("td3", {}, agent=agent))
    description, _ = numpy_policy.read_policy(file)
    assert description.program is None and problem in description.problem
    with pytest.raises(PolicyError, match=rf"needs JAX: .*{problem}.*Load it with qsm\.load_policy"):
        numpy_policy.load_policy(file)
