"""Standard streams that may close, break or fill up while the run goes on."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from trainer.errors import say


class Enduring:
    """A text stream that is written for as long as that is possible, and is silent from then on."""

    def __init__(self, stream: TextIO | None, on_loss: Callable[[str], None]):
        """Wrap a stream, None for a closed one; `on_loss` is told the reason when it is lost."""
        self.lost = False
        self._stream = stream or open(os.devnull, "w")
        self._on_loss = on_loss
        if stream is None:
            self._lose("it is closed")

    def write(self, text: str) -> int:
        """Write and flush; never raise for a stream that cannot be written."""
        if not self.lost:
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._lose(getattr(error, "strerror", None) or str(error))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        """Return what the stream has."""
        return getattr(self._stream, name)

    def _lose(self, reason: str) -> None:
        self.lost = True
        # Its buffer is written once more when the interpreter ends: let that go nowhere.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            with open(os.devnull, "w") as null:
                os.dup2(null.fileno(), self._stream.fileno())
        self._on_loss(reason)


@contextlib.contextmanager
def enduring() -> Iterator[Callable[[], bool]]:
    """Make stdout and stderr such streams; yield whether stdout has been lost.

    The loss of stdout is one line on stderr; that of stderr has no place to be told. Descriptors 0
    to 2 that are closed are opened, or the next file opened would have their number, and get what
    C++ libraries print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    before: Any = sys.stdout, sys.stderr
    with contextlib.suppress(AttributeError, ValueError):
        # As Python's own stderr does: a letter that the encoding has not is written as \\xe9.
        before[0].reconfigure(errors="backslashreplace")
    sys.stderr = Enduring(before[1], lambda reason: None)
    lost = "stdout cannot be written ({}): going on without it"
    sys.stdout = out = Enduring(before[0], lambda reason: say(lost.format(reason)))
    try:
        yield lambda: out.lost
    finally:
        sys.stdout, sys.stderr = before
