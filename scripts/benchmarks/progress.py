"""A bar on a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress(total: int, unit: str = "round") -> Iterator[Callable[[], Any]]:
    """Yield what to call after each of `total` parts of the work, shown as a bar on a terminal."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        yield lambda: None
    else:
        with tqdm(total=total, disable=None, leave=False, unit=unit) as bar:
            yield lambda: bar.update(1)
