"""What it costs blocks of threads to meet: those of a cluster, and those of a whole grid.

A dense matrix of 768 to 1024 units needs more multiprocessors than a cluster has. A kernel over the
whole grid would have all of its 48 to 64 blocks meet at every step, at a counter in global memory.
That is worth writing only where they meet within `WORTH`: cuDNN takes some 1.8 us for such a step,
of which a microsecond would be left for the exchange and the products (estimates, of an H100).

The blocks of the kernel over a cluster do not meet alone: once a step each sends a tile into the
shared memory of every other one, and waits for theirs.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from benchmarks import measure
from jax import lax
from jax.experimental import pallas as pl

from jax_bptt.kernels import gpu_mail, mosaic
from jax_bptt.kernels.gpu_parts import Place, Plan
from jax_bptt.kernels.mosaic import plgpu

STEPS, SMOKE_STEPS = 4096, 3
LANES = 128
WORTH = 0.8
"""Microseconds in which `DECIDING` must meet."""


class Meeting(NamedTuple):
    """Who meets.

    Attributes:
      kind: "cluster" or "grid", or "exchange", of tiles in a cluster.
      blocks: how many.
    """

    kind: str
    blocks: int

    def __str__(self) -> str:
        """Return the meeting in a few words."""
        return f"{self.kind} of {self.blocks} blocks"


DECIDING = Meeting("grid", 64)
ROWS = (
    DECIDING,
    Meeting("exchange", 8),
    Meeting("cluster", 8),
    Meeting("grid", 48),
    Meeting("grid", 96),
    Meeting("cluster", 4),
    Meeting("grid", 16),
    Meeting("cluster", 2),
    Meeting("grid", 128),
)
"""In order of value."""

SMOKE = Meeting("cluster", 2), Meeting("exchange", 2)
"""JAX's interpreter runs the blocks of a cluster at one time, and those of a grid do not meet."""


class Way(NamedTuple):
    """How blocks meet.

    Attributes:
      passing: shapes in global memory that it takes.
      scratch: shared memory and barriers.
      open: (part, passing, scratch) -> what a block does at the t-th meeting, from references.
    """

    passing: tuple[jax.ShapeDtypeStruct, ...]
    scratch: tuple[Any, ...]
    open: Callable[[Any, Sequence[Any], Sequence[Any]], Callable[[Any], None]]


def _over_the_grid(blocks: int) -> Way:
    pallas = cast(Any, plgpu)

    def opened(part, passing, scratch):
        counter = pl.get_global(pallas.SemaphoreType.REGULAR)

        def meet(t):
            # Else the default is a fence for the whole system.
            pallas.semaphore_signal(counter, 1, memory_scope="gpu")
            there = blocks * (t + 1)
            pallas.semaphore_wait(counter, there, decrement=False, memory_scope="gpu")

        return meet

    return Way((), (), opened)


def _in_a_cluster() -> Way:
    barrier = plgpu.ClusterBarrier(collective_axes=("part",))
    return Way((), (barrier,), lambda part, passing, scratch: lambda t: mosaic.sync(*scratch))


def _exchanging(blocks: int, steps: int, interpret: Any) -> Way:
    dtype, rows, units = jnp.dtype(jnp.bfloat16), mosaic.ROWS, mosaic.UNITS
    plan = Plan(dtype, steps, rows, blocks, units, depth=1, clustered=True)
    shape = 2, blocks, rows, units
    post = gpu_mail.post(plan, shape, dtype, barriers=2, senders=1, tiles=1, interpret=interpret)

    def opened(part, passing, scratch):
        box = post.open(Place(plan, 0, part, 0), passing, scratch)
        tile = mosaic.row_numbers(plan.layouts.tile).astype(dtype)

        def meet(t):
            turn = t % 2
            for k in range(blocks):
                box.send(box.peer(k), (turn, part), turn, tile)
            box.sent(turn)
            box.received(turn)

        return meet

    return Way(post.passing, post.scratch, opened)


def kernel(meeting: Meeting, steps: int, interpret: Any = None) -> Callable[..., Any]:
    """Return the kernel in which blocks meet so many times, and copy 128 numbers each."""
    spread = "grid" if meeting.kind == "grid" else "cluster"
    match meeting.kind:
        case "grid":
            way = _over_the_grid(meeting.blocks)
        case "cluster":
            way = _in_a_cluster()
        case _:
            way = _exchanging(meeting.blocks, steps, interpret)

    def body(x_ref, out_ref, *refs):
        part, count = lax.axis_index("part"), len(way.passing)
        meet = way.open(part, refs[:count], refs[count:])
        lax.fori_loop(jnp.int32(0), jnp.int32(steps), lambda t, _: meet(t), None)
        layout = plgpu.Layout.WG_STRIDED((LANES,), vec_size=1)
        mosaic.store(out_ref.at[part], mosaic.load(x_ref, layout))

    run = plgpu.kernel(
        body,
        out_type=(jax.ShapeDtypeStruct((meeting.blocks, LANES), jnp.float32), *way.passing),
        scratch_types=list(way.scratch),
        compiler_params=mosaic.compiler_params(False),
        interpret=interpret,
        **{spread: (meeting.blocks,), f"{spread}_names": ("part",)},
    )
    return lambda numbers: run(numbers)[0]


def obstacle(meeting: Meeting) -> str | None:
    """Return why a meeting cannot take place here, None if it can."""
    device = jax.devices()[0]
    if device.platform != "gpu":
        return "blocks of threads meet on an NVIDIA GPU"
    if reason := mosaic.available():
        return reason
    missing = [name for name in ("semaphore_signal", "semaphore_wait") if not hasattr(plgpu, name)]
    if meeting.kind == "grid" and missing:
        return f"jax.experimental.pallas.mosaic_gpu has no {missing[0]}"
    # All must run at one time: who waits for a block that has no multiprocessor waits for ever.
    cores = getattr(device, "core_count", None) or 0
    if meeting.blocks > cores:
        return f"{meeting.blocks} blocks cannot run at one time on {cores} multiprocessors"
    return None


def measured(meeting: Meeting, smoke: bool, rounds: int) -> dict[str, Any]:
    """Measure one meeting; return microseconds, or why there are none."""
    interpreted = smoke and mosaic.available() is None
    row: dict[str, Any] = {"name": str(meeting), **meeting._asdict(), "absent": None, "error": None}
    if not interpreted and (reason := obstacle(meeting)):
        return row | {"absent": reason}
    steps = SMOKE_STEPS if smoke else STEPS
    numbers = jnp.arange(LANES, dtype=jnp.float32)
    # Whatever a driver raises on a device that nobody has tried it on costs this row alone.
    try:
        interpreter = mosaic.plgpu.InterpretGPUParams() if interpreted else None
        run = functools.partial(jax.jit(kernel(meeting, steps, interpreter)), numbers)
        wrong = bool(jnp.any(run() != numbers[None]))
        calls = {"meeting": lambda: jax.block_until_ready(run())}
        seconds = measure.rounds(calls, rounds, lambda: None)["meeting"]
    except Exception as error:
        return row | {"error": f"{type(error).__name__}: {str(error)[:500]}"}
    if wrong:
        return row | {"error": "what the blocks copied is not what they were given"}
    return row | {
        name.replace("seconds", "us"): 1e6 * value / steps
        for name, value in measure.spread(seconds).items()
    }
