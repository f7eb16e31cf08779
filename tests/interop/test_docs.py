"""The snippets of docs/interop.md, section by section, where the library is installed."""

import doctest
import re
import warnings
from pathlib import Path

import jax
import pytest

from tests.registry import slow_unless

PAGE = Path(__file__).parents[2] / "docs" / "interop.md"
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S))


QUICK = ("Plain JAX",)


@pytest.mark.parametrize("title", [slow_unless(title in QUICK, title) for title in SECTIONS])
def test_snippets(title):
    text = SECTIONS[title]
    for library in re.findall(r"^>>> (?:import|from) (flax|equinox|haiku|orbax)", text, re.M):
        pytest.importorskip("orbax.checkpoint" if library == "orbax" else library)
    if ".serialize()" in text:
        pytest.importorskip("flatbuffers")
    test = doctest.DocTestParser().get_doctest(text, {}, title, str(PAGE), 0)
    assert test.examples
    printed = []
    # As the reader has JAX; what a library deprecates is not for this page to mend.
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        result = doctest.DocTestRunner(verbose=False).run(test, out=printed.append)
    assert result.failed == 0, "".join(printed)
