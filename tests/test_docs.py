"""README and docs: links, snippets, files they name, size of the README; openings of docstrings."""

import ast
import re
from pathlib import Path

import jax
import pytest

import jax_bptt as jb
from tests import snippets
from tests.registry import slow_unless

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# README is run by pytest itself, and interop section by section, where a library is installed.
ELSEWHERE = "README.md", "interop.md", "interop-saving.md"
RUN = [page for page in PAGES if page.name not in ELSEWHERE and ">>> " in page.read_text()]

FENCED = re.compile(r"^```.*?^```", re.M | re.S)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.M)
NAMED = re.compile(r"\b((?:jax_bptt|scripts|tests|docs)/[\w/]+\.(?:py|md|svg))\b")


def ids(pages):
    return [str(page.relative_to(ROOT)) for page in pages]


each_page = pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))


def anchors(text):
    """Return the anchors that a code host makes of the headings."""
    headings = HEADING.findall(FENCED.sub("", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text):
    return LINK.findall(FENCED.sub("", text))


def dead_links(page, text):
    """Return the links of a page that lead to no file, or to no heading of it."""
    dead = []
    for link in links(text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve()
        if not target.exists():
            dead.append(link)
        elif anchor and anchor not in anchors(target.read_text() if name else text):
            dead.append(link)
    return dead


@each_page
def test_links(page):
    assert dead_links(page, page.read_text()) == []


def test_a_dead_link_is_found():
    text = "# One\n[a](nowhere.md) [b](#two) [c](#one) [d](docs/cells.md#no) [e](docs/cells.md)"
    assert dead_links(README, text) == ["nowhere.md", "#two", "docs/cells.md#no"]


@each_page
def test_files_that_are_named(page):
    missing = {name for name in NAMED.findall(page.read_text()) if not (ROOT / name).exists()}
    # The page on extending names a cell that is not there.
    assert missing - {"jax_bptt/cells/rhn.py"} == set()


def test_every_page_is_reached():
    reached, found = set(), [README]
    while found:
        page = found.pop()
        if page not in reached and page.suffix == ".md":
            reached.add(page)
            names = (link.partition("#")[0] for link in links(page.read_text()))
            found += [(page.parent / name).resolve() for name in names if name]
    assert set(PAGES) <= reached


def test_the_readme_is_short():
    text = README.read_text()
    assert len(text.splitlines()) <= 150 and len(text.split()) <= 1000
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+\.svg)\)", text)
    assert len(pictures) == 2


# Most pages run networks for seconds, as many of them as there are snippets.
QUICK = "conformance.md", "faq.md", "kernels.md"


@pytest.mark.parametrize(
    "page", [slow_unless(page.name in QUICK, page) for page in RUN], ids=ids(RUN)
)
def test_snippets(page):
    snippets.check(page.read_text(), page.name, str(page))


SWAPS = re.findall(
    r"^\| (Flax nnx|Flax linen|Equinox|PyTorch) \| .*\| `(.+)` \|$", README.read_text(), re.M
)


@pytest.mark.parametrize("library, code", SWAPS, ids=[library for library, _ in SWAPS])
def test_swaps_of_the_readme(library, code):
    """The column `after` of the table of other libraries, where the library is installed."""
    names: dict = {"jb": jb, "key": jax.random.key(0)}
    if library == "PyTorch":
        names["module"] = pytest.importorskip("torch").nn.LSTM(3, 8)
        exec(code, names)
        assert names["params"].w_s.shape == (8, 4, 8)
    else:
        pytest.importorskip("equinox" if library == "Equinox" else "flax")
        if library == "Flax nnx":
            names["rngs"] = pytest.importorskip("flax.nnx").Rngs(0)
        assert type(eval(code, names)).__name__ == "Recurrent"


def test_every_library_has_a_swap():
    assert len(SWAPS) == 4


def without_a_subject(source):
    """Return the docstrings, of constants as well, that begin with a clause for their subject."""
    nodes = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr))
    texts = (node.value for node in nodes if isinstance(node, ast.Constant))
    return [text for text in texts if re.match(r"\s*(What|Which of|Of)\b", str(text))]


def test_docstrings_begin_with_a_subject():
    files = (ROOT / "jax_bptt").rglob("*.py")
    assert {path: found for path in files if (found := without_a_subject(path.read_text()))} == {}


def test_a_docstring_without_a_subject_is_found():
    source = '"""What it does."""\nN = 1\n"""Of a page."""\ndef f():\n    """Whatever it is."""'
    assert without_a_subject(source) == ["What it does.", "Of a page."]
