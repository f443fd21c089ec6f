"""Ways down a chain: their steps against closed forms, and which of them an agent takes to act and to learn."""

from __future__ import annotations

import functools
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.parts import diffusion
from agents.parts.samplers.steps import Sampler, Steps, steps_of
from tests.agents.analytic import ACTION_SIZE, distance, initial, small_agent, small_batch, update

SCHEDULES: Any = ["vp", "cosine", "linear", "geometric"]
SAMPLERS: Any = ["ancestral", "ddim", "dpm++"]


def steps_down(sampler: Sampler, schedule: diffusion.Schedule, step_variance: Any = "beta") -> Steps:
    return steps_of(sampler, schedule.alpha, schedule.abar, step_variance)


def exact_noise(schedule: diffusion.Schedule, sampler: Sampler, mean: float, std: float) -> Any:
    """Noise prediction at the levels that `sampler` visits, exact for a_0 ~ N(mean, std^2)."""
    place = steps_down(sampler, schedule).level - 1
    abar, sigma = schedule.abar[place], schedule.sigma[place]
    slope = jnp.asarray(sigma / (abar * std**2 + sigma**2), jnp.float32)
    center = jnp.asarray(np.sqrt(abar) * mean, jnp.float32)
    return lambda index, noised: slope[index] * (noised - center[index])


def draw(schedule: diffusion.Schedule, sampler: Sampler, mean: float, std: float, number: int) -> np.ndarray:
    predict = exact_noise(schedule, sampler, mean, std)
    sample = functools.partial(diffusion.sample, schedule, predict, shape=(number, 1), sampler=sampler)
    return np.asarray(jax.jit(sample)(jax.random.key(3)), np.float64)


# ---- Levels -------------------------------------------------------------------------------------------------------


@hypothesis.given(
    schedule=st.sampled_from(SCHEDULES), name=st.sampled_from(SAMPLERS), sizes=st.data(), eta=st.floats(0, 1)
)
@hypothesis.settings(max_examples=150)
def test_every_way_visits_as_many_levels_as_it_has_steps(schedule: Any, name: Any, sizes: Any, eta: float):
    num_levels = sizes.draw(st.integers(1, 300))
    num_steps = sizes.draw(st.integers(1, num_levels))
    chain = diffusion.make_schedule(schedule, num_levels)
    table = steps_down(Sampler(name, num_steps, eta), chain)
    level = table.level
    assert len(level) == num_steps and level[-1] == num_levels and level[0] >= 1
    assert (np.diff(level) > 0).all()
    np.testing.assert_array_equal(table.sigma, chain.sigma[level - 1])
    for weights in table[1:]:
        assert weights is None or (weights.shape == (num_steps,) and np.isfinite(weights).all())
    # The last step hands on the clean action alone.
    assert (table.weight_clean[0], table.weight_noised[0]) == (pytest.approx(1.0), pytest.approx(0.0))
    assert table.std is None or table.std[0] == 0.0
    assert table.weight_before is None or (table.weight_before[[0, -1]] == 0.0).all()


def test_which_levels_are_visited():
    vp = diffusion.make_schedule("vp", 100)
    assert steps_down(Sampler("ddim", 4), vp).level.tolist() == [25, 50, 75, 100]
    assert steps_down(Sampler("ancestral", 3), vp).level.tolist() == [33, 66, 100]
    # By half the log of the signal-to-noise ratio, from 3.49 at level 1 to -2.52 at level 100.
    level = steps_down(Sampler("dpm++", 4), vp).level
    assert level[[0, -1]].tolist() == [1, 100]
    ratio = 0.5 * np.log(vp.abar / (1 - vp.abar))
    np.testing.assert_allclose(np.diff(ratio[level - 1]), (ratio[-1] - ratio[0]) / 3, rtol=0.05)
    assert steps_down(Sampler("dpm++", 1), vp).level.tolist() == [100]


def test_more_steps_than_levels_are_refused():
    with pytest.raises(ValueError, match="a chain of 5 levels has no 6 steps"):
        steps_down(Sampler("ddim", 6), diffusion.make_schedule("vp", 5))


@pytest.mark.parametrize("step_variance", ["beta", "posterior"])
def test_a_part_of_the_levels_of_vp_is_the_chain_of_so_many(step_variance: Any):
    part = steps_down(Sampler("ancestral", 5), diffusion.make_schedule("vp", 20), step_variance)
    whole = steps_down(Sampler(), diffusion.make_schedule("vp", 5), step_variance)
    for one, other in zip(part[1:-1], whole[1:-1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


# ---- DDIM ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_with_all_its_noise_is_the_chain_of_the_posterior_variance(schedule: Any):
    chain = diffusion.make_schedule(schedule, 12)
    ddim = steps_down(Sampler("ddim", eta=1.0), chain)
    for one, other in zip(ddim, steps_down(Sampler(), chain, "posterior"), strict=True):
        if one is not None:
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)
    assert steps_down(Sampler("ddim"), chain).std is None


def ddim_moments(levels: list[int], eta: float, mean: float, std: float) -> tuple[float, float]:
    """Mean and std of a_0 that DDIM draws down `levels` of the vp chain of 5 (Song et al. 2021, equation 12).

    With D = abar std^2 + sigma^2, both the clean action and the noise that the exact score implies are linear in
    y = a_t - sqrt(abar) mean: sqrt(abar) std^2 y / D from the mean, and sigma y / D.
    """
    products = np.exp([-(0.1 * t / 5 + 9.9 * t * t / 50) for t in range(6)])  # abar_t, abar_0 = 1
    y_mean, y_variance = -np.sqrt(products[levels[-1]]) * mean, 1.0
    for t, s in zip(levels[::-1], [*levels[-2::-1], 0], strict=True):
        a, b = products[t], products[s]
        noise = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
        total = a * std**2 + 1 - a
        factor = (np.sqrt(a * b) * std**2 + np.sqrt((1 - a) * (1 - b - noise))) / total
        y_mean, y_variance = factor * y_mean, factor**2 * y_variance + noise
    return mean + y_mean, y_variance**0.5


@pytest.mark.parametrize(
    ("num_steps", "levels"),
    [(2, [2, 5]), (3, [1, 3, 5]), pytest.param(0, [1, 2, 3, 4, 5], marks=pytest.mark.slow)],
)
def test_ddim_draws_the_gaussian_that_its_equation_has(num_steps: int, levels: list[int]):
    schedule = diffusion.make_schedule("vp", 5)
    for eta in (0.0, 0.6):
        mean, std = ddim_moments(levels, eta, 0.7, 0.5)
        drawn = draw(schedule, Sampler("ddim", num_steps, eta), 0.7, 0.5, 100_000)
        assert drawn.mean() == pytest.approx(mean, abs=0.006)
        assert drawn.std() == pytest.approx(std, rel=0.01)


def test_without_noise_the_start_decides():
    """DDIM and DPM-Solver++ are linear in a_T for a Gaussian target, to the last bit or so."""
    schedule = diffusion.make_schedule("vp", 5)
    start = np.asarray(jax.random.normal(jax.random.key(3), (1, 500, 1)), np.float64)[0]
    for name in ("ddim", "dpm++"):
        drawn = draw(schedule, Sampler(name, 3), 0.7, 0.5, 500)
        slope, offset = np.polyfit(start[:, 0], drawn[:, 0], 1)
        np.testing.assert_allclose(drawn, offset + slope * start, atol=2e-6)
        if name == "ddim":
            assert (offset, slope) == pytest.approx(ddim_moments([1, 3, 5], 0.0, 0.7, 0.5), abs=1e-5)


# ---- DPM-Solver++ -------------------------------------------------------------------------------------------------


def test_two_steps_of_dpm_solver_are_two_of_ddim():
    """Its first step has nothing before it, and its last one goes to no noise at all: both are of first order."""
    chain = diffusion.make_schedule("cosine", 2)
    second, first = (steps_down(Sampler(name), chain)[1:5] for name in SAMPLERS[:0:-1])
    for one, other in zip(second, first, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_a_step_of_dpm_solver_looks_at_the_step_before():
    """Equations 8 and 9 of Lu et al. (2022), from level 2 of 3 to level 1, written in l = log(sqrt(abar) / sigma)."""
    chain = diffusion.make_schedule("vp", 3)
    table = steps_down(Sampler("dpm++"), chain)
    l1, l2, l3 = np.log(np.sqrt(chain.abar) / chain.sigma)
    r = (l2 - l3) / (l1 - l2)
    weight = -np.sqrt(chain.abar[0]) * (np.exp(l2 - l1) - 1)
    assert table.weight_noised[1] == pytest.approx(chain.sigma[0] / chain.sigma[1])
    assert table.weight_clean[1] == pytest.approx(weight * (1 + 1 / (2 * r)))
    assert table.weight_before[1] == pytest.approx(-weight / (2 * r))


def test_halved_steps_of_dpm_solver_leave_a_quarter_of_the_error():
    """Against the exact flow of a Gaussian: a_1 / std_1 = a_T / std_T, and the clean action implied there."""
    schedule, std = diffusion.make_schedule("vp", 4000), 0.5
    total = schedule.abar * std**2 + schedule.sigma**2
    exact = np.sqrt(schedule.abar[0]) * std**2 / total[0] * np.sqrt(total[0] / total[-1])
    start = np.asarray(jax.random.normal(jax.random.key(3), (1, 200, 1)), np.float64)[0]

    def error(name: Any, num_steps: int) -> float:
        drawn = draw(schedule, Sampler(name, num_steps), 0.0, std, 200)
        return float(np.abs(drawn - exact * start).max())

    assert error("dpm++", 24) / error("dpm++", 48) == pytest.approx(4.0, abs=0.6)
    assert error("ddim", 24) / error("ddim", 48) == pytest.approx(2.0, abs=0.3)
    assert error("dpm++", 24) < 0.1 * error("ddim", 24)


# ---- Bounds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddim", "dpm++"])
def test_bounds_are_held_as_by_the_whole_chain(name: Any):
    schedule, seen = diffusion.make_schedule("vp", 6), []

    def runaway(index: jax.Array, noised: jax.Array) -> jax.Array:
        jax.debug.callback(lambda i, x: seen.append((int(i), float(np.abs(x).max()))), index, noised)
        return -10.0 * noised

    sample = functools.partial(
        diffusion.sample, schedule, runaway, jax.random.key(0), (500, 2), sampler=Sampler(name, 3)
    )
    assert float(jnp.abs(sample(clip_clean=1.5)).max()) == pytest.approx(1.5)
    jax.effects_barrier()
    seen.clear()
    assert float(jnp.abs(sample(clip=0.3)).max()) == pytest.approx(0.3)
    jax.effects_barrier()
    assert [index for index, _ in sorted(seen)] == [0, 1, 2]
    assert dict(seen)[2] > 2.0, "a_T is drawn without a bound"
    assert all(size <= 0.3 + 1e-6 for index, size in seen if index < 2)


# ---- Agents -------------------------------------------------------------------------------------------------------

PLAIN = {"explore_samples": 1, "eval_samples": 1}
FEWER = PLAIN | {"acting_sampler": "ddim", "acting_steps": 2}
AGENTS = {  # what is bounded, where the action comes from, and which part of the key draws it
    "qsm": ({"clip": 1.0}, lambda x: x, lambda key: jax.random.split(key)[0]),
    "qsm-clean": ({"clip_clean": 3.0}, jnp.tanh, lambda key: jax.random.split(key)[0]),
    "diffusion-ql": ({"clip_clean": 1.0}, lambda x: x, lambda key: jax.random.split(key, 3)[0]),
    "diffusion-pg": ({"clip_clean": 3.0}, jnp.tanh, lambda key: key),
}


@pytest.mark.parametrize(
    "name", ["qsm-clean", *(pytest.param(n, marks=pytest.mark.slow) for n in AGENTS if n != "qsm-clean")]
)
def test_an_agent_acts_down_the_levels_that_are_visited(name: str):
    """Two steps of DDIM by hand, from level 3 to level 1 and on to the clean action, by the network at these levels."""
    agent, (bounds, squash, draws) = small_agent(name, **FEWER), AGENTS[name]
    state, observation, key = initial(small_agent(name)), small_batch(0).observation, jax.random.key(2)
    denoiser, schedule = agent.denoiser, agent.denoiser.schedule
    params = state.average if name == "qsm-clean" else state.score.params

    def by_hand(state: Any) -> jax.Array:
        noised = jax.random.normal(draws(key), (1, 8, ACTION_SIZE))[0]
        for here, there in ((3, 1), (1, 0)):
            sigma, root = schedule.sigma[here - 1], np.sqrt(schedule.abar[here - 1])
            abar = schedule.abar[there - 1] if there else 1.0
            predicted = denoiser.apply(params, observation, noised, jnp.full(8, here))
            clean = (noised - sigma * predicted) / root
            if "clip_clean" in bounds:
                clean = jnp.clip(clean, -bounds["clip_clean"], bounds["clip_clean"])
            noised = np.sqrt(abar) * clean + np.sqrt(1 - abar) * (noised - root * clean) / sigma
            if "clip" in bounds:
                noised = jnp.clip(noised, -bounds["clip"], bounds["clip"])
        return squash(noised)

    acted = jax.jit(functools.partial(agent.act, mode="evaluate"))(state, observation, key)
    np.testing.assert_allclose(acted, jax.jit(by_hand)(state), rtol=1e-4, atol=1e-5)


def operations(agent: Any, mode: str) -> str:
    """What acting computes."""
    state, key = jax.eval_shape(agent.init, jax.random.key(0)), jax.random.key(0)
    return str(
        jax.make_jaxpr(functools.partial(agent.act, mode=mode))(state, small_batch(0).observation, key)
    )


@pytest.mark.parametrize("name", AGENTS)
def test_the_defaults_are_the_whole_chain(name: str):
    plain, named = small_agent(name), small_agent(name, acting_steps=3, ddim_eta=0.5)
    assert plain.acting_sampler is None and named.acting_sampler is None
    assert operations(named, "evaluate") == operations(plain, "evaluate")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Sampler | None]:
    """The ways down that are traced, in turn."""
    calls, sample = [], diffusion.sample

    def watched(*inputs: Any, sampler: Sampler | None = None, **options: Any) -> jax.Array:
        calls.append(sampler)
        return sample(*inputs, sampler=sampler, **options)

    monkeypatch.setattr(diffusion, "sample", watched)
    return calls


@pytest.mark.parametrize("name", AGENTS)
def test_acting_goes_the_way_that_is_asked_for(name: str, taken: list[Sampler | None]):
    operations(small_agent(name, acting_steps=2), "explore")
    operations(small_agent(name, acting_sampler="ddim", ddim_eta=0.5), "evaluate")
    assert taken == [Sampler("ancestral", 2), Sampler("ddim", 0, 0.5)]


@pytest.mark.parametrize("name", AGENTS)
def test_learning_goes_down_the_whole_chain(name: str, taken: list[Sampler | None]):
    agent = small_agent(name, acting_sampler="ddim", acting_steps=2)
    state, key = jax.eval_shape(agent.init, jax.random.key(0)), jax.random.key(0)
    jax.eval_shape(agent.update, state, small_batch(0), key, jnp.asarray(1))
    # policy/spread is of the actions that it takes. Chains of diffusion-pg are drawn elsewhere.
    learning = [sampler for sampler in taken if sampler is None]
    assert len(taken) == len(learning) + 1 and bool(learning) == (name != "diffusion-pg")


@pytest.mark.slow
@pytest.mark.parametrize("name", AGENTS)
def test_what_is_learned_does_not_depend_on_how_it_acts(name: str):
    options: dict[str, Any] = {"acting_sampler": "ddim", "acting_steps": 2}
    state, metrics = update(small_agent(name), step=0)
    other_state, other = update(small_agent(name, **options), step=0)
    assert distance(state, other_state) < 1e-5
    assert distance(metrics.pop("policy/spread"), other.pop("policy/spread")) > 1e-4
    assert distance(metrics, other) < 1e-4


@pytest.mark.parametrize("sampler", ["ancestral", "dpm++"])
def test_another_sampler_comes_before_the_chain_of_weighted_actions(
    sampler: Any, taken: list[Sampler | None]
):
    operations(small_agent("qsm-clean", target="weighted", acting_sampler=sampler), "evaluate")
    assert taken == ([] if sampler == "ancestral" else [Sampler("dpm++")])


def test_more_steps_than_the_policy_has_levels_are_refused():
    with pytest.raises(
        ValueError, match=r"^acting_steps is 4; it must be at most denoising_steps, 3, or 0 f"
    ):
        small_agent("qsm", acting_steps=4)
