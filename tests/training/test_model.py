import jax
import jax.numpy as jnp
import numpy as np

import jax_bptt as jb
from jax_bptt.training.model import layers, stack

TOLERANCE = 1e-12  # relative, float64


def test_a_stack_runs_each_layer_over_the_outputs_of_the_one_below():
    cells = layers(jb.elman, input_size=4, hidden_size=4, output_size=4, depth=2)
    model = stack(cells)
    params = model.init(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (5, 2, 4))
    last_state, ys = model.apply(params, xs, model.initial_state(params, (2,)))
    below, middle = jb.unroll(cells[0], params[0], xs)
    above, top = jb.unroll(cells[1], params[1], middle)
    np.testing.assert_array_equal(ys, top)
    np.testing.assert_array_equal(last_state[0], below)
    np.testing.assert_array_equal(last_state[1], above)


def test_layers_draw_different_parameters():
    model = stack(layers(jb.elman, input_size=4, hidden_size=4, output_size=4, depth=2))
    first, second = model.init(jax.random.key(0))
    assert not np.array_equal(first.w_s, second.w_s)
    assert first.w_y is None and second.w_y.shape == (4, 4)


def test_two_windows_with_the_state_carried_are_one_long_one():
    cells = layers(jb.lstm, input_size=6, hidden_size=4, output_size=5)
    cells[0] = jb.embedding(cells[0], vocabulary_size=5)
    model = stack(cells, algorithm=jb.bptt())
    params = model.init(jax.random.key(0))
    tokens = jnp.arange(16).reshape(8, 2) % 5
    state = model.initial_state(params, (2,))
    _, whole = model.apply(params, tokens, state)
    state, head = model.apply(params, tokens[:4], state)
    _, tail = model.apply(params, tokens[4:], state)
    parts = jnp.concatenate([head, tail])
    np.testing.assert_allclose(parts, whole, rtol=TOLERANCE, atol=TOLERANCE)
