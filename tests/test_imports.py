"""Imports go one way, private JAX is left alone, and no file outgrows its page."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jax_bptt"
LIBRARY = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

# core <- kernels <- cells, algorithms <- layers <- diagnostics, training, interop <- the face
# <- testing <- scripts
LAYERS = {
    "core": 0,
    "kernels": 1,
    "cells": 2,
    "algorithms": 2,
    "layers": 3,
    "diagnostics": 4,
    "training": 4,
    "interop": 4,
    "testing": 5,
}
TOP = 5  # the face, testing and the scripts may import everything


def imported(source: str) -> list[str]:
    """Return the dotted names that `source` imports, those inside functions included."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


def layer(name: str) -> int | None:
    """Return the layer of a dotted name of the package, or None for what is not of it."""
    parts = name.split(".")
    if parts[0] != "jax_bptt":
        return None
    return LAYERS.get(parts[1], TOP) if len(parts) > 1 else TOP


def upward(module: str, source: str) -> list[str]:
    """Return what a module must not import: a higher layer, or a sibling folder of its own."""

    def wrong(name):
        above, own = layer(name), layer(module)
        if above is None or own is None or own == TOP:
            return False
        siblings = above == own and name.split(".")[1] != module.split(".")[1]
        return above > own or siblings

    return [name for name in imported(source) if wrong(name)]


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def uses(source: str, name: str) -> bool:
    return any(n == name or n.startswith(name + ".") for n in imported(source))


def ids(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize("path", LIBRARY, ids=ids(LIBRARY))
def test_library_file(path):
    source = path.read_text()
    assert upward(dotted(path), source) == []
    assert not any(name.startswith(".") for name in imported(source)), "imports are absolute"
    assert not any(uses(source, name) for name in ("tests", "scripts"))
    if "libraries" not in path.parts:
        assert not uses(source, "torch"), "no other library is imported but to be examined"
    if "training" not in path.parts:
        assert not uses(source, "optax"), "optax is for training alone"


@pytest.mark.parametrize("path", LIBRARY + SCRIPTS + TESTS, ids=ids(LIBRARY + SCRIPTS + TESTS))
def test_any_file(path):
    source = path.read_text()
    assert not uses(source, "jax._src") and not uses(source, "jaxlib")
    assert len(source.splitlines()) <= 400


def test_every_folder_has_its_layer():
    folders = {path.name for path in PACKAGE.iterdir() if any(path.glob("*.py"))}
    assert folders <= set(LAYERS)


@pytest.mark.parametrize(
    "module, source",
    [
        ("jax_bptt.core.bptt", "from jax_bptt.cells import lstm"),
        ("jax_bptt.core.bptt", "def f():\n    import jax_bptt.diagnostics.plots"),
        ("jax_bptt.cells.lstm", "from jax_bptt.algorithms.autodiff import autodiff"),
        ("jax_bptt.cells.lstm", "import jax_bptt as jb"),
        ("jax_bptt.algorithms.autodiff", "from jax_bptt import lstm"),
        ("jax_bptt.diagnostics.plots", "from jax_bptt.training.loop import fit"),
    ],
)
def test_the_rule_can_fail(module, source):
    assert upward(module, source) != []


def test_the_rule_sees_private_jax():
    assert uses("from jax._src import core", "jax._src")
    assert uses("def f():\n    import jax._src.core as c", "jax._src")
    assert uses("from jax import _src", "jax._src")


@pytest.mark.parametrize("path", SCRIPTS, ids=ids(SCRIPTS))
def test_no_script_hides_the_library_it_imports(path):
    """A file `equinox.py` that imports `equinox` imports itself where that is not installed."""
    assert path.stem not in [name.split(".")[0] for name in imported(path.read_text())]
