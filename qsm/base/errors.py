"""Mistakes that a person can mend, told in one line."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable


class UserError(Exception):
    """A mistake of the caller: the command line prints its one line and exits with status 2."""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the name nearest to `given`, or an empty string where none is near."""
    # The dashes of a flag would make any two flags alike.
    names = {name.lower().lstrip("-"): name for name in allowed}
    matches = difflib.get_close_matches(given.lower().lstrip("-"), names, n=1, cutoff=0.5)
    return f" Did you mean {names[matches[0]]!r}?" if matches else ""


def printable(text: str) -> str:
    """`text` with control characters, line ends, and bytes of a path that are no text, written as escapes."""
    if text.isprintable():
        return text
    return "".join(
        letter.encode("unicode_escape").decode()
        # Control characters, surrogates, line and paragraph separators: the rest is letters of some script, and spaces.
        if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")
        else letter
        for letter in text
    )


def check_words(words: Iterable[str]) -> None:
    """Raises UserError where a word of a command is not `printable` as it is.

    As a path it would be printed, logged and uploaded, by much that takes neither two lines nor bytes that are no text.
    """
    for word in words:
        if printable(word) != word:
            raise UserError(
                f"'{printable(word)}' has control characters, line ends or bytes that are not UTF-8 (written here as "
                "\\x, \\n or \\u), which no name and no path may have; leave them out"
            )


def first_line(error: BaseException) -> str:
    """The first line of what `error` says, at most 200 characters and without the full stop."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(said).strip().partition("\n")[0].rstrip(". ")[:200]
