"""Recurrent networks with explicit backpropagation through time, in JAX.

    import jax, jax.numpy as jnp, jax_bptt as jb

    cell = jb.lstm(3, 8, output_size=1)                 # a cell: pure functions of one time step
    params = cell.init(jax.random.key(0))               # a pytree
    last_state, ys = jb.unroll(cell, params, xs)        # xs [T, *batch, 3], ys [T, *batch, 1]
    grads = jax.grad(lambda p: loss(jb.unroll(cell, p, xs)[1]))(params)

`jax.grad` of `unroll` runs a reverse scan that is written out; `algorithm=` chooses another.

Cells
    elman lstm gru gru_reset_before lstm_peephole lstm_projected layer_norm_lstm layer_norm_gru
    slstm mgu ugrnn indrnn ctrnn ctrnn_euler conv_lstm; linear in the state: lru min_gru min_lstm;
    from_step, of your own function
Cells around cells
    embedding mixed_precision learned_state multi_head low_rank orthogonal weight_norm spectral_norm
    initialized with_states
Running
    unroll step bptt_gradients; options lengths, resets, mask, reset_state, reverse
Algorithms
    bptt (the default) checkpointed, in less memory; autodiff associative fused; parallel in time
    parallel_adjoint newton, with newton_solution; truncated artbp, whose gradient is cut; clipped,
    whose adjoint is; explain says what would run
Layers
    layer bidirectional stack residual batch_major; dropout variational_dropout zoneout
    recurrent_dropout recurrent_dropout_per_step; weight_noise for parameters
Looking at the gradient
    contributions gradient_by_lag state_gradients largest_exponent; adaptive_truncation chooses a
    window; jax_bptt.diagnostics has the rest, and pictures
Parameters
    is_bias; jax_bptt.interop maps those of torch, flax, haiku, equinox, keras, onnx, and has layers
    for flax and equinox
Your own cell or algorithm
    from_step, GatedStep, DiagonalStep; Cell, Algorithm; jax_bptt.testing checks them
On an NVIDIA GPU
    gpu_compiler_options, for jax.jit

What equal calls make is equal: cells, layers and algorithms are values. Errors name the function,
the argument, both shapes and the way out. Axes: T time, B batch, I input, G gates, H hidden, O
output.
"""

from jax_bptt import diagnostics as diagnostics
from jax_bptt import interop as interop
from jax_bptt.algorithms.adaptive_truncation import Truncation, adaptive_truncation
from jax_bptt.algorithms.artbp import PowerLaw, artbp
from jax_bptt.algorithms.associative import associative
from jax_bptt.algorithms.autodiff import autodiff
from jax_bptt.algorithms.bptt import bptt
from jax_bptt.algorithms.by_lag import gradient_by_lag
from jax_bptt.algorithms.checkpointed import checkpointed
from jax_bptt.algorithms.clipped import clipped
from jax_bptt.algorithms.explain import explain
from jax_bptt.algorithms.fused import fused
from jax_bptt.algorithms.gpu_options import gpu_compiler_options
from jax_bptt.algorithms.largest_exponent import largest_exponent
from jax_bptt.algorithms.newton import newton
from jax_bptt.algorithms.newton_solution import Solution, newton_solution
from jax_bptt.algorithms.parallel_adjoint import parallel_adjoint
from jax_bptt.algorithms.step import step
from jax_bptt.algorithms.truncated import truncated
from jax_bptt.algorithms.unroll import bptt_gradients, unroll
from jax_bptt.cells.conv_lstm import conv_lstm
from jax_bptt.cells.ctrnn import CTRNNParams, ctrnn, ctrnn_euler
from jax_bptt.cells.elman import elman
from jax_bptt.cells.from_step import from_step
from jax_bptt.cells.gru import GRUParams, gru
from jax_bptt.cells.gru_reset_before import gru_reset_before
from jax_bptt.cells.indrnn import IndRNNParams, indrnn
from jax_bptt.cells.layer_norm_gru import LayerNormGRUParams, layer_norm_gru
from jax_bptt.cells.layer_norm_lstm import LayerNormLSTMParams, layer_norm_lstm
from jax_bptt.cells.learned_state import LearnedStateParams, learned_state
from jax_bptt.cells.lru import LRUParams, lru
from jax_bptt.cells.lstm import LSTMState, lstm
from jax_bptt.cells.lstm_peephole import LSTMPeepholeParams, lstm_peephole
from jax_bptt.cells.lstm_projected import ProjectedLSTMParams, lstm_projected
from jax_bptt.cells.mgu import mgu
from jax_bptt.cells.min_gru import MinParams, min_gru
from jax_bptt.cells.min_lstm import min_lstm
from jax_bptt.cells.multi_head import multi_head
from jax_bptt.cells.parameters import initialized, is_bias
from jax_bptt.cells.parts import Params
from jax_bptt.cells.reparametrized import (
    LowRank,
    Rotation,
    WeightNorm,
    low_rank,
    orthogonal,
    spectral_norm,
    weight_norm,
)
from jax_bptt.cells.slstm import SLSTMParams, SLSTMState, slstm
from jax_bptt.cells.ugrnn import ugrnn
from jax_bptt.cells.weight_noise import weight_noise
from jax_bptt.cells.with_states import with_states
from jax_bptt.cells.wrappers import EmbeddingParams, embedding, mixed_precision
from jax_bptt.core.types import Algorithm, Cell, DiagonalStep, GatedStep
from jax_bptt.diagnostics.contributions import contributions
from jax_bptt.diagnostics.state_gradients import state_gradients
from jax_bptt.interop.exporting import register_all as _register_all
from jax_bptt.layers.batch_major import batch_major
from jax_bptt.layers.dropout import dropout, variational_dropout
from jax_bptt.layers.layer import Directions, Layer, bidirectional, layer
from jax_bptt.layers.recurrent_dropout import recurrent_dropout, recurrent_dropout_per_step
from jax_bptt.layers.stack import residual, stack
from jax_bptt.layers.zoneout import zoneout

__version__ = "0.1.0"

__all__ = [
    "Algorithm",
    "CTRNNParams",
    "Cell",
    "DiagonalStep",
    "Directions",
    "EmbeddingParams",
    "GRUParams",
    "GatedStep",
    "IndRNNParams",
    "LRUParams",
    "LSTMPeepholeParams",
    "LSTMState",
    "Layer",
    "LayerNormGRUParams",
    "LayerNormLSTMParams",
    "LearnedStateParams",
    "LowRank",
    "MinParams",
    "Params",
    "PowerLaw",
    "ProjectedLSTMParams",
    "Rotation",
    "SLSTMParams",
    "SLSTMState",
    "Solution",
    "Truncation",
    "WeightNorm",
    "adaptive_truncation",
    "artbp",
    "associative",
    "autodiff",
    "batch_major",
    "bidirectional",
    "bptt",
    "bptt_gradients",
    "checkpointed",
    "clipped",
    "contributions",
    "conv_lstm",
    "ctrnn",
    "ctrnn_euler",
    "dropout",
    "elman",
    "embedding",
    "explain",
    "from_step",
    "fused",
    "gpu_compiler_options",
    "gradient_by_lag",
    "gru",
    "gru_reset_before",
    "indrnn",
    "initialized",
    "is_bias",
    "largest_exponent",
    "layer",
    "layer_norm_gru",
    "layer_norm_lstm",
    "learned_state",
    "low_rank",
    "lru",
    "lstm",
    "lstm_peephole",
    "lstm_projected",
    "mgu",
    "min_gru",
    "min_lstm",
    "mixed_precision",
    "multi_head",
    "newton",
    "newton_solution",
    "orthogonal",
    "parallel_adjoint",
    "recurrent_dropout",
    "recurrent_dropout_per_step",
    "residual",
    "slstm",
    "spectral_norm",
    "stack",
    "state_gradients",
    "step",
    "truncated",
    "ugrnn",
    "unroll",
    "variational_dropout",
    "weight_noise",
    "weight_norm",
    "with_states",
    "zoneout",
]

_register_all({name: globals()[name] for name in __all__})
