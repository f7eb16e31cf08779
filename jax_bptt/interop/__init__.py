"""Weights and gradients to and from other libraries: NumPy arrays in, NumPy arrays out.

One module a library, none of which imports it. Each has four pure functions, linear but for a
constant that is named where there is one:

    to_params(theirs) -> params              from_params(params) -> theirs
    to_gradients(d_theirs) -> d_params       from_gradients(d_params) -> d_theirs

Where their numbers outnumber ours, as two biases that are only ever added up, a gradient does not
map as a parameter does. With ours = A theirs and theirs = B ours, A B = 1, the chain rule has

    d_theirs = A^T d_ours        d_ours = B^T d_theirs        B^T A^T = 1

so `from_gradients` is the transpose of `to_params` and `to_gradients` that of `from_params`. From
here to there and back changes no number, and from there to here and back no output, but for the
rounding of the 1 that Haiku adds to a forget gate.

Layers of this library are modules of others too: `nnx.Recurrent`, `linen.Recurrent`,
`linen.ScannedRNN` and `equinox.Recurrent`, which import that library when they are first used.

What decides a cell's equations but is in no array (an activation, a residual, a clipping bound)
cannot be checked here. What the other library cannot represent is refused by name, with a
`ValueError`.
"""

from jax_bptt.interop import equinox, flax, haiku, keras, linen, nnx, onnx, torch

__all__ = ["equinox", "flax", "haiku", "keras", "linen", "nnx", "onnx", "torch"]
