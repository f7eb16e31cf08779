"""The snippets of a page, run as its reader would."""

import doctest
import warnings

import jax


def check(text: str, name: str, path: str) -> None:
    """Run all examples of a Markdown text in JAX's default mode; raise where one prints otherwise.

    What a library deprecates is not for our pages to mend.
    """
    test = doctest.DocTestParser().get_doctest(text, {}, name, path, 0)
    assert test.examples
    printed = []
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        result = doctest.DocTestRunner(verbose=False).run(test, out=printed.append)
    assert result.failed == 0, "".join(printed)
