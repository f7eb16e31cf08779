"""The command `bench.py compile-for DEVICE`, for a device that is not there.

The exit status is 1 if a promise is broken, and 2 if something to compile with is missing. Nothing
is run, so that nothing is said about time.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from compile_for import both, h200, v5e
from jax_bptt.testing import tables
from jax_bptt.testing.arguments import Parser, output

DEVICES = {"h200": h200, "v5e": v5e, "both": both}


def parser() -> Parser:
    """Return the parser of the command line, a subcommand per device."""
    top = Parser(prog="bench compile-for", description=__doc__)
    devices = top.add_subparsers(dest="device", required=True)
    for name, device in DEVICES.items():
        sub = devices.add_parser(name, prog=f"bench compile-for {name}", description=device.__doc__)
        device.add_options(sub)
        sub.add_argument("--json", type=output, metavar="FILE")
        sub.add_argument(
            "--markdown", type=Path, metavar="FILE", help="kernels, between the markers of a page"
        )
    return top


def main(argv: Sequence[str]) -> int:
    """Compile for a device; return the exit status."""
    args = parser().parse_args(argv)
    device = DEVICES[args.device]
    reason = None
    if args.markdown is not None:
        reason = tables.unwritable(args.markdown, device.MODE)
    if reason := reason or device.obstacle(args):
        print(f"bench compile-for {args.device}: {reason}", file=sys.stderr)
        return 2
    # No device is looked for: what is compiled for is described, not there.
    jax.config.update("jax_platforms", "cpu")
    found = device.check(args)
    for table in found.tables:
        print(tables.text(table) + "\n")
    print(found.by)
    print("\n".join(found.broken) or "all promises are kept")
    if args.markdown is not None:
        command = shlex.join(["python", "scripts/bench.py", "compile-for", *argv])
        caption = f"{found.by}  \n`{command}`"
        tables.write_markdown(args.markdown, device.MODE, found.page, caption)
    if args.json is not None:
        args.json.write_text(json.dumps(found.document, indent=1) + "\n", encoding="utf-8")
    return 1 if found.broken else 0
