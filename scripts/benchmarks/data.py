"""The timed problems: rows of cell and sizes, with weights and inputs that all competitors share.

Axis letters as in the package: T time, B batch, I input size, G gates, H hidden size. Weights are
dicts of w_x [I, G, H], w_s [H, G, H], b [G, H] and, for a GRU, b_n [H], with the gates in the
order i, f, g, o or r, z, n; every competitor maps them to its own layout and its gradient back.
"""

from typing import Any, NamedTuple

import numpy as np

GATES = {"elman": 1, "gru": 3, "gru_reset_before": 3, "lstm": 4}
"""Cells of the benchmark and how many gates, thus columns of H units, each has."""

GRID = (
    (128, 32, 128, 256),
    (1024, 32, 64, 128),
    (512, 16, 64, 64),
    (2048, 32, 64, 128),
    (100, 128, 256, 512),
    (256, 1, 64, 128),
    (8192, 8, 32, 64),
    (64, 64, 512, 1024),
)
"""Default sizes (T, B, I, H): short and long, narrow and wide, one sequence and many."""

Weights = dict[str, Any]


class Row(NamedTuple):
    """One line of the benchmark: a cell's name and its sizes."""

    cell: str
    T: int
    B: int
    I: int  # noqa: E741 - the axis letter of the whole package
    H: int
    dtype: str

    def __str__(self) -> str:
        """Return the row in one line for people."""
        return f"{self.cell} T={self.T} B={self.B} I={self.I} H={self.H} {self.dtype}"


class Data(NamedTuple):
    """Weights and inputs of a row, float64 arrays whose values `dtype` represents exactly."""

    row: Row
    weights: Weights
    xs: np.ndarray


def forward_flops(row: Row) -> int:
    """Return the floating-point operations of the products of one forward pass.

    Two for each of T B (I + H) G H multiplications with an addition; the gate arithmetic is left
    out. A gradient needs the products three times over: forward, and one for each operand.
    """
    return 2 * row.T * row.B * (row.I + row.H) * GATES[row.cell] * row.H


def draw(row: Row, *, seed: int = 0, recurrent_bias: bool = False) -> Data:
    """Draw weights and inputs for a row.

    Weights are uniform in +-1/sqrt(fan in), PyTorch's scale, under which no state explodes at any
    T; inputs are standard normal. The values are rounded to the row's dtype first, so that all
    competitors and the float64 reference compute with the same numbers.

    Args:
      row: the cell and its sizes.
      seed: of NumPy's generator.
      recurrent_bias: whether b_n, the bias inside the reset of a GRU, is drawn too. It is zero by
        default, because not every library has one.

    Returns:
      The row's `Data`.
    """
    rng = np.random.default_rng(seed)
    gates = GATES[row.cell]

    def uniform(scale, *shape):
        return rng.uniform(-scale, scale, shape)

    weights = {
        "w_x": uniform(row.I**-0.5, row.I, gates, row.H),
        "w_s": uniform(row.H**-0.5, row.H, gates, row.H),
        "b": uniform(row.H**-0.5, gates, row.H),
    }
    if row.cell == "gru":
        weights["b_n"] = uniform(row.H**-0.5 if recurrent_bias else 0.0, row.H)
    xs = rng.standard_normal((row.T, row.B, row.I))
    return Data(
        row, {k: _rounded(w, row.dtype) for k, w in weights.items()}, _rounded(xs, row.dtype)
    )


def _rounded(a: np.ndarray, dtype: str) -> np.ndarray:
    import jax.numpy as jnp  # NumPy itself knows no bfloat16

    return a.astype(jnp.dtype(dtype)).astype(np.float64)
