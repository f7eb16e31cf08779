"""Tables for people and for the pages, from the JSON reports of all modes."""

from collections.abc import Callable
from typing import Any

from benchmarks.data import Row
from jax_bptt.testing.tables import Table

MIB = 2**20


def race_row(row: dict[str, Any]) -> Table:
    """Return the table of one row of a race, a line per competitor."""
    counts, has_floor = row.get("devices"), row.get("floor_s") is not None
    title, columns = _label(row), dict[str, Callable[[dict[str, Any]], str]]()
    if counts:
        columns["devices"] = lambda c: str(c["devices"])
        title += f"   on {' or '.join(map(str, counts))} device{'s' * (counts != [1])}"
    columns["ms"] = lambda c: _ms(c["seconds"])
    columns["quartiles"] = lambda c: f"{_ms(c['seconds_q1'])} to {_ms(c['seconds_q3'])}"
    if has_floor:
        gflop, floor = row["flops"] / 1e9, row["floor_s"]
        title += f"   {gflop:.3g} GFLOP, floor {_ms(floor)} ms ({gflop / floor:.0f} GFLOP/s)"
        columns["GFLOP/s"] = lambda c: f"{c['gflops']:.3g}"
        columns["share of floor"] = lambda c: f"{c['floor_share']:.2f}"
        columns["resident MiB"] = lambda c: _mib(c["rss_bytes"])
    if any("temp_bytes" in c for c in row["competitors"]):
        columns["temp MiB"] = lambda c: _mib(c["temp_bytes"])
        columns["compile s"] = lambda c: _number(c["compile_s"], ".2f")
    columns["error"] = lambda c: f"{c['error']:.0e}"
    columns["time / own"] = lambda c: _number(c["ratio"], ".2f")

    def line(c):
        if c["refused"] is not None:
            return [c["name"], *["-"] * len(columns), c["refused"]]
        return [c["name"], *(column(c) for column in columns.values()), c["note"]]

    return Table(title, ["competitor", *columns, "note"], [line(c) for c in row["competitors"]])


def race(report: dict[str, Any]) -> list[Table]:
    """Return the summaries of a race, whose rows are shown as they come."""
    return [ratios(kind, summary) for kind, summary in report["summary"].items()]


def ratios(kind: str, summary: dict[str, Any]) -> Table:
    """Return the table of geometric means and extremes over rows of a kind."""
    lines = [
        [
            name,
            f"{s['geometric_mean']:.2f}",
            f"{s['min']:.2f}",
            f"{s['max']:.2f}",
            str(s["rows"]),
            s["min_row"],
        ]
        for name, s in summary.items()
    ]
    header = ["competitor", "geometric mean", "least", "greatest", "rows", "row of the least"]
    return Table(f"Time of each competitor / time of the library, {kind}", header, lines)


def race_readme(report: dict[str, Any]) -> list[Table]:
    """Return the compact table: a line per row, a column per competitor, and the means."""
    rows = report["rows"]
    own = rows[0]["competitors"][0]["name"] if rows else ""
    names = list(dict.fromkeys(c["name"] for row in rows for c in row["competitors"]))
    names = [name for name in names if name != own]
    has_devices = any(row.get("devices") for row in rows)
    has_floor = any(row.get("floor_s") is not None for row in rows)
    header = ["T, B, I, H", "cell", f"{own}, ms", *["devices"] * has_devices]
    header += [*(f"x {name}" for name in names), *["share of floor"] * has_floor]
    lines = []
    for row in rows:
        timed = {c["name"]: c for c in row["competitors"]}
        line = [", ".join(str(row[k]) for k in "TBIH"), row["cell"]]
        line.append(_ms(timed[own]["seconds"]) if timed[own]["refused"] is None else "refused")
        line += [str(timed[own].get("devices", "-"))] * has_devices
        line += [_number(timed.get(name, {}).get("ratio"), ".2f") for name in names]
        line += [_number(timed[own].get("floor_share"), ".2f")] * has_floor
        lines.append(line)
    for kind, summary in report["summary"].items():
        means = [_number(summary.get(n, {}).get("geometric_mean"), ".2f") for n in names]
        gaps = ["", "", *[""] * has_devices]
        lines.append([f"geometric mean, {kind}", *gaps, *means, *[""] * has_floor])
    return [Table("", header, lines)]


def compile_times(report: dict[str, Any]) -> list[Table]:
    """Return the table of the mode `compile`."""
    header = ["row", "competitor", "seconds", "quartiles", "/ plain scan", "/ first T"]
    lines = [
        [
            _label(row),
            c["name"],
            f"{c['seconds']:.3f}",
            f"{c['seconds_q1']:.3f} to {c['seconds_q3']:.3f}",
            f"{c['against_plain']:.2f}",
            f"{c['against_first']:.2f}",
        ]
        for row in report["rows"]
        for c in row["competitors"]
    ]
    return [Table("Compile time of the gradient, tracing included", header, lines)]


def devices(report: dict[str, Any]) -> list[Table]:
    """Return the table of the mode `devices`."""
    header = ["row", "devices", "way", "all-gathers", "all-reduces", "others", "rows of products"]
    header += ["on one device", "ms", "/ shard_map", "float64 error"]
    lines = [
        [
            _label(row),
            str(row["devices"]),
            c["name"],
            *_collectives(c["collectives"]),
            _spaced(c["product_rows"]),
            _spaced(row["whole_product_rows"]),
            _ms(c["seconds"]),
            _number(c["against_shard_map"], ".2f"),
            f"{c['error']:.0e}",
        ]
        for row in report["rows"]
        for c in row["competitors"]
    ]
    title = "Gradient with the batch split over devices; collectives, and those in loops"
    return [Table(title, header, lines)]


def _collectives(counts):
    """Return the cells of all-gathers, all-reduces and all others together."""
    others = [v for kind, v in counts.items() if kind not in ("all-gather", "all-reduce")]
    total = {key: sum(v[key] for v in others) for key in ("all", "in_loops")}
    shown = counts["all-gather"], counts["all-reduce"], total
    return [f"{v['all']}, {v['in_loops']}" for v in shown]


def _spaced(values):
    return "-" if values is None else " ".join(map(str, values))


def memory(report: dict[str, Any]) -> list[Table]:
    """Return the table of the mode `memory`."""
    header = ["row", "competitor", "temp MiB", "arrays of [T, B, H]", "/ plain scan"]
    lines = [
        [
            _label(row),
            c["name"],
            f"{c['temp_bytes'] / MIB:.1f}",
            f"{c['arrays_of_tbh']:.2f}",
            _number(c["share_of_plain"], ".3f"),
        ]
        for row in report["rows"]
        for c in row["competitors"]
    ]
    return [Table("Temporary memory of the gradient, beside inputs and outputs", header, lines)]


def sequences(report: dict[str, Any]) -> list[Table]:
    """Return the table of the mode `sequences`."""
    header = ["row", "algorithm", "option", "ms", "/ none"]
    lines = [
        [
            _label(row),
            row["algorithm"],
            c["name"],
            _number(1e3 * c["seconds"], ".3g"),
            _number(c["against_none"], ".2f"),
        ]
        for row in report["rows"]
        for c in row["competitors"]
    ]
    return [Table("Time of the gradient with sequence options", header, lines)]


def accuracy(report: dict[str, Any]) -> list[Table]:
    """Return the table of the mode `accuracy`."""
    header = ["row", "algorithm", "largest error", "limit", "met", "by leaf"]
    lines = [
        [
            _label(row),
            row["algorithm"],
            f"{row['error']:.1e}",
            f"{row['limit']:.0e}",
            "yes" if row["met"] else "NO",
            " ".join(f"{k} {v:.0e}" for k, v in row["errors"].items()),
        ]
        for row in report["rows"]
    ]
    return [Table("Relative error of the gradient against float64 jax.grad", header, lines)]


def scaling(report: dict[str, Any]) -> list[Table]:
    """Return the table of the mode `scaling`."""
    header = ["row", "axis", "competitor", "time slope", "memory slope"]
    header += ["ms", "temp MiB", "arrays of [T, B, H]"]
    lines = [
        [
            _label(row),
            f"{row['axis']} {row['sizes'][0]}..{row['sizes'][-1]}",
            row["name"],
            f"{row['time_slope']:.2f}",
            f"{row['memory_slope']:.2f}",
            " ".join(_ms(s) for s in row["seconds"]),
            " ".join(_mib(b) for b in row["temp_bytes"]),
            " ".join(f"{a:.2f}" for a in row["arrays_of_tbh"]),
        ]
        for row in report["rows"]
    ]
    return [Table("Gradient against the length of one axis, the others fixed", header, lines)]


def _label(row):
    return str(Row(*(row[field] for field in Row._fields)))


def _ms(seconds):
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def _mib(count):
    return "-" if count is None else f"{count / MIB:.3g}"


def _number(value, spec):
    return "-" if value is None else format(value, spec)
