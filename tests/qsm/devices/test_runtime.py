"""The precision of matrix products."""

from __future__ import annotations

import pytest

from qsm.devices import runtime


def test_a_precision_out_of_a_file_must_be_one_of_a_run() -> None:
    expected = "matmul_precision is 'fp8'; it must be one of float32, tensorfloat32, bfloat16"
    with pytest.raises(ValueError, match=expected):
        runtime.set_precision("fp8")  # pyright: ignore[reportArgumentType]
