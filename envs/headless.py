"""dm_control, imported so that it needs no display; whoever needs it takes it from here."""

from __future__ import annotations

import os

# dm_control picks its OpenGL backend when it is first imported. Without a display that ends in GLFW, which
# warns that it cannot work; simulation needs no backend at all.
if not os.environ.get("DISPLAY"):
    os.environ.setdefault("MUJOCO_GL", "disable")

from dm_control import mujoco, suite
from dm_control.rl import control

__all__ = ["control", "mujoco", "suite"]
