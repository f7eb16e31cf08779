"""Flax linen: layers of this library as its modules; `jax_bptt.interop.flax` maps parameters.

`Recurrent(layer)` takes the place of `nn.RNN`, and `ScannedRNN` that of the module of this name in
code for reinforcement learning.
"""

from typing import TYPE_CHECKING

from jax_bptt.interop.adaptors import lazily

if TYPE_CHECKING:
    from jax_bptt.interop.adaptors.linen import Recurrent as Recurrent
    from jax_bptt.interop.adaptors.linen import ScannedRNN as ScannedRNN

__getattr__ = lazily("linen", "flax", ("Recurrent", "ScannedRNN"))
