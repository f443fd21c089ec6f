"""Mistakes that a person can mend, told in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake of the caller: the command line prints its one line and exits with status 2."""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the name nearest to `given`, or an empty string where none is near."""
    # The dashes of a flag would make any two flags alike.
    names = {name.lower().lstrip("-"): name for name in allowed}
    matches = difflib.get_close_matches(given.lower().lstrip("-"), names, n=1, cutoff=0.5)
    return f" Did you mean {names[matches[0]]!r}?" if matches else ""


def first_line(error: BaseException) -> str:
    """The first line of what `error` says, at most 200 characters and without the full stop."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(said).strip().partition("\n")[0].rstrip(". ")[:200]
