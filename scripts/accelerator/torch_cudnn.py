"""cuDNN's LSTM through PyTorch, the way its users run it."""

# PyTorch is an optional extra, so that it may be absent where types are checked.
# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import Any

from benchmarks import torch_peer

from accelerator.rows import CELL, Row
from jax_bptt.testing.libraries import torch_layers

NAME = "cuDNN by torch"


def device() -> str:
    """Return the name of the GPU, or "cpu" where PyTorch sees none."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def contestants(row: Row) -> dict[str, Callable[[], Callable[[], Any]] | str]:
    """Return what prepares the layer for a row; weights and inputs are PyTorch's draws."""
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

    return {NAME if where == "cuda" else "torch on the CPU": prepare}
