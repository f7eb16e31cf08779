import jax
import jax.numpy as jnp
import pytest
from trainer import network
from trainer.errors import InputError
from trainer.network import Network

import jax_bptt as jb


def test_cells_fit_on_one_another_and_the_last_has_the_readout():
    layer = network.build(Network("gru", 3, 2, "float32", 4, 5))
    first, second = layer.init(jax.random.key(0))
    assert first.w_x.shape == (4, 3, 3) and first.w_y is None
    assert second.w_x.shape == (3, 3, 3) and second.w_y.shape == (3, 5)


@pytest.mark.slow
def test_tokens_are_embedded_and_bfloat16_is_of_products_alone():
    narrow, wide = (
        network.build(Network("lstm", 3, 1, precision, 4, 5, 6))
        for precision in ("bfloat16", "float64")
    )
    with jax.enable_x64(False):
        (params,) = narrow.init(jax.random.key(0))
        assert params.embedding.shape == (6, 4)
        assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        tokens = jnp.arange(6, dtype=jnp.int32).reshape(3, 2)
        difference = narrow.apply((params,), tokens)[1] - wide.apply((params,), tokens)[1]
        assert 0 < jnp.max(jnp.abs(difference)) < 0.1
    assert wide == jb.stack(jb.layer(jb.embedding(jb.lstm(4, 3, output_size=5), vocabulary_size=6)))


def test_more_than_memory_can_hold_is_refused_with_both_sizes(monkeypatch):
    weights = 3 * 10 * (10 + 4) + 3 * 10 + 10 + 10 * 5
    monkeypatch.setattr(network, "memory", lambda: 4 * (4 * weights + 7 * 2 * 10))
    fits = Network("gru", 10, 1, "float32", 4, 5)
    network.require_memory(fits, steps=7, batch=2)
    for steps, batch, more in (
        (8, 2, {}),
        (7, 3, {}),
        (7, 2, {"cell": "lstm"}),
        (7, 2, {"depth": 2}),
    ):
        with pytest.raises(InputError, match="out of memory: .* GiB or more, and this machine"):
            network.require_memory(fits._replace(**more), steps, batch)
