"""Compile, check, and time in turns."""

import time
from collections.abc import Callable, Collection, Hashable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.data import Data
from benchmarks.models import Model, cast, host

TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 5e-2}
"""Largest relative error against float64 at which a competitor counts as computing the same.

Wide enough for the rounding of thousands of steps, which a library that sums weight gradients one
step at a time pays in full; a wrong gate order or a missing bias is off by order one.
"""

TURN_SECONDS = 0.02
"""How long a turn repeats its call, so that a short one is timed as well as a long one."""

PAUSE_SECONDS = 0.05
"""How long to wait after what threads of its own go on spinning, as those of OpenMP do."""

Name = TypeVar("Name", bound=Hashable)


class Prepared(NamedTuple):
    """A competitor ready to run on a row."""

    call: Callable[[], Any]  # runs once, waits for every output, and returns them
    # what `call` returned -> dict of float64 arrays, named as in `plain.reference`
    results: Callable[[Any], dict[str, np.ndarray]]
    outputs: Callable[[], dict[str, np.ndarray]]  # computes ys the same way, likewise as a dict
    # temporary memory of the compiled function, on all devices together; None where nobody tells
    temp_bytes: int | None
    # tracing, lowering and compiling together; None where there is no such thing
    compile_seconds: float | None
    note: str = ""  # what a reader has to know of how this row was run


class Task(NamedTuple):
    """The part of a layer that is timed."""

    function: Callable[..., Callable]  # `(run, mesh) -> fun(params, xs)`, to be compiled
    # `(model, outputs) -> dict` named as in `plain.reference`
    results: Callable[[Model, Any], dict[str, Any]]
    products: int  # how many times the products of a forward pass it takes


def _forward(run, mesh):
    if mesh is None:
        return run
    return split(run, mesh, P(None, "batch"))


def _gradient(run, mesh):
    gradient = jax.grad(lambda params, xs: jnp.sum(run(params, xs) ** 2), argnums=(0, 1))
    return summed(gradient, mesh)


def summed(gradient: Callable[..., Any], mesh: Mesh | None) -> Callable[..., Any]:
    """Split the batch of a gradient `(params, xs) -> (d_params, d_xs)` over the mesh, if any."""
    if mesh is None:
        return gradient

    # By hand, once. JAX would sum where the replicated weights are read, and the scan that a user
    # writes reads them inside every time step.
    def local(params, xs):
        d_params, d_xs = gradient(params, xs)
        return jax.lax.psum(d_params, "batch"), d_xs

    return split(local, mesh, (P(), P(None, "batch")))


def split(fun: Callable[..., Any], mesh: Mesh, out_specs: Any) -> Callable[..., Any]:
    """Split the batch of `fun(params, xs)` over the mesh; weights are replicated."""
    in_specs = (P(), P(None, "batch"))
    return jax.shard_map(fun, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


FORWARD = Task(_forward, lambda model, ys: {"ys": ys}, 1)
"""All outputs."""

GRADIENT = Task(_gradient, lambda model, grads: {**model.unpack(grads[0]), "xs": grads[1]}, 3)
"""The gradient of sum(ys^2) with respect to parameters and inputs."""


def mesh_of(devices: int) -> Mesh | None:
    """Return a mesh over the first devices, None for a single one."""
    return None if devices == 1 else Mesh(np.array(jax.devices()[:devices]), ("batch",))


def arguments(model: Model, data: Data, mesh: Mesh | None) -> tuple[Any, Any]:
    """Return a model's parameters and inputs, placed on the mesh."""
    params = model.pack(cast(data.weights, data.row.dtype))
    return placed(params, jnp.asarray(data.xs, data.row.dtype), mesh)


def placed(params: Any, xs: Any, mesh: Mesh | None) -> tuple[Any, Any]:
    """Replicate parameters and split the batch of the inputs over the mesh, if any."""
    if mesh is not None:
        params = jax.device_put(params, NamedSharding(mesh, P()))
        xs = jax.device_put(xs, NamedSharding(mesh, P(None, "batch")))
    return jax.block_until_ready((params, xs))


def temporary(executable: Any, mesh: Mesh | None) -> int:
    """Return the temporary memory of a compiled function on all devices; XLA tells that of one."""
    return executable.memory_analysis().temp_size_in_bytes * (1 if mesh is None else mesh.size)


class Compiled(NamedTuple):
    """A function compiled for its arguments."""

    call: Callable[[], Any]  # runs it once, waits for every output, and returns them
    executable: Any  # of JAX
    seconds: float  # of tracing, lowering and compiling together


def compiled(fun: Callable, args: Any, options: dict[str, Any] | None = None) -> Compiled:
    """Compile a function ahead of time, with options of the compiler."""
    begin = time.perf_counter()
    executable = jax.jit(fun).lower(*args).compile(compiler_options=options)
    seconds = time.perf_counter() - begin
    return Compiled(lambda: jax.block_until_ready(executable(*args)), executable, seconds)


def prepare(model: Model, data: Data, task: Task, mesh: Mesh | None) -> Prepared:
    """Compile a JAX model for a row."""
    args = arguments(model, data, mesh)
    made = compiled(task.function(model.run, mesh), args)
    forward = jax.jit(FORWARD.function(model.run, mesh))
    return Prepared(
        call=made.call,
        results=lambda outputs: host(task.results(model, outputs)),
        outputs=lambda: host({"ys": forward(*args)}),
        temp_bytes=temporary(made.executable, mesh),
        compile_seconds=made.seconds,
        note=model.note,
    )


def largest(a: np.ndarray) -> float:
    """Return the largest absolute element."""
    return float(np.max(np.abs(a), initial=0.0))


def root_mean_square(a: np.ndarray) -> float:
    """Return the root of the mean square of the elements."""
    return float(np.sqrt(np.mean(np.abs(a) ** 2)))


def errors(
    results: dict[str, np.ndarray],
    expected: dict[str, np.ndarray],
    size: Callable[[np.ndarray], float] = largest,
) -> dict[str, float]:
    """Return the error of each array, relative to the size of what is expected.

    By default both are measured by their largest element. Where the equations have a kink, as a
    relu's, take `root_mean_square`: a unit within rounding of the kink has another derivative in
    float32, and there is always such a unit among millions.

    An array expected to be zero throughout (the gradient of no steps) is compared as it is. The
    error is infinite where the shape is another, or a number is not finite.
    """

    def error(got, want):
        if got.shape != want.shape or not np.isfinite(got).all():
            return float("inf")
        return size(got - want) / (size(want) or 1.0)

    return {name: error(got, expected[name]) for name, got in results.items()}


def refusal(errors: dict[str, float], dtype: str) -> str | None:
    """Return why a competitor with these errors is not timed, None if it is."""
    worst, limit = max(errors, key=lambda name: errors[name]), TOLERANCE[dtype]
    if errors[worst] <= limit:
        return None
    return f"error of {worst} is {errors[worst]:.1e}, more than {limit:.0e}: not timed"


def spread(seconds: np.ndarray) -> dict[str, float]:
    """Return median and quartiles of the seconds per call."""
    low, middle, high = np.quantile(seconds, [0.25, 0.5, 0.75])
    return {"seconds": float(middle), "seconds_q1": float(low), "seconds_q3": float(high)}


def ratio(seconds: np.ndarray, own: np.ndarray | None) -> float | None:
    """Return the median over the rounds of a competitor's time over the library's."""
    return None if own is None else float(np.median(seconds / own))


def floor(
    flops: float, data: Data, mesh: Mesh | None, side: int
) -> tuple[Callable[[], Any], float]:
    """Return the same floating-point operations as a chain of large square products.

    Every product reads the one before it, so that none is left out, and writes one of the two
    buffers that the loop alternates between; the first is handed over from call to call. All
    memory is therefore warm. The factor is orthogonal, which keeps the values in range for ever.

    Args:
      flops: of the task.
      data: of the row, for its dtype.
      mesh: over which a chain per device runs; None for one device.
      side: of the square matrices.

    Returns:
      A call that runs and waits, and by how much to scale its time to arrive at `flops`.
    """
    chains = 1 if mesh is None else mesh.size
    per_product = 2 * side**3 * chains
    repeats = int(np.clip(round(flops / per_product), 4, 64))
    factor = np.linalg.qr(np.random.default_rng(0).standard_normal((side, side)))[0]
    a = jnp.asarray(factor, data.row.dtype)
    c = jnp.tile(a, (1, chains))

    def chain(a, c):
        return jax.lax.fori_loop(0, repeats, lambda _, c: a @ c, c)

    if mesh is not None:
        chain = split(chain, mesh, P(None, "batch"))
    a, c = placed(a, c, mesh)
    executable = jax.jit(chain, donate_argnums=1).lower(a, c).compile()
    buffers = [c]

    def call():
        buffers[0] = jax.block_until_ready(executable(a, buffers[0]))

    return call, flops / (repeats * per_product)


def rounds(
    calls: dict[Name, Callable[[], Any]],
    count: int,
    tick: Callable[[], Any],
    last: Collection[Name] = (),
) -> dict[Name, np.ndarray]:
    """Time all calls in turn, round after round, and return the seconds per call, [rounds] each.

    Each round begins with another call, so that none always follows the same one. A turn begins
    with a call that is not timed: it fetches the competitor's own data into the caches and lets
    the threads of the library before it go to sleep. That is too short for threads that wait by
    spinning: calls that have such are timed `last`, with a pause between them and the next round.
    """
    names = [name for name in calls if name not in last]
    noisy = [name for name in calls if name in last]
    repeats = {}
    for name in names + noisy:
        calls[name]()
        begin = time.perf_counter()
        calls[name]()
        once = max(time.perf_counter() - begin, 1e-9)
        repeats[name] = int(np.clip(np.ceil(TURN_SECONDS / once), 1, 1000))
    seconds = {name: [] for name in calls}
    for turn in range(count):
        if noisy:
            time.sleep(PAUSE_SECONDS)
        first = turn % max(1, len(names))
        for name in names[first:] + names[:first] + noisy:
            calls[name]()
            begin = time.perf_counter()
            for _ in range(repeats[name]):
                calls[name]()
            seconds[name].append((time.perf_counter() - begin) / repeats[name])
        tick()
    return {name: np.array(s) for name, s in seconds.items()}
