"""The names that `import jax_bptt as jb` offers: sorted, complete, documented."""

import doctest
import inspect
import types

import pytest

import jax_bptt as jb

FUNCTIONS = [name for name in jb.__all__ if inspect.isfunction(getattr(jb, name))]


def test_sorted_and_without_repeats():
    assert list(jb.__all__) == sorted(set(jb.__all__))


def test_all_is_what_the_module_holds():
    held = {
        name
        for name, value in vars(jb).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert held == set(jb.__all__)


@pytest.mark.parametrize("name", jb.__all__)
def test_has_a_docstring(name):
    documentation = vars(getattr(jb, name)).get("__doc__") or getattr(jb, name).__doc__
    first = inspect.cleandoc(documentation).splitlines()[0]
    assert first.endswith(".") and len(first) > 20
    # What `NamedTuple` writes by itself is no documentation.
    assert not first.startswith(f"{name}(")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_has_an_example_that_uses_it(name):
    examples = doctest.DocTestParser().get_examples(getattr(jb, name).__doc__)
    assert any(f"jb.{name}(" in example.source for example in examples)
    assert any(example.want for example in examples)
    assert len(examples) <= 8


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_is_explained(name):
    function = getattr(jb, name)
    for argument in inspect.signature(function).parameters:
        assert f"{argument}:" in function.__doc__


@pytest.mark.parametrize("name", FUNCTIONS)
def test_settings_are_keyword_only(name):
    """Positional are the model, its sizes and the data: params, xs, state, cotangents, keys."""
    data = {"cell", "params", "xs", "state", "d_y", "d_ys", "d_last_state", "step", "key"}
    data |= {"forward", "backward", "layer", "layers", "function", "x"}
    data |= {"input_size", "hidden_size"}
    data |= {"window", "rate"}  # the one number without which there is no such algorithm
    for argument in inspect.signature(getattr(jb, name)).parameters.values():
        keyword = argument.kind in (argument.KEYWORD_ONLY, argument.VAR_KEYWORD)
        assert keyword or argument.name in data


def test_the_version_is_in_one_place():
    assert jb.__version__.count(".") == 2
