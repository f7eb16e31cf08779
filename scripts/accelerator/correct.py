"""Whether the kernels compute what the scan computes, on the device itself."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks import measure, models

import jax_bptt as jb

LIMITS = {"float32": 2e-6, "bfloat16": 5e-3}
"""Largest relative error in the L2 norm, of outputs and of each gradient."""

CELLS = {
    name: getattr(jb, name)
    for name in ("elman", "gru", "lstm", "lstm_peephole", "lru", "min_gru", "min_lstm")
}
INTERPRETED: dict[str, Any] = {"interpret": True, "device": "gpu"}
"""Settings of `jb.fused` for a smoke run, which runs the kernels for a GPU on a CPU."""


class Case(NamedTuple):
    """Sides of a comparison."""

    cell: str  # a name in `CELLS`
    H: int  # units, and inputs
    D: int  # size of a head, H for a dense matrix
    dtype: str  # of weights and inputs
    flags: bool = False  # whether sequences have lengths, and resets or a mask

    def __str__(self) -> str:
        """Return the case in one line for people."""
        heads = "dense" if self.D == self.H else f"D={self.D}"
        return f"{self.cell} H={self.H} {heads} {self.dtype}" + " flags" * self.flags


CASES = (
    Case("lstm", 256, 64, "bfloat16"),
    Case("lstm", 256, 64, "float32", flags=True),
    Case("gru", 256, 64, "bfloat16", flags=True),
    Case("lstm", 256, 128, "bfloat16", flags=True),
    Case("gru", 256, 64, "float32"),
    Case("lstm", 96, 32, "bfloat16"),
    Case("elman", 256, 64, "float32"),
    Case("elman", 256, 128, "bfloat16"),
    Case("gru", 256, 128, "bfloat16"),
    Case("lstm_peephole", 256, 64, "float32"),
    Case("lstm", 192, 96, "bfloat16"),
    Case("min_gru", 256, 256, "float32", flags=True),
    Case("min_lstm", 256, 256, "float32"),
    Case("lru", 256, 256, "float32"),
    Case("lstm", 256, 256, "bfloat16"),
    Case("lstm", 512, 512, "bfloat16"),
    Case("gru", 512, 512, "bfloat16", flags=True),
    Case("elman", 512, 512, "bfloat16"),
    Case("gru", 256, 256, "float32"),
)
"""In order of value, but those over a cluster last: its blocks wait for one another, and one that
waits for ever costs all that come after it. Those that no kernel takes are said to run the scan."""

SMOKE = (Case("gru", 32, 32, "float32", flags=True), Case("gru", 48, 48, "float32"))
STEPS, BATCH = 64, 18
SMOKE_STEPS, SMOKE_BATCH = 3, 2


def compare(case: Case, smoke: bool) -> dict[str, Any]:
    """Run both; return the largest error, of what, and whether it is within the limit.

    Where no kernel takes the case nothing is run, and `scan` says why.
    """
    steps, batch = (SMOKE_STEPS, SMOKE_BATCH) if smoke else (STEPS, BATCH)
    cell = CELLS[case.cell](input_size=case.H, hidden_size=case.H, dtype=jnp.dtype(case.dtype))
    if case.D != case.H:
        cell = jb.multi_head(cell, heads=case.H // case.D)
    params = jax.jit(cell.init)(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (steps, batch, case.H), jnp.dtype(case.dtype))
    told = jb.explain(cell, params, xs, device="gpu" if smoke else None)
    kernel = kernel_of(told)
    if kernel is None:
        return {"name": str(case), "scan": told.partition("\n")[2], "error": None, "met": True}
    rng = np.random.default_rng(0)
    given: dict[str, Any] = {}
    if case.flags:
        given = {"lengths": jnp.asarray(rng.integers(1, steps + 1, batch))}
        # With resets a gated step runs the scan, which would be compared to itself.
        chosen = jnp.asarray(rng.random((steps, batch)) < 0.1)
        diagonal = isinstance(cell.step, jb.DiagonalStep)
        given |= {"resets": chosen} if diagonal else {"mask": ~chosen}

    def both(algorithm):
        def loss(params, xs):
            last_state, ys = jb.unroll(cell, params, xs, algorithm=algorithm, **given)
            squares = sum(jnp.sum(s * s) for s in jax.tree.leaves(last_state))
            return jnp.sum(ys.astype(jnp.float32) ** 2) + squares, ys

        gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
        with jax.default_matmul_precision("highest"):
            (d_params, d_xs), ys = gradient(params, xs)
        return models.host({"ys": ys, "xs": d_xs}) | models.named(d_params)

    fused = both(jb.fused(**INTERPRETED) if smoke else jb.fused())
    errors = measure.errors(fused, both(jb.bptt()), measure.root_mean_square)
    worst = max(errors, key=lambda name: errors[name])
    limit = LIMITS[case.dtype]
    met = errors[worst] <= limit
    found = {"error": errors[worst], "worst": worst, "limit": limit, "met": met}
    return {"name": str(case), "kernel": kernel, **found}


def kernel_of(told: str) -> str | None:
    """Return the name of the kernel that `jb.explain` has told of, None for the scan."""
    found = re.match(r"fused\(\) runs the kernel (\w+)", told)
    return found[1] if found else None
