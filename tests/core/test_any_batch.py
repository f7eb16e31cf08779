"""`any_batch=True` of a cell of one's own: refused where a function couples entries of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt.cells.batches import couples_batch
from tests.core.messages import check
from tests.registry import CELLS, assert_close

H = 3


@pytest.fixture(autouse=True)
def lenient():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def cell_of(step, **options):
    return jb.from_step(
        step,
        init=lambda key: {"w": jnp.eye(H)},
        initial_state=lambda w, batch: jnp.zeros((*batch, H)),
        input_shape=(H,),
        **options,
    )


COUPLING = {
    "mean": lambda x: x - x.mean(0),
    "var in a jit": lambda x: x / (1 + jnp.var(x, 0, keepdims=True)),
    "softmax": lambda x: jax.nn.softmax(x, axis=0),
    "cumsum": lambda x: jnp.cumsum(x, 0),
    "sort": lambda x: jnp.sort(x, 0),
    "flip": lambda x: x[::-1],
    "first": lambda x: x - x[0],
    "roll": lambda x: jnp.roll(x, 1, 0),
    "gram": lambda x: x @ (x.reshape(-1, H).T @ x.reshape(-1, H)),
    "attention": lambda x: jax.nn.softmax(x @ jnp.swapaxes(x, 0, -1), -1) @ x if x.ndim == 2 else x,
}
HONEST = {
    "product": lambda x: x @ jnp.ones((H, H)),
    "rows": lambda x: (x.reshape(-1, H) @ jnp.ones((H, H))).reshape(x.shape),
    "norm": lambda x: x - x.mean(-1, keepdims=True),
    "softmax": lambda x: jax.nn.softmax(x),
    "last unit": lambda x: x - x[..., -1:],
    "where": lambda x: jnp.where(x > 0, x, 0.1 * x),
    "roll": lambda x: jnp.roll(x, 1, -1),
    "einsum": lambda x: jnp.einsum("...i,ij->...j", x, jnp.ones((H, H))),
}


@pytest.mark.parametrize("name", COUPLING)
@pytest.mark.parametrize("where", ["step", "project", "readout"])
def test_refused(name, where):
    fun = COUPLING[name]
    step = (lambda w, s, x: fun(s + x)) if where == "step" else (lambda w, s, x: s + x)
    options = {} if where == "step" else {where: lambda w, x: fun(x)}
    check(
        lambda: cell_of(step, any_batch=True, **options),
        ValueError,
        f"from_step: any_batch=True passes time as one more batch axis, but {where} couples",
    )


@pytest.mark.parametrize("name", HONEST)
def test_taken(name):
    fun = HONEST[name]
    cell = cell_of(lambda w, s, x: fun(s @ w["w"] + x), project=lambda w, x: fun(x), any_batch=True)
    assert couples_batch(cell) is None


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_that_says_so_keeps_its_word(name):
    cell = CELLS[name].cell
    assert not cell.any_batch or couples_batch(cell) is None


def test_without_it_the_gradient_is_right():
    cell = cell_of(lambda w, s, x: jnp.tanh(s @ w["w"] + x - x.mean(0)))
    xs = np.random.default_rng(0).normal(size=(5, 4, H))

    def loss(xs, algorithm):
        return jnp.sum(jb.unroll(cell, {"w": jnp.eye(H)}, xs, algorithm=algorithm)[1] ** 2)

    got, want = (jax.grad(loss)(xs, a) for a in (jb.bptt(block_length=2), jb.autodiff()))
    assert_close(got, want, 1e-12)
