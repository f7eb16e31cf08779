"""Recurrent networks with explicit backpropagation through time, in JAX."""

from jax_bptt.algorithms.autodiff import autodiff
from jax_bptt.cells.elman import elman
from jax_bptt.cells.from_step import from_step
from jax_bptt.cells.gru import GRUParams, gru
from jax_bptt.cells.gru_reset_before import gru_reset_before
from jax_bptt.cells.lstm import LSTMState, lstm
from jax_bptt.cells.parts import Params
from jax_bptt.cells.wrappers import EmbeddingParams, embedding, mixed_precision
from jax_bptt.core.bptt import bptt
from jax_bptt.core.types import Algorithm, Cell, DiagonalStep, GatedStep
from jax_bptt.core.unroll import bptt_gradients, unroll
from jax_bptt.diagnostics.contributions import contributions

__version__ = "0.1.0"

__all__ = [
    "Algorithm",
    "Cell",
    "DiagonalStep",
    "EmbeddingParams",
    "GRUParams",
    "GatedStep",
    "LSTMState",
    "Params",
    "autodiff",
    "bptt",
    "bptt_gradients",
    "contributions",
    "elman",
    "embedding",
    "from_step",
    "gru",
    "gru_reset_before",
    "lstm",
    "mixed_precision",
    "unroll",
]
