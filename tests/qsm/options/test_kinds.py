"""Whole numbers and sizes as a person writes them."""

from __future__ import annotations

import re

import hypothesis
import hypothesis.strategies as st
import pytest

from qsm.options import kinds


@hypothesis.given(st.integers(-kinds.LARGEST, kinds.LARGEST))
def test_whole_numbers_read_back_in_every_form(number: int):
    digits = str(abs(number)).rstrip("0") or "0"
    zeros = len(str(abs(number))) - len(digits) if number else 0
    sign = "-" if number < 0 else ""
    forms = {str(number), f"{number:_}", f"{number}.0", f"{number}e0", f"{sign}{digits}e{zeros}"}
    forms.add(f"{sign}{digits[0]}.{digits[1:]}e+{len(digits) - 1 + zeros}")
    forms.add(f"{number}000e-3")
    for form in forms:
        assert kinds.read_whole_number(form) == number, form


@hypothesis.given(st.integers(0, 10**6), st.integers(1, 999))
def test_numbers_with_a_fraction_are_no_whole_numbers(whole: int, fraction: int):
    with pytest.raises(ValueError, match="no whole number"):
        kinds.read_whole_number(f"{whole}.{fraction:03}")


@hypothesis.given(st.text(alphabet="0123456789_.eE+- ", max_size=12))
def test_whole_numbers_agree_with_python(text: str):
    try:
        number = kinds.read_whole_number(text)
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            int(text) if text == text.strip() and abs(int(text)) <= kinds.LARGEST else int("refused")
    else:
        assert number == float(text) or abs(number) > 2**53


@pytest.mark.parametrize(
    "text", ["", "e5", ".", "-", "1e", "1.5", "1e-1", "inf", "nan", "1e999999999", "1e19", "0x10"]
)
def test_what_is_no_whole_number_is_refused(text: str):
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        kinds.read_whole_number(text)


@hypothesis.given(st.lists(st.integers(1, 4096), min_size=1, max_size=5).map(tuple))
def test_sizes_read_back(sizes: tuple[int, ...]):
    kind = kinds.kind_of(tuple[int, ...])
    assert kind is not None
    assert kind.read(kind.show(sizes)) == sizes
