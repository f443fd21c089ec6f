"""Videos: the arguments, the time base, and a real one where the machine can draw."""

from __future__ import annotations

import pathlib
import re
import subprocess

import imageio.v3
import imageio_ffmpeg
import numpy as np
import pytest

from envs import dmc, render

ADVICE = (
    "No OpenGL backend can draw the video. Install one (on Debian or Ubuntu: apt-get install libegl1 "
    "libosmesa6) and try again. "
)
ACTIONS = np.linspace(-1, 1, 12, dtype=np.float32)[:, None]  # [T, A] for cartpole


def episode_return(seed: int, action_repeat: int) -> float:
    """What the parent would have recorded."""
    environment = dmc.make_env("cartpole-swingup", seed, action_repeat)
    environment.reset()
    return sum(float(environment.step(action).reward) for action in ACTIONS)


def read_gif(path: pathlib.Path) -> tuple[np.ndarray, float]:
    """Frames `[N, H, W, 3]` and seconds a frame."""
    return imageio.v3.imread(path), imageio.v3.immeta(path)["duration"] / 1000


def read_mp4(path: pathlib.Path, width: int, height: int) -> tuple[np.ndarray, float]:
    """Frames `[N, H, W, 3]` and seconds a frame; by ffmpeg itself, as imageio leaks its pipes."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    decoded = subprocess.run(command, capture_output=True, check=True)
    rate = re.search(rb"Video: h264.*?([\d.]+) fps", decoded.stderr)
    assert rate is not None
    return np.frombuffer(decoded.stdout, np.uint8).reshape(-1, height, width, 3), 1 / float(rate[1])


@pytest.mark.parametrize(
    ("suffix", "num_frames", "frame_seconds"),
    [
        pytest.param(".mp4", 1 + 12, 0.01, marks=pytest.mark.slow),
        (".gif", 1 + 6, 0.02),
    ],  # 0.01 s a control step: a GIF shows every other
)
def test_a_video_or_the_line_that_says_what_to_install(
    tmp_path: pathlib.Path, suffix: str, num_frames: int, frame_seconds: float
):
    path = tmp_path / f"episode{suffix}"
    try:
        video = render.render_episode("cartpole-swingup", 7, ACTIONS, path, width=96, height=64)
    except render.RenderingUnavailable as error:
        assert str(error).startswith(ADVICE + "egl: ")
        assert "; osmesa: " in str(error) and "\n" not in str(error)
        assert list(tmp_path.iterdir()) == []
        return
    assert video.path == path
    assert video.frames == num_frames
    assert video.frames_per_second == pytest.approx(1 / frame_seconds)
    assert video.episode_return == episode_return(7, action_repeat=1)
    frames, seconds = read_gif(path) if suffix == ".gif" else read_mp4(path, width=96, height=64)
    assert frames.shape == (num_frames, 64, 96, 3)
    assert np.ptp(frames[0]) > 100  # a scene, not an empty buffer
    assert not np.array_equal(frames[0], frames[-1])
    assert seconds == pytest.approx(frame_seconds)


def test_without_a_backend_the_line_says_what_to_install(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(render, "_BACKENDS", ("disable",))
    with pytest.raises(render.RenderingUnavailable) as error:
        render.render_episode("cartpole-swingup", 0, ACTIONS, tmp_path / "episode.mp4")
    assert str(error.value) == (ADVICE + "disable: RuntimeError: No OpenGL rendering backend is available.")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_backend_is_followed_by_the_next(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    tried = []

    def run(command: list[str], env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        tried.append(env["MUJOCO_GL"])
        return subprocess.CompletedProcess(command, returncode=-11, stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(render.RenderingUnavailable) as error:
        render.render_episode("cartpole-swingup", 0, ACTIONS, tmp_path / "episode.mp4")
    assert tried == ["egl", "osmesa"]
    assert str(error.value) == ADVICE + "egl: killed by signal 11; osmesa: killed by signal 11"


def test_a_failing_replay_names_its_reason(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        stderr = "Traceback (most recent call last):\nValueError: the episode ends after 1 of 2 actions.\n"
        return subprocess.CompletedProcess(command, returncode=1, stdout="", stderr=stderr)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(RuntimeError) as error:
        render.render_episode("cartpole-swingup", 0, ACTIONS, tmp_path / "episode.mp4")
    assert not isinstance(error.value, render.RenderingUnavailable)
    assert str(error.value) == (
        "Rendering cartpole-swingup with egl failed: ValueError: the episode ends after 1 of 2 actions."
    )


def test_bad_arguments(tmp_path: pathlib.Path):
    good = tmp_path / "episode.mp4"
    with pytest.raises(ValueError, match=r"episode\.avi': the name must end in \.mp4 or \.gif"):
        render.render_episode("cartpole-swingup", 0, ACTIONS, tmp_path / "episode.avi")
    with pytest.raises(ValueError, match=r"the folder '.*nowhere' does not exist"):
        render.check_path(tmp_path / "nowhere" / "episode.gif")
    with pytest.raises(ValueError, match="width is 97; it must be an even number"):
        render.render_episode("cartpole-swingup", 0, ACTIONS, good, width=97)
    with pytest.raises(ValueError, match="height is 0; it must be an even number"):
        render.render_episode("cartpole-swingup", 0, ACTIONS, good, height=0)
    for actions in (ACTIONS[0], ACTIONS[:0], np.zeros((3, 1), object), np.zeros((3, 1), int)):
        with pytest.raises(ValueError, match=r"it must be floating point \[T, A\]"):
            render.render_episode("cartpole-swingup", 0, actions, good)
    with pytest.raises(ValueError, match="Did you mean 'cartpole-swingup'"):
        render.render_episode("cartpole-swinup", 0, ACTIONS, good)


@pytest.mark.parametrize(
    ("step_seconds", "suffix", "expected"),
    [
        (0.025, ".mp4", (1, 0.025)),
        (0.01, ".gif", (2, 0.02)),
        (0.015, ".gif", (2, 0.03)),
        (0.025, ".gif", (2, 0.05)),  # 0.025 s cannot be told in hundredths
        (0.02, ".gif", (1, 0.02)),
        (0.04, ".gif", (1, 0.04)),
        (0.0033, ".gif", (7, 0.02)),  # no exact delay near: the closest
    ],
)
def test_frame_timing(step_seconds: float, suffix: str, expected: tuple[int, float]):
    assert render.frame_timing(step_seconds, suffix) == pytest.approx(expected)
