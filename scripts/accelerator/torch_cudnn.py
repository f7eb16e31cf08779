"""cuDNN's LSTM through PyTorch, the way its users run it."""

# PyTorch is an optional extra, so that it may be absent where types are checked.
# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import Any

from accelerator.rows import Row

NAME = "cuDNN by torch"


def absent() -> str | None:
    """Return why PyTorch cannot take part, None if it can."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        return "torch is not installed"
    return None


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

    def wait():
        if where == "cuda":
            torch.cuda.synchronize()

    def prepare():
        layer = torch.nn.LSTM(row.H, row.H, **settings)
        xs = torch.randn(row.T, row.B, row.H, **settings)

        def forward():
            with torch.no_grad():
                layer(xs)
            wait()

        leaves = [*layer.parameters(), xs.requires_grad_()]

        def gradient():
            torch.autograd.grad(layer(xs)[0].float().square().sum(), leaves)
            wait()

        return forward if row.direction == "forward" else gradient

    return {NAME if where == "cuda" else "torch on the CPU": prepare}
