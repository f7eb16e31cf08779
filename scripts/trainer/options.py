"""The command line of scripts/train.py."""

import argparse
import math
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

Number = TypeVar("Number", int, float)

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
    """Return the arguments; `job` is the subcommand.

    Raises:
      SystemExit: they cannot be used, with status 2, or help was asked for.
    """
    parser = _parser(description)
    args = parser.parse_args(argv)
    if getattr(args, "block_length", None) and args.algorithm != "bptt":
        parser.error(f"--block-length has no meaning for --algorithm {args.algorithm}")
    return args


def _parser(description: str) -> argparse.ArgumentParser:
    top = Parser(
        description=description,
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = "chars|adding|copy|digits|sample|export"
    commands = top.add_subparsers(dest="job", required=True, metavar=names)

    def command(name: str, about: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=about, description=about, epilog=EXIT_STATUS)

    _chars(command("chars", "a language model of characters"))
    _tasks(command)
    sample = command("sample", "write text with a network that was saved by chars --checkpoint")
    _saved(sample)
    add = sample.add_argument
    add("--prompt", metavar="TEXT", help="text to go on from (the first of the alphabet, unseen)")
    add("--length", type=whole, default=400, metavar="N", help="characters (%(default)s)")
    add("--temperature", type=positive, default=0.8, metavar="X", help="(%(default)s)")
    add("--seed", type=count, default=0, metavar="N", help="of the draws (%(default)s)")
    export = command("export", "write a saved network to a file that JAX alone can run")
    _saved(export)
    export.add_argument("--output", required=True, metavar="FILE", help="file of jax.export")
    return top


def _saved(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--checkpoint", required=True, metavar="DIR", help="where it was saved")


def _chars(chars: argparse.ArgumentParser) -> None:
    _network_options(chars, hidden=128, batch=32)
    _training_options(chars, steps=5000, rate=8e-3)
    add = chars.add_argument
    add("--text", nargs="+", metavar="FILE", help="UTF-8 text in place of the Python reference")
    _size(chars, "--embedding", 64, "N", "size of a character's vector")
    _size(chars, "--window", 64, "T", "steps between updates")
    _size(chars, "--order", 3, "N", "of the n-gram to be compared with")
    about = "characters to write at the end (%(default)s)"
    add("--sample", type=count, default=400, metavar="N", help=about)
    about = "of the sample (%(default)s)"
    add("--temperature", type=positive, default=0.8, metavar="X", help=about)


def _tasks(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    adding = command("adding", "the adding problem")
    _network_options(adding, hidden=64, batch=50)
    _training_options(adding, steps=2000, rate=5e-3)
    _size(adding, "--length", 50, "T", "of the sequences")

    copy = command("copy", "the copy task")
    _network_options(copy, hidden=128, batch=50)
    _training_options(copy, steps=3000, rate=5e-3)
    _size(copy, "--delay", 10, "D", "before the answer")
    _size(copy, "--symbols", 5, "M", "to be remembered")

    digits = command("digits", "handwritten digits")
    _network_options(digits, hidden=64, batch=50)
    _training_options(digits, steps=2000, rate=5e-3)
    digits.add_argument("--pixels", action="store_true", help="64 steps of a pixel, not 8 of a row")


def _size(sub: argparse.ArgumentParser, name: str, default: int, letter: str, about: str) -> None:
    about += " (%(default)s)"
    sub.add_argument(name, type=whole, default=default, metavar=letter, help=about)


def _network_options(sub: argparse.ArgumentParser, *, hidden: int, batch: int) -> None:
    add = sub.add_argument
    add("--cell", choices=CELLS, default="lstm", help="recurrent cell (%(default)s)")
    _size(sub, "--hidden", hidden, "H", "units of a layer")
    _size(sub, "--layers", 1, "N", "cells on top of one another")
    _size(sub, "--batch", batch, "B", "sequences side by side")
    about = "of the weights; bfloat16: of products, over float32 parameters (%(default)s)"
    precisions = "float32", "float64", "bfloat16"
    add("--precision", choices=precisions, default="float32", help=about)
    about = "for the gradient (%(default)s)"
    add("--algorithm", choices=("bptt", "autodiff"), default="bptt", help=about)
    add("--block-length", type=whole, metavar="K", help="steps of a block of bptt")
    about = "over which the batch is split; auto: as many as divide it, of a CPU one a core"
    add("--devices", type=devices, default="auto", metavar="auto|N", help=about)


def _training_options(sub: argparse.ArgumentParser, *, steps: int, rate: float) -> None:
    add = sub.add_argument
    about = "highest, of Adam (%(default)s)"
    add("--learning-rate", type=positive, default=rate, metavar="X", help=about)
    about = "gradient norm; inf for no limit (%(default)s)"
    add("--clip", type=limit, default=1.0, metavar="X", help=about)
    add("--steps", type=whole, metavar="N", help=f"updates ({steps} if no --seconds are given)")
    about = "end training after so long, not counting compilation"
    add("--seconds", type=positive, metavar="X", help=about)
    add("--seed", type=count, default=0, metavar="N", help="of all randomness (%(default)s)")
    about = "save there, and go on from what is saved there by the same command"
    add("--checkpoint", metavar="DIR", help=about)
    about = "seconds between two checkpoints (%(default)s)"
    add("--checkpoint-every", type=positive, default=60.0, metavar="X", help=about)
    add("--check", action="store_true", help="compare the gradient with jax.grad's first")
    add("--plot", metavar="FILE", help="draw the learning curve (.png, .svg, .pdf)")
    add("--json", metavar="FILE", help="write the results for machines")
    about = "watch the gradient through time: JSON lines, and events for TensorBoard"
    add("--telemetry", metavar="DIR", help=about)
    sub.set_defaults(default_steps=steps)


def whole(text: str) -> int:
    """Return a whole number of at least 1."""
    return _checked(int, text, lambda n: 1 <= n <= LARGEST, f"a whole number from 1 to {LARGEST}")


def count(text: str) -> int:
    """Return a whole number of at least 0."""
    return _checked(int, text, lambda n: 0 <= n <= LARGEST, f"a whole number from 0 to {LARGEST}")


def devices(text: str) -> int | None:
    """Return a number of devices, None for "auto"."""
    fits = f"auto, or a whole number from 1 to {LARGEST}"
    return None if text == "auto" else _checked(int, text, lambda n: 1 <= n <= LARGEST, fits)


def positive(text: str) -> float:
    """Return a finite number above 0."""
    return _checked(float, text, lambda x: 0 < x < math.inf, "a finite number above 0")


def limit(text: str) -> float:
    """Return a number above 0, which may be infinite."""
    return _checked(float, text, lambda x: x > 0, "a number above 0")


def _checked(
    kind: Callable[[str], Number], text: str, fits: Callable[[Number], bool], wanted: str
) -> Number:
    message = f"must be {wanted}, got {text}"
    try:
        value = kind(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(message) from error
    if not fits(value):
        raise argparse.ArgumentTypeError(message)
    return value
