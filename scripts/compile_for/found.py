"""The result of a check."""

from typing import Any, NamedTuple

from jax_bptt.testing.tables import Table


class Found(NamedTuple):
    """The result of compiling for a device.

    Attributes:
      document: all of it, for JSON.
      tables: for a terminal.
      page: for a page.
      by: what compiled it and for what, in a line.
      broken: the promises that are not kept, a line each.
    """

    document: dict[str, Any]
    tables: list[Table]
    page: list[Table]
    by: str
    broken: list[str]
