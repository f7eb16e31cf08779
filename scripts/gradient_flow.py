"""A page on where the gradient flows: which past it comes from, and how much of it arrives.

gradient_flow.py                          lstm, gru and elman, trained on the adding problem
gradient_flow.py --task copy --moments    one cell before training, halfway and after
gradient_flow.py --checkpoint DIR         each layer of a network that train.py saved
gradient_flow.py --watch DIR              a run of train.py --telemetry DIR, again every few seconds

It writes one HTML file, which opens from disk and needs no network.
"""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flow import looks, page
from trainer import files
from trainer.errors import InputError
from trainer.telemetry import NAME

from jax_bptt.diagnostics import plots
from jax_bptt.testing.arguments import Parser, names, output, positive

SECONDS = 5
"""Time between two pages of a run that trains."""

MOST = 400
"""Lines that are drawn: of a longer run, evenly spread, the last one among them."""

ABOUT = {
    "Which state, which loss": "Rows are losses, columns the states that they learn from, colours "
    "the size of what each contributes to the gradient. A wide band along the diagonal is a long "
    "reach; a column is a state that many losses learn from.",
    "What a window would have cost": "The bias of truncated backpropagation for every window. A "
    "straight line is a gradient that decays at one rate, a plateau and a step a dependence at "
    "that distance.",
    "How much arrives": "The gradient on its way back: the median over sequences, and nine tenths "
    "of them. With a loss at the last step alone, a straight line is vanishing or exploding.",
    "Lyapunov exponents as they settle": "How fast a perturbation of the state grows, or shrinks "
    "below zero. A line that still moves at the end says that the run is short.",
    "Singular values over spans": "How much the steps between two states stretch or squeeze what "
    "crosses them. At one, a gradient is kept.",
    "Saturated gates": "For each unit, the share of the time that a gate is at either end, where "
    "hardly any gradient passes.",
}


def parser() -> Parser:
    """Return the parser of the command line."""
    known = "lstm", "gru", "elman", "gru_reset_before"
    top = Parser(prog="gradient_flow", description=__doc__)
    add = top.add_argument
    add("--task", choices=("adding", "copy"), default="adding", help="default adding")
    add("--cells", type=names(known), default=["lstm", "gru", "elman"], metavar="A,B,..")
    add("--moments", action="store_true", help="the first cell before, halfway and after training")
    add("--checkpoint", type=Path, metavar="DIR", help="of train.py, in place of training here")
    add("--text", nargs="+", metavar="FILE", help="that a checkpoint of chars was trained on")
    add("--watch", type=Path, metavar="DIR", help="of train.py --telemetry")
    add("--once", action="store_true", help="with --watch: write the page once, and end")
    add("--length", type=positive, default=50, help="steps of a sequence, default 50")
    add("--hidden", type=positive, default=32, help="units, default 32")
    add("--batch", type=positive, default=32, help="sequences, default 32")
    add("--steps", type=positive, default=500, help="of training, default 500")
    add("--seed", type=int, default=0, help="default 0")
    add("--output", type=output, default=Path("gradient_flow.html"), metavar="FILE")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; return the exit status."""
    args = parser().parse_args(argv)
    if not args.cells:
        parser().error("--cells names no cell")
    given = sys.argv[1:] if argv is None else argv
    footer = " ".join(["python scripts/gradient_flow.py", *given])
    if args.watch:
        return watch(args, footer)
    try:
        text = studied(args, footer)
    except InputError as error:
        parser().error(str(error))
    args.output.write_text(text, encoding="utf-8")
    print(f"written: {args.output}")
    return 0


def studied(args: Namespace, footer: str) -> str:
    """Return the page on networks that are trained here, or that were saved."""
    looked = list(looks.of_checkpoint(args) if args.checkpoint else looks.of_training(args))
    drawn = {look.name: looks.pictures(look, f"look{k}-") for k, look in enumerate(looked)}
    parts: list[page.Section | str] = [summary(looked)]
    words = {look.name: page.words(look.report.in_words()) for look in looked}
    parts.append(page.Section("In words", "What the numbers say, one by one.", words))
    for title, about in ABOUT.items():
        cells = {name: found[title] for name, found in drawn.items() if title in found}
        if cells:
            parts.append(page.Section(title, about, cells))
    what = "a saved network" if args.checkpoint else f"the {args.task} task"
    intro = f"The gradient of one batch of {what}, {looked[0].report.steps} steps long."
    return page.page(finding(looked), intro, parts, footer=footer)


def finding(looked: list[looks.Look]) -> str:
    """Return the heading: how long a window each gradient needs."""
    needs = [f"{look.report.window} steps of {look.name}" for look in looked]
    listed = needs[0] if len(needs) == 1 else f"{', '.join(needs[:-1])} and {needs[-1]}"
    return f"To within 1 %, the gradient comes from windows of {listed}"


def summary(looked: list[looks.Look]) -> str:
    """Return the table of numbers."""
    header = ["", "loss", "largest exponent", "window for 1 % (steps)", "for half (steps)"]
    header += ["Newton iterations", "median |lambda_t|", "clip at"]
    lines = []
    for look in looked:
        told = look.report
        newton = "not counted" if told.iterations is None else str(told.iterations)
        if told.converged is False:
            newton = f"more than {told.iterations}"
        line = [look.name, f"{look.loss:.3g}", f"{told.exponent:+.3f}", str(told.window)]
        lines.append([*line, str(told.half), newton, f"{told.adjoint:.2g}", f"{told.clip:.2g}"])
    return page.table(header, lines)


def watch(args: Namespace, footer: str) -> int:
    """Write the page on a run that trains, until it is interrupted."""
    refresh = 0 if args.once else SECONDS
    while True:
        text = watched(args.watch, refresh=refresh, footer=footer)
        files.write(str(args.output), text.encode())  # whole: a browser reads it at any time
        if args.once:
            return 0
        try:
            time.sleep(SECONDS)
        except KeyboardInterrupt:
            return 0


def spread(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return every so manieth line, such that few are left, counted from the last one."""
    return lines[:: -max(1, -(-len(lines) // MOST))][::-1]


def watched(folder: Path, *, refresh: int, footer: str) -> str:
    """Return the page on a folder as it is now."""
    path = folder / NAME
    written = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    # The last one may be in the making.
    lines = spread([json.loads(line) for line in written if line.endswith("}\n")])
    if not lines:
        intro = f"{path} has no line yet; a run writes one every ten steps."
        return page.page("Nothing to see yet", intro, [], footer=footer, refresh=refresh)
    axes = plots.telemetry(lines)
    heading = axes.get_title(loc="left").replace("\n", " ")
    about = "The loss of each step's batch, and the norm of its gradient before it is clipped."
    parts = [page.Section("Training", about, {"": page.svg(axes, "training")})]
    layers = {
        f"layer {k}, {path}" if path else "the cell": page.svg(
            plots.telemetry_decades(lines, path), f"layer{k}"
        )
        for k, path in enumerate(lines[-1]["adjoints"])
    }
    about = (
        "Each column is a step of training: in which powers of ten the |dL/ds_t| of its time steps "
        "and sequences are. A band that moves down is a gradient that vanishes."
    )
    parts.append(page.Section("Sizes of adjoints", about, layers))
    intro = f"{folder}, {len(lines)} of its lines, the last one of step {lines[-1]['step']}."
    return page.page(heading, intro, parts, footer=footer, refresh=refresh)


if __name__ == "__main__":
    sys.exit(main())
