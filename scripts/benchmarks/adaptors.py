"""The mode `adaptors`: the gradient through each module of `jax_bptt.interop`, and its original's.

Each adaptor is called as the library's own layer is, with the same weights, and compiled as a user
would: what it adds to `unroll` is time to trace, and none to run.
"""

# The libraries are an optional extra, so that they may be absent where types are checked.
# pyright: reportMissingImports=false

import warnings
from collections.abc import Callable
from typing import Any

import jax

import jax_bptt as jb
from benchmarks import library, measure, plain, roster
from benchmarks.data import Data, Row, draw
from benchmarks.measure import Prepared
from benchmarks.models import Model
from benchmarks.report import Table

SHAPES = tuple(
    (128, batch, hidden, hidden) for batch in (4, 64, 1024) for hidden in (128, 256, 512)
)
"""Default (T, B, I, H): sizes of PPO, whose encoder is as wide as the state."""

CELLS = ("gru", "lstm")
UNROLL = "jb.unroll"
COMPILATIONS = 2
"""Of each gradient, of which the shorter counts; a smoke run does one."""

Way = Callable[[Any, Any], Any]


def _nnx(row: Row) -> dict[str, Way]:
    from flax import nnx

    module = jb.interop.nnx.Recurrent(library.cell_of(row), time_major=True, rngs=nnx.Rngs(0))
    graph, state = nnx.split(module)

    def run(params, xs):
        module = nnx.merge(graph, state, copy=True)
        module.set_params(params)
        return module(xs)

    return {"interop.nnx.Recurrent": run}


def _linen(row: Row) -> dict[str, Way]:
    cell = library.cell_of(row)
    module = jb.interop.linen.Recurrent(cell, time_major=True)
    scanned = jb.interop.linen.ScannedRNN(cell=cell)

    def run_scanned(params, xs):
        carry = scanned.initialize_carry(xs.shape[1], row.H, cell)
        never = jax.numpy.zeros(xs.shape[:2], bool)
        return scanned.apply(module.from_params(params), carry, (xs, never))[1]

    return {
        "interop.linen.Recurrent": lambda params, xs: module.apply(module.from_params(params), xs),
        "interop.linen.ScannedRNN": run_scanned,
    }


def _equinox(row: Row) -> dict[str, Way]:
    import equinox as eqx

    module = jb.interop.equinox.Recurrent(library.cell_of(row), key=jax.random.key(0))

    def with_params(params):
        return eqx.tree_at(lambda m: m.params, module, params)

    def run_mapped(params, xs):
        return jax.vmap(with_params(params), in_axes=1, out_axes=(0, 1))(xs)[1]

    return {
        "interop.equinox.Recurrent": lambda params, xs: with_params(params)(xs)[1],
        "interop.equinox.Recurrent, vmap": run_mapped,
    }


ADAPTORS: dict[str, Callable[[Row], dict[str, Way]]] = {
    "nnx": _nnx,
    "flax": _linen,
    "equinox": _equinox,
}
"""Modules of ours by the peer whose layer they take the place of."""


def run(rows: list[Row], rounds: int, compilations: int, tick: Callable[[], Any]) -> dict[str, Any]:
    """Check and time all rows; return the JSON report."""
    missing = roster.absent(list(ADAPTORS))
    results = [_run_row(row, missing, (rounds, compilations), tick) for row in rows]
    agrees = all(
        c["refused"] is None for row in results for c in row["competitors"] if c["original"] != ""
    )
    return {"rows": results, "absent": missing, "agrees": agrees}


def _run_row(
    row: Row, missing: dict[str, str], counts: tuple[int, int], tick: Callable[[], Any]
) -> dict[str, Any]:
    data, (rounds, compilations) = draw(row), counts
    expected = plain.reference(data, row.cell)
    entries, calls = [], {}
    for name, (model, original) in _ways(row, missing).items():
        prepared, seconds = _prepare(model, data, compilations)
        errors = measure.errors(prepared.results(prepared.call()), expected)
        refused = measure.refusal(errors, row.dtype)
        if refused is None:
            calls[name] = prepared.call
        entries.append(
            {
                "name": name,
                "original": original,
                "compile_s": seconds,
                "error": max(errors.values()),
                "refused": refused,
            }
        )
    seconds = measure.rounds(calls, rounds, tick)
    by_name = {each["name"]: each for each in entries}
    for each in entries:
        if each["name"] in seconds:
            own, theirs = seconds[each["name"]], seconds.get(each["original"])
            each |= measure.spread(own)
            each["original_ratio"] = None if theirs is None else measure.ratio(theirs, own)
            each["compile_ratio"] = None
            if each["original"] in by_name:
                each["compile_ratio"] = by_name[each["original"]]["compile_s"] / each["compile_s"]
    return {**row._asdict(), "competitors": entries}


def _ways(row: Row, missing: dict[str, str]) -> dict[str, tuple[Model, str]]:
    """Return what competes on a row, each with the name of what it takes the place of."""
    own = library.model(row, jb.bptt())
    default = own._replace(run=lambda params, xs: jb.unroll(library.cell_of(row), params, xs)[1])
    found = {UNROLL: (default, roster.PLAIN), roster.PLAIN: (plain.plain(row.cell), "")}
    for peer, make in ADAPTORS.items():
        if peer not in missing and (model := roster.jax_model(peer, row)) is not None:
            found |= {name: (own._replace(run=way), peer) for name, way in make(row).items()}
            found[peer] = (model, "")
    return found


def _prepare(model: Model, data: Data, compilations: int) -> tuple[Prepared, float]:
    """Compile a gradient from nothing, more than once; return the last and the least time."""
    seconds, prepared = [], None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a peer deprecates is not for us to mend
        for _ in range(compilations):
            jax.clear_caches()
            prepared = measure.prepare(model, data, measure.GRADIENT, None)
            seconds.append(prepared.compile_seconds)
    assert prepared is not None
    return prepared, min(seconds)


def tables(report: dict[str, Any]) -> list[Table]:
    """Return the table of the mode."""
    header = ["row", "module", "ms", "compile s", "in place of", "its ms / ours", "its s / ours"]
    lines = [[str(_row(row)), *_line(c)] for row in report["rows"] for c in row["competitors"]]
    return [Table("Gradient through the modules for other libraries", header, lines)]


def _line(c):
    if c["refused"] is not None:
        return [c["name"], "-", "-", c["original"], "-", c["refused"]]
    line = [c["name"], f"{c['seconds'] * 1e3:.3g}", f"{c['compile_s']:.2f}"]
    ratios = (c["original_ratio"], c["compile_ratio"])
    return [*line, c["original"], *("" if r is None else f"{r:.2f}" for r in ratios)]


def _row(row):
    return Row(*(row[field] for field in Row._fields))
