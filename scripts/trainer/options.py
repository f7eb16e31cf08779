"""The command line of scripts/train.py."""

import argparse
import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

CELLS = ("elman", "lstm", "gru", "gru_reset_before")
"""Constructors of jax_bptt that the option --cell can name."""
LARGEST = 2**31 - 1
"""Largest size or number: those of XLA's arrays are 32 bits."""

EXIT_STATUS = """exit status: 0 done; 1 the gradient check failed; 2 the input cannot be used,
memory does not suffice, or the loss is not finite, with one line on stderr that says why; 3 the run
is done and some of its results could not be written, with a line for each; 130 Ctrl-C ended it: the
step is finished, then what was learned so far is saved and reported, and a second Ctrl-C quits at
once; 143 SIGTERM ended it: the step is finished and saved."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def parse(description: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments, `job` the subcommand; exit with status 2 if they cannot be used."""
    parser = _parser(description)
    args = parser.parse_args(argv)
    steps = vars(args).pop("default_steps", None)
    if steps and not args.seconds:
        args.steps = args.steps or steps
    return args


def _parser(description: str) -> argparse.ArgumentParser:
    top = Parser(
        description=description,
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="job", required=True)

    def command(name: str, about: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=about, description=about, epilog=EXIT_STATUS)

    chars = command("chars", "a language model of characters")
    _training(chars, hidden=128, batch=32, steps=5000, rate=8e-3)
    about = "UTF-8 text in place of the Python reference"
    chars.add_argument("--text", nargs="+", metavar="FILE", help=about)
    _number(chars, "--embedding", whole, 64, "N", "size of a character's vector")
    _number(chars, "--window", whole, 64, "T", "steps between updates")
    _number(chars, "--order", whole, 3, "N", "of the n-gram to be compared with")
    _number(chars, "--sample", count, 400, "N", "characters to write at the end")
    _number(chars, "--temperature", positive, 0.8, "X", "of the sample")

    adding = command("adding", "the adding problem")
    _training(adding, hidden=64, batch=50, steps=2000, rate=5e-3)
    _number(adding, "--length", whole, 50, "T", "of the sequences")

    copy = command("copy", "the copy task")
    _training(copy, hidden=128, batch=50, steps=3000, rate=5e-3)
    _number(copy, "--delay", whole, 10, "D", "before the answer")
    _number(copy, "--symbols", whole, 5, "M", "to be remembered")

    digits = command("digits", "handwritten digits")
    _training(digits, hidden=64, batch=50, steps=2000, rate=5e-3)
    digits.add_argument("--pixels", action="store_true", help="64 steps of a pixel, not 8 of a row")

    sample = command("sample", "write text with a network that was saved by chars --checkpoint")
    export = command("export", "write a saved network to a file that JAX alone can run")
    for sub in sample, export:
        sub.add_argument("--checkpoint", required=True, metavar="DIR", help="where it was saved")
    about = "text to go on from (the first of the alphabet, unseen)"
    sample.add_argument("--prompt", metavar="TEXT", help=about)
    _number(sample, "--length", whole, 400, "N", "characters")
    _number(sample, "--temperature", positive, 0.8, "X", "below 1 likelier, above 1 more varied")
    _number(sample, "--seed", count, 0, "N", "of the draws")
    export.add_argument("--output", required=True, metavar="FILE", help="file of jax.export")
    return top


def _number(
    sub: argparse.ArgumentParser, name: str, kind: Any, default: float, letter: str, about: str
) -> None:
    about += " (%(default)s)"
    sub.add_argument(name, type=kind, default=default, metavar=letter, help=about)


def _training(
    sub: argparse.ArgumentParser, *, hidden: int, batch: int, steps: int, rate: float
) -> None:
    add = sub.add_argument
    add("--cell", choices=CELLS, default="lstm", help="recurrent cell (%(default)s)")
    _number(sub, "--hidden", whole, hidden, "H", "units of a layer")
    _number(sub, "--layers", whole, 1, "N", "cells on top of one another")
    _number(sub, "--batch", whole, batch, "B", "sequences side by side")
    about = "of the weights; bfloat16: of products, over float32 parameters (%(default)s)"
    precisions = "float32", "float64", "bfloat16"
    add("--precision", choices=precisions, default="float32", help=about)
    about = "for the gradient (%(default)s)"
    add("--algorithm", choices=("bptt", "autodiff"), default="bptt", help=about)
    about = "over which the batch is split; auto: as many as divide it, of a CPU one a core"
    add("--devices", type=devices, default="auto", metavar="auto|N", help=about)
    _number(sub, "--learning-rate", positive, rate, "X", "highest, of Adam")
    _number(sub, "--clip", limit, 1.0, "X", "gradient norm; inf for no limit")
    add("--steps", type=whole, metavar="N", help=f"updates ({steps} if no --seconds are given)")
    about = "end training after so long, not counting compilation"
    add("--seconds", type=positive, metavar="X", help=about)
    _number(sub, "--seed", count, 0, "N", "of all randomness")
    about = "save there, and go on from what is saved there by the same command"
    add("--checkpoint", metavar="DIR", help=about)
    _number(sub, "--checkpoint-every", positive, 60.0, "X", "seconds between two checkpoints")
    add("--check", action="store_true", help="compare the gradient with jax.grad's first")
    add("--plot", metavar="FILE", help="draw the learning curve (.png, .svg, .pdf)")
    add("--json", metavar="FILE", help="write the results for machines")
    about = "watch the gradient through time: JSON lines, and events for TensorBoard"
    add("--telemetry", metavar="DIR", help=about)
    sub.set_defaults(default_steps=steps)


def _reader(
    kind: Callable[[str], Any], fits: Callable[[Any], bool], wanted: str
) -> Callable[[str], Any]:
    """Return the function that reads a number for which `fits` holds."""

    def read(text):
        with contextlib.suppress(ValueError):
            value = kind(text)
            if fits(value):
                return value
        raise argparse.ArgumentTypeError(f"must be {wanted}, got {text}")

    return read


whole = _reader(int, lambda n: 1 <= n <= LARGEST, f"a whole number from 1 to {LARGEST}")
count = _reader(int, lambda n: 0 <= n <= LARGEST, f"a whole number from 0 to {LARGEST}")
positive = _reader(float, lambda x: 0 < x < math.inf, "a finite number above 0")
limit = _reader(float, lambda x: x > 0, "a number above 0")
devices = _reader(
    lambda text: None if text == "auto" else int(text),
    lambda n: n is None or 1 <= n <= LARGEST,
    f"auto, or a whole number from 1 to {LARGEST}",
)
