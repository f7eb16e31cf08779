"""The modes `grad` and `forward`: every competitor on every row, in interleaved rounds.

Each runs on one device and on one per core, as `--devices` says, and counts in its better setting.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from benchmarks import measure, plain, roster
from benchmarks.data import Row, draw, forward_flops
from benchmarks.measure import Prepared, Task

FLOOR = "floor"
SMOKE_SIDE, SIDE = 64, 1024
"""Rows of the floor's matrices."""

JAX_PEERS = ("flax", "nnx", "haiku", "equinox")
WIDE = 8
"""Sequences side by side from which on a row counts in a summary of its own."""


class Settings(NamedTuple):
    """How a race is run."""

    algorithms: list[str]  # of the library; all ratios are to the first
    peers: list[str]  # names of the peers that can be imported
    rounds: int  # interleaved rounds per row
    devices: list[int]  # the numbers of JAX's devices on which everything is tried, least first
    smoke: bool  # whether sizes are tiny


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


class Contestant(NamedTuple):
    """A competitor ready to run."""

    name: str  # for the tables
    prepared: dict[int, Prepared]  # by the number of devices
    expected: dict[str, np.ndarray]  # its results and outputs in float64
    # whether the derivative jumps, so that errors are taken in the root of the mean square
    kinked: bool = False


Key = tuple[str, int]
"""The name of a competitor and a number of devices."""


def contest(
    row: Row,
    contestants: list[Contestant],
    rounds: int,
    tick: Callable[[], Any],
    besides: Mapping[Key, Callable[[], Any]] = MappingProxyType({}),
    calls_in_one: int = 1,
) -> tuple[list[dict[str, Any]], dict[Key, np.ndarray]]:
    """Check all against float64, then time those that agree; ratios are to the first.

    Args:
      row: the cell and its sizes.
      contestants: who runs.
      rounds: interleaved.
      tick: called after each round.
      besides: what is timed besides, unchecked.
      calls_in_one: by which the seconds of a call are divided.

    Returns:
      (what the report says of each contestant, the seconds of all that were timed).
    """
    entries = [entry(each, row) for each in contestants]
    ready = {(c.name, n): each for c in contestants for n, each in c.prepared.items()}
    timed = {each["name"] for each in entries if each["refused"] is None}
    calls = {key: prepared.call for key, prepared in ready.items() if key[0] in timed}
    seconds = measure.rounds({**calls, **besides}, rounds, tick, last=[(roster.TORCH, 1)])
    seconds = {key: each / calls_in_one for key, each in seconds.items()}
    add_times(entries, ready, seconds)
    return entries, seconds


def run_row(task: Task, row: Row, settings: Settings, tick: Callable[[], Any]) -> dict[str, Any]:
    """Race all competitors that have the row's cell, beside the floor."""
    data = draw(row)
    counts = usable(row, settings.devices)
    expected, contestants = {}, []
    for competitor in roster.competitors(row, settings.algorithms, settings.peers):
        equations = competitor.equations
        if equations not in expected:
            expected[equations] = plain.reference(data, equations)
        prepared = {
            n: competitor.prepare(data, task, measure.mesh_of(n))
            for n in (counts if competitor.splits else [1])
        }
        kinked = equations in plain.KINKED
        contestants.append(Contestant(competitor.name, prepared, expected[equations], kinked))
    flops = task.products * forward_flops(row)
    side = SMOKE_SIDE if settings.smoke else SIDE
    floors = {n: measure.floor(flops, data, measure.mesh_of(n), side) for n in counts}
    calls = {(FLOOR, n): call for n, (call, _) in floors.items()}
    entries, seconds = contest(row, contestants, settings.rounds, tick, calls)
    floor_s = min(scale * float(np.median(seconds[FLOOR, n])) for n, (_, scale) in floors.items())
    for each in entries:
        if each["refused"] is None:
            each["gflops"] = flops / each["seconds"] / 1e9
            each["floor_share"] = floor_s / each["seconds"]
    found = {"devices": counts, "flops": flops, "floor_s": floor_s, "competitors": entries}
    return {**row._asdict(), **found}


def entry(contestant: Contestant, row: Row) -> dict[str, Any]:
    """Check a contestant on each number of devices; return what the report says of it untimed."""
    size = measure.root_mean_square if contestant.kinked else measure.largest
    found = [
        measure.errors(each.results(each.call()) | each.outputs(), contestant.expected, size)
        for each in contestant.prepared.values()
    ]
    errors = {leaf: max(error[leaf] for error in found) for leaf in found[0]}
    refused = measure.refusal(errors, row.dtype)
    return {
        "name": contestant.name,
        "error": max(errors.values()),
        "errors": errors,
        "refused": refused,
    }


def add_times(
    entries: list[dict[str, Any]],
    ready: dict[Key, Prepared],
    seconds: dict[Key, np.ndarray],
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
