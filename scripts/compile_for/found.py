"""The result of a check."""

from typing import Any, NamedTuple

from jax_bptt.testing.tables import Table


class Found(NamedTuple):
    """The result of compiling for a device."""

    document: dict[str, Any]  # all of it, for JSON
    tables: list[Table]  # for a terminal
    page: list[Table]  # for a page
    by: str  # what compiled it and for what, in a line
    broken: list[str]  # the promises that are not kept, a line each
