"""Budgets of the compiled gradient of each main cell, counted in the program.

A measurement needs an idle machine and says less about why. These numbers are those of today: one
that falls is to be lowered here, one that rises has to be paid for in the README.
"""

import functools
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_bptt as jb
from tests.core.jaxprs import equations
from tests.registry import slow_unless

# The default algorithm takes 64 steps at a time of these, so that 32 blocks leave nothing over.
T, B, I, H = 2048, 32, 3, 16  # noqa: E741 - the axis letters of the package

# XLA as it comes: tests/conftest.py has turned its optimisations off.
OPTIONS: dict[str, Any] = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
}
if jax.__version_info__ < (0, 11):
    OPTIONS["xla_cpu_use_fusion_emitters"] = True

SAVED = {"elman": 1, "gru": 1, "lstm": 2}
"""Arrays [T, B, H] that the forward pass keeps for the reverse pass."""

EQUATIONS = {"elman": 140, "gru": 264, "lstm": 248}
"""Equations of the traced gradient, a tenth more than there were: each costs compile time."""

each_cell = pytest.mark.parametrize("name", [slow_unless(name == "gru", name) for name in SAVED])


def _bidirectional(inputs):
    cell = jb.lstm(input_size=inputs, hidden_size=H, dtype=jnp.float32)
    return jb.bidirectional(cell, cell)


NETWORKS = {
    name: jb.layer(getattr(jb, name)(input_size=I, hidden_size=H, dtype=jnp.float32))
    for name in SAVED
} | {"stack": jb.stack(_bidirectional(I), _bidirectional(2 * H))}


@pytest.fixture(scope="module")
def hlo():
    scripts = str(Path(__file__).parents[2] / "scripts")
    sys.path.insert(0, scripts)
    yield importlib.import_module("benchmarks.hlo")
    sys.path.remove(scripts)


def traced(network, mesh=None, **options):
    """Return the traced gradient; on a mesh of one axis the batch is split over it."""

    def of(shape, dtype, spec):
        sharding = None if mesh is None else NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def loss(params, xs, options):
        return jnp.sum(NETWORKS[network].apply(params, xs, **options)[1] ** 2)

    params = jax.tree.map(
        lambda a: of(a.shape, a.dtype, P()),
        jax.eval_shape(NETWORKS[network].init, jax.random.key(0)),
    )
    xs = of((T, B, I), jnp.float32, P(None, "d"))
    given = {name: of((B,), dtype, P("d")) for name, dtype in options.items()}
    return jax.jit(jax.grad(loss)).trace(params, xs, given)


@functools.cache
def text(network, devices=1, **options):
    """Return the optimized program as XLA prints it."""
    mesh = None if devices == 1 else jax.make_mesh((devices,), ("d",), axis_types=(AxisType.Auto,))
    compiled = traced(network, mesh, **options).lower().compile(compiler_options=OPTIONS)
    found = compiled.as_text()
    assert found is not None
    return found


def repeated(hlo, program, loop):
    """Return the instructions that a loop repeats."""
    return [i for name in hlo.reached(program, loop.called) for i in program.get(name, [])]


def loops(program):
    return [i for body in program.values() for i in body if i.opcode == "while"]


def innermost(hlo, program):
    """Return what each of the loops over steps repeats, whose bodies hold no loop."""
    bodies = [repeated(hlo, program, loop) for loop in loops(program)]
    return [body for body in bodies if not any(i.opcode == "while" for i in body)]


def is_reverse(loop):
    return "transpose(" in loop.text


@each_cell
def test_two_loops_forward_and_two_in_reverse(hlo, name):
    """Over blocks and over steps; what is batched over time needs none."""
    found = loops(hlo.parse(text(name)))
    assert sorted(map(is_reverse, found)) == [False, False, True, True]


@each_cell
def test_one_product_a_step(hlo, name):
    bodies = innermost(hlo, hlo.parse(text(name)))
    assert [sum(i.opcode == "dot" for i in body) for body in bodies] == [1, 1]


@each_cell
def test_the_states_alone_are_kept(hlo, name):
    """Arrays that the loop over blocks stacks, or reads, as large as the states of all steps."""
    program = text(name)
    (blocks,) = (
        loop
        for loop in loops(hlo.parse(program))
        if not is_reverse(loop)
        and any(i.opcode == "while" for i in repeated(hlo, hlo.parse(program), loop))
    )
    match = re.search(rf"%{re.escape(blocks.name)} = (\(.*?\)) while\(", program)
    assert match is not None
    shapes = [tuple(map(int, s.split(","))) for s in re.findall(r"f32\[([\d,]+)\]", match[1])]
    of_states = [s for s in shapes if s[0] * s[1] == T and s[2:] == (B, H) or s == (T, B, H)]
    assert len(of_states) == SAVED[name], shapes


@each_cell
def test_equations_traced(name):
    """Equations of all that is traced, the functions that equations carry included."""
    assert sum(1 for _ in equations(traced(name).jaxpr.jaxpr)) <= EQUATIONS[name]


SPLIT = [*((name, {}) for name in SAVED), ("lstm", {"lengths": jnp.int32}), ("stack", {})]


@pytest.mark.parametrize("network, options", [slow_unless(bool(row[1]), *row) for row in SPLIT])
def test_a_split_batch_is_gathered_nowhere_and_summed_outside_the_steps(hlo, network, options):
    program = hlo.parse(text(network, devices=2, **options))
    found = hlo.collectives(program)
    assert found["all-gather"]["all"] == found["all-to-all"]["all"] == 0
    assert found["all-reduce"]["all"] > 0, "the batch is split"
    assert not [i for body in innermost(hlo, program) for i in body if i.opcode in hlo.COLLECTIVES]
