"""PyTorch's recurrent layers on the CPU, through its own autograd."""

# The rivals are an optional extra, so that they may be absent where types are checked.
# pyright: reportMissingImports=false

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.data import GATES, Data, Row
from benchmarks.measure import Prepared, Stepper, rounds

CELLS = ("elman", "gru", "lstm")


def _arrays(tensors: dict[str, Any]) -> dict[str, np.ndarray]:
    return {k: t.detach().double().numpy() for k, t in tensors.items()}


def _layer(row: Row, data: Data, *, single_step: bool) -> Any:
    """Return the module with the row's weights: w of torch is [G H, I], b_n its second bias."""
    import torch

    if single_step:
        kinds = {"elman": torch.nn.RNNCell, "gru": torch.nn.GRUCell, "lstm": torch.nn.LSTMCell}
    else:
        kinds = {"elman": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}
    layer = kinds[row.cell](row.I, row.H, dtype=getattr(torch, row.dtype))
    w_x, w_s, b_x, b_s = layer.parameters()
    inner = np.zeros((GATES[row.cell], row.H))
    if row.cell == "gru":
        inner[2] = data.weights["b_n"]
    with torch.no_grad():
        w_x.copy_(torch.from_numpy(data.weights["w_x"].reshape(row.I, -1).T.copy()))
        w_s.copy_(torch.from_numpy(data.weights["w_s"].reshape(row.H, -1).T.copy()))
        b_x.copy_(torch.from_numpy(data.weights["b"].reshape(-1)))
        b_s.copy_(torch.from_numpy(inner.reshape(-1)))
    return layer


def forward(data: Data) -> Prepared:
    """Return the forward pass, in inference mode."""
    import torch

    layer = _layer(data.row, data, single_step=False)
    xs = torch.from_numpy(data.xs).to(getattr(torch, data.row.dtype))

    def call():
        with torch.inference_mode():
            return layer(xs)[0]

    def results(ys):
        return _arrays({"ys": ys})

    return Prepared(call, results, lambda: results(call()), None, None)


def gradient(data: Data) -> Prepared:
    """Return the gradient of sum(ys^2) with respect to parameters and inputs."""
    import torch

    row = data.row
    layer = _layer(row, data, single_step=False)
    xs = torch.from_numpy(data.xs).to(getattr(torch, row.dtype)).requires_grad_()
    leaves = [*layer.parameters(), xs]

    def call():
        return torch.autograd.grad(layer(xs)[0].square().sum(), leaves)

    def results(grads):
        d_w_x, d_w_s, d_b, d_inner, d_xs = grads
        shape = (-1, GATES[row.cell], row.H)
        shared = {
            "w_x": d_w_x.T.reshape(shape),
            "w_s": d_w_s.T.reshape(shape),
            "b": d_b.reshape(shape[1:]),
            "xs": d_xs,
        }
        if row.cell == "gru":
            shared["b_n"] = d_inner.reshape(shape[1:])[2]
        return _arrays(shared)

    def outputs():
        return _arrays({"ys": layer(xs)[0]})

    return Prepared(call, results, outputs, None, None)


def fastest(call: Callable[[], Any]) -> tuple[Callable[[], Any], str]:
    """Return the call with one thread or with all, whichever a short run finds faster, and a note.

    All is what torch does by itself; for small products one is often better, and on a machine
    with other work to do it always is.
    """
    threads = {f"{n} thread{'s' * (n > 1)}": _threaded(call, n) for n in (1, _all_threads())}
    seconds = rounds(threads, 3, lambda: None)
    best = min(seconds, key=lambda name: np.median(seconds[name]))
    return threads[best], best


@functools.cache
def _all_threads():
    import torch

    return torch.get_num_threads()


def _threaded(call, threads):
    import torch

    def threaded():
        torch.set_num_threads(threads)
        return call()

    return threaded


def stepper(data: Data) -> Stepper:
    """Return the streaming step of the module for single steps, in inference mode."""
    import torch

    cell = _layer(data.row, data, single_step=True)
    xs = torch.from_numpy(data.xs).to(getattr(torch, data.row.dtype))
    state = [None]

    def restart():
        state[0] = None

    def step(t):
        with torch.inference_mode():
            state[0] = new = cell(xs[t], state[0])
        return new[0] if data.row.cell == "lstm" else new

    return Stepper(step, restart, lambda y: y.double().numpy())
