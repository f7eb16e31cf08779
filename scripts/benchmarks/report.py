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
    if any(c.get("temp_bytes") is not None for c in row["competitors"]):
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
    title = "Time of each competitor / time of the library"
    return [ratios(f"{title}, {kind}", found) for kind, found in report["summary"].items()]


def ratios(title: str, summary: dict[str, Any]) -> Table:
    """Return the table of geometric means and extremes over rows, as `race.summarized` has them."""
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
    return Table(title, header, lines)


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


def _by_competitor(title: str, report: dict[str, Any], columns: dict[str, Any]) -> list[Table]:
    """Return a table, a line for each competitor of a row; a column is `(row, entry) -> cell`."""
    lines = [
        [_label(row), *(column(row, entry) for column in columns.values())]
        for row in report["rows"]
        for entry in row.get("competitors", [row])
    ]
    return [Table(title, ["row", *columns], lines)]


def compile_times(report: dict[str, Any]) -> list[Table]:
    """Return the table of the mode `compile`."""
    columns = {
        "competitor": lambda row, c: c["name"],
        "seconds": lambda row, c: f"{c['seconds']:.3f}",
        "quartiles": lambda row, c: f"{c['seconds_q1']:.3f} to {c['seconds_q3']:.3f}",
        "/ plain scan": lambda row, c: f"{c['against_plain']:.2f}",
        "/ first T": lambda row, c: f"{c['against_first']:.2f}",
    }
    return _by_competitor("Compile time of the gradient, tracing included", report, columns)


def devices(report: dict[str, Any]) -> list[Table]:
    """Return the table of the mode `devices`."""
    columns = {
        "devices": lambda row, c: str(row["devices"]),
        "way": lambda row, c: c["name"],
        "all-gathers": lambda row, c: _counted(c, {"all-gather"}),
        "all-reduces": lambda row, c: _counted(c, {"all-reduce"}),
        "others": lambda row, c: _counted(c, {*c["collectives"]} - {"all-gather", "all-reduce"}),
        "rows of products": lambda row, c: _spaced(c["product_rows"]),
        "on one device": lambda row, c: _spaced(row["whole_product_rows"]),
        "ms": lambda row, c: _ms(c["seconds"]),
        "/ shard_map": lambda row, c: _number(c["against_shard_map"], ".2f"),
        "float64 error": lambda row, c: f"{c['error']:.0e}",
    }
    title = "Gradient with the batch split over devices; collectives, and those in loops"
    return _by_competitor(title, report, columns)


def _counted(entry, kinds):
    """Return how many collectives of some kinds there are, and how many of them in loops."""
    counts = [entry["collectives"][kind] for kind in kinds]
    return ", ".join(str(sum(count[key] for count in counts)) for key in ("all", "in_loops"))


def _spaced(values):
    return "-" if values is None else " ".join(map(str, values))


def memory(report: dict[str, Any]) -> list[Table]:
    """Return the table of the mode `memory`."""
    columns = {
        "competitor": lambda row, c: c["name"],
        "temp MiB": lambda row, c: f"{c['temp_bytes'] / MIB:.1f}",
        "arrays of [T, B, H]": lambda row, c: f"{c['arrays_of_tbh']:.2f}",
        "/ plain scan": lambda row, c: _number(c["share_of_plain"], ".3f"),
    }
    title = "Temporary memory of the gradient, beside inputs and outputs"
    return _by_competitor(title, report, columns)


def budgets(report: dict[str, Any]) -> list[Table]:
    """Return the table of the mode `budgets`."""
    columns = {
        "algorithm": lambda row, c: c["name"],
        "budget MB": lambda row, c: "" if c["budget"] is None else f"{c['budget'] / 1e6:.1f}",
        "compiled MB": lambda row, c: f"{c['temp_bytes'] / 1e6:.1f}",
        "/ all states": lambda row, c: f"{c['share_of_states']:.3f}",
        "steps run again / T": lambda row, c: (
            f"{c['again'] / row['T']:.2f}" if "again" in c else ""
        ),
        "compile s": lambda row, c: f"{c['compile_seconds']:.2f}",
        "time / bptt": lambda row, c: _number(c["time_ratio"], ".2f"),
    }
    return _by_competitor("The gradient within budgets of temporary memory", report, columns)


def sequences(report: dict[str, Any]) -> list[Table]:
    """Return the table of the mode `sequences`."""
    columns = {
        "algorithm": lambda row, c: row["algorithm"],
        "option": lambda row, c: c["name"],
        "ms": lambda row, c: _number(1e3 * c["seconds"], ".3g"),
        "/ none": lambda row, c: _number(c["against_none"], ".2f"),
    }
    return _by_competitor("Time of the gradient with sequence options", report, columns)


def accuracy(report: dict[str, Any]) -> list[Table]:
    """Return the table of the mode `accuracy`."""
    columns = {
        "algorithm": lambda row, _: row["algorithm"],
        "largest error": lambda row, _: f"{row['error']:.1e}",
        "limit": lambda row, _: f"{row['limit']:.0e}",
        "met": lambda row, _: "yes" if row["met"] else "NO",
        "by leaf": lambda row, _: " ".join(f"{k} {v:.0e}" for k, v in row["errors"].items()),
    }
    title = "Relative error of the gradient against float64 jax.grad"
    return _by_competitor(title, report, columns)


def scaling(report: dict[str, Any]) -> list[Table]:
    """Return the table of the mode `scaling`."""
    columns = {
        "axis": lambda row, _: f"{row['axis']} {row['sizes'][0]}..{row['sizes'][-1]}",
        "competitor": lambda row, _: row["name"],
        "time slope": lambda row, _: f"{row['time_slope']:.2f}",
        "memory slope": lambda row, _: f"{row['memory_slope']:.2f}",
        "ms": lambda row, _: " ".join(_ms(s) for s in row["seconds"]),
        "temp MiB": lambda row, _: " ".join(_mib(b) for b in row["temp_bytes"]),
        "arrays of [T, B, H]": lambda row, _: " ".join(f"{a:.2f}" for a in row["arrays_of_tbh"]),
    }
    title = "Gradient against the length of one axis, the others fixed"
    return _by_competitor(title, report, columns)


def curve(report: dict[str, Any]) -> list[Table]:
    """Return the table of the mode `curve`."""
    columns = {
        "what": lambda row, c: c["name"],
        "ms": lambda row, c: _ms(c["seconds"]),
        "gradients": lambda row, c: f"{c['gradients']:.1f}",
        "temp MiB": lambda row, c: _mib(c["temp_bytes"]),
        "compile s": lambda row, c: f"{c['compile_seconds']:.2f}",
        "lags": lambda row, c: str(row["lags"]),
        "window for 1 %": lambda row, c: str(row["window"]),
    }
    return _by_competitor("The whole truncation curve against one gradient", report, columns)


def _label(row):
    return str(Row(*(row[field] for field in Row._fields)))


def _ms(seconds):
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def _mib(count):
    return "-" if count is None else f"{count / MIB:.3g}"


def _number(value, spec):
    return "-" if value is None else format(value, spec)
