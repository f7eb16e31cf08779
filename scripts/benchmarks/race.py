"""The modes `grad` and `forward`: every competitor on every row, in interleaved rounds.

Each runs on one device and on one per core, as `--devices` says, and counts in its better setting.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import measure, plain, roster, rss
from benchmarks.data import Row, draw, forward_flops
from benchmarks.measure import Prepared, Task

FLOOR = "floor"
JAX_PEERS = ("flax", "nnx", "haiku", "equinox")
WIDE = 8
"""Sequences side by side from which on a row counts in a summary of its own."""


class Settings(NamedTuple):
    """How a race is run.

    Attributes:
      algorithms: of the library; all ratios are to the first.
      peers: names of the peers that can be imported.
      rounds: interleaved rounds per row.
      devices: the numbers of JAX's devices on which everything is tried, least first.
      resident: whether peak resident memory is measured, in a process per competitor.
      side: of the floor's matrices.
    """

    algorithms: list[str]
    peers: list[str]
    rounds: int
    devices: list[int]
    resident: bool
    side: int


TASKS = {"grad": measure.GRADIENT, "forward": measure.FORWARD}


def report(rows: list[dict[str, Any]], own: str) -> dict[str, Any]:
    """Return the JSON report: rows, ratios to the library's `own` time, whether it agreed."""
    agrees = all(
        c["refused"] is None
        for row in rows
        for c in row["competitors"]
        if c["name"].startswith(roster.OWN)
    )
    return {"rows": rows, "summary": summaries(rows, own), "agrees": agrees}


def usable(row: Row, devices: list[int]) -> list[int]:
    """Return the numbers of devices that divide the row's batch; one device if none does."""
    return [n for n in devices if row.B % n == 0] or [1]


def run_row(row: Row, task: Task, settings: Settings, tick: Callable[[], Any]) -> dict[str, Any]:
    """Check all competitors against float64, then time those that agree."""
    data = draw(row)
    counts = usable(row, settings.devices)
    expected, entries, ready = {}, [], {}
    for competitor in roster.competitors(row, settings.algorithms, settings.peers):
        equations = competitor.equations
        if equations not in expected:
            expected[equations] = plain.reference(data, equations)
        prepared = {
            n: competitor.prepare(data, task, measure.mesh_of(n))
            for n in (counts if competitor.splits else [1])
        }
        kinked = equations in plain.KINKED
        entries.append(entry(competitor.name, prepared, expected[equations], row, kinked))
        ready |= {(competitor.name, n): each for n, each in prepared.items()}
    flops = task.products * forward_flops(row)
    calls = agreeing(entries, ready)
    scales = {}
    for n in counts:
        key = (FLOOR, n)
        calls[key], scales[key] = measure.floor(flops, data, measure.mesh_of(n), settings.side)
    seconds = measure.rounds(calls, settings.rounds, tick, last=[(roster.TORCH, 1)])
    floor_s = min(scale * float(np.median(seconds[key])) for key, scale in scales.items())
    add_times(entries, ready, seconds)
    for each in entries:
        if each["refused"] is None:
            peak = None
            if settings.resident:
                is_gradient = task is measure.GRADIENT
                peak = rss.peak(row, each["name"], each["devices"], is_gradient, settings)
            each |= {
                "gflops": flops / each["seconds"] / 1e9,
                "floor_share": floor_s / each["seconds"],
                "rss_bytes": peak,
            }
    found = {"devices": counts, "flops": flops, "floor_s": floor_s, "competitors": entries}
    return {**row._asdict(), **found}


def entry(
    name: str,
    prepared: dict[int, Prepared],
    expected: dict[str, np.ndarray],
    row: Row,
    kinked: bool,
) -> dict[str, Any]:
    """Check a competitor on each number of devices; return what the report says of it untimed.

    Args:
      name: of the competitor.
      prepared: by the number of devices.
      expected: in float64.
      row: the cell and its sizes.
      kinked: whether the derivative jumps, so that errors are taken in the root of the mean square.
    """
    size = measure.root_mean_square if kinked else measure.largest
    found = [
        measure.errors(each.results(each.call()) | each.outputs(), expected, size)
        for each in prepared.values()
    ]
    errors = {leaf: max(error[leaf] for error in found) for leaf in found[0]}
    refused = measure.refusal(errors, row.dtype)
    return {"name": name, "error": max(errors.values()), "errors": errors, "refused": refused}


def agreeing(
    entries: list[dict[str, Any]], ready: dict[tuple[str, int], Prepared]
) -> dict[tuple[str, int], Callable[[], Any]]:
    """Return the calls of the competitors that are timed, by name and number of devices."""
    timed = {each["name"] for each in entries if each["refused"] is None}
    return {key: prepared.call for key, prepared in ready.items() if key[0] in timed}


def add_times(
    entries: list[dict[str, Any]],
    ready: dict[tuple[str, int], Prepared],
    seconds: dict[tuple[str, int], np.ndarray],
) -> None:
    """Add to each entry its better setting, the ratio to the library's, and all `settings`.

    The better is the one with the smaller median. A ratio is the median over the rounds of what
    two competitors take in the same round, each in its better setting.
    """

    def better(name):
        counts = [n for other, n in seconds if other == name]
        return min(counts, key=lambda n: float(np.median(seconds[name, n])))

    timed = [each for each in entries if each["refused"] is None]
    chosen = {each["name"]: better(each["name"]) for each in timed}
    first = entries[0]["name"]
    own = seconds[first, chosen[first]] if first in chosen else None
    for each in timed:
        name = each["name"]
        settings = {
            n: {
                "devices": n,
                **measure.spread(seconds[name, n]),
                "temp_bytes": ready[name, n].temp_bytes,
                "compile_s": ready[name, n].compile_seconds,
                "note": ready[name, n].note,
            }
            for other, n in seconds
            if other == name
        }
        each |= settings[chosen[name]] | {"settings": list(settings.values())}
        each["ratio"] = measure.ratio(seconds[name, chosen[name]], own)


def summaries(rows: list[dict[str, Any]], own: str) -> dict[str, dict[str, Any]]:
    """Return the summary of all rows, and that of the rows with many sequences, if there are any.

    With fewer than that, a time step is a product of a matrix and a handful of vectors.
    """
    wide = [row for row in rows if row["B"] >= WIDE]
    found = {"all rows": summary(rows, own)}
    return found | ({f"rows with B >= {WIDE}": summary(wide, own)} if wide else {})


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
    return {name: summarized(pairs) for name, pairs in ratios.items()}


def summarized(pairs: list[tuple[float, str]]) -> dict[str, Any]:
    """Return geometric mean, least and greatest of ratios, each with the label of its row."""
    values = np.array([ratio for ratio, _ in pairs])
    least = min(pairs)
    return {
        "geometric_mean": float(np.exp(np.mean(np.log(values)))),
        "min": least[0],
        "min_row": least[1],
        "max": float(values.max()),
        "rows": len(pairs),
    }
