"""A state dict saved as safetensors loads in one line."""

import sys

import numpy as np
import pytest

from jax_bptt import interop
from tests.interop.shared import CELLS, assert_same, random_params


def test_loads_in_one_line(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    params = random_params(CELLS["gru"])
    path = tmp_path / "model.safetensors"
    tree = interop.torch.from_params(params, prefix="encoder.")
    numpy.save_file({**tree, "head.weight": np.ones(3)}, path)
    (loaded,) = interop.torch.load_safetensors(path, prefix="encoder.")
    assert_same(loaded, params)


def test_as_pytorch_saves_it(tmp_path):
    torch = pytest.importorskip("torch")
    saver = pytest.importorskip("safetensors.torch")
    module = torch.nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2)
    saver.save_file(module.state_dict(), tmp_path / "model.safetensors")
    loaded = interop.torch.load_safetensors(tmp_path / "model.safetensors")
    assert_same(loaded, interop.torch.to_params(module.state_dict()))


def test_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"pip install 'jax_bptt\[interop\]'"):
        interop.torch.load_safetensors("model.safetensors")
