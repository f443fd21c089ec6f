"""Where an update's time goes: counted from real programs of known content."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import agents
from envs.api import EnvSpec
from qsm.learning.learner import Learner
from qsm.speed.parts import waterfall
from qsm.speed.parts.waterfall import OTHER, Operation, Taken

ROWS, WIDTH, OUT = 8, 16, 4


@jax.named_scope("critic_regress")
def value(w: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ w).sum()


def step(w: jax.Array, x: jax.Array) -> jax.Array:
    gradient = jax.grad(value)(w, x)
    with jax.named_scope("adam"):
        return w - 0.1 * gradient / (1 + jnp.abs(gradient))


def compiled(num_steps: int = 1) -> tuple[jax.stages.Compiled, tuple[jax.Array, jax.Array]]:
    arguments = jnp.ones((WIDTH, OUT)), jnp.ones((ROWS, WIDTH))
    return jax.jit(lambda w, x: jax.lax.fori_loop(0, num_steps, lambda _, w: step(w, x), w)).lower(
        *arguments
    ).compile(), arguments


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("jit(f)/critic_regress/jvp(CriticEnsemble)/dot_general", "critic_regress"),
        ("jit(f)/critic_regress/transpose(jvp(CriticEnsemble))/dot_general", "critic_regress backward"),
        ("jit(f)/transpose(jvp(critic_value))/mul", "critic_value backward"),
        ("jit(f)/critic_regress/adam/sub", "adam"),
        ("jit(f)/critic_target/policy_sample/tanh", "policy_sample"),
        ("jit(f)/sampler/threefry2x32", "random"),
        ("jit(f)/where", OTHER),
        ("", OTHER),
    ],
)
def test_an_operation_belongs_to_the_innermost_part(name: str, part: str):
    assert waterfall.part_of(name) == part


@pytest.mark.slow
def test_a_profile_names_operations_of_the_program_that_ran():
    """Products x w forwards, and x^T g backwards: each 2 ROWS WIDTH OUT."""
    program, arguments = compiled(num_steps=7)
    profiled = waterfall.profile(lambda: program(*arguments))
    found = waterfall.shares(str(program.as_text()), profiled, 7)
    gflop = {part: share.gflop for part, share in found.items() if share.gflop}
    assert gflop == pytest.approx(
        dict.fromkeys(("critic_regress", "critic_regress backward"), 2e-9 * ROWS * WIDTH * OUT)
    )
    assert all(share.milliseconds > 0 for share in found.values() if share.gflop)


def test_shares_are_of_one_update_and_leave_containers_out():
    text = """
%fused (p: f32[2,3], q: f32[3,5]) -> f32[2,5] {
  %p = f32[2,3]{1,0} parameter(0)
  %q = f32[3,5]{1,0} parameter(1)
  ROOT %d = f32[2,5]{1,0} dot(%p, %q), lhs_contracting_dims={1}, metadata={op_name="jit(f)/critic_target/dot"}
}

ENTRY %main (a: f32[2,3], b: f32[3,5]) -> f32[2,5] {
  %a = f32[2,3]{1,0} parameter(0)
  %b = f32[3,5]{1,0} parameter(1)
  %f = f32[2,5]{1,0} fusion(%a, %b), kind=kOutput, calls=%fused
  %w = f32[2,5]{1,0} while(%f), condition=%c, body=%e
  ROOT %x = f32[2,5]{1,0} copy(%w)
}
"""
    operation = waterfall.operations(text)["f"]
    assert operation == Operation("fusion", "critic_target", operation.gflop, "main")
    assert operation.gflop == pytest.approx(60e-9)
    profiled = {"f": Taken(0.004, 8), "w": Taken(1.0, 4), "x": Taken(0.002, 4)}
    found = waterfall.shares(text, profiled, 4)
    assert list(found) == ["critic_target", OTHER]
    target = found["critic_target"]
    assert (target.milliseconds, target.product_milliseconds, target.operations) == (1.0, 1.0, 2.0)
    assert target.gflop == pytest.approx(120e-9)
    rows = waterfall.rows(found, 2.0)
    assert [row["of"] for row in rows] == ["critic_target", OTHER, "between operations less overlap"]
    assert [row["share"] for row in rows] == pytest.approx([0.5, 0.25, 0.25])
    with pytest.raises(ValueError, match="no operation of this program"):
        waterfall.shares(text, {"another": Taken(1.0, 1)}, 1)


PROGRAM = """
%fused (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  ROOT %n = f32[2]{0} negate(%p)
}

%sum (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}

%once (u: f32[2]) -> f32[2] {
  ROOT %u = f32[2]{0} parameter(0)
}

%never (v: f32[2]) -> f32[2] {
  %v = f32[2]{0} parameter(0)
  ROOT %h = f32[2]{0} copy(%v)
}

%cond (d: (f32[2])) -> pred[] {
  %d = (f32[2]{0}) parameter(0)
  ROOT %l = pred[] custom-call(%d), custom_call_target="still"
}

%body (c: (f32[2])) -> (f32[2]) {
  %c = (f32[2]{0}) parameter(0)
  %g = f32[2]{0} get-tuple-element(%c), index=0
  %f = f32[2]{0} fusion(%g), kind=kLoop, calls=%fused
  %b = f32[2]{0} conditional(%z, %f, %f), branch_computations={%once, %never}
  ROOT %t = (f32[2]{0}) tuple(%b)
}

%twice (z: f32[2]) -> f32[2] {
  %z = f32[2]{0} parameter(0)
  ROOT %m = f32[2]{0} multiply(%z, %z)
}

ENTRY %main (a: f32[2]) -> f32[] {
  %a = f32[2]{0} parameter(0)
  %k = f32[2]{0} call(%a), to_apply=%twice
  %i = (f32[2]{0}) tuple(%k)
  %w = (f32[2]{0}) while(%i), condition=%cond, body=%body
  %o = f32[2]{0} get-tuple-element(%w), index=0
  %zero = f32[] constant(0)
  ROOT %r = f32[] reduce(%o, %zero), dimensions={0}, to_apply=%sum
}
"""


def test_what_is_launched_is_neither_merged_nor_free():
    found = waterfall.launched(PROGRAM)
    assert set(found) == {"f", "h", "l", "m", "r"}
    assert found["f"].computation == "body" and found["r"].computation == "main"


def test_a_loop_repeats_its_body_and_condition_and_a_branch_is_by_itself():
    places = waterfall.places(PROGRAM)
    assert {name: places[name] for name in ("main", "twice", "cond", "body", "once", "never")} == {
        "main": "dispatch",
        "twice": "dispatch",
        "cond": "update",
        "body": "update",
        "once": "branch",
        "never": "branch",
    }


@pytest.mark.parametrize(("name", "most"), [("sac", 740), pytest.param("qsm", 1080, marks=pytest.mark.slow)])
def test_the_learning_program_has_no_more_operations_than_it_had(name: str, most: int):
    """On an accelerator an update of one seed takes about as long as its launches; counted here on the CPU."""
    agent = agents.make_agent(name, 3, 2, hidden_sizes=(16, 16), batch_size=8)
    learner = Learner(agent, EnvSpec("sizes", 3, 2, 10, 1), 0, capacity=100)
    program = learner.compiled.learn.lower(*learner.learn_shapes()).compile()
    assert len(waterfall.launched(program.as_text())) <= most
