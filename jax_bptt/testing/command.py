"""Gradient conformance of recurrent layers: this library and those that are installed.

The command `python -m jax_bptt.testing` checks every property of `jax_bptt.testing.conformance` on
every cell of every library, in float64 on random numbers. The matrix says `ok`, `FAIL` or `n/a`:
what a library does not offer or does not promise is not applicable. The exit status is 0 unless
this library fails.
"""

import platform
import shlex
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jax

from jax_bptt.testing import PROPERTIES, RAISED, Report, arguments, conformance, tables
from jax_bptt.testing.libraries import roster
from jax_bptt.testing.libraries.layers import Case, Sizes
from jax_bptt.testing.report import raised

PROGRAM = "python -m jax_bptt.testing"
NAMES = tuple(check.__name__ for check in PROPERTIES)
SMOKE = ("finite_differences", "adjoint_identity", "ragged_lengths", "repeatability")


def parser() -> arguments.Parser:
    """Return the parser of the command line."""
    cells = dict.fromkeys(cell for a in roster.ADAPTERS.values() for cell in a.cells)
    p = arguments.Parser(prog=PROGRAM, description=__doc__)
    p.add_argument(
        "--libraries",
        type=arguments.names(roster.ADAPTERS),
        default=list(roster.ADAPTERS),
        metavar="A,B",
        help=f"of {', '.join(roster.ADAPTERS)}; all by default",
    )
    p.add_argument(
        "--cells",
        type=arguments.names(cells),
        metavar="A,B",
        help=f"of {', '.join(cells)}; all that a library has by default",
    )
    p.add_argument(
        "--properties",
        type=arguments.names(NAMES),
        metavar="A,B",
        help=f"of {', '.join(NAMES)}; all by default",
    )
    p.add_argument("--details", action="store_true", help="print every error, not only failures")
    p.add_argument("--smoke", action="store_true", help="one cell, four properties")
    p.add_argument(
        "--markdown", type=Path, metavar="FILE", help="between the markers of docs/conformance.md"
    )
    return p


def examine(library: str, cells: Collection[str] | None, names: Collection[str]) -> list[Report]:
    """Return the reports on a library's cells, and print the name of each when it is done."""
    adapter = roster.ADAPTERS[library]
    chosen = [cell for cell in adapter.cells if cells is None or cell in cells]
    with roster.undisturbed():
        reports = []
        for case in adapter.cases(chosen, Sizes()):
            reports.append(_examined(case, names))
            print(f"{library} {case.cell}: {len(reports[-1].results)} properties", flush=True)
    return reports


def _examined(case: Case, names: Collection[str]) -> Report:
    kept = [name for name in names if name not in case.left_out]
    checks = [check for check in PROPERTIES if check.__name__ in kept]
    try:
        return conformance(case.subject, case.params, case.xs, case.state, properties=checks)
    except RAISED as error:  # by the forward pass itself: no property holds
        return Report(case.cell, tuple(raised(check.__name__, error) for check in checks))


def matrix(reports: dict[str, list[Report]], names: Sequence[str]) -> tables.Table:
    """Return the table of properties and libraries: the worst that any cell has."""
    ranks = ("n/a", "ok", "FAIL")

    def worst(library: str, name: str) -> str:
        found = [r.verdict for report in reports[library] for r in report.results if r.name == name]
        return max(found, key=ranks.index, default="n/a")

    cells = [[name, *(worst(library, name) for library in reports)] for name in names]
    return tables.Table("", ["", *reports], cells)


def failures(reports: dict[str, list[Report]]) -> list[str]:
    """Return, for every failure, what was seen and the line that shows it again."""
    lines = []
    for library, found in reports.items():
        for report in found:
            for result in report.failures:
                lines.append(f"{library} {report.subject}: {result}")
                lines.append(
                    f"  {PROGRAM} --libraries {library} "
                    f"--cells {report.subject} --properties {result.name}"
                )
    return lines


def _versions(libraries: Collection[str]) -> str:
    packages = dict.fromkeys([roster.ADAPTERS[name].package for name in libraries])
    found = {"python": platform.python_version(), "jax": jax.__version__}
    found |= {package: roster.version(package) for package in packages}
    return ", ".join(f"{package} {version}" for package, version in found.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Examine and print; return 0, 1 if this library fails, 2 for bad arguments."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args: Any = parser().parse_args(argv)
    if args.markdown is not None and (reason := tables.unwritable(args.markdown, "conformance")):
        parser().error(reason)
    names = args.properties or (SMOKE if args.smoke else NAMES)
    cells = args.cells or (["gru"] if args.smoke else None)
    missing = {name: roster.absence(name) for name in args.libraries}
    present = [name for name, reason in missing.items() if reason is None]
    print(_versions(present))
    for name, reason in missing.items():
        if reason is not None:
            print(f"absent: {name}, {reason}")
    reports = {}
    with jax.enable_x64(True):
        for library in present:
            reports[library] = examine(library, cells, names)
    if args.details:
        print()
        for library, found in reports.items():
            print("\n".join(f"{library} {report}" for report in found))
    found = matrix(reports, [name for name in NAMES if name in names])
    print("\n" + tables.text(found))
    if args.markdown is not None:
        command = f"{PROGRAM} {shlex.join(argv)}"
        caption = f"{_versions(present)}  \n`{command}`"
        tables.write_markdown(args.markdown, "conformance", [found], caption)
    if lines := failures(reports):
        print("\n" + "\n".join(lines))
    return 1 if any(report.failures for report in reports.get(roster.OWN, [])) else 0


if __name__ == "__main__":
    sys.exit(main())
