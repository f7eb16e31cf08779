"""Properties of every library's mapping, without the libraries themselves."""

import subprocess
import sys

import jax
import numpy as np
import pytest

import jax_bptt as jb
from jax_bptt import interop
from tests.interop.shared import (
    CELLS,
    OPTIMIZED,
    SIZES,
    H,
    I,
    assert_same,
    maps,
    random_like,
)
from tests.interop.shared import random_params as draw
from tests.registry import assert_close

ONNX_AFTER = maps(interop.onnx, linear_before_reset=1)
ONNX_BEFORE = maps(interop.onnx, linear_before_reset=0)


def _both(cell):
    return draw(jb.bidirectional(cell, cell))


def _without_b_n(params):
    return params._replace(b_n=np.zeros_like(params.b_n))


def _deep(name):
    inputs = {**SIZES, "input_size": 2 * H}
    upper = getattr(jb, name)(**inputs)
    return _both(CELLS[name]), _both(upper)


_P = {name: draw(cell) for name, cell in CELLS.items()}

TARGETS = {
    **{f"torch_{n}": (maps(interop.torch), (_P[n],)) for n in ("elman", "gru", "lstm")},
    "torch_deep_gru": (maps(interop.torch), _deep("gru")),
    "torch_deep_lstm": (maps(interop.torch), _deep("lstm")),
    "torch_projected": (maps(interop.torch), (_both(CELLS["lstm_projected"]),)),
    **{f"onnx_{n}": (maps(interop.onnx), _P[n]) for n in ("elman", "lstm", "lstm_peephole")},
    "onnx_gru": (ONNX_AFTER, _P["gru"]),
    "onnx_gru_reset_before": (ONNX_BEFORE, _P["gru_reset_before"]),
    "onnx_both_gru": (ONNX_AFTER, _both(CELLS["gru"])),
    "onnx_both_peephole": (maps(interop.onnx), _both(CELLS["lstm_peephole"])),
    **{
        f"keras_{n}": (maps(interop.keras), _P[n])
        for n in ("elman", "gru", "gru_reset_before", "lstm")
    },
    "keras_both_gru": (maps(interop.keras), _both(CELLS["gru"])),
    **{f"flax_{n}": (maps(interop.flax), _P[n]) for n in ("elman", "gru", "lstm")},
    "nnx_elman": (maps(interop.nnx), _P["elman"]),
    "nnx_gru": (maps(interop.nnx), _without_b_n(_P["gru"])),
    "nnx_lstm": (maps(interop.nnx), _P["lstm"]),
    "nnx_optimized_lstm": (OPTIMIZED, _P["lstm"]),
    **{f"haiku_{n}": (maps(interop.haiku), _P[n]) for n in ("elman", "gru_reset_before", "lstm")},
    **{f"equinox_{n}": (maps(interop.equinox), _P[n]) for n in ("gru", "lstm")},
}
each_target = pytest.mark.parametrize("name", TARGETS)


def _inner(a, b):
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    return sum(float(np.sum(x * y)) for x, y in zip(a, b, strict=True))


def _minus(a, b):
    return jax.tree.map(np.subtract, a, b)


def _zeros(tree):
    return jax.tree.map(np.zeros_like, tree)


@each_target
def test_there_and_back_is_the_same(name):
    """A forget bias in [1/2, 2] is 1 plus a number that floating point holds exactly."""
    maps, params = TARGETS[name]
    if name == "haiku_lstm":
        i, _, g, o = params.b
        params = params._replace(b=np.stack([i, np.linspace(0.5, 2, H), g, o]))
    assert_same(maps.to_params(maps.from_params(params)), params)
    assert_same(maps.to_gradients(maps.from_gradients(params)), params)


@each_target
def test_theirs_come_back_as_the_same_network(name):
    maps, params = TARGETS[name]
    tree = random_like(maps.from_params(params), seed=3)
    again = maps.from_params(maps.to_params(tree))
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    assert_close(maps.to_params(again), maps.to_params(tree), 1e-15)


@each_target
def test_gradients_map_by_the_transposes(name):
    """<A t, d> = <t, A^T d> and <B p, t> = <p, B^T t>, with A `to_params` and B `from_params`."""
    maps, params = TARGETS[name]
    theirs = maps.from_params(params)
    t, d = random_like(theirs, seed=4), random_like(params, seed=5)
    linear = _minus(maps.to_params(t), maps.to_params(_zeros(t)))
    assert np.isclose(_inner(linear, d), _inner(t, maps.from_gradients(d)), rtol=1e-12)
    linear = _minus(theirs, maps.from_params(_zeros(params)))
    assert np.isclose(_inner(linear, t), _inner(params, maps.to_gradients(t)), rtol=1e-12)


@each_target
def test_keeps_dtypes_and_copies(name):
    maps, params = TARGETS[name]
    single = jax.tree.map(lambda p: jax.numpy.asarray(p, np.float32), params)
    tree = maps.from_params(single)
    back = maps.to_params(tree)
    for leaf in jax.tree.leaves((tree, back, maps.from_gradients(single))):
        assert type(leaf) is np.ndarray and leaf.dtype == np.float32
    for mine in jax.tree.leaves(back):
        assert not any(np.shares_memory(mine, leaf) for leaf in jax.tree.leaves(tree))


def test_imports_no_other_library():
    foreign = "torch onnx keras flax haiku equinox safetensors"
    code = f"import sys, jax_bptt; print(*(set('{foreign}'.split()) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_reachable_from_the_face():
    assert jb.interop.torch.to_params is interop.torch.to_params


_SLSTM = jb.slstm(input_size=2, hidden_size=3).init(jax.random.key(0))
_MGU = draw(jb.mgu(**SIZES))
_READOUT = _P["lstm"]._replace(w_y=np.ones((H, 2)))
_TORCH = interop.torch.from_params(_P["lstm"], prefix="rnn.")
_WITHOUT_BIAS = {k: v for k, v in _TORCH.items() if "bias" not in k}
_ONNX = interop.onnx.from_params(_P["gru"])
_KERAS = interop.keras.from_params(_P["gru"])


@pytest.mark.parametrize(
    "function, argument, words",
    [
        (interop.torch.from_params, _P["gru_reset_before"], "jb.gru_reset_before .* after the"),
        (interop.torch.from_params, _P["lstm_peephole"], "jb.lstm_peephole .* no peepholes"),
        (interop.torch.from_params, (_P["lstm"], _P["gru"]), "one cell and one hidden size"),
        (interop.torch.from_params, (_P["lstm"], _deep("lstm")[1]), "one direction or two"),
        (interop.torch.from_params, _READOUT, "w_y .*_replace"),
        (
            interop.torch.from_gradients,
            _MGU,
            "Params with 2 gates; it takes",
        ),
        (interop.torch.from_params, {"w_x": 1}, "got a dict"),
        (interop.torch.from_params, _SLSTM, "got a SLSTMParams with 4 gates"),
        (interop.torch.to_params, _TORCH, r"no 'weight_ih_l0' .* prefix=\['rnn.'\]"),
        (interop.torch.to_params, {"x": 1}, "No key ends in"),
        (interop.torch.to_gradients, _WITHOUT_BIAS, "weight_ih_l0"),
        (interop.torch.to_params, {"weight_ih_l0": np.ones((8, 2))}, "no 'weight_hh_l0'"),
        (
            interop.torch.to_params,
            {"weight_ih_l0": np.ones((8, 2)), "weight_hh_l0": np.ones((8, 4))},
            "8 numbers per input for 4 hidden units",
        ),
        (
            interop.torch.to_params,
            {"weight_ih_l0": np.ones((6, 2)), "weight_hh_l0": np.ones((4, 4))},
            r"weight_ih_l0 has shape \[6, 2\], expected \[4, any\]",
        ),
        (
            interop.torch.to_gradients,
            {"weight_ih_l0": np.ones((4, 2)), "weight_hh_l0": None},
            "weight_hh_l0 is None",
        ),
        (
            interop.torch.to_gradients,
            {"weight_ih_l0": np.ones((4, 2)), "weight_hh_l0": np.ones((4, 4))},
            r"no bias_ih_l0, .* zeros of shape \[4\]",
        ),
        (interop.onnx.from_params, _P["lstm_projected"], "jb.lstm_projected .* no projection"),
        (interop.onnx.to_params, _ONNX, "linear_before_reset=None for 3 gates"),
        (interop.onnx.to_params, {**_ONNX, "R": np.ones((3, H, H))}, "1 or 2 directions"),
        (ONNX_AFTER.to_params, interop.onnx.from_params(_P["lstm"]), "=1 for 4 gates"),
        (ONNX_AFTER.to_gradients, {**_ONNX, "B": None}, "no B, so"),
        (ONNX_AFTER.to_params, {**_ONNX, "P": np.ones((1, 3 * H))}, "P is for an LSTM"),
        (
            interop.onnx.from_params,
            jb.Directions(_P["gru"], _P["gru_reset_before"]),
            "one cell and one hidden size",
        ),
        (interop.keras.from_params, _P["lstm_peephole"], "jb.lstm_peephole .* no peepholes"),
        (interop.keras.from_params, _P["lstm_projected"], "jb.lstm_projected .* no projection"),
        (interop.keras.to_params, _KERAS[:2], r"where the GRU resets. Append .*\[2, 12\]"),
        (interop.keras.to_params, _KERAS[:1], "got 1 arrays"),
        (interop.keras.to_gradients, interop.keras.from_params(_P["lstm"])[:2], "no bias"),
        (interop.flax.from_params, _P["gru_reset_before"], "jb.gru_reset_before .* after the"),
        (interop.flax.from_params, _P["lstm_projected"], "jb.lstm_projected .* no projection"),
        (interop.flax.to_params, {"cell": {}}, "the entry 'cell'"),
        (interop.nnx.from_params, _P["gru"], "no bias b_n inside the reset"),
        (interop.nnx.from_params, _P["lstm_peephole"], "jb.lstm_peephole .* no peepholes"),
        (interop.nnx.to_params, {"cell": {}}, "the entry 'cell'"),
        (interop.nnx.to_optimized_lstm, interop.nnx.from_params(_P["elman"]), "no LSTM"),
        (interop.haiku.from_params, _P["gru"], "jb.gru .* before the product"),
        (interop.haiku.from_params, _P["lstm_projected"], "jb.lstm_projected .* no projection"),
        (interop.haiku.to_params, {"a/linear": {}, "b": {}}, "not those of one VanillaRNN"),
        (interop.equinox.from_params, _P["elman"], "jb.elman .* no simple recurrent cell"),
        (interop.equinox.from_params, _P["gru_reset_before"], "jb.gru_reset_before .* after the"),
        (interop.equinox.to_params, {}, "no 'weight_hh'"),
        (
            interop.equinox.to_gradients,
            {**interop.equinox.from_params(_P["gru"]), "bias_n": None},
            "no bias_n, so the gradient",
        ),
    ],
)
def test_refuses_by_name(function, argument, words):
    with pytest.raises(ValueError, match=words) as error:
        function(argument)
    assert "interop." in str(error.value) and "\n" not in str(error.value)


class Module:
    """A module of some library, in place of its arrays by name."""


@pytest.mark.parametrize(
    "module, way_out",
    [
        (interop.torch, r"Pass module\.state_dict\(\)"),
        (interop.equinox, r"Pass vars\(cell\)"),
        (interop.flax, r"Pass the cell's own part of variables\['params'\]"),
        (interop.nnx, r"Pass nnx\.to_pure_dict\(nnx\.state\(cell, nnx\.Param\)\)"),
        (interop.haiku, "Pass the params of one core"),
        (interop.onnx, "Pass the node's inputs"),
        (interop.keras, r"Pass layer\.get_weights\(\)"),
    ],
)
def test_a_module_for_its_arrays(module, way_out):
    for function in (module.to_params, module.to_gradients):
        with pytest.raises(TypeError, match="got a Module. Pass ") as error:
            function(Module())
        assert "\n" not in str(error.value)
    with pytest.raises(TypeError, match=way_out):
        module.to_params(Module())


def test_absent_biases_are_zero():
    arrays = {"weight_ih": np.ones((3 * H, I)), "weight_hh": np.ones((3 * H, H)), "bias": None}
    gru = interop.equinox.to_params(arrays | {"bias_n": None})
    assert not gru.b.any() and not gru.b_n.any()
    (lstm,) = interop.torch.to_params(_WITHOUT_BIAS, prefix="rnn.")
    assert_same(lstm, _P["lstm"]._replace(b=np.zeros((4, H))))
    node = {key: value for key, value in _ONNX.items() if key != "B"}
    assert not interop.onnx.to_params(node, linear_before_reset=1).b_n.any()
    elman = interop.keras.to_params(interop.keras.from_params(_P["elman"])[:2])
    assert_same(elman, _P["elman"]._replace(b=np.zeros((1, H))))


def test_nnx_gradients_leave_b_n_alone():
    d_params = _P["gru"]
    tree = interop.nnx.from_gradients(d_params)
    assert_same(interop.nnx.to_gradients(tree), _without_b_n(d_params))


def test_haiku_single_bias():
    tree = interop.haiku.from_params(_P["elman"], name="net/rnn")
    assert set(tree) == {"net/rnn/linear", "net/rnn/linear_1"}
    del tree["net/rnn/linear_1"]["b"]
    assert_same(interop.haiku.to_params(tree), _P["elman"])
    assert_same(interop.haiku.to_gradients(tree), _P["elman"])
