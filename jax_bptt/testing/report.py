"""Results of the conformance suite, by property and by layer."""

from typing import NamedTuple


class Result(NamedTuple):
    """The verdict on one property.

    Attributes:
      name: of the property.
      passed: None where the property is not applicable.
      error: what was measured; None where nothing was.
      tolerance: the largest error that passes.
      explanation: one line: what was compared and where it is worst, or why nothing was.
    """

    name: str
    passed: bool | None
    error: float | None
    tolerance: float | None
    explanation: str

    @property
    def verdict(self) -> str:
        """The verdict in a word: "ok", "FAIL" or "n/a"."""
        return {True: "ok", False: "FAIL", None: "n/a"}[self.passed]

    def __str__(self) -> str:
        """Return the result in one line."""
        measured = "" if self.error is None else f" {self.error:.1e} (<= {self.tolerance:.0e})"
        return f"{self.name:24}{self.verdict:5}{measured:20} {self.explanation}"


class Report(NamedTuple):
    """The results of all properties for one subject.

    Attributes:
      subject: its name.
      results: one a property, in the order they were run.
    """

    subject: str
    results: tuple[Result, ...]

    @property
    def failures(self) -> tuple[Result, ...]:
        """The results that failed: `assert not report.failures, report`."""
        return tuple(result for result in self.results if result.passed is False)

    def __str__(self) -> str:
        """Return a line for the subject and one for each property."""
        return "\n".join([self.subject, *(f"  {result}" for result in self.results)])


def measured(error: float, tolerance: float, explanation: str) -> Result:
    """Return the result of a comparison; the name is added by who runs the property."""
    return Result("", bool(error <= tolerance), error, tolerance, explanation)


def not_applicable(reason: str) -> Result:
    """Return the result of a property that says nothing about the subject."""
    return Result("", None, None, None, reason)


def raised(name: str, error: Exception) -> Result:
    """Return the failure of a property whose subject raised an error, with its first line."""
    line = str(error).strip().partition("\n")[0]
    return Result(name, False, None, None, f"raises {type(error).__name__}: {line}")
