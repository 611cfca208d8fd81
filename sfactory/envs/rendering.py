"""Images of single environments, also on a machine without a display."""

from __future__ import annotations

import os

import numpy as np

from sfactory.envs.gymnasium_adapter import EnvGroup
from sfactory.errors import EnvError

NO_OPENGL = (
    "MuJoCo needs OpenGL to render; without a display: apt-get install libegl1 libgl1-mesa-dri, or libosmesa6 with "
    "MUJOCO_GL=osmesa"
)


class RenderedGroup(EnvGroup):
    """Group of single environments with images, also on a machine without a display."""

    def render(self, env: int) -> np.ndarray:
        try:
            return super().render(env)
        except EnvError as error:
            if "mujoco" not in type(self.envs[env].unwrapped).__module__:
                raise
            raise EnvError(f"{error}; {NO_OPENGL}") from error


def render_without_display() -> None:
    """Configure MuJoCo and pygame for a machine without a display, unless the variables are already set."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
