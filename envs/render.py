"""Videos of episodes, drawn in a child process by simulating the recorded actions again.

A process that has imported dm_control cannot change its OpenGL backend any more, and training needs none. So
the parent records only a seed and actions; `python -m envs.render REQUEST RESULT` replays them under a
backend that draws without a display. The two exchange `.npz` files in a temporary folder.
"""

from __future__ import annotations

import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from envs.tasks import check_task

SUFFIXES = (".mp4", ".gif")

_BACKENDS = ("egl", "osmesa")  # values of MUJOCO_GL, the graphics card first
_EXIT_NO_BACKEND = 3
_GIF_TICK = 0.01  # seconds; a GIF counts its delays in these
_GIF_MIN_DELAY = 0.02  # seconds; browsers play shorter delays at a tenth of a second


class RenderingUnavailable(RuntimeError):
    """No OpenGL backend works on this machine. The message is one line that says what to install."""


class Video(NamedTuple):
    """What was written."""

    path: pathlib.Path
    frames: int
    frames_per_second: float  # simulated and real seconds are the same
    episode_return: float  # undiscounted, of the replayed episode: equals the recorded one's
    backend: str


def check_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns `path` if a video can be written there; worth calling before the episode is played.

    Raises:
        ValueError: the suffix is neither .mp4 nor .gif, or the folder does not exist.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"Cannot write a video to '{path}': the name must end in {' or '.join(SUFFIXES)}.")
    if not path.parent.is_dir():
        raise ValueError(f"Cannot write a video to '{path}': the folder '{path.parent}' does not exist.")
    return path


def render_episode(
    task: str,
    seed: int,
    actions: np.ndarray,
    path: str | os.PathLike[str],
    action_repeat: int = 1,
    *,
    width: int = 480,
    height: int = 360,
    camera: int | str = 0,
    episode_seed: int | None = None,
) -> Video:
    """Writes the video of the first episode of `make_env(task, seed, action_repeat)` under `actions`.

    With `episode_seed`, of the first episode after `reseed(episode_seed)`: of lqr, `seed` draws the system and that one
    the start.

    Plays in real time: one frame for each time step, the FIRST included. A GIF, which shows at most 50 frames
    a second, leaves out steps.

    Args:
        task: a task of the suite.
        seed: of the environment.
        actions: `[T, A]` in [-1, 1], in order from the reset; T may be less than an episode.
        path: where to write; the suffix chooses the format, .mp4 or .gif. An existing file is replaced.
        action_repeat: control steps for which each action is held.
        width: of the picture in pixels, even.
        height: of the picture in pixels, even.
        camera: number or name of a camera of the task's model; -1 is the free camera.

    Raises:
        ValueError: an argument is out of place; the message says which.
        RenderingUnavailable: no OpenGL backend works here.
        RuntimeError: the replay failed, for instance because the episode ends before the actions do.
    """
    path = check_path(path)
    check_task(task)
    for name, size in (("width", width), ("height", height)):
        if size < 2 or size % 2:
            raise ValueError(f"{name} is {size}; it must be an even number of pixels, as MP4 takes no other.")
    actions = np.asarray(actions)  # in their own precision: rounding them would lead to another episode
    if actions.ndim != 2 or actions.shape[0] < 1 or not np.issubdtype(actions.dtype, np.floating):
        raise ValueError(
            f"actions is {actions.dtype} of shape {actions.shape}; it must be floating point [T, A], T > 0."
        )
    request = {
        "task": np.array(task),
        "seed": np.array(seed),
        "episode_seed": np.array(-1 if episode_seed is None else episode_seed),
        "actions": actions,
        "action_repeat": np.array(action_repeat),
        "size": np.array([width, height]),
        "camera": np.array(camera),
    }
    failures = []
    with tempfile.TemporaryDirectory(prefix="render-") as folder:
        for backend in _BACKENDS:
            found = _draw(pathlib.Path(folder), request, path, backend)
            if isinstance(found, Video):
                return found
            failures.append(f"{backend}: {found}")
    raise RenderingUnavailable(
        "No OpenGL backend can draw the video. Install one (on Debian or Ubuntu: apt-get install libegl1 "
        f"libosmesa6) and try again. {'; '.join(failures)}"
    )


def _draw(
    folder: pathlib.Path, request: Mapping[str, np.ndarray], path: pathlib.Path, backend: str
) -> Video | str:
    """The video of `request` at `path`, drawn by a child process; where `backend` does not work here, why.

    Raises:
        RuntimeError: the replay failed.
    """
    asked, result = folder / "request.npz", folder / "result.npz"
    video = folder / f"video{path.suffix.lower()}"
    np.savez(asked, allow_pickle=False, **request, video=np.array(str(video)))  # type: ignore[arg-type]
    child = subprocess.run(
        [sys.executable, "-m", "envs.render", str(asked), str(result)],
        env=_child_environment(backend),
        capture_output=True,
        text=True,
        errors="replace",
    )
    if child.returncode == 0:
        shutil.move(video, path)
        with np.load(result, allow_pickle=False) as answer:
            return Video(
                path=path,
                frames=int(answer["frames"]),
                frames_per_second=float(answer["frames_per_second"]),
                episode_return=float(answer["episode_return"]),
                backend=backend,
            )
    # A driver that does not fit the machine often kills the process instead of reporting an error.
    if child.returncode != _EXIT_NO_BACKEND and child.returncode >= 0:
        raise RuntimeError(f"Rendering {request['task']} with {backend} failed: {_last_line(child.stderr)}")
    return _last_line(child.stderr) or f"killed by signal {-child.returncode}"


def _child_environment(backend: str) -> dict[str, str]:
    root = str(pathlib.Path(__file__).resolve().parents[1])
    inherited = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    environment = dict(os.environ, MUJOCO_GL=backend, PYTHONPATH=os.pathsep.join([root, *inherited]))
    environment.pop("PYOPENGL_PLATFORM", None)  # dm_control sets it, and refuses another value
    return environment


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def frame_timing(step_seconds: float, suffix: str) -> tuple[int, float]:
    """How to show time steps of `step_seconds` in real time: (time steps a frame, seconds a frame)."""
    if suffix != ".gif":
        return 1, step_seconds
    stride = math.ceil(_GIF_MIN_DELAY / step_seconds - 1e-9)
    for candidate in range(stride, 4 * stride + 1):  # prefers a delay that a GIF can hold exactly
        ticks = candidate * step_seconds / _GIF_TICK
        if math.isclose(ticks, round(ticks), abs_tol=1e-6):
            return candidate, candidate * step_seconds
    return stride, max(_GIF_MIN_DELAY, round(stride * step_seconds / _GIF_TICK) * _GIF_TICK)


def _replay(request: Mapping[str, np.ndarray], result: str) -> None:
    """Child: simulates the episode, writes its video, and writes to `result` what `Video` tells of it."""
    from envs import dmc
    from envs.api import StepType

    repeat = int(request["action_repeat"])
    environment = dmc.make_env(str(request["task"]), int(request["seed"]), repeat, renderable=True)
    if (episode_seed := int(request["episode_seed"])) >= 0:
        environment.reseed(episode_seed)
    width, height = (int(size) for size in request["size"])
    camera = request["camera"].item()
    # The model's off-screen buffer is 640 by 480 in most tasks and cannot grow once the context exists.
    buffer = environment.physics.model.vis.global_
    buffer.offwidth, buffer.offheight = max(buffer.offwidth, width), max(buffer.offheight, height)

    video = pathlib.Path(str(request["video"]))
    stride, frame_seconds = frame_timing(environment.control_timestep * repeat, video.suffix)
    num_frames, episode_return = 1, 0.0

    def frames() -> Iterator[np.ndarray]:
        nonlocal num_frames, episode_return
        environment.reset()
        yield environment.render(width, height, camera)
        actions = request["actions"]
        for index, action in enumerate(actions, start=1):
            time_step = environment.step(action)
            episode_return += float(time_step.reward)
            if time_step.step_type == StepType.LAST and index < len(actions):
                raise ValueError(f"the episode ends after {index} of {len(actions)} actions.")
            if index % stride == 0:
                num_frames += 1
                yield environment.render(width, height, camera)

    _write(video, frames(), frame_seconds)
    environment.physics.free()  # an OSMesa context left to the interpreter's exit raises there
    np.savez(
        result,
        frames=np.array(num_frames),
        frames_per_second=np.array(1 / frame_seconds),
        episode_return=np.array(episode_return),
    )


def _write(path: pathlib.Path, frames: Iterator[np.ndarray], frame_seconds: float) -> None:
    """Writes frames `[H, W, 3]` uint8 as they are drawn, each shown for `frame_seconds`."""
    import imageio.v2

    if path.suffix == ".gif":
        options = {"duration": 1000 * frame_seconds, "loop": 0}  # milliseconds; for ever
    else:
        # By default imageio enlarges pictures to multiples of 16 pixels.
        options = {"fps": 1 / frame_seconds, "codec": "libx264", "quality": 7, "macro_block_size": 2}
    writer: Any = imageio.v2.get_writer(path, mode="I", **options)
    with writer:
        for frame in frames:
            writer.append_data(frame)


def _probe_backend() -> None:
    """Child: draws something tiny; whatever goes wrong here is the backend's doing."""
    from dm_control import mujoco

    physics = mujoco.Physics.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
    physics.render(height=16, width=16)
    physics.free()


def _main(request_path: str, result_path: str) -> int:
    try:
        _probe_backend()
    except Exception as error:  # ImportError, AttributeError, OpenGL's own: which one depends on what lacks
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return _EXIT_NO_BACKEND
    with np.load(request_path, allow_pickle=False) as request:
        _replay(request, result_path)
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
