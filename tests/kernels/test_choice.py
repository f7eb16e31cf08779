"""The first kernel of a device that takes a form is chosen, and each that does not says why."""

import jax
import jax.numpy as jnp
import pytest

import jax_bptt as jb
from jax_bptt.kernels import choice
from jax_bptt.kernels.kernel import GatedKernel


def picky(name, size):
    """Return a kernel that takes matrices of one size."""

    def unsupported(form):
        found = form.matrix.shape[1]
        return None if found == size else f"takes {size} units, not {found}"

    def never(*_):
        raise AssertionError("a kernel is run by the algorithm alone")

    return GatedKernel(name, unsupported, never, never, never)


@pytest.fixture
def kernels(monkeypatch):
    gated = picky("first", 4), picky("second", 5), picky("third", 5)
    monkeypatch.setattr(choice, "KERNELS", {"gpu": lambda: choice.Kernels(gated, ())})


def chosen(cell, steps=2, batch=3, device="gpu"):
    params = jax.tree.map(lambda p: p.astype(jnp.float32), cell.init(jax.random.key(0)))
    xs = jnp.ones((steps, batch, 2), jnp.float32)
    state = jax.tree.map(
        lambda s: s.astype(jnp.float32), cell.initial_state(params, (xs.shape[1],))
    )
    return choice.choose(cell, cell.prepare(params), state, xs, device)


@pytest.mark.slow
def test_the_first_that_takes_the_form(kernels):
    for size, name in ((4, "first"), (5, "second")):
        found = chosen(jb.gru(input_size=2, hidden_size=size))
        assert isinstance(found, choice.Choice) and found.kernel.name == name


def test_the_reasons_of_each(kernels):
    assert chosen(jb.gru(input_size=2, hidden_size=6)) == (
        "first: takes 4 units, not 6\nsecond: takes 5 units, not 6\nthird: takes 5 units, not 6"
    )


def test_what_no_kernel_can_take(kernels):
    gru = jb.gru(input_size=2, hidden_size=4)
    assert chosen(gru, steps=0) == chosen(gru, batch=0) == "there is no step of any sequence"
    assert chosen(gru, device="cpu") == "the device is a cpu, and kernels are for gpu"
    before = jb.gru_reset_before(input_size=2, hidden_size=4)
    assert "no jb.GatedStep" in str(chosen(before))
