"""PyTorch's recurrent layers, through its own autograd."""

# The rivals are an optional extra, so that they may be absent where types are checked.
# pyright: reportMissingImports=false

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

import jax_bptt as jb
from benchmarks.data import Data
from benchmarks.measure import Prepared, rounds
from benchmarks.models import parameters
from jax_bptt.testing.libraries import torch_layers


def _arrays(tensors: dict[str, Any]) -> dict[str, np.ndarray]:
    return {k: t.detach().double().numpy() for k, t in tensors.items()}


def _ready(data: Data, make: Callable[[], Any] | None = None) -> tuple[Any, Any]:
    """Return the module with the row's weights, and its inputs; `make` makes that of one step."""
    import torch

    row, dtype = data.row, getattr(torch, data.row.dtype)
    tree = jb.interop.torch.from_params(parameters(data.weights))
    if make is None:
        layer = torch_layers.module(row.cell, row.I, row.H)
    else:
        layer, tree = make(), {name.removesuffix("_l0"): w for name, w in tree.items()}
    return torch_layers.filled(layer, tree).to(dtype), torch.from_numpy(data.xs).to(dtype)


def passes(layer: Any, xs: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return what computes the outputs, in inference mode, and the gradient of sum(ys^2).

    The gradient is with respect to the layer's parameters, in their order, and xs.
    """
    import torch

    xs.requires_grad_()
    leaves = [*layer.parameters(), xs]

    def forward():
        with torch.inference_mode():
            return layer(xs)[0]

    def gradient():
        return torch.autograd.grad(layer(xs)[0].square().sum(), leaves)

    return forward, gradient


def forward(data: Data) -> Prepared:
    """Return the forward pass."""
    call, _ = passes(*_ready(data))

    def results(ys):
        return _arrays({"ys": ys})

    return Prepared(call, results, lambda: results(call()), None, None)


def gradient(data: Data) -> Prepared:
    """Return the gradient of sum(ys^2) with respect to parameters and inputs."""
    layer, xs = _ready(data)
    outputs, call = passes(layer, xs)
    names = [name for name, _ in layer.named_parameters()]

    def results(grads):
        *d_params, d_xs = grads
        named = _arrays(dict(zip(names, d_params, strict=True)))
        (found,) = jb.interop.torch.to_gradients(named)
        found = {name: d for name, d in found._asdict().items() if d is not None}
        return found | _arrays({"xs": d_xs})

    return Prepared(call, results, lambda: _arrays({"ys": outputs()}), None, None)


def fastest(prepared: Prepared) -> Prepared:
    """Return the call with one thread or with all, whichever a short run finds faster, noted.

    All is what torch does by itself; for small products one is often better, and on a machine
    with other work to do it always is.
    """
    counts = 1, _all_threads()
    threads = {f"{n} thread{'s' * (n > 1)}": _threaded(prepared.call, n) for n in counts}
    seconds = rounds(threads, 3, lambda: None)
    best = min(seconds, key=lambda name: np.median(seconds[name]))
    return prepared._replace(call=threads[best], note=best)


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


def steps(data: Data) -> Prepared:
    """Return what takes the steps one by one, by the module for single steps."""
    import torch

    row = data.row
    kinds = {"elman": torch.nn.RNNCell, "gru": torch.nn.GRUCell, "lstm": torch.nn.LSTMCell}
    cell, xs = _ready(data, lambda: kinds[row.cell](row.I, row.H))

    def call():
        state, ys = None, []
        for t in range(row.T):
            with torch.inference_mode():
                state = cell(xs[t], state)
            ys.append(state[0] if row.cell == "lstm" else state)
        return ys

    return Prepared(call, lambda ys: _arrays({"ys": torch.stack(ys)}), dict, None, None)
