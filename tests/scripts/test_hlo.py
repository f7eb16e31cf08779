"""The reading of the HLO text of compiled programs."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

TEXT = """\
HloModule jit_f, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%product (p: f32[12,128], q: f32[128,4,128]) -> f32[12,4,128] {
  %p = f32[12,128]{1,0} parameter(0)
  %q = f32[128,4,128]{2,1,0} parameter(1)
  ROOT %dot.1 = f32[12,4,128]{2,1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (state: (s32[], f32[12,128])) -> (s32[], f32[12,128]) {
  %state = (s32[], f32[12,128]{1,0}) parameter(0)
  %gate = f32[12,4,128]{2,1,0} fusion(%a, %b), kind=kOutput, calls=%product
  %both = (f32[12,128]{1,0}, /*index=1*/f32[8]{0}) all-reduce-start(%c, %d), to_apply=%add
  ROOT %done = (f32[12,128]{1,0}, f32[8]{0}) all-reduce-done(%both)
}

%more (state: (s32[], f32[12,128])) -> pred[] {
  ROOT %less = pred[] compare(%a, %b), direction=LT
}

ENTRY %main (a: f32[12,128]) -> f32[12,128] {
  %a = f32[12,128]{1,0} parameter(0)
  %while.1 = (s32[], f32[12,128]{1,0}) while(%t), condition=%more, body=%body
  %gathered = f32[24,128]{1,0} all-gather(%a), dimensions={0}
  %u = f32[32,12,128]{2,1,0} copy(%b)
  %v = f32[32,12,512]{2,1,0} copy(%c)
  %dot.2 = f32[128,512]{1,0} dot(%u, %v), lhs_contracting_dims={0,1}, rhs_contracting_dims={0,1}
  ROOT %sum = f32[128,512]{1,0} all-reduce(%dot.2), to_apply=%add
}
"""


@pytest.fixture(scope="module")
def hlo():
    return importlib.import_module("benchmarks.hlo")


def test_instructions(hlo):
    program = hlo.parse(TEXT)
    assert list(program) == ["add", "product", "body", "more", "main"]
    _, loop, *_ = program["main"]
    assert (loop.name, loop.opcode, loop.operands) == ("while.1", "while", ["t"])
    assert sorted(loop.called) == ["body", "more"]
    assert hlo.reached(program, loop.called) == {"body", "more", "product", "add"}
    _, gate, start = program["body"]
    assert (gate.shape, gate.operands, gate.called) == ((12, 4, 128), ["a", "b"], ["product"])
    assert (start.opcode, start.shape) == ("all-reduce", (12, 128))


def test_collectives_and_those_in_loops(hlo):
    found = hlo.collectives(hlo.parse(TEXT))
    assert found["all-reduce"] == {"all": 2, "in_loops": 1}
    assert found["all-gather"] == {"all": 1, "in_loops": 0}
    assert found["reduce-scatter"] == {"all": 0, "in_loops": 0}


def test_rows_of_products(hlo):
    # The gradient of weights sums over the 32 x 12 rows.
    program = hlo.parse(TEXT)
    assert hlo.rows(program, {128, 512}) == [12, 384]
    with pytest.raises(ValueError, match=r"a product of lengths \[12, 512, 128\]"):
        hlo.rows(program, {128})


def test_a_compiled_loop_over_split_rows(hlo):
    mesh = Mesh(np.array(jax.devices()[:2]), ("batch",))

    def last(w, xs, each_step):
        def step(s, x):
            s = jnp.tanh(x + s @ w)
            return (lax.with_sharding_constraint(s, where) if each_step else s), None

        where = NamedSharding(mesh, P())
        return lax.scan(step, jnp.zeros_like(xs[0]), xs)[0]

    w = jax.device_put(jnp.ones((5, 5)), NamedSharding(mesh, P()))
    xs = jax.device_put(jnp.ones((7, 6, 5)), NamedSharding(mesh, P(None, "batch")))
    found = {}
    for each_step in False, True:
        compiled = jax.jit(last, static_argnums=2).lower(w, xs, each_step).compile()
        found[each_step] = hlo.parse(compiled.as_text())
    assert hlo.rows(found[False], {5}) == [3]
    assert hlo.collectives(found[False])["all-gather"] == {"all": 0, "in_loops": 0}
    assert hlo.collectives(found[True])["all-gather"]["in_loops"] >= 1
