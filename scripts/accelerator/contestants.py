"""The ways to run an LSTM that are timed against each other, under JAX and by PyTorch."""

# PyTorch is an optional extra, so that it may be absent where types are checked.
# pyright: reportMissingImports=false

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from benchmarks import measure, torch_peer
from jax.experimental import rnn

import jax_bptt as jb
from accelerator.correct import kernel_of
from accelerator.rows import CELL, Row
from jax_bptt.testing.libraries import torch_layers

FUSED, KERNEL, ROUGH = "fused", "fused, drives given", "fused, drives given, approximate"
SCAN, GRAPH, PLAIN = "scan", "scan, one graph", "plain scan"
CUDNN, TORCH = "cuDNN by JAX", "cuDNN by torch"

Call = Callable[[], Any]
"""Runs once and waits for the result."""


def cell_of(row: Row) -> jb.Cell:
    """Return the library's cell for a row."""
    cell = jb.lstm(input_size=row.H, hidden_size=row.H, dtype=jnp.dtype(row.dtype))
    return cell if row.D == row.H else jb.multi_head(cell, heads=row.H // row.D)


def given_drives(cell: jb.Cell) -> jb.Cell:
    """Return a cell whose inputs are the drives already, so that the recurrence alone is left."""

    def one(key):
        weights = cell.prepare(cell.init(key))
        x = jax.tree.map(lambda a: jnp.zeros(a.shape, weights.w_x.dtype), cell.input_spec)
        return cell.project(weights, x)

    drive = jax.eval_shape(one, jax.random.key(0))
    return cell._replace(project=lambda weights, x: x, input_spec=drive)


def drawn(shapes: Any, scale: float) -> Any:
    """Draw normal numbers; an orthogonal matrix would take longer than all that is timed."""

    def draw(leaf):
        return scale * jax.random.normal(jax.random.key(leaf.size), leaf.shape, leaf.dtype)

    return jax.tree.map(draw, shapes)


def library(row: Row) -> dict[str, Callable[[], Call] | str]:
    """Return, by name, what compiles each way to run a row, or why there is none.

    `KERNEL` leaves out the input's product and its gradient, as published figures of fused kernels
    do; `ROUGH` has besides the hardware's own functions, of half the digits of float32; `PLAIN` is
    `jax.grad` of a scan over whole steps.
    """
    cell, backend = cell_of(row), jax.default_backend()
    bare = given_drives(cell)
    params = drawn(jax.eval_shape(cell.init, jax.random.key(0)), row.H**-0.5)
    xs, drives = (
        drawn(jax.ShapeDtypeStruct((row.T, row.B, *x.shape), x.dtype), 1.0)
        for x in (jax.ShapeDtypeStruct((row.H,), row.dtype), bare.input_spec)
    )

    def by(algorithm, options=None, cell=cell, xs=xs):
        def run(params, xs):
            return jb.unroll(cell, params, xs, algorithm=algorithm)[1]

        return lambda: compiled(run, row, (params, xs), options)

    told = explained(row)
    has_kernel, reason = kernel_of(told) is not None, told.partition("\n")[2]
    rough = by(jb.fused(approximate=True), cell=bare, xs=drives)
    if row.dtype == "float32" or backend == "tpu":
        rough = "for operands of 16 bits, on a GPU"
    graph = by(jb.bptt(), jb.gpu_compiler_options()) if backend != "tpu" else "no CUDA graphs"
    return {
        FUSED: by(jb.fused()) if has_kernel else reason,
        KERNEL: by(jb.fused(), cell=bare, xs=drives) if has_kernel else reason,
        ROUGH: rough if has_kernel else reason,
        SCAN: by(jb.bptt()),
        GRAPH: graph,
        PLAIN: by(jb.autodiff()),
    }


@functools.cache
def explained(row: Row) -> str:
    """Return what `jb.explain` tells of a row."""
    cell = cell_of(row)
    params = jax.eval_shape(cell.init, jax.random.key(0))
    xs = jax.ShapeDtypeStruct((row.T, row.B, row.H), jnp.dtype(row.dtype))
    return jb.explain(cell, params, xs)


def kernel(row: Row) -> str | None:
    """Return the kernel that `FUSED` runs, None where it is the scan."""
    return kernel_of(explained(row))


def cudnn(row: Row) -> dict[str, Callable[[], Call] | str]:
    """Return cuDNN's LSTM as JAX binds it, which leads with the batch and is float32 alone."""
    if jax.default_backend() != "gpu":
        return {CUDNN: "it takes an NVIDIA GPU"}
    size, batch = row.H, row.B
    weights = rnn.init_lstm_weight(jax.random.key(0), size, size, 1, False)
    xs = jax.random.normal(jax.random.key(1), (batch, row.T, size), jnp.float32)
    zero, lengths = jnp.zeros((1, batch, size)), jnp.full((batch,), row.T, jnp.int32)

    def run(weights, xs):
        precision = jax.lax.Precision.HIGHEST
        lstm = cast(Any, rnn.lstm)  # whose result is typed as any object
        return lstm(xs, zero, zero, weights, lengths, size, size, 1, 0.0, False, precision)[0]

    return {CUDNN: lambda: compiled(run, row, (weights, xs), None)}


def compiled(run: Callable, row: Row, args: Any, options: dict[str, Any] | None) -> Call:
    """Compile a row's task, of `run(params, xs) -> ys`, with float32 products in float32."""
    with jax.default_matmul_precision("highest" if row.dtype == "float32" else "default"):
        return measure.compiled(row.task.function(run, None), args, options).call


def torch_device() -> str:
    """Return the name of the GPU, or "cpu" where PyTorch sees none."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def cudnn_by_torch(row: Row) -> dict[str, Callable[[], Call] | str]:
    """Return what prepares PyTorch's layer for a row; weights and inputs are its own draws."""
    import torch

    # In float32 the products are to be float32, as those of the other contestants are.
    torch.backends.cudnn.allow_tf32 = False
    where = "cuda" if torch.cuda.is_available() else "cpu"
    settings: dict[str, Any] = {"device": where, "dtype": getattr(torch, row.dtype)}

    def prepare():
        layer = torch_layers.module(CELL, row.H, row.H).to(**settings)
        forward, gradient = torch_peer.passes(layer, torch.randn(row.T, row.B, row.H, **settings))
        call = forward if row.direction == "forward" else gradient

        def waiting():
            call()
            if where == "cuda":
                torch.cuda.synchronize()

        return waiting

    return {TORCH if where == "cuda" else "torch on the CPU": prepare}
