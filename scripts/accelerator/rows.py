"""Measurements, in order of value: a group stops where its time ends."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks import data, measure
from benchmarks.measure import Task

CELL = "lstm"
"""The one cell that every competitor has."""

T = 1024
BATCHES = (16, 64, 256)
SIZES = (256, 512, 768, 1024, 2048)
HEADS = (32, 64, 128)
DIRECTIONS = ("forward", "forward + backward")


class Row(NamedTuple):
    """Sizes of one measurement, I = H."""

    T: int
    B: int
    H: int
    D: int  # size of a head, H for a dense matrix
    dtype: str  # of weights and inputs
    direction: str  # of `DIRECTIONS`

    def __str__(self) -> str:
        """Return the row in one line for people."""
        heads = "dense" if self.D == self.H else f"D={self.D}"
        return f"T={self.T} B={self.B} H={self.H} {heads} {self.dtype} {self.direction}"

    @property
    def task(self) -> Task:
        """Side that is timed: the outputs, or the gradient of the sum of their squares."""
        return measure.FORWARD if self.direction == "forward" else measure.GRADIENT

    @property
    def flops(self) -> int:
        """Floating-point operations of the products: the input's and the state's."""
        # A unit reads the H inputs and the D units of its head.
        as_dense = data.Row(CELL, self.T, self.B, self.D, self.H, self.dtype)
        return self.task.products * data.forward_flops(as_dense)

    @property
    def bytes(self) -> int:
        """The least that goes through memory, weights left out.

        Forward the drives are read and the outputs written, backward the derivatives of both the
        other way round; nothing is counted for what a way to compute it keeps in between.
        """
        passes = 1 if self.direction == "forward" else 2
        width = {"float32": 4, "bfloat16": 2, "float16": 2}[self.dtype]
        return passes * (data.GATES[CELL] + 1) * self.T * self.B * self.H * width


def _both(shapes: list[tuple[int, int, int]], dtype: str, steps: int) -> list[Row]:
    return [Row(steps, b, h, d, dtype, way) for b, h, d in shapes for way in DIRECTIONS]


def _first(chosen: list, rest: Iterator) -> list:
    return list(dict.fromkeys([*chosen, *rest]))


# First what README promises something about, then a cross through the grid, then all the rest.
HEAD_SHAPES = _first(
    [(16, 768, 64), (64, 1024, 64), (16, 768, 128), (16, 768, 32), (256, 1024, 64), (64, 512, 64)],
    ((b, h, d) for d in (64, 128, 32) for h in SIZES for b in BATCHES),
)
DENSE_SHAPES = _first(
    [(64, 512, 512), (16, 256, 256), (16, 768, 768), (64, 1024, 1024), (16, 512, 512)],
    ((b, h, h) for h in SIZES for b in BATCHES),
)


def heads() -> list[Row]:
    """Return block-diagonal rows; the last of them in float32."""
    single = [(16, 768, 64), (64, 512, 64)]
    return _both(HEAD_SHAPES, "bfloat16", T) + _both(single, "float32", T)


def dense() -> list[Row]:
    """Return dense rows."""
    return _both(DENSE_SHAPES, "bfloat16", T)


def cudnn(dtypes: tuple[str, ...]) -> list[Row]:
    """Return the dense rows in several dtypes, all dtypes of a shape before the next shape."""
    return [row for shape in DENSE_SHAPES for dtype in dtypes for row in _both([shape], dtype, T)]


def tiny(dtypes: tuple[str, ...], head: int) -> list[Row]:
    """Return rows for a smoke run."""
    return [row for dtype in dtypes for row in _both([(2, 64, head)], dtype, 4)]


class Peak(NamedTuple):
    """Limits of a device: bytes a second, and dense 16-bit FLOP a second."""

    bandwidth: float
    matrix: float


# Of the makers' data sheets, without sparsity; by the first words of what JAX calls the device.
PEAKS = {
    "NVIDIA H200": Peak(4.8e12, 989e12),
    "NVIDIA H100 PCIe": Peak(2.0e12, 756e12),
    "NVIDIA H100": Peak(3.35e12, 989e12),
    "NVIDIA A100-SXM4-80GB": Peak(2.04e12, 312e12),
    "NVIDIA A100": Peak(1.56e12, 312e12),
    "NVIDIA L4": Peak(0.30e12, 121e12),
    "TPU v4": Peak(1.2e12, 275e12),
    "TPU v5 lite": Peak(0.819e12, 197e12),
    "TPU v5": Peak(2.77e12, 459e12),
    "TPU v6 lite": Peak(1.64e12, 918e12),
}


def shares(row: Row, seconds: float, device: str) -> dict[str, Any]:
    """Return the shares of bandwidth and of matrix peak, as far as the device is known.

    The second is left out for float32, whose products are made in more ways than one.
    """
    peak = next((p for name, p in PEAKS.items() if device.startswith(name)), None)
    if peak is None:
        return {"bandwidth_share": None, "matrix_share": None}
    matrix = None if row.dtype == "float32" else row.flops / seconds / peak.matrix
    return {"bandwidth_share": row.bytes / seconds / peak.bandwidth, "matrix_share": matrix}
