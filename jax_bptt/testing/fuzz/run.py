"""A fuzzer: random compositions of what the library has, against naive loops in NumPy.

    python -m jax_bptt.testing.fuzz [--seed S] [--draws N] [--first K]

A draw is a cell or layers of cells, wrapped or not, with sequence options, run by one of the
algorithms, and differentiated in one of several ways. Values and derivatives, number by number,
are those of a loop over time that has equations of its own (`equations`), whose derivatives
come from imaginary steps (`imaginary`) and not from JAX. A draw that fails prints a line and the
command that repeats it alone.

Compilation is what takes the time, so that a few draws in a row share their composition, and with
it one program; the numbers, lengths, resets and masks are each draw's own.
"""

import collections
import functools
import os
import re
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_bptt.core.types import PyTree
from jax_bptt.testing import numerics
from jax_bptt.testing.arguments import Parser
from jax_bptt.testing.fuzz.compositions import Composition, draw_composition, draw_numbers
from jax_bptt.testing.suite import RAISED

SHARING = 8
"""How many draws in a row share a composition."""

TOLERANCES = {"float64": 1e-10, "float32": 1e-3}

FLOOR = 1e-2
"""The least scale of an array that errors are relative to, where what is drawn is of size one."""

KEPT = 1000
"""After so many draws what has been compiled is dropped: it takes pieces of mapped memory, of which
a process has only so many."""

QUICKLY_COMPILED = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
"""Flags under which XLA compiles a program that is run a few times and then thrown away."""
if jax.__version_info__ < (0, 11):
    QUICKLY_COMPILED.append("--xla_cpu_use_fusion_emitters=false")  # later unknown, and fatal


class Outcome(NamedTuple):
    """The result of a draw.

    Attributes:
      number: which.
      composition: what was drawn; None where that failed.
      error: the worst relative error; infinite where something was raised.
      trouble: where the error is, or what was raised.
    """

    number: int
    composition: Composition | None
    error: float
    trouble: str

    @property
    def precision(self) -> str:
        """The name of the draw's dtype."""
        return "float64" if self.composition is None else np.dtype(self.composition.dtype).name

    @property
    def failed(self) -> bool:
        """Whether the error is more than rounding."""
        return not self.error <= TOLERANCES[self.precision]


class Report(NamedTuple):
    """The results of all draws of a seed."""

    seed: int
    outcomes: tuple[Outcome, ...]

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """Those that failed."""
        return tuple(outcome for outcome in self.outcomes if outcome.failed)

    def __str__(self) -> str:
        """Return the number of draws, the worst errors, and how often there was what."""
        lines = [f"{len(self.outcomes)} draws, seed {self.seed}, {len(self.failures)} failed"]
        for precision, tolerance in TOLERANCES.items():
            own = [o for o in self.outcomes if o.precision == precision]
            if own:
                worst = max(own, key=lambda outcome: outcome.error)
                lines.append(
                    f"worst relative error in {precision}: {worst.error:.1e} in draw {worst.number}"
                    f" ({tolerance:.0e} allowed)"
                )
        lines += [f"{kind}: {_counted(words)}" for kind, words in _words(self.outcomes).items()]
        return "\n".join(lines)


def _words(outcomes: Iterable[Outcome]) -> dict[str, list[str]]:
    """Return what there was of each kind, a word for each time."""
    words = collections.defaultdict(list)
    for composition in (o.composition for o in outcomes if o.composition is not None):
        subject, algorithm = composition.setting.subject, composition.setting.algorithm
        words["ways"].append(composition.way.__name__)
        words["made by"] += re.findall(r"\b(\w+)\(", subject.name)
        words["algorithms"].append("default" if algorithm is None else repr(algorithm))
        words["given"] += composition.options
        words["steps"].append(str(composition.steps))
        words["batches"].append(str(composition.batch))
    return words


def _counted(words: list[str]) -> str:
    return ", ".join(f"{word} {n}" for word, n in collections.Counter(words).most_common())


def command(seed: int, index: int) -> str:
    """Return the command that repeats a draw."""
    return f"python -m jax_bptt.testing.fuzz --seed {seed} --first {index} --draws 1"


def fuzz(seed: int, indices: Iterable[int]) -> Report:
    """Make draws, and print a line for each that fails.

    Args:
      seed: of all chance.
      indices: numbers of the draws.

    Returns:
      A `Report`.
    """
    outcomes = []
    with jax.enable_x64(True):
        for index in indices:
            if len(outcomes) % KEPT == KEPT - 1:
                _program.cache_clear()
                jax.clear_caches()
            outcome = _draw(seed, index)
            outcomes.append(outcome)
            if outcome.failed:
                composition = outcome.composition or "no composition"
                print(
                    f"draw {index}: {composition}: {outcome.trouble}, error {outcome.error:.1e}: "
                    f"{command(seed, index)}",
                    flush=True,
                )
    return Report(seed, tuple(outcomes))


@functools.lru_cache(maxsize=1)
def _program(seed: int, number: int) -> tuple[Composition, Any]:
    """Return a composition and its program."""
    composition = draw_composition(np.random.default_rng((seed, 0, number)))
    program = composition.way(composition.setting)
    return composition, jax.jit(program) if composition.jitted else program


def _draw(seed: int, index: int) -> Outcome:
    composition = None
    try:
        composition, program = _program(seed, index // SHARING)
        given, expected = draw_numbers(composition, np.random.default_rng((seed, 1, index)))
        error, where = worst(program(given), expected(), composition.dtype)
        return Outcome(index, composition, error, f"off in {where}")
    except RAISED as error:
        line = str(error).strip().partition("\n")[0]
        return Outcome(index, composition, np.inf, f"{type(error).__name__}: {line}")


def worst(got: PyTree, want: PyTree, dtype: Any) -> tuple[float, str]:
    """Return the largest relative error of two trees, and in which of their leaves it is.

    Args:
      got: what is judged, floating numbers of the precision of `dtype`.
      want: what is right.
      dtype: the real dtype.

    Returns:
      The error, infinite where leaves differ in shape, kind, precision or as integers, or where one
      is missing; and a path.
    """
    largest, where = 0.0, "nothing"
    found, right = _named(got), _named(want)
    for name in found | right:
        error = np.inf
        if name in found and name in right:
            error = _error(found[name], right[name], dtype)
        if error >= largest:
            largest, where = error, name
    return largest, where


def _named(tree: PyTree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _error(got: np.ndarray, want: np.ndarray, dtype: Any) -> float:
    if got.shape != want.shape or got.dtype.kind != want.dtype.kind:
        return np.inf
    if not numerics.is_inexact(want):
        return 0.0 if np.array_equal(got, want) else np.inf
    if np.finfo(got.dtype).dtype != dtype:
        return np.inf
    scale = max(FLOOR, float(np.abs(want).max(initial=0)))
    error = float(np.abs(got - want).max(initial=0)) / scale
    return error if np.isfinite(error) else np.inf


def _progress(indices: range) -> Iterable[int]:
    """Return the indices, with a bar on a terminal where there is tqdm."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return indices
    return tqdm(indices, unit="draw", disable=None, leave=False)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status, 1 where a draw failed."""
    parser = Parser(prog="python -m jax_bptt.testing.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of all chance")
    parser.add_argument("--draws", type=int, default=2000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="number of the first draw")
    given = parser.parse_args(arguments)
    # XLA reads its flags when it is first used, which is later than this.
    os.environ.setdefault("XLA_FLAGS", " ".join(QUICKLY_COMPILED))
    began = time.perf_counter()
    report = fuzz(given.seed, _progress(range(given.first, given.first + given.draws)))
    print(f"{report}\n{time.perf_counter() - began:.0f} s")
    return 1 if report.failures else 0
