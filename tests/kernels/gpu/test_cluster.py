"""The GPU kernels over a cluster, interpreted with the race detector on, against a plain scan."""

import functools

import jax
import jax.numpy as jnp
import pytest

import jax_bptt as jb
from jax_bptt.kernels.gpu import cluster, mosaic
from jax_bptt.kernels.gpu import matrix as gpu_matrix
from jax_bptt.kernels.gpu.mail import Box
from jax_bptt.kernels.kernel import Settings
from tests.kernels.gpu.test_heads import TOLERANCE, check, check_caught, make_case
from tests.kernels.lowering import lowered
from tests.registry import slow_unless

pytestmark = pytest.mark.skipif(mosaic.available() is not None, reason=str(mosaic.available()))

make_dense = functools.partial(make_case, heads=1, units=64)


def confirm(case):
    assert cluster.unsupported(case.form) is None
    check(case, TOLERANCE[case.form.matrix.dtype.type], cluster)


@pytest.mark.parametrize(
    "constructor, dtype",
    [
        slow_unless((constructor, dtype) == (jb.gru, jnp.bfloat16), constructor, dtype)
        for constructor in (jb.elman, jb.gru, jb.lstm)
        for dtype in (jnp.float32, jnp.bfloat16)
    ],
)
def test_equals_scan_over_two_blocks(constructor, dtype):
    flagged = (constructor is jb.gru) == (dtype == jnp.float32)
    confirm(make_dense(constructor, dtype, batch=18, flagged=flagged))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("constructor", [jb.lstm_peephole, jb.mgu, jb.ugrnn, jb.ctrnn])
def test_other_cells_equal_scan(constructor, dtype):
    confirm(make_dense(constructor, dtype, batch=18, flagged=True))


@pytest.mark.slow
def test_four_blocks():
    confirm(make_dense(jb.gru, jnp.bfloat16, batch=16, flagged=True, units=128))


@pytest.mark.slow
def test_two_warpgroups_in_each_block(monkeypatch):
    monkeypatch.setattr(cluster, "BLOCKS", 2)
    confirm(make_dense(jb.elman, jnp.bfloat16, batch=16, flagged=False, units=128))


@pytest.mark.slow
def test_eight_blocks_of_two_warpgroups():
    confirm(make_dense(jb.elman, jnp.bfloat16, batch=16, flagged=True, units=512))


@pytest.mark.slow
def test_matrix_partly_in_shared_memory(monkeypatch):
    case = make_dense(jb.lstm, jnp.bfloat16, batch=16, flagged=True)
    # Room for one chunk of two beside the sums of the reverse kernel.
    monkeypatch.setattr(gpu_matrix, "REST", 255 - 16 - 8)
    assert all(split.tiles == 4 for split in splits(case))
    confirm(case)


def splits(case):
    plan = cluster._plan(case.form, *case.drives.shape[:2])
    return [made(plan, 4) for made in (cluster._gathering, cluster._reducing)]


def kernel(direction, units=64, steps=3):
    """Return a kernel of a simple network with its arguments, all but `settings`."""
    case = make_dense(jb.elman, jnp.bfloat16, batch=16, flagged=False, units=units, steps=steps)
    if direction == "forward":
        return functools.partial(cluster.forward, case.form, case.forward_inputs, save=False)
    zeros = jnp.zeros((*case.drives.shape[:2], units), jnp.float32)
    inputs = case.backward_inputs((zeros,), ())._replace(d_states=(None,))
    return functools.partial(cluster.backward, case.form, inputs)


@pytest.mark.parametrize("direction", ["forward", slow_unless(False, "backward")])
def test_reading_before_all_has_come_is_caught(direction, monkeypatch, caplog):
    def received(box, barrier):
        return box.memory.at[box.place.block, box.place.part]

    spoil = functools.partial(monkeypatch.setattr, Box, "received", received)
    # In one step no barrier is passed twice, which the interpreter would notice by itself.
    check_caught(kernel(direction, steps=1), caplog, spoil)


@pytest.mark.slow
def test_sending_before_all_have_read_is_caught(monkeypatch, caplog):
    wait, arrive = mosaic.plgpu.barrier_wait, mosaic.plgpu.barrier_arrive
    late = []

    def wait_late(barrier):
        # Of the two barriers of the cluster, the box's is one of an array.
        whole = barrier is getattr(barrier, "ref", barrier)
        late.append(barrier) if whole and "cluster" in str(jax.typeof(barrier)) else wait(barrier)

    def arrive_at_last(barrier):
        while late:
            wait(late.pop())
        arrive(barrier)

    def spoil():
        monkeypatch.setattr(mosaic.plgpu, "barrier_wait", wait_late)
        monkeypatch.setattr(mosaic.plgpu, "barrier_arrive", arrive_at_last)

    check_caught(kernel("backward"), caplog, spoil)


@pytest.mark.slow
def test_hidden_states_in_one_place_are_caught(monkeypatch, caplog):
    spoil = functools.partial(monkeypatch.setattr, cluster, "PLACES", 1)
    check_caught(kernel("forward"), caplog, spoil)


@pytest.mark.slow
def test_derivatives_in_one_place_are_caught(monkeypatch, caplog):
    """One warpgroup would write its own while the other still reads those of the step before."""
    monkeypatch.setattr(cluster, "BLOCKS", 2)
    spoil = functools.partial(monkeypatch.setattr, cluster, "PLACES", 1)
    check_caught(kernel("backward", units=128), caplog, spoil)


@pytest.mark.parametrize("constructor", [jb.elman, jb.lstm])
def test_lowers_for_a_gpu(constructor):
    case = make_dense(constructor, jnp.bfloat16, batch=16, flagged=True, units=256)

    def both(inputs):
        states, saved = cluster.forward(case.form, inputs, Settings(), save=True)
        return cluster.backward(case.form, case.backward_inputs(states, saved), Settings())

    assert lowered(both, case.forward_inputs).count("mosaic_gpu") >= 2


@pytest.mark.parametrize(
    ("size", "blocks"),
    [(32, None), (64, 2), (96, 3), (256, 8), (288, 3), (352, None), (384, 6), (480, 5), (512, 8)],
)
def test_blocks_divide_the_units(size, blocks):
    assert cluster.blocks_of(size) == blocks


def test_says_what_does_not_fit():
    form = make_dense(jb.lstm, jnp.float32, batch=16, flagged=False).form

    def of(size, dtype=jnp.bfloat16, heads=1):
        matrix = jnp.zeros((heads, size, 4, size), dtype)
        return cluster.unsupported(form._replace(matrix=matrix))

    assert of(256) is None and of(384) is None and of(512) is None and of(256, jnp.float32) is None
    assert "not 2 heads" in str(of(64, heads=2))
    assert "not 352" in str(of(352)) and "not 1024" in str(of(1024))
    assert "KiB of shared memory in each of 8 blocks" in str(of(512, jnp.float32))


def test_says_what_this_jax_lacks(monkeypatch):
    form = make_dense(jb.elman, jnp.bfloat16, batch=16, flagged=False).form
    for name in mosaic.NEEDED:
        with monkeypatch.context() as without:
            without.delattr(mosaic.plgpu, name)
            assert f"has no {name}; install jax" in str(cluster.unsupported(form))
