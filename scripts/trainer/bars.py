"""Progress bars on stderr for whatever takes more than a second."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from trainer.errors import optional_module

Item = TypeVar("Item")


def bar(**options: Any) -> Any:
    """Return a bar of tqdm: now and then a line in a file, smooth on a terminal."""
    between = 0.2 if sys.stderr.isatty() else 10
    return optional_module("tqdm", extra="train").tqdm(mininterval=between, **options)


def track(items: Sequence[Item], doing: str) -> Iterable[Item]:
    """Return the items, under a bar that says what is being done with them."""
    return bar(iterable=items, desc=doing, delay=1, leave=False)
