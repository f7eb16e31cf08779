"""The modes `grad` and `forward`: every competitor on every row, in interleaved rounds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import measure, plain, roster, rss
from benchmarks.data import Row, draw, forward_flops
from benchmarks.measure import Task

FLOOR = "floor"
JAX_PEERS = ("flax", "nnx", "haiku", "equinox")


class Settings(NamedTuple):
    """How a race is run.

    Attributes:
      algorithms: of the library; all ratios are to the first.
      peers: names of the peers that can be imported.
      rounds: interleaved rounds per row.
      devices: host devices over which the batch is split.
      resident: whether peak resident memory is measured, in a process per competitor.
      side: of the floor's matrices.
    """

    algorithms: list[str]
    peers: list[str]
    rounds: int
    devices: int
    resident: bool
    side: int


TASKS = {"grad": measure.GRADIENT, "forward": measure.FORWARD}


def run(
    mode: str,
    rows: list[Row],
    settings: Settings,
    tick: Callable[[], Any],
    show: Callable[[dict[str, Any]], Any],
) -> dict[str, Any]:
    """Run all rows, `show` each when it is done, and return the JSON report."""

    def measured(row):
        return run_row(row, TASKS[mode], settings, tick)

    return each(rows, measured, roster.own_name(settings.algorithms[0]), show)


def each(
    rows: list[Row],
    measured: Callable[[Row], dict[str, Any]],
    own: str,
    show: Callable[[dict[str, Any]], Any],
) -> dict[str, Any]:
    """Measure each row and `show` it; return the JSON report, ratios to the library's `own`."""
    results = []
    for row in rows:
        results.append(measured(row))
        show(results[-1])
    return report(results, own)


def report(rows: list[dict[str, Any]], own: str) -> dict[str, Any]:
    """Return the JSON report: rows, ratios to the library's `own` time, whether it agreed."""
    agrees = all(
        c["refused"] is None
        for row in rows
        for c in row["competitors"]
        if c["name"].startswith(roster.OWN)
    )
    return {"rows": rows, "summary": summary(rows, own), "agrees": agrees}


def run_row(row: Row, task: Task, settings: Settings, tick: Callable[[], Any]) -> dict[str, Any]:
    """Check all competitors against float64, then time those that agree."""
    data = draw(row)
    mesh = measure.mesh_of(settings.devices)
    expected, entries, calls = {}, [], {}
    for competitor in roster.competitors(row, settings.algorithms, settings.peers):
        if competitor.equations not in expected:
            expected[competitor.equations] = plain.reference(data, competitor.equations)
        prepared = competitor.prepare(data, task, mesh)
        results = prepared.results(prepared.call()) | prepared.outputs()
        kinked = competitor.equations in plain.KINKED
        size = measure.root_mean_square if kinked else measure.largest
        error = measure.errors(results, expected[competitor.equations], size)
        refused = measure.refusal(error, row.dtype)
        if refused is None:
            calls[competitor.name] = prepared.call
        entries.append(
            {
                "name": competitor.name,
                "note": prepared.note,
                "error": max(error.values()),
                "errors": error,
                "refused": refused,
                "temp_bytes": prepared.temp_bytes,
                "compile_s": prepared.compile_seconds,
                "rss_bytes": None,
            }
        )
    flops = task.products * forward_flops(row)
    calls[FLOOR], scale = measure.floor(flops, data, mesh, settings.side)
    seconds = measure.rounds(calls, settings.rounds, tick)
    floor_s = scale * float(np.median(seconds.pop(FLOOR)))
    own = seconds.get(entries[0]["name"])
    for entry in entries:
        if entry["refused"] is None:
            times = seconds[entry["name"]]
            entry |= measure.spread(times) | {"ratio": measure.ratio(times, own)}
            entry["gflops"] = flops / entry["seconds"] / 1e9
            entry["floor_share"] = floor_s / entry["seconds"]
            if settings.resident:
                entry["rss_bytes"] = rss.peak(
                    row, entry["name"], task is measure.GRADIENT, settings
                )
    return {**row._asdict(), "flops": flops, "floor_s": floor_s, "competitors": entries}


def summary(rows: list[dict[str, Any]], own: str) -> dict[str, Any]:
    """Return geometric mean, least and greatest ratio of each competitor's time to the library's.

    The entry "fastest of flax, nnx, haiku, equinox" takes on each row the fastest of them.
    """
    ratios: dict[str, list[tuple[float, str]]] = {}
    fastest = f"fastest of {', '.join(JAX_PEERS)}"
    for row in rows:
        label = str(Row(*(row[field] for field in Row._fields)))
        timed = {c["name"]: c["ratio"] for c in row["competitors"] if c.get("ratio") is not None}
        for name, ratio in timed.items():
            if name != own:
                ratios.setdefault(name, []).append((ratio, label))
        if peers := [timed[name] for name in JAX_PEERS if name in timed]:
            ratios.setdefault(fastest, []).append((min(peers), label))
    return {name: _summarize(pairs) for name, pairs in ratios.items()}


def _summarize(pairs):
    values = np.array([ratio for ratio, _ in pairs])
    least = min(pairs)
    return {
        "geometric_mean": float(np.exp(np.mean(np.log(values)))),
        "min": least[0],
        "min_row": least[1],
        "max": float(values.max()),
        "rows": len(pairs),
    }
