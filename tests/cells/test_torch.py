"""Outputs and gradients against PyTorch on the CPU, float64, weights mapped by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from tests.registry import assert_close

torch = pytest.importorskip("torch")

T, B, I, H = 6, 2, 3, 4  # noqa: E741 - the axis letters of the package
CLOSE = 1e-10

CELLS = {"elman": (jb.elman, "RNN"), "lstm": (jb.lstm, "LSTM"), "gru": (jb.gru, "GRU")}


def _to_torch(params, name):
    """Return (weight_ih, weight_hh, bias_ih, bias_hh) as PyTorch lays them out: [G H, I] and so on.

    PyTorch's gates have our order: i, f, g, o and r, z, n. It has two biases everywhere; we have
    two for the GRU's candidate alone, the others being redundant.
    """
    rows = functools.partial(np.transpose, axes=(1, 2, 0))
    weight_ih = rows(params.w_x).reshape(-1, I)
    weight_hh = rows(params.w_s).reshape(-1, H)
    bias_hh = np.zeros_like(params.b)
    if name == "gru":
        bias_hh[2] = params.b_n
    return weight_ih, weight_hh, np.ravel(params.b), np.ravel(bias_hh)


def _from_torch(gradients, like, name):
    """Lay PyTorch's gradients out as our parameters."""
    d_ih, d_hh, d_b, d_b_hh = (np.asarray(g.grad) for g in gradients)
    gates = like.w_x.shape[1]
    d_w_x = np.transpose(d_ih.reshape(gates, H, I), (2, 0, 1))
    d_w_s = np.transpose(d_hh.reshape(gates, H, H), (2, 0, 1))
    gradient = like._replace(w_x=d_w_x, w_s=d_w_s, b=d_b.reshape(gates, H))
    return gradient._replace(b_n=d_b_hh.reshape(gates, H)[2]) if name == "gru" else gradient


@pytest.mark.parametrize("name", CELLS)
def test_outputs_and_gradients(name):
    constructor, layer = CELLS[name]
    rng = np.random.default_rng(0)
    cell = constructor(input_size=I, hidden_size=H)
    params = jax.tree.map(
        lambda p: np.asarray(p) + 0.3 * rng.normal(size=p.shape), cell.init(jax.random.key(0))
    )
    xs, d_ys = rng.normal(size=(T, B, I)), rng.normal(size=(T, B, H))
    start = jax.tree.map(lambda s: rng.normal(size=s.shape), cell.initial_state(params, (B,)))

    def loss(params, xs, start):
        last_state, ys = jb.unroll(cell, params, xs, start)
        last = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(last_state))
        return jnp.sum(ys * d_ys) + last, (last_state, ys)

    grad = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    (d_params, d_xs, d_start), (last_state, ys) = grad(params, xs, start)

    their = getattr(torch.nn, layer)(I, H).double()
    weights = list(their.parameters())
    for weight, value in zip(weights, _to_torch(params, name), strict=True):
        weight.data = torch.tensor(value)
    their_xs = torch.tensor(xs, requires_grad=True)
    their_start = jax.tree.map(lambda s: torch.tensor(s[None], requires_grad=True), start)
    as_tuple = tuple(their_start) if name == "lstm" else their_start
    their_ys, their_last = their(their_xs, as_tuple)
    total = (their_ys * torch.tensor(d_ys)).sum()
    total = total + sum((leaf**2).sum() for leaf in jax.tree.leaves(their_last))
    total.backward()

    def numbers(tensors):
        return [np.asarray(t.detach()) for t in tensors]

    assert_close(ys, numbers([their_ys])[0], CLOSE)
    their_last = [a[0] for a in numbers(jax.tree.leaves(their_last))]
    assert_close(jax.tree.leaves(last_state), their_last, CLOSE)
    assert_close(d_params, _from_torch(weights, params, name), CLOSE)
    assert_close(d_xs, np.asarray(their_xs.grad), CLOSE)
    their_d_start = [np.asarray(s.grad)[0] for s in jax.tree.leaves(their_start)]
    assert_close(jax.tree.leaves(d_start), their_d_start, CLOSE)
