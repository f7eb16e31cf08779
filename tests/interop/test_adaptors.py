"""Modules of other libraries are imported when they are asked for, and what they share."""

import subprocess
import sys

import pytest

import jax_bptt as jb
from jax_bptt import interop
from jax_bptt.interop.adaptors import sequences
from tests.interop.shared import CELLS


def test_every_layer_that_takes_a_rate_is_known_to_draw_masks():
    random = {"dropout", "variational_dropout", "zoneout"}
    random |= {"recurrent_dropout", "recurrent_dropout_per_step"}
    assert {each.__name__ for each in sequences.RANDOM} == random
    assert all(hasattr(jb, name) for name in random)
    assert not sequences.draws_masks(jb.residual(jb.layer(jb.gru(3, 3))))
    assert sequences.draws_masks(jb.residual(jb.stack(jb.dropout(rate=0.1))))
    assert sequences.draws_masks(jb.bidirectional(CELLS["gru"], jb.zoneout(CELLS["gru"], rate=0.1)))
    assert sequences.draws_masks(jb.Layer(*jb.layer(CELLS["gru"])))  # by hand: who knows


@pytest.mark.parametrize(
    "module, name, library",
    [("nnx", "Recurrent", "flax"), ("linen", "ScannedRNN", "flax")]
    + [("equinox", "Recurrent", "equinox")],
)
def test_a_library_that_is_missing_is_named(monkeypatch, module, name, library):
    monkeypatch.delitem(sys.modules, f"jax_bptt.interop.adaptors.{module}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'jax_bptt\[{library}\]'"):
        getattr(getattr(interop, module), name)
    with pytest.raises(AttributeError, match="has no attribute 'RNN'"):
        _ = getattr(interop, module).RNN


@pytest.mark.slow
def test_none_of_them_is_imported_with_the_package():
    check = "import sys, jax_bptt; sys.exit(bool({'flax', 'equinox', 'haiku'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
