"""The options of `qsm` commands, apart from those of a run (qsm.options.run). Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar, Literal

from agents import AGENTS, PLAIN, PresetName
from agents.config import Limits, SamplerName, check_limits
from qsm.options.run import Backend, WandbMode

EngineName = Literal["local", "ray"]
Acting = Literal["policy", "explore", "evaluate"]


@dataclasses.dataclass(frozen=True)
class OutputOptions:
    """Where the run goes. Without --run-dir: RUNS/BACKEND/TASK/AGENT[@NAME]/seed_SEED."""

    runs: Path = Path("runs")
    """Folder of all runs."""
    name: str | None = None
    """Label of this variant of the agent."""
    run_dir: Path | None = None
    """Folder of this run, in place of one under --runs."""
    dry_run: bool = False
    """Print the resolved configuration, the run's folder and the bytes of its arrays, and touch nothing."""

    def __post_init__(self) -> None:
        if self.run_dir is not None and (self.name is not None or self.runs != Path("runs")):
            other = "name" if self.name is not None else "runs"
            raise ValueError(f"run_dir is the whole path of the run; leave out --{other}, or give that alone")


def _check_choice(best: bool, step: int | None) -> None:
    """Raises ValueError where two policies are asked for."""
    if best and step is not None:
        raise ValueError(f"step is {step} and the best policy is asked for too; leave out --step or --best")


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """Which policy of a run is evaluated, and how."""

    episodes: int = 10
    """Episodes to play."""
    best: bool = False
    """The best evaluated policy of the run, in place of the newest checkpoint's."""
    step: int | None = None
    """The policy of this environment step: of a checkpoint that is there, or the best one. none: the newest."""
    video: Path | None = None
    """File (.mp4 or .gif) to write the first episode to."""
    seed: int = 0
    """Seed of the evaluation's environments and actions."""
    eval_samples: int | None = None
    """Actions sampled, of which the best by the critic is taken; none: as the run was configured."""
    backend: Backend | None = None
    """Simulator to play on; on another than the run's, what the policy loses by it is shown. none: the run's."""

    limits: ClassVar[Limits] = {
        "episodes": (1, 10_000),
        "step": (0, 2**31 - 1),
        "seed": (0, 2**31 - 1),
        "eval_samples": (1, 4096),
    }

    def __post_init__(self) -> None:
        check_limits(self, self.limits)
        _check_choice(self.best, self.step)


@dataclasses.dataclass(frozen=True)
class SamplerOptions:
    """How the chain of a diffusion policy is gone down to act; none: as the run was configured."""

    acting_sampler: SamplerName | None = None
    """With the chain's own noise, by DDIM, or by DPM-Solver++."""
    acting_steps: int | None = None
    """Steps, at most the levels that the policy was trained with; 0: one for each level."""
    ddim_eta: float | None = None
    """Noise of a step of DDIM: 0 for none, 1 for that of the chain with the posterior variance."""

    limits: ClassVar[Limits] = {"acting_steps": (0, 1000), "ddim_eta": (0, 1)}

    def __post_init__(self) -> None:
        check_limits(self, self.limits)

    def given(self) -> dict[str, int | float | str]:
        """Options of the agent that are to be replaced."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Which policy of a run is written, and where it goes."""

    output: Path | None = None
    """File to write; none: policy.npz in the run's folder."""
    best: bool = False
    """The best evaluated policy of the run, in place of the newest checkpoint's."""
    step: int | None = None
    """The policy of this environment step: of a checkpoint that is there, or the best one. none: the newest."""

    limits: ClassVar[Limits] = {"step": (0, 2**31 - 1)}

    def __post_init__(self) -> None:
        check_limits(self, self.limits)
        _check_choice(self.best, self.step)


@dataclasses.dataclass(frozen=True)
class ActionsOptions:
    """Which policies are drawn from, at which states, and what is shown."""

    state: str = "start"
    """States to draw at: start of an episode, random ones of an evaluation episode of the first policy, or a file (.npy
    or .csv) of observations [N, O]."""
    states: int | None = None
    """How many; none: 1 start, 4 random ones, all of a file. Starts have the seeds from --seed on."""
    samples: int = 1000
    """Actions drawn at each state."""
    components: tuple[int, ...] | None = None
    """Components of the action to show, from 0 on: one, two, or all pairs of more; none: the two that spread most."""
    acting: Acting = "policy"
    """What is drawn: policy, as exploring but without action noise; explore, with it; evaluate, as qsm eval acts."""
    best: bool = False
    """The best evaluated policy of each run, in place of the newest checkpoint's."""
    step: int | None = None
    """The policy of this environment step: of a checkpoint that is there, or the best one. none: the newest."""
    steps: tuple[int, ...] | None = None
    """The policies of several steps, such as 10000,20000, one after the other."""
    seed: int = 0
    """Seed of the states and of the draws."""
    out: Path = Path("actions.png")
    """Figure to write (.png, .svg or .pdf); the numbers of all components go beside it as .csv."""

    limits: ClassVar[Limits] = {
        "states": (1, 16),
        "samples": (100, 100_000),
        "components": (0, 2**16),
        "step": (0, 2**31 - 1),
        "steps": (0, 2**31 - 1),
        "seed": (0, 2**31 - 1 - 16),
    }

    def __post_init__(self) -> None:
        check_limits(self, self.limits)
        _check_choice(self.best, self.step)
        if self.steps is not None and (self.best or self.step is not None):
            raise ValueError(
                "steps are given and another policy is asked for too; leave out --best and --step"
            )
        for name in ("components", "steps"):
            values = getattr(self, name) or ()
            if len(set(values)) < len(values):
                raise ValueError(f"{name} is {','.join(map(str, values))}; it must name each once")
        if self.out.suffix.lower() not in (".png", ".svg", ".pdf"):
            raise ValueError(f"out is '{self.out}'; it must be a file .png, .svg or .pdf")


@dataclasses.dataclass(frozen=True)
class TasksOptions:
    """Which tasks are listed."""

    backend: Backend | None = None
    """List the tasks of one backend only; none: of both, marked, or of dm_control into a pipe."""


@dataclasses.dataclass(frozen=True)
class AgentsOptions:
    """What is listed."""

    presets: bool = False
    """The presets too, with what each sets."""


@dataclasses.dataclass(frozen=True)
class BenchOptions:
    """The grid of a benchmark. Settings are per agent, never per task."""

    agents: tuple[str, ...] = tuple(name for name, entry in AGENTS.items() if entry.is_compared)
    """Agents, and variants of them such as qsm@hot:score_scale=120."""
    preset: PresetName = PLAIN
    """Named set of options for all agents, each labelled with it: qsm agents --presets."""
    seeds: int = 5
    """Seeds of each agent and task, from --first-seed on."""
    first_seed: int = 0
    """The first seed."""
    steps: int = 100_000
    """Environment steps of each run; more of them than before extend the runs that are there."""
    backend: Backend = "dm_control"
    """Simulator."""
    seeds_together: int = 1
    """Seeds of an agent and task that are trained in one program: for accelerators."""
    engine: EngineName = "local"
    """Where trainings run: processes of this machine, or tasks of a Ray cluster (needs qsm[cluster])."""
    jobs: int | None = None
    """Trainings at a time; none: one a core, each pinned to its own (on mjx one), or what the cluster has room for."""
    out: Path = Path("bench")
    """Folder of the runs."""
    wandb: WandbMode = "offline"
    """Weights & Biases: recorded in each run's folder, streamed to your account, or off."""
    dry_run: bool = False
    """List the runs and how far they are, and train nothing."""

    limits: ClassVar[Limits] = {
        "seeds": (1, 10_000),
        "first_seed": (0, 2**31 - 1 - 10_000),
        "steps": (1, 2**31 - 1),
        "seeds_together": (1, 4096),
        "jobs": (1, 4096),
    }

    def __post_init__(self) -> None:
        check_limits(self, self.limits)


@dataclasses.dataclass(frozen=True)
class ProtocolOptions:
    """What all runs of a benchmark have in common; none: as `qsm train` has it."""

    eval_interval: int | None = None
    """Environment steps between evaluations."""
    eval_episodes: int | None = None
    """Episodes of an evaluation."""
    random_steps: int | None = None
    """Environment steps of uniform random actions before the first update."""
    replay_ratio: str | None = None
    """Updates per environment step: a whole number, fraction or decimal (2, 1/4, 0.5)."""
    num_envs: int | None = None
    """Environments stepped together for each seed; one on dm_control."""
    action_repeat: int | None = None
    """Control steps for which each action is repeated."""

    def given(self) -> dict[str, int | str]:
        """Those that are not left to `qsm train`."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclasses.dataclass(frozen=True)
class ClusterOptions:
    """Of `--engine ray`."""

    ray_address: str = "auto"
    """Address of the cluster; auto: that of this machine."""
    ray_cpus: int = 1
    """CPU cores for each training."""
    ray_gpus: float = 0.0
    """GPUs for each training; a part of one shares it."""

    limits: ClassVar[Limits] = {"ray_cpus": (1, 4096), "ray_gpus": (0.0, 4096.0)}

    def __post_init__(self) -> None:
        check_limits(self, self.limits)


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """What is compared, and where the page goes."""

    out: Path = Path("report")
    """Folder of index.html, figures and data."""
    reference: Path | None = None
    """CSV of published curves to draw too: source, task, env_steps, algo, mean, std, n_seeds, action_repeat."""
    at_step: int | None = None
    """Environment step of the evaluations that are compared; none: of the runs' lengths, what most have reached."""
    seeds: int | None = None
    """Seeds that each agent is to have on each task, so that those never begun are missing; none: those found."""
    videos: bool = False
    """Film an episode of each agent on each task, of the seed with the median score; takes a minute or so each."""

    limits: ClassVar[Limits] = {"at_step": (0, 2**31 - 1), "seeds": (1, 10_000)}

    def __post_init__(self) -> None:
        check_limits(self, self.limits)


@dataclasses.dataclass(frozen=True)
class DashboardOptions:
    """Where the dashboard answers."""

    port: int = 6006
    """Port on 127.0.0.1."""

    limits: ClassVar[Limits] = {"port": (1, 65_535)}

    def __post_init__(self) -> None:
        check_limits(self, self.limits)
