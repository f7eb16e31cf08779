"""The mode `adaptors`: the gradient through each module of `jax_bptt.interop`, and its original's.

Each is called as users of its library call it, with the same weights, and compiled as they would.
All run on one device and on one per core, and count in their better setting.
"""

# The libraries are an optional extra, so that they may be absent where types are checked.
# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import jax_bptt as jb
from benchmarks import library, measure, plain, race, roster
from benchmarks.data import Data, Row, draw
from benchmarks.measure import Prepared
from benchmarks.models import Model
from jax_bptt.testing.libraries.roster import undisturbed
from jax_bptt.testing.tables import Table

SHAPES = tuple(
    (128, batch, hidden, hidden) for batch in (4, 64, 1024) for hidden in (128, 256, 512)
)
"""Default (T, B, I, H): sizes of PPO, whose encoder is as wide as the state."""

CELLS = ("gru", "lstm")
SCANNED = "scan with resets"
DRAWN = 4
"""Sequences that are drawn; a larger batch repeats them, so that its reference is cheap."""

KEPT = ("error", "refused", "devices", "seconds", "seconds_q1", "seconds_q3")
"""Entries of each of the two in the report of a pair."""

Pair = tuple[str, Model, str, Model]
"""The name and the model of a module of ours, and those of what it takes the place of."""


def _theirs(library: str, row: Row) -> Model:
    """Return a library's own layer; it has both cells of the mode."""
    model = roster.jax_model(library, row)
    assert model is not None
    return model


def _nnx(row: Row, own: Model) -> list[Pair]:
    from flax import nnx

    module = jb.interop.nnx.Recurrent(library.cell_of(row), time_major=True, rngs=nnx.Rngs(0))
    graph, state = nnx.split(module)

    def run(params, xs):
        module = nnx.merge(graph, state, copy=True)
        module.set_params(params)
        return module(xs)

    return [("interop.nnx.Recurrent", own._replace(run=run), "nnx.RNN", _theirs("nnx", row))]


def _linen(row: Row, own: Model) -> list[Pair]:
    import flax.linen as nn
    from recurrent_ppo.network import FlaxRNN

    cell, theirs = library.cell_of(row), _theirs("flax", row)
    module = jb.interop.linen.Recurrent(cell, time_major=True)
    scanned = jb.interop.linen.ScannedRNN(cell=cell)
    copied: Any = FlaxRNN({"gru": nn.GRUCell, "lstm": nn.OptimizedLSTMCell}[row.cell])

    def never(xs):
        """Resets of which XLA does not know that there are none."""
        return jax.numpy.isnan(xs[..., 0])

    def run_scanned(params, xs):
        carry = scanned.initialize_carry(xs.shape[1], row.H, cell)
        return scanned.apply(module.from_params(params), carry, (xs, never(xs)))[1]

    def run_copied(params, xs):
        return copied.apply(params, theirs.start(params, xs.shape[1]), (xs, never(xs)))[1]

    def run(params, xs):
        return module.apply(module.from_params(params), xs)

    return [
        ("interop.linen.Recurrent", own._replace(run=run), "nn.RNN", theirs),
        (
            "interop.linen.ScannedRNN",
            own._replace(run=run_scanned),
            SCANNED,
            theirs._replace(run=run_copied),
        ),
    ]


def _equinox(row: Row, own: Model) -> list[Pair]:
    import equinox as eqx

    module = jb.interop.equinox.Recurrent(library.cell_of(row), key=jax.random.key(0))

    def filled(params):
        return eqx.tree_at(lambda m: m.params, module, params)

    def run(params, xs):
        return filled(params)(xs)[1]

    def run_mapped(params, xs):
        return jax.vmap(filled(params), in_axes=1, out_axes=(0, 1))(xs)[1]

    theirs = "scan of eqx.nn cell", _theirs("equinox", row)
    return [
        ("interop.equinox.Recurrent", own._replace(run=run), *theirs),
        ("interop.equinox.Recurrent, vmap", own._replace(run=run_mapped), *theirs),
    ]


PAIRS: dict[str, Callable[[Row, Model], list[Pair]]] = {
    "nnx": _nnx,
    "flax": _linen,
    "equinox": _equinox,
}
"""Modules of ours by the peer whose layer they take the place of."""


def report(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the JSON report: rows, geometric means, and whether the library agreed."""
    agrees = all(p["ours"]["refused"] is None for row in measured for p in row["pairs"])
    return {"rows": measured, "summary": summaries(measured), "agrees": agrees}


@undisturbed()
def run_row(row: Row, settings: race.Settings, tick: Callable[[], Any]) -> dict[str, Any]:
    """Check both of every pair against float64, then time those that agree."""
    data, expected = repeated(row)
    own, devices = library.model(row, jb.bptt()), race.usable(row, settings.devices)
    pairs = [p for name, of in PAIRS.items() if name in settings.peers for p in of(row, own)]
    models = {}
    for ours, own, theirs, original in pairs:
        models |= {ours: own, theirs: original}
    contestants = [
        race.Contestant(name, {n: _prepare(model, data, n) for n in devices}, expected)
        for name, model in models.items()
    ]
    entries, seconds = race.contest(row, contestants, settings.rounds, tick)
    by_name = {}
    for contestant, entry in zip(contestants, entries, strict=True):
        kept = {k: entry[k] for k in KEPT if k in entry}
        compile_s = contestant.prepared[devices[0]].compile_seconds
        by_name[contestant.name] = kept | {"compile_s": compile_s}
    found = [_pair(ours, theirs, by_name, seconds) for ours, _, theirs, _ in pairs]
    return {**row._asdict(), "devices": devices, "pairs": found}


def _pair(ours, theirs, entries, seconds):
    """Return both entries of a pair, and their times as ratios: theirs over ours."""
    found = {"module": ours, "original": theirs, "ours": entries[ours], "theirs": entries[theirs]}
    chosen = [seconds.get((name, entries[name].get("devices"))) for name in (theirs, ours)]
    found["ratio"] = None if chosen[0] is None else measure.ratio(chosen[0], chosen[1])
    found["compile_ratio"] = entries[theirs]["compile_s"] / entries[ours]["compile_s"]
    return found


def repeated(row: Row) -> tuple[Data, dict[str, np.ndarray]]:
    """Return data of a batch that repeats a few sequences, and its gradient in float64.

    The gradient of the weights is a sum over sequences, so that the few tell it.
    """
    drawn = min(row.B, DRAWN)
    times, rest = divmod(row.B, drawn)
    if rest:
        drawn, times = row.B, 1
    few = draw(row._replace(B=drawn))
    expected = plain.reference(few, row.cell)
    expected = {
        name: np.tile(a, (1, times, 1)) if name in ("xs", "ys") else times * a
        for name, a in expected.items()
    }
    return few._replace(row=row, xs=np.tile(few.xs, (1, times, 1))), expected


def _prepare(model: Model, data: Data, devices: int) -> Prepared:
    """Compile a gradient from nothing."""
    jax.clear_caches()
    return measure.prepare(model, data, measure.GRADIENT, measure.mesh_of(devices))


def summaries(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return geometric means over the rows of both ratios: of each module, and of all together."""
    ratios: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for pair in row["pairs"]:
            if pair["ratio"] is not None:
                both = pair["ratio"], pair["compile_ratio"]
                ratios.setdefault(pair["module"], []).append(both)
    if ratios:
        ratios["all"] = [both for each in ratios.values() for both in each]
    means = {name: np.exp(np.mean(np.log(each), axis=0)) for name, each in ratios.items()}
    return {
        name: {"run": float(run), "compile": float(compiled), "rows": len(ratios[name])}
        for name, (run, compiled) in means.items()
    }


def tables(report: dict[str, Any]) -> list[Table]:
    """Return the tables for a terminal: a line for each pair of a row, and the means."""
    header = ["T, B, H", "cell", "module", "ms", "devices", "in place of", "ms", "devices"]
    header += ["time ratio", "compile s", "its compile s"]
    lines = [_line(row, pair) for row in report["rows"] for pair in row["pairs"]]
    title = "Gradient through the modules for other libraries; ratios are theirs over ours"
    return [Table(title, header, lines), means(report)]


def readme(report: dict[str, Any]) -> list[Table]:
    """Return the tables for a page: a line for each row, and the means."""
    modules = dict.fromkeys(p["module"] for row in report["rows"] for p in row["pairs"])
    lines = []
    for row in report["rows"]:
        pairs = {pair["module"]: pair for pair in row["pairs"]}
        cells = [_short(pairs.get(module)) for module in modules]
        lines.append([f"{row['T']}, {row['B']}, {row['H']}", row["cell"], *cells])
    title = "Milliseconds of the gradient, and how many times as long the original takes"
    return [Table(title, ["T, B, H", "cell", *modules], lines), means(report)]


def means(report: dict[str, Any]) -> Table:
    """Return the table of geometric means over the rows, theirs over ours."""
    originals = {p["module"]: p["original"] for row in report["rows"] for p in row["pairs"]}
    lines = [
        [name, originals.get(name, ""), f"{s['run']:.2f}", f"{s['compile']:.2f}", str(s["rows"])]
        for name, s in report["summary"].items()
    ]
    header = ["geometric mean", "in place of", "time ratio", "compile ratio", "rows"]
    return Table("", header, lines)


def _short(pair):
    if pair is None or pair["ratio"] is None:
        return "-"
    return f"{1e3 * pair['ours']['seconds']:.3g} ({pair['ratio']:.2f})"


def _line(row, pair):
    ours, theirs = pair["ours"], pair["theirs"]
    where = [f"{row['T']}, {row['B']}, {row['H']}", row["cell"]]
    both = [*_time(pair["module"], ours), *_time(pair["original"], theirs)]
    ratio = "-" if pair["ratio"] is None else f"{pair['ratio']:.2f}"
    return [*where, *both, ratio, f"{ours['compile_s']:.2f}", f"{theirs['compile_s']:.2f}"]


def _time(name, entry):
    if entry["refused"] is not None:
        return [name, entry["refused"], "-"]
    return [name, f"{1e3 * entry['seconds']:.3g}", str(entry["devices"])]
