"""Train a recurrent network by explicit backpropagation through time.

train.py chars    a language model of characters, on the Python reference or your own text
train.py adding   the sum of two marked numbers in a long sequence
train.py copy     symbols to be repeated after a delay
train.py digits   handwritten digits read row by row or pixel by pixel
"""

import argparse
import contextlib
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

Number = TypeVar("Number", int, float)

CELLS = ("elman", "lstm", "gru", "gru_reset_before")
"""Constructors of jax_bptt that the option --cell can name."""

EXIT_STATUS = """exit status: 0 done; 1 the gradient check failed; 2 the input cannot be used or the
loss is not finite, with one line on stderr that says why; 130 Ctrl-C ended the run: the step is
finished, then what was learned so far is reported. A second Ctrl-C quits at once."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = Parser(
        description=__doc__,
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    jobs = top.add_subparsers(dest="job", required=True, metavar="chars|adding|copy|digits")

    def job(
        name: str, about: str, *, hidden: int, batch: int, steps: int, rate: float
    ) -> argparse.ArgumentParser:
        sub = jobs.add_parser(
            name,
            help=about,
            description=about,
            epilog=EXIT_STATUS,
        )
        _common_options(sub, hidden=hidden, batch=batch, steps=steps, rate=rate)
        return sub

    chars = job(
        "chars", "a language model of characters", hidden=128, batch=32, steps=5000, rate=8e-3
    )
    add = chars.add_argument
    add("--text", nargs="+", metavar="FILE", help="UTF-8 text in place of the Python reference")
    add(
        "--embedding",
        type=whole,
        default=64,
        metavar="N",
        help="size of a character's vector (%(default)s)",
    )
    add("--window", type=whole, default=64, metavar="T", help="steps between updates (%(default)s)")
    add(
        "--order",
        type=whole,
        default=3,
        metavar="N",
        help="of the n-gram to be compared with (%(default)s)",
    )
    add(
        "--sample",
        type=count,
        default=400,
        metavar="N",
        help="characters to write at the end (%(default)s)",
    )
    add(
        "--temperature", type=positive, default=0.8, metavar="X", help="of the sample (%(default)s)"
    )

    adding = job("adding", "the adding problem", hidden=64, batch=50, steps=2000, rate=5e-3)
    adding.add_argument(
        "--length", type=whole, default=50, metavar="T", help="of the sequences (%(default)s)"
    )

    copy = job("copy", "the copy task", hidden=128, batch=50, steps=3000, rate=5e-3)
    copy.add_argument(
        "--delay", type=whole, default=10, metavar="D", help="before the answer (%(default)s)"
    )
    copy.add_argument(
        "--symbols", type=whole, default=5, metavar="M", help="to be remembered (%(default)s)"
    )

    digits = job("digits", "handwritten digits", hidden=64, batch=50, steps=2000, rate=5e-3)
    digits.add_argument("--pixels", action="store_true", help="64 steps of a pixel, not 8 of a row")
    return top


def _common_options(
    sub: argparse.ArgumentParser, *, hidden: int, batch: int, steps: int, rate: float
) -> None:
    add = sub.add_argument
    add("--cell", choices=CELLS, default="lstm", help="recurrent cell (%(default)s)")
    add("--hidden", type=whole, default=hidden, metavar="H", help="units of a layer (%(default)s)")
    add(
        "--layers",
        type=whole,
        default=1,
        metavar="N",
        help="cells on top of one another (%(default)s)",
    )
    add(
        "--batch",
        type=whole,
        default=batch,
        metavar="B",
        help="sequences side by side (%(default)s)",
    )
    add(
        "--learning-rate",
        type=positive,
        default=rate,
        metavar="X",
        help="highest, of Adam (%(default)s)",
    )
    add(
        "--clip",
        type=positive,
        default=1.0,
        metavar="X",
        help="gradient norm; inf for no limit (%(default)s)",
    )
    add("--steps", type=whole, metavar="N", help=f"updates ({steps} if no --seconds are given)")
    add(
        "--seconds",
        type=positive,
        metavar="X",
        help="end training after so long, not counting compilation",
    )
    add(
        "--precision",
        choices=("float32", "float64", "bfloat16"),
        default="float32",
        help="of the weights; bfloat16: of products, over float32 parameters (%(default)s)",
    )
    add(
        "--algorithm",
        choices=("bptt", "autodiff"),
        default="bptt",
        help="for the gradient (%(default)s)",
    )
    add("--block-length", type=whole, metavar="K", help="steps of a block of bptt")
    add(
        "--devices",
        type=devices,
        default="auto",
        metavar="auto|N",
        help="over which the batch is split; auto: as many as divide it, of a CPU one a core",
    )
    add("--seed", type=count, default=0, metavar="N", help="of all randomness (%(default)s)")
    add("--check", action="store_true", help="compare the gradient with jax.grad's first")
    add("--plot", metavar="FILE", help="draw the learning curve (.png, .svg, .pdf)")
    add("--json", metavar="FILE", help="write the results for machines")
    sub.set_defaults(default_steps=steps)


def whole(text: str) -> int:
    """Return a whole number of at least 1."""
    return _checked(int, text, lambda n: n >= 1, "a whole number of at least 1")


def count(text: str) -> int:
    """Return a whole number of at least 0."""
    return _checked(int, text, lambda n: n >= 0, "a whole number of at least 0")


def devices(text: str) -> int | None:
    """Return a number of devices, None for "auto"."""
    fits = "auto, or a whole number of at least 1"
    return None if text == "auto" else _checked(int, text, lambda n: n >= 1, fits)


def positive(text: str) -> float:
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


@contextlib.contextmanager
def listening_for_interrupt() -> Iterator[Callable[[], bool]]:
    """Make the first Ctrl-C a request to stop, and the second one final; yield the question.

    An exception in the middle of a step would lose the parameters whose buffers it was given.
    """
    requested = threading.Event()

    def on_interrupt(number, frame):
        requested.set()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.write(2, b"\ninterrupted: finishing, then reporting; again to quit at once\n")

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield requested.is_set
    finally:
        signal.signal(signal.SIGINT, previous)


def train(args: argparse.Namespace, stop: Callable[[], bool]) -> int:
    """Run the job that the arguments describe; return the exit status."""
    # Not at the top: a wrong option answers at once, and Ctrl-C is heard during these imports.
    import jax

    import jax_bptt as jb
    from jax_bptt.training import devices as placement
    from jax_bptt.training import loop, session
    from jax_bptt.training.errors import InputError

    algorithm = jb.bptt(block_length=args.block_length)
    steps = args.steps or (None if args.seconds else args.default_steps)
    try:
        mesh = placement.mesh(args.batch, args.devices)
    except InputError as error:
        return _fail(error)
    options = session.Options(
        settings=loop.Settings(args.learning_rate, args.clip, steps, args.seconds),
        algorithm=jb.autodiff() if args.algorithm == "autodiff" else algorithm,
        mesh=mesh,
        precision=args.precision,
        seed=args.seed,
        check=args.check,
        sample=getattr(args, "sample", 0),
        temperature=getattr(args, "temperature", 1.0),
        plot=args.plot,
        json=args.json,
    )
    arguments = {**vars(args), "steps": steps}
    del arguments["default_steps"]
    # JSON has no infinity.
    arguments = {k: str(v) if v == math.inf else v for k, v in arguments.items()}
    about = {"jax_bptt": jb.__version__, "arguments": arguments}
    try:
        with jax.enable_x64(args.precision == "float64"):
            return session.run(_job(args), options, about, stop)
    except (InputError, FloatingPointError) as error:
        return _fail(error)


def _fail(error: Exception) -> int:
    print(f"train.py: error: {error}", file=sys.stderr)
    return 2


def _job(args: argparse.Namespace) -> Any:
    """Return the `jobs.Job` that the arguments describe."""
    import jax_bptt as jb
    from jax_bptt.training import jobs, text

    constructor = getattr(jb, args.cell)
    if args.precision == "bfloat16":
        wide = constructor
        # Inside the embedding, whose gradient is a long sum that stays in float32.
        constructor = lambda **sizes: jb.mixed_precision(wide(**sizes))  # noqa: E731
    network = jobs.Network(constructor, args.hidden, args.layers)
    if args.job == "adding":
        return jobs.adding(network, length=args.length, batch=args.batch, seed=args.seed)
    if args.job == "copy":
        sizes = {"delay": args.delay, "symbols": args.symbols, "batch": args.batch}
        return jobs.copy(network, **sizes, seed=args.seed)
    if args.job == "digits":
        return jobs.digits(network, by_row=not args.pixels, batch=args.batch, seed=args.seed)
    return jobs.chars(
        network,
        text.read_documents(args.text) if args.text else text.reference_documents(),
        embedding_size=args.embedding,
        length=args.window,
        batch=args.batch,
        order=args.order,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; return the exit status."""
    command_line = parser()
    args = command_line.parse_args(argv)
    if args.block_length and args.algorithm != "bptt":
        command_line.error(f"--block-length has no meaning for --algorithm {args.algorithm}")
    with listening_for_interrupt() as stop:
        return train(args, stop)


if __name__ == "__main__":
    sys.exit(main())
