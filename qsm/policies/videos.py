"""Videos for `qsm report`: an episode of a run's newest policy."""

from __future__ import annotations

import sys
from pathlib import Path

from qsm.policies.play import play


def film(run: Path, file: Path) -> str:
    """Plays one episode of the run in dm_control and writes it to `file`; its return, for a caption.

    Raises:
      UserError: no checkpoint, observations that dm_control does not have, or no way to render here.
    """
    print(f"filming {run}", file=sys.stderr, flush=True)
    result = play(run, episodes=1, video=file, backend="dm_control")
    return f"return {result['return_mean']:.0f} at step {result['step']:,}"
