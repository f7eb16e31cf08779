"""PyTorch: `torch.nn.RNN`, `GRU` and `LSTM` on the CPU, through autograd and nothing of JAX."""

# The rivals are an optional extra, so that they may be absent where types are checked.
# pyright: reportMissingImports=false

import re
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.testing import Subject
from jax_bptt.testing.libraries.layers import ELSEWHERE, STACK, Adapter, Case, Sizes, perturbed

CELLS = ("lstm", "gru", "elman")
ALL = ("params", "xs", "state")


def _tensor(a: Any) -> Any:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the array is not writable; nobody writes to it
        return torch.from_numpy(a)


def _numpy(tree: Any) -> Any:
    return jax.tree.map(lambda t: t.detach().numpy(), tree)


def module(kind: str, inputs: int, units: int, layers: int = 1) -> Any:
    """Return a module of PyTorch's own parameters."""
    import torch

    kinds = {"elman": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}
    return kinds[kind](inputs, units, num_layers=layers)


def filled(module: Any, params: Mapping[str, Any]) -> Any:
    """Return a module with parameters of the given values, and of their dtype."""
    import torch

    for name, value in params.items():
        setattr(module, name, torch.nn.Parameter(_tensor(value).clone()))
    return module


def _run(module: Any, xs: Any, state: Any, lengths: Any) -> tuple[Any, Any]:
    """Return (last_state, ys); a state has a leaf [B, H] for each layer."""
    import torch

    h, c = (torch.stack(state[k]) if k in state else None for k in "hc")
    start = h if c is None else (h, c)
    if lengths is None:
        ys, last = module(xs, start)
    else:
        rnn = torch.nn.utils.rnn
        sizes = torch.as_tensor(np.asarray(lengths), dtype=torch.int64)
        packed = rnn.pack_padded_sequence(xs, sizes, enforce_sorted=False)
        packed, last = module(packed, start)
        ys, _ = rnn.pad_packed_sequence(packed, total_length=len(xs))
    last = (last,) if c is None else last
    return {k: tuple(leaf.unbind()) for k, leaf in zip("hc", last, strict=False)}, ys


def _subject(kind: str, sizes: Sizes, layers: int, name: str) -> Subject:
    import torch

    def leaves_of(arguments, wrt):
        """Return the module, and tensors of (params, xs, state), by argument."""
        params, xs, state = arguments
        made = filled(module(kind, sizes.I, sizes.H, layers), params)
        own = {k: getattr(made, k) for k in params}
        xs, state = jax.tree.map(lambda a: _tensor(a).clone(), (xs, state))
        arguments = own, xs, state
        for argument, part in zip(ALL, arguments, strict=True):
            for leaf in jax.tree.leaves(part):
                leaf.requires_grad_(argument in wrt)
        return made, arguments

    def forward(params, xs, state, lengths=None):
        with torch.no_grad():
            made, (_, xs, state) = leaves_of((params, xs, state), ())
            return _numpy(_run(made, xs, state, lengths))

    def differentiated(arguments, cotangents, directions=(), wrt=ALL, lengths=None):
        made, arguments = leaves_of(arguments, wrt)
        last, ys = _run(made, arguments[1], arguments[2], lengths)
        named = jax.tree_util.tree_leaves_with_path((last, ys))
        given = dict(jax.tree_util.tree_leaves_with_path(tuple(cotangents)))
        pairs = [(out, _tensor(given[path])) for path, out in named if path in given]
        inputs = [leaf for leaf in jax.tree.leaves(arguments) if leaf.requires_grad]
        gradients = _grad(pairs, inputs, create_graph=bool(directions))
        for k, direction in enumerate(directions):
            along = [_tensor(d) for d in jax.tree.leaves(tuple(direction))]
            pairs = [(g, d) for g, d in zip(gradients, along, strict=True) if g is not None]
            gradients = _grad(pairs, inputs, create_graph=k + 1 < len(directions))
        found = iter(gradients)
        return jax.tree.map(
            lambda leaf: _host(next(found)) if leaf.requires_grad else None, arguments
        )

    def gradient(params, xs, state, cotangents, wrt=ALL, lengths=None):
        return differentiated((params, xs, state), cotangents, wrt=wrt, lengths=lengths)

    def higher(params, xs, state, cotangents, directions):
        return differentiated((params, xs, state), cotangents, directions)

    return Subject(
        name,
        forward,
        gradient,
        higher=higher,
        step=_step(kind) if layers == 1 else None,
        supports={"lengths"},
        disclaims={"zero_lengths": "pack_padded_sequence refuses lengths below one"},
        layer_of=lambda path: (re.findall(r"_l(\d+)", path) or [None])[0],
    )


def _grad(pairs: list, inputs: list, create_graph: bool) -> tuple:
    import torch

    pairs = [(out, weight) for out, weight in pairs if out.requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(leaf) for leaf in inputs)
    outs, weights = zip(*pairs, strict=True)
    return torch.autograd.grad(outs, inputs, weights, create_graph=create_graph, allow_unused=True)


def _host(gradient: Any) -> Any:
    return None if gradient is None else gradient.detach().numpy()


def _step(kind: str) -> Any:
    """Return one step in JAX, from the equations in PyTorch's documentation."""

    def products(params, h, x):
        from_x = x @ params["weight_ih_l0"].T + params["bias_ih_l0"][None]
        return from_x, h @ params["weight_hh_l0"].T + params["bias_hh_l0"][None]

    def elman(params, state, x):
        h = jnp.tanh(sum(products(params, state["h"][0], x)))
        return {"h": (h,)}, h

    def gru(params, state, x):
        (h,) = state["h"]
        from_x, from_h = (jnp.split(a, 3, axis=-1) for a in products(params, h, x))
        r, z = (jax.nn.sigmoid(from_x[k] + from_h[k]) for k in range(2))
        n = jnp.tanh(from_x[2] + r * from_h[2])
        h = (1 - z) * n + z * h
        return {"h": (h,)}, h

    def lstm(params, state, x):
        gates = jnp.split(sum(products(params, state["h"][0], x)), 4, axis=-1)
        i, f, o = (jax.nn.sigmoid(gates[k]) for k in (0, 1, 3))
        c = f * state["c"][0] + i * jnp.tanh(gates[2])
        h = o * jnp.tanh(c)
        return {"h": (h,), "c": (c,)}, h

    return {"elman": elman, "gru": gru, "lstm": lstm}[kind]


def _cases(names: Collection[str], sizes: Sizes) -> list[Case]:
    import torch

    def case(name):
        kind, layers = (CELLS[-1], 3) if name == STACK else (name, 1)
        torch.manual_seed(0)
        made = module(kind, sizes.I, sizes.H, layers)
        rng = np.random.default_rng(0)
        params = {k: p.detach().numpy() for k, p in made.named_parameters()}
        parts = "hc" if kind == "lstm" else "h"
        state = {k: tuple(np.zeros((sizes.B, sizes.H)) for _ in range(layers)) for k in parts}
        params, state = perturbed(rng, params), perturbed(rng, state)
        xs = rng.normal(size=(sizes.T, sizes.B, sizes.I))
        left_out = ELSEWHERE if name == STACK else ()
        return Case(name, _subject(kind, sizes, layers, name), params, xs, state, left_out)

    return [case(name) for name in names]


ADAPTER = Adapter("torch", "torch", (*CELLS, STACK), _cases)
