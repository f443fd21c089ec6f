"""The device loop counts, stores and resumes as the host loop does, in whole chunks of ticks."""

from __future__ import annotations

import functools
from collections import Counter as Count
from typing import Any

import jax
import numpy as np
import pytest

from agents.parts.types import Mode
from envs.api import DeviceState, StepType
from envs.vector import VectorEnvironment
from qsm.learning.learner import Learner
from qsm.learning.programs import FAILURE_RATE, TrainState
from qsm.loops.device_evaluate import DevicePlayer
from qsm.loops.device_loop import CHUNK, DeviceLoop, Pace
from qsm.loops.device_programs import play_one
from qsm.loops.schedule import Counters
from qsm.options.run import RunConfig
from tests.arrivals import stored
from tests.keys import check_keys
from tests.probe_device_environments import Counter
from tests.recorder import START, Recorder
from tests.tally_agent import TallyAgent

FIRST, MID, LAST = StepType.FIRST, StepType.MID, StepType.LAST
NUM_ENVS = 3


def options(**changes: Any) -> RunConfig:
    defaults: dict[str, Any] = {
        "steps": 60,
        "random_steps": 12,
        "replay_capacity": 1000,
        "replay_ratio": "1/2",
        "num_envs": NUM_ENVS,
        "eval_interval": 30,
        "eval_episodes": 2,
        "log_interval": 15,
        "checkpoint_interval": 45,
        "random_elapsed": False,
    }
    return RunConfig(**(defaults | changes))


def make_loop(seeds: tuple[int, ...] = (0,), environment: Any = None, **changes: Any) -> DeviceLoop:
    config = options(**changes)
    vector = VectorEnvironment(environment or Counter(), config.num_envs)
    learner = Learner(TallyAgent(), vector.spec, seeds, config.replay_capacity, config.num_envs)
    return DeviceLoop(learner, vector, config)


def rows_of(state: TrainState, seed: int = 0) -> dict[str, np.ndarray]:
    return stored(jax.device_get(jax.tree.map(lambda leaf: leaf[seed], state.replay)))._asdict()


def same(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(other))


@pytest.fixture(scope="module")
def loop() -> DeviceLoop:
    return make_loop((0, 5))


@pytest.fixture(scope="module")
def whole(loop: DeviceLoop) -> tuple[TrainState, Counters, Recorder]:
    recorder = Recorder()
    state, end = recorder.run(loop)
    return state, end, recorder


def test_no_key_is_used_twice():
    loop = make_loop((0, 5), random_elapsed=True)
    learner, state, number = loop.learner, loop.begin(), np.int32(1)
    one = jax.tree.map(lambda leaf: leaf[0], learner.streams)
    check_keys(loop.programs._reset_one, one)
    check_keys(
        loop.programs.advance,
        state,
        learner.streams,
        number,
        number,
        number,
        np.ones(CHUNK, np.int32),
        number,
        learner.active,
    )
    play = functools.partial(play_one, learner.agent, loop.evaluation)
    check_keys(play, one.evaluate, jax.tree.map(lambda leaf: leaf[0], state.agent), number)


def test_events_and_updates_come_at_their_steps(whole: tuple[TrainState, Counters, Recorder]):
    """Ticks are three environment steps; updates floor((k - 12) / 2)."""
    state, end, recorder = whole
    assert end == Counters(60, 24)
    # Between events there may be more: how many ticks a dispatch makes depends on how long they take.
    assert set(recorder.steps) >= {15, 30, 45, 60} and recorder.steps == sorted(set(recorder.steps))
    assert recorder.metrics == [(15, 1), (30, 9), (45, 16), (60, 24)]
    assert recorder.evaluations == [30, 60]
    assert recorder.checkpoints == [Counters(45, 16)]
    assert state.agent.num_updates.tolist() == [24, 24]
    assert state.agent.step_sum.tolist() == [sum(range(24))] * 2


def test_every_episode_is_stored_from_its_first_to_its_last_observation(
    whole: tuple[TrainState, Counters, Recorder],
):
    """Five control steps an episode, 20 ticks: four whole episodes of each environment and the start of a fifth."""
    for seed in (0, 1):
        rows = rows_of(whole[0], seed)
        assert rows["size"].tolist() == [4 * 6 + 1] * NUM_ENVS
        draws = Count()
        for env in range(NUM_ENVS):
            assert rows["step_type"][:, env].tolist() == [FIRST, MID, MID, MID, MID, LAST] * 4 + [FIRST]
            # The second entry counts the steps of the episode: the last observation is there.
            np.testing.assert_array_equal(rows["observation"][:, env, 1], [0, 1, 2, 3, 4, 5] * 4 + [0])
            np.testing.assert_array_equal(rows["discount"][rows["step_type"][:, env] == LAST, env], 1)
            for start in range(0, 24, 6):
                episode = rows["observation"][start : start + 6, env, 0]
                assert np.unique(episode).size == 1
                draws[float(episode[0])] += 1
        assert set(draws.values()) == {1}  # no two episodes begin alike
        moves = rows["step_type"] != FIRST
        np.testing.assert_array_equal(rows["reward"][moves], 1)
        # The random start is four ticks of three steps; the fifth, which ends the first episode, is the agent's own.
        assert np.all(np.abs(rows["action"][1:5]) < 1)
        own = rows["action"][5:][rows["step_type"][5:] != FIRST]
        assert np.all(own >= 2)


def test_seeds_are_independent_and_each_is_what_it_is_alone(
    loop: DeviceLoop, whole: tuple[TrainState, Counters, Recorder]
):
    alone = make_loop((5,))
    state, _ = Recorder().run(alone)
    one = jax.device_get(jax.tree.map(lambda leaf: leaf[0], (state.agent, state.replay, state.metrics)))
    other = jax.device_get(
        jax.tree.map(lambda leaf: leaf[1], (whole[0].agent, whole[0].replay, whole[0].metrics))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, other)
    first, second = rows_of(whole[0], 0), rows_of(whole[0], 1)
    assert np.all(first["observation"][0, :, 0] != second["observation"][0, :, 0])


def test_a_run_is_resumed_bit_for_bit(loop: DeviceLoop, whole: tuple[TrainState, Counters, Recorder]):
    state, counters = Recorder(stop_at=30).run(loop)
    assert counters == Counters(30, 9)
    saved = [loop.save(state, i) for i in range(2)]
    parts = jax.device_get(state)
    learner = loop.learner
    rows = [[learner.rows_since(state, i, None)] for i in range(2)]
    again = learner.place(parts.agent, rows, parts.metrics, loop.restore(saved))
    again, end = Recorder().run(loop, again, counters)
    assert end == whole[1]
    same(again._replace(replay=()), whole[0]._replace(replay=()))
    for i in range(2):
        jax.tree.map(np.testing.assert_array_equal, rows_of(again, i), rows_of(whole[0], i))


def test_the_environments_of_another_number_are_refused(loop: DeviceLoop):
    state = loop.begin()
    other = make_loop((0,), num_envs=4)
    with pytest.raises(ValueError, match="not those of this task"):
        other.restore([loop.save(state, 0)])


def test_how_many_ticks_a_dispatch_makes_changes_nothing(whole: tuple[TrainState, Counters, Recorder]):
    """Events at every tick: the same run in pieces."""
    loop = make_loop((0, 5), log_interval=3, eval_interval=3)
    recorder = Recorder()
    state, end = recorder.run(loop)
    assert end == whole[1]
    assert recorder.steps == list(range(3, 61, 3))
    same(state, whole[0])


def test_a_dispatch_takes_about_a_second():
    """The first, which compiles, tells nothing; then at most four times as many ticks; fewer at once."""
    now, seconds_per_tick, given = 0.0, 2.0**-7, []
    pace = Pace(lambda: now)

    def program() -> tuple[Any, Counters]:
        nonlocal now
        now += 60.0 if not given else seconds_per_tick * pace.ticks
        given.append(pace.ticks)
        return (), Counters(0, 0)

    assert pace.is_first
    for _ in range(6):
        pace.dispatch(pace.ticks, program)
        assert not pace.is_first
    assert given == [1, 1, 4, 16, 64, 128]
    seconds_per_tick = 0.25
    for _ in range(3):
        pace.dispatch(pace.ticks, program)
    assert given[-2:] == [4, 4]
    seconds_per_tick = 1e-7
    for _ in range(5):
        pace.dispatch(pace.ticks, program)
    assert pace.ticks == CHUNK


class Failing(Counter):
    """Its simulation fails in environments whose draw is below a half, at their second step."""

    def step(self, state: Any, action: jax.Array) -> Any:
        reached = super().step(state, action)
        fails = (reached.physics.draw < 0.5) & (reached.physics.step == 2)
        return reached._replace(
            reward=jax.numpy.where(fails, jax.numpy.nan, reached.reward),
            valid=reached.valid & ~fails,
        )


def test_a_failed_simulation_is_counted_and_not_trained_on():
    loop = make_loop((0,), Failing())
    state, _ = Recorder().run(loop)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rows_of(state)))
    failures = state.metrics[FAILURE_RATE]
    assert failures.count.item() == 60
    rows = rows_of(state)
    # Each failure cut an episode short: a FIRST row follows a MID row.
    kinds, size = rows["step_type"], rows["size"]
    cut = sum(
        int(np.sum((kinds[1 : size[e], e] == FIRST) & (kinds[: size[e] - 1, e] == MID)))
        for e in range(NUM_ENVS)
    )
    assert failures.total.item() == cut > 0
    assert np.isfinite(state.agent.reward_sum).all()


def test_a_frozen_seed_stays_as_it_is_and_the_others_go_on(
    loop: DeviceLoop, whole: tuple[TrainState, Counters, Recorder]
):
    try:
        state, counters = Recorder(stop_at=30).run(loop)
        before = jax.device_get((state.agent, state.replay))
        loop.learner.active[0] = False
        state, _ = Recorder().run(loop, state, counters)
        after = jax.device_get((state.agent, state.replay))
        take = lambda tree, i: jax.tree.map(lambda leaf: leaf[i], tree)  # noqa: E731
        jax.tree.map(np.testing.assert_array_equal, take(after, 0), take(before, 0))
        full = jax.device_get((whole[0].agent, whole[0].replay))
        jax.tree.map(np.testing.assert_array_equal, take(after, 1), take(full, 1))
        assert loop.evaluate(state, 60)[0] is None
    finally:
        loop.learner.active[:] = True


class Traced(TallyAgent):
    """Counts how often gamma is asked for, as an update is traced: no more once the program is compiled."""

    traces = 0

    def discount(self, state: Any) -> jax.Array:
        Traced.traces += 1
        return super().discount(state)


def test_the_program_is_compiled_once():
    """Across dispatches of any number of ticks, the random start, drained metrics and a frozen seed."""
    vector = VectorEnvironment(Counter(), NUM_ENVS)
    loop = DeviceLoop(Learner(Traced(), vector.spec, (0, 5), 1000, NUM_ENVS), vector, options())
    state, at = loop.tick(loop.begin(), Counters(0, 0), 1)
    once = Traced.traces
    state, at = loop.tick(state, at, 7)
    state, _ = loop.learner.drain(state)
    before = np.array(state.replay.written)
    loop.learner.active[0] = False
    state, at = loop.tick(state, at, 2)
    is_frozen = (np.array(state.replay.written) == before).all(axis=1)
    loop.learner.active[:] = True
    state, at = loop.tick(state, at, 1)
    assert Traced.traces == once > 0
    assert at == Counters(33, 10)
    # Of 10 updates, 3 were due in the two ticks for which the first seed was frozen.
    assert is_frozen.tolist() == [True, False]
    assert state.agent.num_updates.tolist() == [10 - 3, 10]


def test_evaluation_plays_one_whole_episode_in_each_environment(loop: DeviceLoop):
    state = loop.begin()
    first = loop.evaluate(state, 30)
    for result in first:
        assert result is not None
        assert result.returns == [5, 5]
        assert result.lengths == [5, 5]
    assert loop.evaluate(state, 30) == first


class Noisy(TallyAgent):
    """Acts with the draw itself, to explore and in evaluations."""

    def act(self, state: Any, observation: jax.Array, key: jax.Array, *, mode: Mode) -> jax.Array:
        return jax.random.uniform(key, (observation.shape[0], self.action_size))


class Echo(Counter):
    """Rewards each step with its action."""

    def _reward(self, state: DeviceState, action: jax.Array) -> jax.Array:
        return action


def test_evaluation_draws_from_a_stream_of_its_own():
    """Of as many environments, at the same step, in the first tick."""
    vector = VectorEnvironment(Echo(episode_steps=1), NUM_ENVS)
    learner = Learner(Noisy(), vector.spec, (0,), 1000, NUM_ENVS)
    loop = DeviceLoop(learner, vector, options(random_steps=1, eval_episodes=NUM_ENVS))
    state, at = loop.tick(loop.begin(), START, 1)
    (evaluation,) = loop.evaluate(state, at.step)
    assert evaluation is not None
    state, _ = loop.tick(state, at, 1)
    explored = rows_of(state)["action"][3, :, 0]  # FIRST and LAST of the episode before, FIRST
    assert explored.min() > 0 and np.unique([*explored, *evaluation.returns]).size == 2 * NUM_ENVS


def test_first_episodes_end_out_of_step():
    """And no others are shorter; an evaluation plays whole ones."""
    loop = make_loop((0, 5), num_envs=8, random_elapsed=True, steps=160)
    state, _ = Recorder().run(loop)
    lengths = []
    for seed in (0, 1):
        kinds = rows_of(state, seed)["step_type"]
        starts = [np.flatnonzero(kinds[:, env] == FIRST) for env in range(8)]
        assert all(np.all(np.diff(rows)[1:] == 6) for rows in starts)
        lengths.append([int(rows[1]) - 1 for rows in starts])
        assert set(lengths[-1]) <= {1, 2, 3, 4, 5} and len(set(lengths[-1])) > 1
    assert lengths[0] != lengths[1]
    for result in loop.evaluate(state, 160):
        assert result is not None and result.lengths == [5, 5]


def test_evaluation_counts_control_steps_under_action_repeat():
    vector = VectorEnvironment(Counter(episode_steps=5, action_repeat=2), 4)
    learner = Learner(TallyAgent(), vector.spec, 0, 8)
    (result,) = DevicePlayer(learner, vector)(learner.init().agent, 7)
    assert result is not None
    assert result.returns == [5] * 4
    assert result.lengths == [5] * 4
