"""Loops side by side do what scans do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_bptt.core import side_by_side
from jax_bptt.core.loops import Before, Loop, mark, scan, trace
from tests.core.jaxprs import equations

H, T = 5, 6


def _step(w, carry, inputs):
    """Everything a loop may carry and emit: floats, integers, keys, what is read twice."""
    (h, count, key), (x, move) = carry, inputs
    key, now = jax.random.split(key)
    gate = jnp.tanh(h @ w + x)
    noise = jax.random.bernoulli(now, 0.5, h.shape)
    new = jnp.where(move, jnp.where(noise, gate * (1 - gate) + h, gate), h)
    return (new, count + 1, key), (new, count, jnp.concatenate([gate, h]))


def _block(w, reverse, scan, carry, inputs):
    """A step with a loop in it, what the loop goes on from read beside, and products around it."""
    h, total = carry
    x, move = inputs
    loop = Loop(functools.partial(_step, w), h, (x @ w, move), reverse)
    end, (states, counts, gates) = scan(loop)
    before = jnp.concatenate([h[0][None], states[:-1]])
    weights = jnp.einsum("kbi,kbj->ij", before, gates[:, :3])
    return (end, total + weights), (states, counts, jnp.sum(gates, 1))


def _loops(w, reverse):
    rng = np.random.default_rng(0)

    def loop(seed):
        h = jnp.asarray(rng.normal(size=(3, H))), jnp.int32(seed), jax.random.key(seed)
        carry = h, jnp.zeros((H, H))
        inputs = (
            jnp.asarray(rng.normal(size=(2, T, 3, H))),
            jnp.arange(2 * T).reshape(2, T) % 3 != 1,
        )
        return Loop(functools.partial(_block, w, reverse), carry, inputs, reverse)

    return [loop(1), loop(2)]


def _one_by_one(loops, run=scan):
    """What `scans` does, one loop after the other, nothing put together."""
    steps = [functools.partial(loop.step, scan) for loop in loops]
    return [run(loop._replace(step=f)) for loop, f in zip(loops, steps, strict=True)]


def _by_hand(loop):
    """The blocks of a loop, one after the other."""
    total, carry, outputs = len(jax.tree.leaves(loop.inputs)[0]), loop.carry, []
    cuts = [(start, min(start + loop.block, total)) for start in range(0, total, loop.block)]
    for start, stop in [(total - b, total - a) for a, b in cuts] if loop.reverse else cuts:
        inputs = jax.tree.map(lambda a, start=start, stop=stop: a[start:stop], loop.inputs)
        if loop.before is not None:
            before = [a[start - 1] for a in loop.before.pick(loop.inputs)]
            inputs = before if start else loop.before.start, inputs
        carry, emitted = loop.step(carry, inputs)
        outputs.append(emitted)
    outputs = outputs[::-1] if loop.reverse else outputs
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)


def _scans(loops):
    """`scans` of steps of which all outputs stay apart."""

    def apart(step, *args):
        carry, outputs = step(*args)
        return carry, (None, outputs)

    steps = [functools.partial(apart, loop.step) for loop in loops]
    loops = [loop._replace(step=f) for loop, f in zip(loops, steps, strict=True)]
    carries, together, outputs = side_by_side.scans(loops, axis=1)
    assert together is None
    return list(zip(carries, outputs, strict=True))


def _same(got, wanted):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = map(jax.random.key_data, (a, b))
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("reverse", [False, True])
def test_scans_do_what_scan_does(reverse):
    w = np.random.default_rng(1).normal(size=(H, H))
    ends = jax.jit(lambda w: _scans(_loops(w, reverse)))(w)
    _same(ends, _one_by_one(_loops(w, reverse)))


def _loops_over_blocks(w, reverse, block, reads_before):
    def step(scan, carry, inputs):
        before, (xs, moves) = inputs if reads_before else ([carry[0]], inputs)
        moved = xs + before[0][None]
        carry, (states, sums) = scan(Loop(advance, carry, (moved @ w, moves), reverse))
        return carry, ({"states": states, "products": moved @ w}, sums)

    def advance(carry, inputs):
        (h, total), (x, move) = carry, inputs
        new = jnp.where(move, jnp.tanh(h @ w + x), h)
        return (new, total + new.sum()), (new, total)

    rng = np.random.default_rng(0)

    def loop(rows):
        carry = jnp.asarray(rng.normal(size=(rows, H))), jnp.float64(rows)
        inputs = jnp.asarray(rng.normal(size=(7, rows, H))), jnp.arange(7) % 3 != 1
        before = Before([carry[0]], lambda inputs: [inputs[0]]) if reads_before else None
        return Loop(step, carry, inputs, reverse, block, before)

    return [loop(2), loop(3)]


@pytest.mark.parametrize("reads_before", [False, True])
@pytest.mark.parametrize("block", [1, 2, 3, 7, 9])
@pytest.mark.parametrize("reverse", [False, True])
def test_loops_over_blocks(reverse, block, reads_before):
    w = np.random.default_rng(1).normal(size=(H, H))
    loops = _loops_over_blocks(w, reverse, block, reads_before)
    wanted = _one_by_one(loops, _by_hand)
    _same(_one_by_one(loops), wanted)
    if block < 7:
        carries, together, apart = jax.jit(lambda: side_by_side.scans(loops, axis=1))()
        outputs = [outputs for _, outputs in wanted]
        _same(carries, [carry for carry, _ in wanted])
        _same(apart, [apart for _, apart in outputs])
        parts = [together for together, _ in outputs]
        _same(together, jax.tree.map(lambda *leaves: jnp.concatenate(leaves, 1), *parts))


def test_three_loops_of_unlike_steps():
    def count(_, carry, x):
        return carry + x, carry

    inputs = jnp.arange(4.0), jnp.arange(3, dtype=jnp.int32), jnp.arange(5.0) > 2
    carries = jnp.float64(1), jnp.int32(2), jnp.bool(False)
    steps = count, count, lambda _, carry, x: (carry ^ x, x)
    loops = list(map(Loop, steps, carries, inputs))
    _same(_scans(loops), _one_by_one(loops))


@pytest.mark.parametrize("reverse", [False, True])
def test_outputs_are_put_together(reverse):
    w = np.random.default_rng(1).normal(size=(H, H))

    def step(scan, h, x):
        new = jnp.tanh(h @ w + x)
        return new, ((new, {"sum": new.sum(1, keepdims=True)}), h)

    sizes, rng = [3, 1, 2], np.random.default_rng(0)
    inputs = [jnp.asarray(rng.normal(size=(T, rows, H))) for rows in sizes]
    loops = [Loop(step, x[0], x, reverse) for x in inputs]
    carries, together, apart = jax.jit(lambda: side_by_side.scans(loops, axis=1))()
    wanted = _one_by_one(loops)
    _same(carries, [carry for carry, _ in wanted])
    _same(apart, [apart for _, (_, apart) in wanted])
    parts = [together for _, (together, _) in wanted]
    _same(together, jax.tree.map(lambda *leaves: jnp.concatenate(leaves, 1), *parts))


def _whiles(run, *args):
    return [e for e in equations(jax.make_jaxpr(run)(*args).jaxpr) if _is_while(e)]


def test_what_no_step_reads_is_not_passed_in():
    def step(scan, carry, inputs):
        return carry + inputs["read"], None

    def run(inputs):
        return _scans([Loop(step, jnp.float64(k), inputs) for k in (1, 2)])

    whiles = _whiles(run, {"read": jnp.arange(3.0), "unread": jnp.ones((3, 7))})
    shapes = [v.aval.shape for e in whiles for v in e.invars]
    assert (3,) in shapes and (3, 7) not in shapes


def test_what_follows_from_constants_is_computed_once():
    w = jnp.ones((3, 3))

    def step(scan, carry, x):
        return carry @ jnp.tanh(w), x

    def run(xs):
        return _scans([Loop(step, jnp.ones((2, 3)), xs) for _ in range(2)])

    bodies = [e.params["body_jaxpr"].jaxpr for e in _whiles(run, jnp.ones(4))]
    assert not [e for b in bodies for e in equations(b) if e.primitive.name == "tanh"]


def _kept(step, carry, inputs):
    traced, _ = trace(Loop(step, carry, inputs))
    return traced.kept


def test_temporaries_are_kept_once():
    def step(carry, x):
        h, c = carry
        gate = jax.lax.optimization_barrier(jnp.tanh(h @ jnp.ones((2, 2)) + x))
        new = c * gate
        return (jnp.zeros_like(h) + gate @ jnp.ones((2, 2)), jnp.where(x > 0, new, c)), jnp.exp(new)

    # The first product, the gate, and `new`, which is read twice and made of the carry. The second
    # product becomes the carry.
    assert len(_kept(step, (jnp.ones((3, 2)), jnp.ones((3, 2))), jnp.ones((4, 3, 2)))) == 3


def test_one_shape_of_what_is_cheap_is_kept():
    def step(carry, x):
        rows = jnp.concatenate([x, x])
        return carry + (rows.reshape(1, -1) @ jnp.ones((12, 2))).sum(), None

    # The reshaped rows, the product and its sum; not the rows in the other shape.
    shapes = [v.aval.shape for v in _kept(step, jnp.float64(0), jnp.ones((4, 3, 2)))]
    assert shapes == [(1, 12), (1, 2), ()]


def test_what_a_loop_overwrites_is_copied_first():
    def step(scan, carry, xs):
        h, c = carry
        end, hs = scan(Loop(lambda h, x: (h * x, h), h, xs))
        return (end, c + 1), hs + h[None]

    loops = [Loop(step, (jnp.ones(2), jnp.float64(k)), jnp.ones((3, 4))) for k in range(2)]
    marked = trace(loops[0]._replace(step=functools.partial(step, mark)))[0]
    assert marked.overwritten == (marked.jaxpr.invars[0],)
    assert [a.shape for a in marked.scratch().copies] == [(2, 2)]
    _same(_scans(loops), _one_by_one(loops))


def test_scans_can_be_mapped():
    ws = np.random.default_rng(1).normal(size=(3, H, H))

    def run(w):
        return _scans(_loops(w, False))

    _same(jax.jit(jax.vmap(run))(ws), [*map(_stacked, zip(*map(run, ws), strict=True))])
    loops = _whiles(jax.vmap(run), ws)
    assert all(e.params["cond_jaxpr"].out_avals[0].shape == () for e in loops)


def _stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _is_while(eqn):
    return eqn.primitive.name == "while"
