"""What each agent makes of one trained critic: policies learn anew from a run's critics and replay, which do not move.

    qsm train sac cheetah-run --preset strong --steps 30e3
    python scripts/critics/extraction.py runs/dm_control/cheetah-run/sac@strong/seed_0 --agents sac qsm-clean

The networks of a policy begin anew for each agent, and take `--updates` updates on batches of the run's replay buffer.
Nothing is collected and no critic learns, so that policies are compared and nothing else. It takes minutes where a
training takes hours, and says less: what a policy makes of a critic's errors is never corrected. A variant is given as
to `qsm bench`: qsm-clean@hot:inverse_temperature=3. Options of critics, and of what they see, are those of the run.

A row for each policy, measurement and way to act (explore, evaluate): the return of episodes, and how much more the
critics expect of the policy's actions than of those in the replay buffer, in the task's rewards. The first rows are the
run's own policy. `--metrics policy/saturation score/temperature` adds what the updates told of these, as a training's
train.csv has them: means over the last hundred.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import agents
from agents.api import Agent
from agents.config import INFINITY, Limits, check_limits
from agents.parts.types import Mean, Metrics, Mode
from envs.api import HostEnvironment
from qsm.base.errors import UserError, first_line, nearest
from qsm.bench.grid import AgentSpec, parse_agent
from qsm.checkpoints.checkpoint import Checkpoints
from qsm.command.output import complain
from qsm.command.script import mistakes_told, read_arguments, write_rows
from qsm.data import replay, sampling
from qsm.devices import runtime
from qsm.learning.build import Built, build
from qsm.learning.learner import Learner
from qsm.loops.evaluate import Exploring, evaluate
from qsm.options.parser import Positional
from qsm.record.find import load_run

OF_CRITICS = (
    "num_critics",
    "critic_torso",
    "critic_layer_norm",
    "critic_weight_norm",
    "critic_head",
    "num_atoms",
    "value_bound",
    "atom_smoothing",
    "critic_reduction",
    "critic_pessimism",
    "normalize_observations",
    "normalize_rewards",
    "rescale_targets",
)
"""Options that say what critics are and what they see; their widths besides."""
RATES = ("critic_learning_rate", "target_rate")
"""Hyperparameters by which critics move."""
MODES: tuple[Mode, ...] = ("explore", "evaluate")
SHOWN = ("return_mean", "return_std", "failure_rate")
"""What is told of the episodes."""
RECENT = 100
"""Updates whose metrics are told."""
NUM_STATES = 2_048
"""States at which actions are valued."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Which policies, and how long they learn."""

    agents: tuple[str, ...] = ("sac", "td3", "qsm", "qsm-clean")
    """Agents, or variants of them as `qsm bench` takes them."""
    updates: int = 3_000
    """Updates of each policy."""
    measurements: int = 2
    """Times that each policy is measured, evenly far apart."""
    episodes: int = 4
    """Episodes of a measurement, for each way to act."""
    metrics: tuple[str, ...] = ()
    """Metrics of the updates to tell besides, where an agent has them: columns of a training's train.csv."""
    seed: int = 0
    """Of networks, batches and episodes."""
    output: Path = Path("extraction.csv")
    """CSV file to write."""

    limits: ClassVar[Limits] = {
        "updates": (1, INFINITY),
        "measurements": (1, INFINITY),
        "episodes": (1, 1000),
        "seed": (0, 2**31 - 1),
    }

    def __post_init__(self) -> None:
        check_limits(self, self.limits)
        if self.measurements > self.updates:
            raise ValueError(
                f"measurements is {self.measurements}; it must be at most updates, {self.updates}"
            )


class Source(NamedTuple):
    """A run that has learned."""

    built: Built
    config: Mapping[str, Any]
    step: int
    state: Any
    replay: replay.Replay


def read_source(path: Path) -> Source:
    """The newest checkpoint of the run at `path`.

    Raises:
      UserError: no run, none with critics that stay as they are, or no checkpoint that can be gone on from.
    """
    run = load_run(path)
    options, config = run.config["agent_config"], run.config
    if config["backend"] != "dm_control":
        raise UserError(f"{path} was trained on {config['backend']}; give a run of --backend dm_control")
    if options.get("critic_torso") == "batchnorm":
        raise UserError(f"{path} has critics whose values depend on the batch; give one with another torso")
    # Runs of the first version name no precision.
    runtime.set_precision(config["run_config"].get("matmul_precision", "float32"))
    try:
        built = build(config)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: {error}") from error
    learner = Learner(built.agent, built.spec, 0, capacity=1, num_envs=config["run_config"]["num_envs"])
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        if checkpoints.latest_step is None:
            raise UserError(f"{path} has no checkpoint; let the training go on, or resume it")
        checkpoints.check_format()
        saved, counters = checkpoints.restore(learner, checkpoints.latest_step)
    if not hasattr(saved.agent, "critic"):
        raise UserError(f"{path} is of {config['agent']}, which has no critics; give a run of another agent")
    num_rows = max(int((saved.replay[-1].stop - saved.replay[0].first).max()), 2)
    sizes = num_rows, learner.num_envs, built.spec.observation_size, built.spec.action_size
    shapes = jax.eval_shape(lambda: replay.create(*sizes, built.agent.sampling.prioritized))
    rows = jax.device_put(replay.from_rows(shapes, saved.replay))
    return Source(built, config, counters.step, saved.agent, rows)


def agent_of(source: Source, spec: AgentSpec) -> Agent:
    """The agent that `spec` names, with the critics of `source`.

    Raises:
      UserError: options that do not go together.
    """
    of_run: Any = source.built.agent.config  # type: ignore[attr-defined]
    shared = {name: getattr(of_run, name) for name in OF_CRITICS}
    shared["critic_hidden_sizes"] = of_run.critic_hidden_sizes or of_run.hidden_sizes
    try:
        return source.built.task.agent(spec.agent, agents.override(spec.config, **shared))
    except (ValueError, TypeError) as error:
        raise UserError(f"{spec.agent} cannot learn from this run's critics: {error}") from error


def fresh(agent: Agent, source: Source, key: jax.Array) -> Any:
    """A new policy with the critics and statistics of `source`, which do not move."""
    state = agent.init(key)
    return state._replace(
        critic=source.state.critic,
        normalizer=source.state.normalizer,
        hyperparameters=state.hyperparameters | {name: jnp.zeros((), jnp.float32) for name in RATES},
    )


@functools.partial(jax.jit, static_argnames="agent", donate_argnames="state")
def learn(
    agent: Agent, state: Any, rows: replay.Replay, key: jax.Array, first: jax.Array, stop: jax.Array
) -> tuple[Any, Metrics]:
    """`state` after updates `first` to `stop`, its critics as they were, and metrics of the last of them."""

    def update(number: jax.Array, state: Any) -> tuple[Any, Metrics]:
        batch_key, update_key = jax.random.split(jax.random.fold_in(key, number))
        batch = sampling.sample(rows, agent.sampling, agent.discount(state), batch_key)
        learned, metrics = agent.update(state, batch, update_key, number)
        return learned._replace(critic=state.critic), metrics

    def accumulate(number: jax.Array, carry: tuple[Any, Metrics]) -> tuple[Any, Metrics]:
        state, told = carry
        state, metrics = update(number, state)
        recent = number >= stop - RECENT
        return state, jax.tree.map(lambda sums, new: jnp.where(recent, sums + new, sums), told, metrics)

    _, shapes = jax.eval_shape(update, first, state)
    none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.fori_loop(first, stop, accumulate, (state, none))


@functools.partial(jax.jit, static_argnames=("agent", "mode"))
def advantage(agent: Agent, state: Any, rows: replay.Replay, key: jax.Array, *, mode: Mode) -> jax.Array:
    """Mean of Q(s, a) - Q(s, a of the replay buffer), `[]`, in the task's rewards."""
    state_key, act_key = jax.random.split(key)
    batch = sampling.sample(
        rows, dataclasses.replace(agent.sampling, batch_size=NUM_STATES), agent.discount(state), state_key
    )
    action = agent.act(state, batch.observation, act_key, mode=mode)
    value, other = (agent.action_value(state, batch.observation, a) for a in (action, batch.action))
    assert value is not None and other is not None, "read_source takes no agent without critics"
    return agent.reward_scale(state) * (value - other).mean()  # type: ignore[attr-defined]


def measure(
    agent: Agent, state: Any, source: Source, environments: Sequence[HostEnvironment], seed: int
) -> Iterator[dict[str, Any]]:
    """What the policy is worth, for each way to act."""
    for mode in MODES:
        player: Any = Exploring(agent) if mode == "explore" else agent
        learner = Learner(player, source.built.spec, seed, capacity=1)
        states = jax.tree.map(lambda leaf: np.asarray(leaf)[None], state)
        (played,) = evaluate(learner, states, [environments], step=0)
        assert played is not None, "no seed is frozen"
        gain = advantage(agent, state, source.replay, jax.random.key(seed), mode=mode)
        yield {"mode": mode} | {name: played.metrics()[name] for name in SHOWN} | {"advantage": float(gain)}


def mean(metric: Mean | None) -> float | None:
    """None where an agent has no such metric, or no update told it."""
    return None if metric is None or not metric.count else float(metric.total / metric.count)


def extract(
    source: Source, agent: Agent, environments: Sequence[HostEnvironment], options: Options
) -> Iterator[dict[str, Any]]:
    """Rows of a policy of `agent`, as it learns."""
    init_key, key = jax.random.split(jax.random.key(options.seed))
    state = fresh(agent, source, init_key)
    done = 0
    for i in range(options.measurements):
        stop = options.updates * (i + 1) // options.measurements
        (state, metrics), done = learn(agent, state, source.replay, key, done, stop), stop
        for name in options.metrics if i == 0 else ():
            if name not in metrics:
                complain(f"warning: {type(agent).__name__} tells no {name}.{nearest(name, metrics)}")
        told = {name: mean(metrics.get(name)) for name in options.metrics}
        for row in measure(agent, state, source, environments, options.seed):
            yield {"updates": done} | row | told


def rows_of(source: Source, policies: Mapping[str, Agent], options: Options) -> Iterator[dict[str, Any]]:
    """The table: the run's own policy first."""
    config = source.config
    about = {"task": config["task"], "critics_of": config["agent"], "step": source.step}
    environments = [source.built.task.host(i) for i in range(options.episodes)]
    no_updates = dict.fromkeys(options.metrics)
    for row in measure(source.built.agent, source.state, source, environments, options.seed):
        yield about | {"policy": "as trained", "updates": ""} | row | no_updates
    for text, agent in policies.items():
        for row in extract(source, agent, environments, options):
            yield about | {"policy": text} | row


def main() -> None:
    """Reads the run, teaches the policies, prints each row and writes them all."""
    folder = Positional("run", "Run whose critics and replay buffer are taken.", Path)
    given = read_arguments(Options, __doc__, [folder])
    options: Options = given["options"]
    rows = []
    with mistakes_told():
        specs = {text: parse_agent(text) for text in options.agents}
        source = read_source(given["run"])
        try:
            options.output.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"Cannot write --output {options.output} ({first_line(error)})") from error
        policies = {text: agent_of(source, spec) for text, spec in specs.items()}
        try:
            for row in rows_of(source, policies, options):
                rows.append(row)
                print(
                    f"{row['policy']:40} {row['updates']!s:>7} {row['mode']:9}"
                    f"{row['return_mean']:7.1f} ± {row['return_std']:5.1f}  advantage {row['advantage']:8.4f}"
                    + "".join(
                        f"  {name} {row[name]:.4g}" for name in options.metrics if row[name] is not None
                    ),
                    flush=True,
                )
        finally:  # what was measured is kept, also of one that is interrupted
            if rows:
                write_rows(options.output, rows)


if __name__ == "__main__":
    main()
