"""Signals that ask a run to end: heard at any time, obeyed between two steps."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import NamedTuple

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""Exit status of a run that a signal ended, as shells count signals 2 and 15."""
WORDS = {
    signal.SIGINT: b"\ninterrupted: finishing, then reporting; again to quit at once\n",
    signal.SIGTERM: b"\nterminated: finishing the step\n",
}


class Signals(NamedTuple):
    """The signals that a run has heard: SIGTERM or else SIGINT if it came, None if neither did.

    While it is `deferring`, SIGTERM waits to be asked for; elsewhere it ends the process at once,
    for there is nothing to save.
    """

    heard: Callable[[], signal.Signals | None]
    deferring: Callable[[], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def listening() -> Iterator[Signals]:
    """Make the first Ctrl-C a request to stop, and the second one final; likewise SIGTERM.

    An exception in the middle of a step would lose the parameters whose buffers it was given.
    """
    heard: list[signal.Signals] = []
    deferred: list[bool] = []

    def on_signal(number, frame):
        asked = signal.Signals(number)
        if asked == signal.SIGTERM and not deferred:
            os._exit(STATUS[asked])
        heard.append(asked)
        signal.signal(number, signal.SIG_DFL)
        with contextlib.suppress(OSError):
            os.write(2, WORDS[asked])

    @contextlib.contextmanager
    def deferring():
        deferred.append(True)
        try:
            yield
        finally:
            deferred.pop()

    previous = {number: signal.signal(number, on_signal) for number in STATUS}
    try:
        yield Signals(lambda: max(heard, default=None), deferring)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
