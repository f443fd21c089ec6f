"""Kernels of an update on a card that is only described."""

from __future__ import annotations

import pytest

from qsm.base.errors import UserError
from qsm.speed.parts import kernels

PROGRAM = """
%fused (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  ROOT %n = f32[2]{0} negate(%p), metadata={op_name="jit(learn)/while/body/critic_regress/adam/neg"}
}

%body (c: (f32[2])) -> (f32[2]) {
  %c = (f32[2]{0}) parameter(0)
  %g = f32[2]{0} get-tuple-element(%c), index=0
  %q = f32[2]{0} custom-call(%g, %g), custom_call_target="product", metadata={op_name="body/critic_target/dot"}
  %loop_fusion.1 = f32[2]{0} fusion(%q), kind=kLoop, calls=%fused
  %loop_fusion.2 = f32[2]{0} fusion(%loop_fusion.1), kind=kLoop, calls=%fused
  %copy.7 = f32[2]{0} copy(%loop_fusion.2)
  ROOT %t = (f32[2]{0}) tuple(%copy.7)
}

%cond (d: (f32[2])) -> pred[] {
  %d = (f32[2]{0}) parameter(0)
  ROOT %input_reduce_fusion = pred[] fusion(%d), kind=kInput, calls=%fused
}

ENTRY %main (a: f32[2]) -> f32[2] {
  %a = f32[2]{0} parameter(0)
  %wrapped_slice = f32[2]{0} fusion(%a), kind=kLoop, calls=%fused
  %i = (f32[2]{0}) tuple(%wrapped_slice)
  %w = (f32[2]{0}) while(%i), condition=%cond, body=%body
  ROOT %o = f32[2]{0} get-tuple-element(%w), index=0
}
"""


def test_kernels_are_counted_by_place_part_and_kind():
    found = {(row["of"], row["part"], row["kind"]): row["kernels"] for row in kernels.rows(PROGRAM)}
    assert found == {
        ("update", "adam", "elementwise"): 2,
        ("update", "adam", "reduction"): 1,
        ("update", "critic_target", "product"): 1,
        ("update", "other", "copy"): 1,
        ("dispatch", "adam", "copy"): 1,
    }
    assert [row["of"] for row in kernels.rows(PROGRAM)] == ["update"] * 4 + ["dispatch"]


def test_what_cannot_be_counted_is_told(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="there is no agent 'sacc'; there are: qsm"):
        kernels.count("sacc", 1, "paper")
    kernels._card.cache_clear()
    monkeypatch.setattr(kernels, "PLUGINS", {"no_such_plugins.xla_cuda": 99})
    with pytest.raises(UserError, match="CUDA plugin is not installed: pip install"):
        kernels.count("sac", 1, "paper")


@pytest.mark.slow
def test_a_real_update_is_compiled_for_the_card():
    """Products of SAC: 12 of two critics (each layer but the last), 7 of the actor."""
    if not any(map(kernels._is_installed, kernels.PLUGINS)):
        pytest.skip("JAX's CUDA plugin is not installed")
    found = kernels.count("sac", 1, "paper")
    assert sum(row["kernels"] for row in found if row["kind"] == "product" and row["of"] == "update") == 19
