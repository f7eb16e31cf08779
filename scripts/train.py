"""Train a recurrent network by explicit backpropagation through time.

train.py chars    a language model of characters, on the Python reference or your own text
train.py adding   the sum of two marked numbers in a long sequence
train.py copy     symbols to be repeated after a delay
train.py digits   handwritten digits read row by row or pixel by pixel

With --checkpoint DIR, the same command goes on where it stopped. What is saved there:

train.py sample   writes text
train.py export   becomes a file that JAX alone can run
"""

import sys
from collections.abc import Sequence

from trainer import errors, interrupts, options, streams


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; return the exit status."""
    with streams.enduring() as lost, interrupts.listening() as signals:
        args = options.parse(__doc__ or "", argv)
        # Not at the top: a wrong option answers at once, and Ctrl-C is heard during these imports.
        from trainer import session

        status = session.command(args, signals)
        return errors.UNWRITTEN if lost() else status


if __name__ == "__main__":
    sys.exit(main())
