"""Numbers and lists in words, at the edges of their units."""

from __future__ import annotations

import pytest

from qsm.base import text as texts
from qsm.base.text import byte_size, clock_time, count, decimal, duration, own_command, shorten, spread


@pytest.mark.parametrize(
    ("number", "text"), [(1, "a and 2 more"), (2, "a, b and 1 more"), (3, "a, b, c"), (8, "a, b, c")]
)
def test_shorten(number: int, text: str):
    assert shorten(["a", "b", "c"], number) == text


def test_shorten_shows_eight_by_default_and_takes_a_separator():
    letters = list("abcdefghij")
    assert shorten(letters) == "a, b, c, d, e, f, g, h and 2 more"
    assert shorten(letters, 2, "; ") == "a; b and 8 more"
    assert shorten([]) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.00"), (0.666, "0.67"), (-0.5, "-0.50"), (9.994, "9.99"), (10.0, "10.0"), (-812.34, "-812.3")],
)
def test_decimal(value: float, text: str):
    assert decimal(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (5, "5 s"), (59.4, "59 s"), (59.6, "1 min"), (61, "1 min"), (3576, "1 h 0 min"),
        (3600, "1 h 0 min"), (12_000, "3 h 20 min"), (3e5, "3 d 11 h"),
    ],
)  # fmt: skip
def test_duration(seconds: float, text: str):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0:00"), (0.6, "0:01"), (164, "2:44"), (3599.6, "1:00:00"), (3764, "1:02:44")]
)
def test_clock_time(seconds: float, text: str):
    assert clock_time(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(7, "7 B"), (1200, "1.2 kB"), (340_000_000, "340 MB"), (1_234_000_000, "1.23 GB")]
)
def test_byte_size(number: int, text: str):
    assert byte_size(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 runs"), (1, "1 run"), (2, "2 runs"), (1000, "1,000 runs")]
)
def test_count(number: int, text: str):
    assert count(number, "run") == text


@pytest.mark.parametrize(
    ("values", "text"), [([624.31], "624.3"), ([600.0, 624.0], "612.0 ± 17.0"), ([3.0, 5.0], "4.00 ± 1.41")]
)
def test_spread(values: list[float], text: str):
    assert spread(values) == text


@pytest.mark.parametrize(
    ("on_path", "called", "expected"),
    [
        ("/bin/qsm", ".venv/bin/qsm", "qsm"),
        (None, ".venv/bin/qsm", ".venv/bin/qsm"),
        (None, "/x/qsm/__main__.py", "python -m qsm"),
    ],
)
def test_own_command(monkeypatch: pytest.MonkeyPatch, on_path: str | None, called: str, expected: str):
    monkeypatch.setattr(texts.shutil, "which", lambda name: on_path if name == "qsm" else "")
    monkeypatch.setattr(texts.sys, "argv", [called, "train"])
    assert own_command() == expected
