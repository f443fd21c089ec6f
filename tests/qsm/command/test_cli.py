"""The `qsm` command as a person meets it: help, slips, and what reaches the commands."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest

import agents
from envs.api import SimulationError
from qsm.base.errors import UserError
from qsm.base.version import __version__
from qsm.checkpoints.selection import NEWEST
from qsm.options import kinds
from qsm.options.commands import OutputOptions
from qsm.options.run import LaunchOptions, RunConfig
from tests.run_folders import add

HEAVY = ("jax", "jaxlib", "flax", "optax", "orbax", "wandb", "tensorboard", "matplotlib", "numpy")
TRAIN = ["train", "qsm", "cheetah-run"]


MISTAKES = {
    "trian": "Unknown command 'trian'. Did you mean 'train'?",
    "--verison": "Unknown option '--verison'. Did you mean '--version'?",
    "qsm cheetah-run": "Did you mean 'qsm train qsm cheetah-run'?",
    "train": "AGENT is missing.",
    "train --seed 3": "AGENT is missing.",
    "train qms x": "Unknown agent 'qms'. Did you mean 'qsm'? List agents with: qsm agents",
    "train qsm": "TASK is missing. Usage: qsm train qsm TASK [options]. List tasks with: qsm tasks",
    "train qsm cheeta-run": "Unknown task 'cheeta-run'. Did you mean 'cheetah-run'? List tasks with: qsm tasks",
    "train qsm x --scoer-scale 3": "Unknown option '--scoer-scale' of agent 'qsm'. Did you mean '--score-scale'?",
    "train qsm x -seed 3": "Unknown option '-seed' of agent 'qsm'. Did you mean '--seed'?",
    "train td3 x --score-scale 3": "Unknown option '--score-scale' of agent 'td3'. It is an option of agent 'qsm'.",
    "train qsm x --out y": "of agent 'qsm'. It is an option of qsm bench; here the folder of all runs is --runs. List",
    "train qsm x --seeds 3": "It is an option of qsm bench; here it is --num-seeds. List",
    "train qsm x y": "Unexpected argument 'y'. Usage: qsm train qsm TASK [options]",
    "train qsm x steps=3": "Unexpected argument 'steps=3'. Did you mean '--steps=3'?",
    "train qsm x --steps": "Option '--steps' needs a value: a whole number such as 5000 or 1e6",
    "train qsm x --steps --seed 1": "Option '--steps' needs a value",
    "train qsm x --name=": "Option '--name' needs a value",
    "train qsm x --steps 1.5": "--steps is '1.5'; it must be a whole number such as 5000 or 1e6",
    "train qsm x --steps -1": "--steps is -1; it must be from 1 to 2147483647",
    "train qsm x --steps 500": "--random-steps is 10000, but the run has only 500 steps",
    "train qsm x --discount 2": "--discount is 2.0; it must be from 0 to 1",
    "train qsm x --discount nan": "--discount is 'nan'; it must be a finite number",
    "train qsm x --hidden-sizes 256 256": "Write --hidden-sizes 256,256 with commas",
    "train qsm x --hidden-sizes 256,a": "--hidden-sizes is '256,a'; it must be whole numbers with commas",
    "train qsm x --hidden-sizes 0": "--hidden-sizes is (0,); it must be from 1",
    "train qsm x --wandb offine": "it must be one of offline, online, disabled. Did you mean 'offline'?",
    "train qsm x --replay-ratio 1/0": "--replay-ratio is '1/0'; it must be a number or a fraction such as 1/4",
    "train qsm x --critic-layer-norm False": "Write --critic-layer-norm or --no-critic-layer-norm",
    "train qsm x --critic-layer-norm=1": "Option '--critic-layer-norm' is a switch and takes no value.",
    "train qsm x --run-dir a --name b": "--run-dir is the whole path of the run; leave out --name",
    "train qsm x --run-dir a --runs b": "--run-dir is the whole path of the run; leave out --runs",
    "train qsm cheetah-run --name a/b": "--name is 'a/b'",
    "train qsm dog-run --backend mjx": "Task 'dog-run' exists on dm_control only; drop --backend mjx",
    "train qsm cheetah-run --backend mjxx": "it must be one of dm_control, mjx. Did you mean 'mjx'?",
    "train qsm x --num-seeds 0": "--num-seeds is 0; it must be from 1 to 4096",
    "train qsm x --sweep score_scale": "--sweep is 'score_scale'; it must be an option and its values",
    "train qsm x --sweep score_scale=1,a": "--sweep is 'score_scale=1,a'; it must be an option and its values, such as",
    "train qsm cheetah-run --sweep score_scale=1,1": "it names a value twice",
    "train qsm cheetah-run --sweep hidden_sizes=64,64": "hidden_sizes, which shapes the compiled program",
    "train qsm cheetah-run --sweep seed=1,2": "give --seed for the first and --num-seeds for how many",
    "train qsm cheetah-run --sweep steps=1e6,2e6": "--sweep names steps, which is the run's and not the agent's",
    "train qsm-clean x --preset strong --target clean": "It is --preset that sets --temperature: give",
    "train qsm-clean x --preset strong --temperature entropy": "target is 'fitted'\n",
    "train qsm x --sweep 'score_scale=1 score-scale=2'": "it names an option twice",
    "train qsm x --sweep 'score_scale=1 2'": "several with blanks between",
    "train qsm x --sweep ' '": "it must be an option and its values",
    "train qsm cheetah-run --sweep 'discount=0.9 scoer_scale=1'": "Did you mean 'score_scale'?",
    "train qsm cheetah-run --sweep 'score_scale=1,2 discount=0.9,2'": "--discount is 2.0; it must be from 0 to 1",
    "train qsm cheetah-run --sweep scoer_scale=1": "Did you mean 'score_scale'?",
    "train qsm cheetah-run --sweep denoising_steps=1,2": "denoising_steps, which shapes the compiled program",
    "train qsm cheetah-run --sweep discount=0.9,2": "--discount is 2.0; it must be from 0 to 1",
    "train qsm cheetah-run --num-seeds 2 --run-dir a": "--run-dir is one folder, but there are 2 runs",
    "train qsm x --matmul-precision fp8": "it must be one of float32, tensorfloat32, bfloat16",
    "eval": "RUN is missing. Usage: qsm eval RUN [options]",
    "eval no/such/run": "There is no folder no/such/run",
    "export no/such/run": "There is no folder no/such/run",
    "eval . --episodes 0": "--episodes is 0; it must be from 1 to 10000",
    "eval . --eval-samples 0": "--eval-samples is 0; it must be from 1 to 4096",
    "eval . --acting-sampler dpm": "it must be one of ancestral, ddim, dpm++. Did you mean 'dpm++'?",
    "eval . --ddim-eta 2": "--ddim-eta is 2.0; it must be from 0 to 1",
    "train qsm x --acting-steps 6": "--acting-steps is 6; it must be at most --denoising-steps, 5, or 0 for",
    "eval . --vidoe x.mp4": "Unknown option '--vidoe' of 'qsm eval'. Did you mean '--video'?",
    "actions": "RUN is missing. Usage: qsm actions RUN... [options]",
    "actions no/such/run": "There is no folder no/such/run",
    "actions . --samples 5": "--samples is 5; it must be from 100 to 100000",
    "actions . --acting best": "it must be one of policy, explore, evaluate",
    "dashboard no/such/folder": "No folder 'no/such/folder' to show.",
    "dashboard . --port 0": "--port is 0; it must be from 1 to 65535",
    "tasks all": "Unexpected argument 'all'. Usage: qsm tasks",
    "train qsm cheetah-run --run-dir 'a\nb'": r"'a\nb' has control characters, line ends or bytes that are not UTF-8",
    "train qsm cheetah-run --run-dir 'a\udcff'": r"'a\udcff' has control characters, line ends or bytes",
    "runs '\x1b[2J'": r"'\x1b[2J' has control characters",
    "agents --verbose": "Unknown option '--verbose' of 'qsm agents'.",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_answered_in_one_line(qsm, trained, line: str):
    status, out, err = qsm(*shlex.split(line))
    assert status == 2
    assert out == ""
    assert err.startswith("qsm: error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert MISTAKES[line] in err
    assert not trained


def test_presets_are_listed_with_what_each_sets(qsm):
    status, out, _ = qsm("agents", "--presets")
    assert status == 0
    for name, preset in agents.PRESETS.items():
        assert f"{name}: {preset.summary}" in out
    simbav2 = out.partition("\nsimbav2: ")[2].partition("\n\n")[0]
    assert "--critic-torso simbav2" in simbav2 and "--critic-hidden-sizes 512,512" in simbav2
    assert "--normalize-rewards" in simbav2 and "diffusion: --actor-torso simba" in simbav2
    assert "--presets" in qsm("agents")[1]


@pytest.mark.parametrize("agent", agents.AGENTS)
def test_help_names_every_option_with_its_line_and_default(qsm, monkeypatch, agent: str):
    monkeypatch.setenv("COLUMNS", "100")
    status, out, _ = qsm("train", agent, "--help")
    assert status == 0
    assert out.index("agent options") < out.index("run options") < out.index("output options")
    lines = " ".join(out.split())
    for config in (agents.config_class(agent), RunConfig, LaunchOptions, OutputOptions):
        for field in dataclasses.fields(config):
            flag = kinds.flag_of(field.name)
            entry = re.search(rf" (?:{flag}|--\[no-\]{flag[2:]}) (.*?)\(default: ", lines)
            assert entry is not None
            assert len(entry[1].split()) > 4, f"{field.name} has no line: {entry[0]}"


@pytest.mark.parametrize(
    "line", ["", "--help", "train --help", "eval --help", "tasks --help", "dashboard -h", "help"]
)
def test_help_is_printed(qsm, line: str):
    status, out, err = qsm(*line.split())
    assert (status, err) == (0, "")
    assert out.startswith("usage: qsm")


def test_train_help_and_agents_list_the_agents(qsm):
    for arguments in (["train", "--help"], ["agents"]):
        status, out, _ = qsm(*arguments)
        assert status == 0
        assert all(f"  {name} " in out and entry.summary in out for name, entry in agents.AGENTS.items())
        assert "qsm train AGENT --help" in out


def test_version(qsm):
    assert qsm("--version")[1] == f"qsm {__version__}\n"


def test_tasks_are_one_a_line_in_a_pipe_and_in_columns_on_a_terminal(qsm, monkeypatch):
    from envs.tasks import task_names

    assert qsm("tasks")[1].split("\n")[:-1] == list(task_names())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    lines = qsm("tasks")[1].splitlines()
    assert lines[0] == "acrobot"
    assert max(map(len, lines)) <= 80
    shown = {word for line in lines if line.startswith(" ") for word in line.split()}
    assert shown - {"*", "+"} == {*task_names("dm_control"), *task_names("mjx")}
    assert any("dog-run *" in line for line in lines)
    assert any("acrobot-swingup_sparse" in line and "*" not in line for line in lines)
    monkeypatch.undo()
    assert qsm("tasks", "--backend", "mjx")[1].split("\n")[:-1] == list(task_names("mjx"))


def test_evaluation_is_given_its_options(qsm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []
    module = types.ModuleType("qsm.policies.play")

    def play(*arguments: object) -> dict[str, object]:
        calls.append(arguments)
        return {"return_mean": 812.34, "episodes": 3}

    module.play = play  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "qsm.policies.play", module)
    run = add(tmp_path, "qsm", "cheetah-run", 0, {}).path
    status, out, _ = qsm("eval", str(run), "--episodes", "3", "--video", "a.mp4", "--eval-samples", "4")
    assert status == 0
    assert calls == [(run, 3, 0, {"eval_samples": 4}, Path("a.mp4"), None, NEWEST)]
    assert out == "return_mean  812.3\nepisodes     3\n"
    assert qsm("eval", str(run), "--acting-sampler", "dpm++", "--acting-steps", "3")[0] == 0
    assert calls[1][3] == {"acting_sampler": "dpm++", "acting_steps": 3}
    assert qsm("eval", str(run))[0] == 0
    assert calls[2][3] == {}
    assert qsm("eval", str(run), "--acting-sampler", "ddim", "--ddim-eta", "0.5")[2] == ""
    _, _, err = qsm("eval", str(run), "--ddim-eta", "0.5")
    assert err.startswith(
        "qsm: warning: --ddim-eta 0.5 has no effect: read only where --acting-sampler is ddim;"
    )


def test_the_dashboard_listens_on_this_machine_only(qsm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(os, "execv", lambda program, command: calls.append(command))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        free = other.getsockname()[1]
    status, out, _ = qsm("dashboard", str(tmp_path), "--port", str(free))
    assert status == 0
    assert f"http://127.0.0.1:{free}/?runColorGroup=regex%3A%28.%2A%29%2Fseed_#timeseries" in out
    assert calls[0][1:3] == ["-m", "qsm.command.tensorboard_main"]
    assert calls[0][3:] == ["--logdir", str(tmp_path), "--host", "127.0.0.1", "--port", str(free)]


def test_a_taken_port_is_told(qsm, tmp_path: Path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        status, _, err = qsm("dashboard", str(tmp_path), "--port", str(taken))
    assert status == 2
    assert f"Port {taken} cannot be used" in err


def test_mistakes_found_later_take_one_line_and_bugs_keep_their_traceback(qsm, trained, monkeypatch):
    def fail_with(error: BaseException) -> None:
        def fail(*arguments: object, **_: object) -> None:
            raise error

        monkeypatch.setattr(sys.modules["qsm.training.train"], "train", fail)

    fail_with(UserError("two\nlines"))
    assert qsm(*TRAIN) == (2, "", "qsm: error: two lines\n")
    fail_with(KeyboardInterrupt())
    assert qsm(*TRAIN) == (130, "", "qsm: interrupted\n")
    monkeypatch.setattr(sys.modules["qsm.training.train"], "train", lambda *arguments, **_: "interrupted")
    assert qsm(*TRAIN) == (130, "", "")  # it has told of its end
    monkeypatch.setattr(sys.modules["qsm.training.train"], "train", lambda *arguments, **_: "diverged")
    assert qsm(*TRAIN) == (1, "", "")
    monkeypatch.setattr(sys.modules["qsm.training.train"], "train", lambda *arguments, **_: "preempted")
    assert qsm(*TRAIN) == (143, "", "")
    fail_with(SimulationError("walker-walk cannot begin an episode"))
    assert qsm(*TRAIN) == (1, "", "qsm: error: walker-walk cannot begin an episode\n")
    fail_with(OSError("a bug"))
    with pytest.raises(OSError, match="a bug"):
        qsm(*TRAIN)
    fail_with(ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        qsm(*TRAIN)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("--num-devices 0", "--num-devices is 0; it must be from 1 to"),
        ("--num-devices 9", "--num-devices is 9, but there are 8 devices here"),
        (
            "--num-devices 3 --num-seeds 2",
            "--num-devices is 3, which divides neither the 2 seeds nor both the 1",
        ),
        ("--num-devices 4 --batch-size 64", "--num-devices is 4, which divides neither the 1 seeds"),
    ],
)
def test_devices_that_cannot_be_used_are_told_of_in_one_line(qsm, line: str, reason: str, tmp_path: Path):
    """On the eight simulated devices of tests/conftest.py."""
    where = ["--runs", str(tmp_path / "runs")]
    status, output, errors = qsm("train", "sac", "cartpole-swingup", *line.split(), *where)
    assert (status, output) == (2, "")
    assert reason in errors.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("--help", 0),
        ("agents", 0),
        ("train qsm --help", 0),
        ("train qsm-clean --help", 0),
        ("train qsm x --scoer-scale 3", 2),
        ("train qsm x --steps 0", 2),
        ("train sca x", 2),
        ("trian", 2),
        ("eval no/such/run", 2),
        ("export no/such/run", 2),
    ],
)
def test_help_and_slips_load_nothing_heavy(line: str, status: int):
    program = (
        "import sys\n"
        "from qsm.command.cli import main\n"
        "try: status = main(sys.argv[1:])\n"
        "except SystemExit as exit: status = exit.code or 0\n"
        "print('LOADED', status, *sys.modules)\n"
    )
    command = [sys.executable, "-c", program, *line.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    _, found, *modules = done.stdout.rpartition("LOADED")[2].split(" ")
    assert int(found) == status
    assert not set(HEAVY) & {module.strip() for module in modules}


@pytest.mark.parametrize("agent", agents.AGENTS)
def test_a_task_is_checked_without_jax(agent: str):
    program = "import sys; from qsm.command.cli import main; main(sys.argv[1:]); print('jax' in sys.modules)"
    command = [sys.executable, "-c", program, "train", agent, "cheeta-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert "Did you mean 'cheetah-run'?" in done.stderr


def test_a_reader_that_stops_is_no_error():
    shell = f"{shlex.quote(sys.executable)} -m qsm tasks | head -n 1"
    done = subprocess.run(shell, shell=True, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("acrobot-swingup\n", "")
