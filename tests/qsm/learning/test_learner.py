"""The compiled programs of training: compiled once, counted right, and drawn from streams of their own."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import agents
from agents.api import Agent
from agents.parts.types import Mean
from envs.api import EnvSpec, StepType
from qsm.data import replay
from qsm.learning import programs
from qsm.learning.keys import Streams, make_streams
from qsm.learning.learner import Learner, Means
from qsm.learning.programs import FAILURE_RATE, FINITE, REWARD, TrainState
from tests.arrivals import arrival
from tests.keys import check_keys
from tests.tally_agent import TallyAgent

SPEC = EnvSpec("probe", observation_size=2, action_size=1, episode_steps=3, action_repeat=1)
SPEC_OF_FOUR = EnvSpec("probe", observation_size=2, action_size=4, episode_steps=3, action_repeat=1)


class Traced:
    """`agent`, which counts how often each of its functions is traced: no more once every program is compiled."""

    def __init__(self, agent: Any) -> None:
        self.traces: Counter[str] = Counter()
        self._agent = agent

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._agent, name)
        if not callable(function):
            return function

        def counted(*arguments: Any, **options: Any) -> Any:
            self.traces[" ".join([name, *options.values()])] += 1
            return function(*arguments, **options)

        return counted


def learn(
    learner: Learner, state: TrainState, tick: int, first_update: int = 0, num_updates: int = 0
) -> TrainState:
    """One arrival; every third tick is a reset and every third the end of an episode."""
    step_type = (StepType.FIRST, StepType.MID, StepType.LAST)[tick % 3]
    action = np.full((1, 1, learner.spec.action_size), 0.1 * (tick % 3), np.float32)
    here = arrival(step_type, tick, tick, size=learner.spec.observation_size)
    return learner.learn(state, action, here, np.int32(first_update), np.int32(num_updates))


def filled(learner: Learner, num_ticks: int = 8) -> TrainState:
    state = learner.init()
    for tick in range(num_ticks):
        state = learn(learner, state, tick)
    return state


def small_sac() -> Agent:
    return agents.make_agent("sac", 2, 1, hidden_sizes=(8,), batch_size=8)


# ---- Keys --------------------------------------------------------------------------------------------------------


def test_no_key_is_used_twice():
    learner = Learner(small_sac(), SPEC, (0, 1), capacity=20)
    state, streams, number = learner.init(), learner.streams, np.int32(1)
    one = arrival(StepType.MID, 0, 0, size=SPEC.observation_size)
    here = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), one)
    action = np.zeros((2, 1, SPEC.action_size), np.float32)
    check_keys(learner.group.learn, state, streams, action, here, number, number, learner.active)
    for mode in ("explore", "evaluate"):
        act = functools.partial(programs.act, learner.agent, SPEC.action_size, mode)
        stream, agents_state = jax.tree.map(lambda leaf: leaf[0], (streams.explore, state.agent))
        check_keys(act, stream, agents_state, here.first.observation[0], number, number, jnp.zeros((), bool))


# ---- Compilation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "agent", [TallyAgent(), pytest.param(small_sac(), marks=pytest.mark.slow)], ids=["tally", "sac"]
)
def test_each_program_is_compiled_once(agent: Agent):
    """Across resets, the random start, ratios below and above one, a frozen seed, metrics and evaluations."""
    traced: Any = Traced(agent)
    learner = Learner(traced, SPEC, seeds=(0, 1), capacity=16)
    state, num_updates, action = learner.init(), 0, np.zeros((2, 1, 1), np.float32)
    frozen, once = None, Counter[str]()
    for tick in range(24):
        if tick in (12, 18):
            learner.active[1] = tick == 18
            frozen = jax.tree.map(lambda leaf: np.array(leaf[1]), (state.agent, state.replay))
        step_type = (StepType.FIRST, StepType.MID, StepType.LAST)[tick % 3]
        here = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), arrival(step_type, tick, tick))
        led_here = np.zeros((2, 1, 1), np.float32) if step_type == StepType.FIRST else action
        is_random = np.bool_(tick < 6)
        action = learner.act_to_explore(state, here.time_step.observation, np.int32(tick), is_random)
        due = (0, 1, 3)[tick % 3] if tick >= 6 else 0
        state = learner.learn(state, led_here, here, np.int32(num_updates), np.int32(due))
        num_updates += due
        if tick % 5 == 4:
            state, _ = learner.drain(state)
            for evaluation_tick in range(2):
                observations = np.zeros((2, 3, 2), np.float32)
                learner.act_to_evaluate(state.agent, observations, np.int32(tick), np.int32(evaluation_tick))
        if tick == 9:  # the first update that is due is at tick 7
            once = Counter(traced.traces)
        if tick == 17:
            now = jax.tree.map(lambda leaf: np.array(leaf[1]), (state.agent, state.replay))
            jax.tree.map(np.testing.assert_array_equal, now, frozen)
    assert {"act explore", "act evaluate", "observe", "update"} <= set(once)
    assert traced.traces == once


def test_the_largest_program_is_compiled_ahead_and_once(caplog: pytest.LogCaptureFixture):
    learner = Learner(TallyAgent(), SPEC, 0, capacity=21)
    jax.config.update("jax_log_compiles", True)  # for all threads, as the context manager is not
    try:
        with caplog.at_level(logging.WARNING):
            state = filled(learner, 9)
            assert not learner.is_compiled
            learner.compile_ahead()
            learn(learner, state, 9, first_update=0, num_updates=2)
            assert learner.is_compiled
    finally:
        jax.config.update("jax_log_compiles", False)
    threads = [
        line.threadName or ""
        for line in caplog.records
        if "Finished XLA compilation of jit(learn)" in line.getMessage()
    ]
    assert len(threads) == 1 and threads[0].startswith("compiler")


def test_storing_is_learning_without_an_update():
    learner = Learner(TallyAgent(), SPEC, seeds=(0, 1), capacity=20)
    here = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), arrival(StepType.MID, 3, 4))
    action, zero = np.full((2, 1, 1), 0.5, np.float32), np.int32(0)
    stored = learner.learn(learner.init(), action, here, zero, zero)
    whole = learner.compiled.learn(
        learner.init(), learner.streams, action, here, zero, zero, learner.active.copy()
    )
    assert stored.replay.written.tolist() == [[1], [1]]
    jax.tree.map(np.testing.assert_array_equal, stored, whole)


def test_learning_goes_on_in_place():
    """The compiled program aliases the donated state and makes no second buffer, at a million rows."""
    learner = Learner(small_sac(), SPEC, seeds=0, capacity=1_000_000)
    agent_state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), learner.agent_template()
    )
    state = TrainState(
        agent_state,
        jax.eval_shape(learner.group.empty_replay),
        jax.eval_shape(learner.group.zero_metrics),
        (),
    )
    arguments = (np.zeros((1, 1, 1), np.float32), arrival(StepType.FIRST, 0), np.int32(0), np.int32(1))
    compiled = learner.compiled.learn.lower(state, learner.streams, *arguments, learner.active).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes >= replay.nbytes(1_000_000, 1, 2, 1)
    assert memory.temp_size_in_bytes < 1_000_000  # not even the smallest field, of a byte a row


# ---- Updates -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_updates_in_one_dispatch_are_those_made_one_by_one():
    learner = Learner(small_sac(), SPEC, seeds=0, capacity=16)
    together = learn(learner, filled(learner), 8, first_update=0, num_updates=5)
    apart = learn(learner, filled(learner), 8, first_update=0, num_updates=0)
    start = jax.tree.map(np.array, apart.agent)
    # By `vmap`, where a group of one takes its leading axis off: both are the same update.
    one_sample = functools.partial(programs.sample, learner.agent)
    one_update = functools.partial(programs.update, learner.agent)
    sample = jax.jit(jax.vmap(one_sample, in_axes=(0, 0, 0, None)))
    update = jax.jit(jax.vmap(one_update, in_axes=(0, 0, 0, 0, None, 0)))
    for i in range(5):
        # The buffer must stay the same, so the updates are made without another arrival.
        count = np.int32(i)
        batch = sample(apart.agent, apart.replay, learner.streams.replay, count)
        packed = programs.pack(apart.metrics)
        agent_state, packed = update(
            apart.agent, packed, batch, learner.streams.update, count, learner.active
        )
        apart = apart._replace(agent=agent_state, metrics=programs.unpack(packed, apart.metrics))
    assert apart.metrics[FINITE].total.item() == apart.metrics[FINITE].count.item() == 5
    for name in ("agent", "metrics"):
        jax.tree.map(
            lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-6),
            getattr(together, name),
            getattr(apart, name),
        )
    moved = jax.tree.map(
        lambda old, new: bool(np.any(old != new)),
        start.critic.online.params,
        together.agent.critic.online.params,
    )
    assert all(jax.tree.leaves(moved))


def test_sums_come_back_from_their_packing_in_their_types():
    rng = np.random.default_rng(0)

    def number(dtype: Any) -> Any:
        return rng.normal(size=2).astype(dtype)

    sums = {
        name: Mean(number(np.float32), number(np.float16))
        for name in ("z", FINITE, REWARD, "a", FAILURE_RATE, "q")
    }
    packed = programs.pack(sums)
    assert packed.total.shape == packed.count.shape == (2, 6)
    back = programs.unpack(packed, sums)
    assert set(back) == set(sums)
    for name, mean in sums.items():
        for one, other in zip(back[name], mean, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def test_the_update_counter_goes_on_across_dispatches():
    learner = Learner(TallyAgent(), SPEC, seeds=0, capacity=16)
    once = learn(learner, filled(learner), 8, 10, 7).agent
    state = learn(learner, filled(learner), 8, 10, 3)
    twice = learn(learner, state, 9, 13, 4).agent
    assert once.step_sum.item() == twice.step_sum.item() == sum(range(10, 17))
    assert once.num_updates.item() == twice.num_updates.item() == 7
    # Draws belong to the update's number, however many updates a dispatch makes.
    np.testing.assert_allclose(once.noise_sum, twice.noise_sum, rtol=1e-6)
    assert (once.num_observed.item(), twice.num_observed.item()) == (9, 10)


def test_an_arrival_is_stored_before_it_is_learned_from():
    """The only transition is the one that the arrival closes."""
    learner = Learner(TallyAgent(), SPEC, seeds=0, capacity=16)
    state = learn(learner, learner.init(), 0)
    state = learn(learner, state, 1, 0, 1)
    assert state.agent.reward_sum.item() == 1.0


def test_gamma_comes_from_the_hyperparameters():
    """It may be swept: the loop reads it from the learned state, not from the configuration."""
    learner = Learner(dataclasses.replace(TallyAgent(), n_step=2), SPEC, seeds=0, capacity=16)
    sums = {}
    for gamma in (0.0, 1.0):
        state = learner.init()
        state = state._replace(
            agent=state.agent._replace(hyperparameters={"discount": np.full(1, gamma, np.float32)})
        )
        # One closed window, of rewards 1 and 4.
        for tick, step_type in ((0, StepType.FIRST), (1, StepType.MID), (4, StepType.MID)):
            action, updates = np.zeros((1, 1, 1), np.float32), np.int32(tick == 4)
            state = learner.learn(state, action, arrival(step_type, tick, tick), np.int32(0), updates)
        sums[gamma] = state.agent.reward_sum.item()
    assert sums == {0.0: 1.0, 1.0: 5.0}


# ---- Metrics -----------------------------------------------------------------------------------------------------


def test_metrics_are_means_over_the_updates_they_happened_in(monkeypatch: pytest.MonkeyPatch):
    learner = Learner(TallyAgent(), SPEC, seeds=0, capacity=16)
    state = learn(learner, filled(learner), 8, first_update=2, num_updates=2)
    state = learn(learner, state, 9, first_update=4, num_updates=3)
    fetches = []
    fetch = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: fetches.append(tree) or fetch(tree))
    state, metrics = learner.drain(state)
    values = {"tally/step": np.mean([2, 3, 4, 5, 6]), "tally/odd": np.mean([3, 5]), FAILURE_RATE: 0}
    values[REWARD] = np.mean([1, 2, 4, 5, 7, 8])  # starts of episodes have none
    assert metrics == [Means(values, bad_updates=0, is_finite=True)]
    assert len(fetches) == 1
    state, metrics = learner.drain(learn(learner, state, 10, first_update=8, num_updates=1))
    assert metrics == [Means({"tally/step": 8, FAILURE_RATE: 0, REWARD: 10}, 0, True)]
    assert learner.drain(state)[1] == [Means({}, 0, True)]


def test_the_reward_of_training_is_of_an_environment_step():
    """Whatever the action repeat; of steps that failed nothing is known, and a frozen seed takes none."""
    spec = dataclasses.replace(SPEC, action_repeat=2)
    learner = Learner(TallyAgent(), spec, seeds=(0, 1), capacity=16)
    state, action = learner.init(), np.zeros((2, 1, 1), np.float32)
    learner.active[1] = False
    for step_type, reward in (
        (StepType.FIRST, 100.0),
        (StepType.MID, 1.0),
        (StepType.MID, 5.0),
        (StepType.LAST, 7.0),
    ):
        here = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), arrival(step_type, 0, reward))
        if step_type == StepType.LAST:
            here = here._replace(is_valid=np.zeros_like(here.is_valid))
        state = learner.learn(state, action, here, np.int32(0), np.int32(0))
    _, (ours, frozen) = learner.drain(state)
    assert ours.values == {FAILURE_RATE: pytest.approx(1 / 3), REWARD: 1.5}
    assert frozen.values == {}


def test_sums_that_a_former_version_did_not_keep_begin_at_zero():
    learner = Learner(TallyAgent(), SPEC, seeds=0, capacity=16)
    state = learn(learner, filled(learner), 8, first_update=2, num_updates=2)
    saved = {name: sums for name, sums in jax.device_get(state.metrics).items() if name != REWARD}
    placed = learner.place(jax.device_get(state.agent), None, saved, ())
    (before,), (after,) = learner.means(state), learner.means(placed)
    assert after.values == {name: value for name, value in before.values.items() if name != REWARD}


# ---- Draws -------------------------------------------------------------------------------------------------------


def test_streams_differ_by_name_and_seed():
    data = [tuple(np.asarray(jax.random.key_data(key))) for seed in (0, 1, 2) for key in make_streams(seed)]
    assert len(set(data)) == 3 * len(Streams._fields)
    again = [tuple(np.asarray(jax.random.key_data(key))) for key in make_streams(1)]
    assert again == data[len(Streams._fields) : 2 * len(Streams._fields)]


def test_actions_depend_on_seed_step_tick_and_mode():
    learner = Learner(TallyAgent(), SPEC, seeds=0, capacity=16)
    other = Learner(TallyAgent(), SPEC, seeds=1, capacity=16)
    state, observation = learner.init(), np.zeros((1, 1, 2), np.float32)

    def explore(learner: Learner, step: int) -> float:
        return float(learner.act_to_explore(state, observation, np.int32(step), np.bool_(False)).item())

    def evaluate(step: int, tick: int) -> float:
        return float(learner.act_to_evaluate(state.agent, observation, np.int32(step), np.int32(tick)).item())

    draws = [explore(learner, 3), explore(learner, 4), explore(other, 3)]
    draws += [10 * evaluate(3, 0), 10 * evaluate(3, 1), 10 * evaluate(4, 0)]
    assert len({round(value % 1, 6) for value in draws}) == len(draws)
    assert explore(learner, 3) == draws[0]


def test_exploring_is_uniform_while_random_and_the_agents_afterwards():
    learner = Learner(dataclasses.replace(TallyAgent(), action_size=4), SPEC_OF_FOUR, seeds=0, capacity=16)
    state, observation = learner.init(), np.zeros((1, 500, 2), np.float32)
    actions = np.asarray(learner.act_to_explore(state, observation, np.int32(0), np.bool_(True)))[0]
    assert actions.shape == (500, 4)
    assert stats.kstest(actions.ravel(), stats.uniform(-1, 2).cdf).pvalue > 0.001
    assert np.unique(actions).size == actions.size
    own = np.asarray(learner.act_to_explore(state, observation, np.int32(0), np.bool_(False)))
    assert own.min() >= 2.0


def test_the_initial_state_depends_on_the_seed_alone():
    weights = [float(Learner(TallyAgent(), SPEC, seed, 16).init().agent.weight[0]) for seed in (0, 0, 1)]
    assert weights[0] == weights[1] != weights[2]
