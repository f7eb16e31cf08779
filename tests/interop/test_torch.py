"""Outputs and all gradients against PyTorch: layers, directions, ragged batches, projection."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt import interop
from tests.registry import assert_close, slow_unless

torch = pytest.importorskip("torch")

T, B, I, H, P = 5, 3, 3, 4, 2  # noqa: E741 - the axis letters of the package
LENGTHS = [3, 5, 1]
CLOSE = 1e-10

# Our constructor, theirs, and the size of an output.
KINDS = {
    "rnn": (jb.elman, torch.nn.RNN, H),
    "rnn_relu": (
        functools.partial(jb.elman, activation=jax.nn.relu),
        functools.partial(torch.nn.RNN, nonlinearity="relu"),
        H,
    ),
    "gru": (jb.gru, torch.nn.GRU, H),
    "lstm": (jb.lstm, torch.nn.LSTM, H),
    "lstm_projected": (
        functools.partial(jb.lstm_projected, projection_size=P),
        functools.partial(torch.nn.LSTM, proj_size=P),
        P,
    ),
}


def _modules(kind, layers, directions):
    """Return the stack and the module of PyTorch, which draws the parameters of both."""
    ours, theirs, outputs = KINDS[kind]
    cells = [
        ours(input_size=size, hidden_size=H) for size in (I, *[directions * outputs] * (layers - 1))
    ]
    if directions == 2:
        stack = jb.stack(*(jb.bidirectional(cell, cell) for cell in cells))
    else:
        stack = jb.stack(*map(jb.layer, cells))
    torch.manual_seed(0)
    return stack, theirs(I, H, num_layers=layers, bidirectional=directions == 2).double()


def _states(leaves, layers, directions, wrap):
    """Return PyTorch's states [layers * directions, B, ...] as the stack has them."""
    each = [wrap(*(leaf[k] for leaf in leaves)) for k in range(layers * directions)]
    if directions == 1:
        return tuple(each)
    return tuple(jb.Directions(*pair) for pair in zip(each[::2], each[1::2], strict=True))


def _numbers(tensors):
    return [np.asarray(tensor.detach()) for tensor in tensors]


def _run_torch(module, xs, start, d_ys, d_last, lengths):
    """Return (ys, last states, d_xs, d_start) and leave the parameters' gradients with them."""
    xs = torch.tensor(xs, requires_grad=True)
    start = [torch.tensor(s, requires_grad=True) for s in start]
    inputs = xs
    if lengths is not None:
        pack = torch.nn.utils.rnn.pack_padded_sequence
        inputs = pack(xs, torch.tensor(lengths), enforce_sorted=False)
    ys, last = module(inputs, tuple(start) if len(start) == 2 else start[0])
    if lengths is not None:
        ys, _ = torch.nn.utils.rnn.pad_packed_sequence(ys, total_length=T)
    last = list(last) if len(start) == 2 else [last]
    outputs = [ys, *last]
    torch.autograd.backward(outputs, [torch.tensor(d) for d in (d_ys, *d_last)])
    d_inputs = [np.asarray(leaf.grad) for leaf in (xs, *start)]
    return *_numbers([ys]), _numbers(last), d_inputs[0], d_inputs[1:]


SHAPES = [(layers, directions) for layers in (1, 2, 3) for directions in (1, 2)]
CASES = [
    *((kind, *shape, LENGTHS) for kind in KINDS if kind != "rnn_relu" for shape in SHAPES),
    *((kind, 2, 2, None) for kind in KINDS),
]


@pytest.mark.parametrize(
    "kind, layers, directions, lengths",
    [slow_unless(case[1:3] == (2, 2) and case[3] is not None, *case) for case in CASES],
)
def test_outputs_and_gradients(kind, layers, directions, lengths):
    stack, module = _modules(kind, layers, directions)
    outputs = KINDS[kind][2]
    is_lstm = kind.startswith("lstm")
    rng = np.random.default_rng(0)
    xs, d_ys = rng.normal(size=(T, B, I)), rng.normal(size=(T, B, directions * outputs))
    sizes = (outputs, H) if is_lstm else (outputs,)
    start, d_last = (
        [rng.normal(size=(layers * directions, B, size)) for size in sizes] for _ in range(2)
    )
    if lengths is not None:
        xs[np.arange(T)[:, None] >= np.array(lengths)] = np.nan
    wrap = jb.LSTMState if is_lstm else lambda s: s
    states = functools.partial(_states, layers=layers, directions=directions, wrap=wrap)

    def loss(params, xs, start):
        last_state, ys = stack.apply(
            params, xs, start, lengths=None if lengths is None else jnp.array(lengths)
        )
        terms = jax.tree.map(lambda s, d: jnp.sum(s * d), last_state, states(d_last))
        return sum(jax.tree.leaves(terms), jnp.sum(ys * d_ys)), (last_state, ys)

    params = interop.torch.to_params(module.state_dict())
    grad = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    (d_params, d_xs, d_start), (last_state, ys) = grad(params, xs, states(start))
    their_ys, their_last, their_d_xs, their_d_start = _run_torch(
        module, xs, start, d_ys, d_last, lengths
    )
    assert_close(ys, their_ys, CLOSE)
    assert_close(last_state, states(their_last), CLOSE)
    assert_close(d_xs, their_d_xs, CLOSE)
    assert_close(d_start, states(their_d_start), CLOSE)
    their_gradients = {name: p.grad for name, p in module.named_parameters()}
    assert_close(
        interop.torch.from_gradients(d_params),
        {name: np.asarray(d) for name, d in their_gradients.items()},
        CLOSE,
    )
    assert_close(interop.torch.to_gradients(their_gradients), d_params, CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_takes_our_parameters(kind):
    """One that was drawn otherwise gives the same outputs, and no key is left over or missing."""
    _, module = _modules(kind, 2, 2)
    xs = torch.tensor(np.random.default_rng(0).normal(size=(T, B, I)))
    want = _numbers([module(xs)[0]])
    tree = interop.torch.from_params(interop.torch.to_params(module.state_dict()))
    _, other = _modules(kind, 2, 2)
    for parameter in other.parameters():
        parameter.data.fill_(0.1)
    other.load_state_dict({name: torch.from_numpy(leaf) for name, leaf in tree.items()})
    assert_close(_numbers([other(xs)[0]]), want, 1e-14)


def test_module_without_biases():
    module = torch.nn.GRU(I, H, bias=False).double()
    xs = np.random.default_rng(0).normal(size=(T, B, I))
    (params,) = interop.torch.to_params(module.state_dict())
    _, ys = jb.unroll(jb.gru(input_size=I, hidden_size=H), params, xs)
    assert_close([ys], _numbers([module(torch.tensor(xs))[0]]), CLOSE)


def test_parameters_are_no_views_of_the_module():
    _, module = _modules("lstm", 1, 1)
    (params,) = interop.torch.to_params(module.state_dict())
    before = jax.tree.map(np.copy, params)
    for parameter in module.parameters():
        parameter.data.fill_(0.0)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(a, b)


def test_parameters_that_require_a_gradient():
    _, module = _modules("lstm", 2, 2)
    got = interop.torch.to_params(dict(module.named_parameters()))
    want = interop.torch.to_params(module.state_dict())
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_bfloat16_keeps_every_digit():
    module = torch.nn.GRU(I, H).bfloat16()
    module.bias_hh_l0.data.zero_()  # the sum of two biases is rounded
    (params,) = interop.torch.to_params(module.state_dict())
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    (want,) = interop.torch.to_params(module.float().state_dict())
    assert_close(jax.tree.map(lambda p: p.astype(np.float32), params), want, 0)
    tree = interop.torch.from_params(params)
    module.bfloat16().load_state_dict(
        {name: torch.tensor(leaf.astype(np.float32)) for name, leaf in tree.items()}
    )
    (again,) = interop.torch.to_params(module.state_dict())
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize(
    "function, way_out",
    [
        (interop.torch.to_params, r"Pass module\.state_dict\(\)\.$"),
        (interop.torch.to_gradients, r"Pass \{name: p\.grad for name, p in .*named_parameters"),
    ],
)
def test_a_whole_module(function, way_out):
    with pytest.raises(TypeError, match=f"^interop.torch.*, got an? LSTM. {way_out}"):
        function(torch.nn.LSTM(I, H))


def test_a_module_for_the_parameters_of_a_cell():
    cell, way_out = jb.lstm(input_size=I, hidden_size=H), r"to_params\(module.state_dict\(\)\)"
    with pytest.raises(TypeError, match=f"^unroll: params is a LSTM, where .*{way_out}"):
        jb.unroll(cell, torch.nn.LSTM(I, H), np.ones((T, B, I)))


def test_a_tensor_that_requires_a_gradient_for_the_inputs():
    cell = jb.lstm(input_size=I, hidden_size=H)
    xs = torch.ones((T, B, I), requires_grad=True)
    with pytest.raises(
        TypeError, match=r"^unroll: xs must .*\. Of .* tensor\.detach\(\)\.numpy\(\)"
    ):
        jb.unroll(cell, cell.init(jax.random.key(0)), xs)
