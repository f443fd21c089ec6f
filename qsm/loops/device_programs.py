"""The programs of the device loop: environments, replay and updates of S seeds; compiled once in a process."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agents.api import Agent
from envs.api import Arrival, StepType
from envs.vector import VectorEnvironment, VectorState
from qsm.devices import compiler_options, kept_programs
from qsm.learning import programs
from qsm.learning.compiled import KEPT, GroupPrograms
from qsm.learning.keys import Streams
from qsm.learning.programs import TrainState
from qsm.learning.seeds import each_seed


@dataclasses.dataclass(frozen=True)
class DevicePrograms:
    """What N environments and the agent compute, for each of S seeds; pure and un-jitted.

    Args:
      environment: N of them, for training.
      increment: environment steps of a tick.
      random_elapsed: whether the first episodes begin somewhere in their course.
    """

    group: GroupPrograms
    environment: VectorEnvironment
    increment: int
    random_elapsed: bool

    def reset(self, streams: Streams) -> VectorState:
        """The environments `[S, N, ...]` of a run's beginning."""
        return jax.vmap(self._reset_one)(streams)

    def store_starts(self, state: TrainState) -> TrainState:
        """Writes the FIRST rows of all environments into the empty buffers, and shows them to the agents."""
        num_seeds, num_envs = self.group.num_seeds, self.environment.num_envs
        first = jax.vmap(self.environment.first)(state.environment)
        yes = jnp.ones((num_seeds, num_envs), bool)
        action = jnp.zeros((*yes.shape, self.environment.spec.action_size))
        start = Arrival(first, ~yes, first, yes)
        state = self.group.store(state, action, start, jnp.ones(num_seeds, bool))
        return self.group.placement.constrain(state)

    def advance(
        self,
        state: TrainState,
        streams: Streams,
        step: jax.Array,
        num_updates: jax.Array,
        ticks: jax.Array,
        updates: jax.Array,
        random_steps: jax.Array,
        active: jax.Array,
    ) -> TrainState:
        """`ticks` ticks of as many seeds as `state` holds; `updates` `[T]` says how many each makes."""
        simulate = jax.vmap(self._simulate_one, in_axes=(0, 0, 0, None, None, 0))

        def body(i: jax.Array, carry: tuple[TrainState, jax.Array]) -> tuple[TrainState, jax.Array]:
            state, count = carry
            here = step + i * self.increment
            environment, action, arrival = simulate(
                state.environment, state.agent, streams, here, here < random_steps, active
            )
            state = state._replace(environment=environment)
            state = self.group.learn(state, streams, action, arrival, count, updates[i], active)
            return state, count + updates[i]

        state, _ = jax.lax.fori_loop(0, ticks, body, (state, num_updates))
        return state

    def _reset_one(self, streams: Streams) -> VectorState:
        state, _ = self.environment.reset(streams.environment)
        if self.random_elapsed:
            # Folded, as every draw from a stream is: a key that was consumed may not be given to a program again.
            key = jax.random.fold_in(streams.elapsed, 0)
            state = self.environment.put_out_of_step(state, key)
        return state

    def _simulate_one(
        self,
        environment: VectorState,
        agent_state: Any,
        streams: Streams,
        step: jax.Array,
        is_random: jax.Array,
        active: jax.Array,
    ) -> tuple[VectorState, jax.Array, Arrival]:
        """One step of every environment: their new state, the actions `[N, A]` and what came of them."""
        observation = self.environment.observation(environment)
        agent, action_size = self.group.agent, self.environment.spec.action_size
        tick = jnp.zeros((), jnp.int32)
        action = programs.act(
            agent, action_size, "explore", streams.explore, agent_state, observation, step, tick, is_random
        )
        # The network of a frozen seed may be NaN, and a failing simulation is reset at every tick, for all seeds.
        action = jnp.where(active, action, 0.0)
        environment, arrival = self.environment.step(environment, action, streams.environment)
        return environment, action, arrival


class Compiled(NamedTuple):
    """`DevicePrograms` as JAX compiles them, at the first call of each."""

    reset: Any
    store_starts: Any  # donates the state, as does
    advance: Any


@functools.lru_cache(maxsize=KEPT)
def compile_device(device: DevicePrograms) -> Compiled:
    """The same functions for equal programs, so that JAX finds what it has traced and compiled for others."""
    often, seldom = compiler_options.of_updates(), compiler_options.of_starts()
    axes = (0, 0, None, None, None, None, None, 0)
    advance = device.group.placement.over_seeds(device.advance, axes)
    return Compiled(
        reset=kept_programs.jit(device.reset, "reset", device, compiler_options=seldom),
        store_starts=kept_programs.jit(
            device.store_starts, "store_starts", device, donate_argnums=0, compiler_options=seldom
        ),
        advance=kept_programs.jit(advance, "advance", device, donate_argnums=0, compiler_options=often),
    )


@functools.lru_cache(maxsize=KEPT)
def compile_play(group: GroupPrograms, environment: VectorEnvironment) -> Any:
    """Episodes of S seeds, one in each of the E environments: `play_one` of each."""
    axes = (0, 0, None)
    play = functools.partial(play_one, group.agent, environment)
    options = compiler_options.of_updates()
    play_seeds = group.placement.over_seeds(each_seed(play, axes), axes)
    return kept_programs.jit(play_seeds, "play", (group, environment), compiler_options=options)


def play_one(
    agent: Agent, environment: VectorEnvironment, stream: jax.Array, agent_state: Any, step: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns, lengths and whether the simulation failed, which ends an episode; `[E]` each, of one seed."""
    spec, num_episodes = environment.spec, environment.num_envs
    # Apart from the draws of actions, which fold in a tick from 0 on.
    starts = jax.random.fold_in(jax.random.fold_in(stream, step), np.uint32(2**32 - 1))
    started, _ = environment.reset(starts)
    is_random = jnp.zeros((), bool)

    def tick(i: jax.Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        now, running, failed, returns, ticks = carry
        observation = environment.observation(now)
        action = programs.act(
            agent, spec.action_size, "evaluate", stream, agent_state, observation, step, i, is_random
        )
        now, arrival = environment.step(now, action, starts)
        ticks += running
        failed |= running & ~arrival.is_valid
        running &= arrival.is_valid
        returns += jnp.where(running, arrival.time_step.reward, 0.0)
        running &= arrival.time_step.step_type != StepType.LAST
        return now, running, failed, returns, ticks

    longest = -(-spec.episode_steps // spec.action_repeat)
    running, zeros = jnp.ones(num_episodes, bool), jnp.zeros(num_episodes, jnp.int32)
    carry = (started, running, jnp.zeros(num_episodes, bool), jnp.zeros(num_episodes), zeros)
    _, _, failed, returns, ticks = jax.lax.fori_loop(0, longest, tick, carry)
    return returns, jnp.minimum(ticks * spec.action_repeat, spec.episode_steps), failed
