"""The snippets of docs/interop*.md, section by section, where the library is installed."""

import re
from pathlib import Path

import pytest

from tests import snippets
from tests.registry import slow_unless

PAGES = sorted((Path(__file__).parents[2] / "docs").glob("interop*.md"))
SECTIONS = {
    (page.stem, title): text
    for page in PAGES
    for title, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page.read_text(), re.M | re.S)
    if ">>> " in text
}
LIBRARIES = r"^>>> (?:import|from) (flax|equinox|haiku|orbax|safetensors)"
QUICK = ("Plain JAX",)


def test_no_page_is_left_out():
    titles = {title for _, title in SECTIONS}
    wanted = {"Flax nnx", "Flax linen", "Equinox", "Haiku", "Plain JAX", "orbax", "safetensors"}
    assert titles >= wanted | {"jax.export"}


@pytest.mark.parametrize(
    "page, title", [slow_unless(where[1] in QUICK, *where) for where in SECTIONS]
)
def test_snippets(page, title):
    text = SECTIONS[page, title]
    for library in re.findall(LIBRARIES, text, re.M):
        pytest.importorskip("orbax.checkpoint" if library == "orbax" else library)
    if ".serialize()" in text:
        pytest.importorskip("flatbuffers")
    snippets.check(text, title, f"docs/{page}.md")
