"""How the tests of error messages look at a message."""

import jax
import pytest


def params(cell, dtype=None):
    made = cell.init(jax.random.key(0))
    return made if dtype is None else jax.tree.map(lambda p: p.astype(dtype), made)


def check(call, error, *pieces):
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message, "one line"
    for piece in pieces:
        assert piece in message, f"{piece!r} is missing from {message!r}"
