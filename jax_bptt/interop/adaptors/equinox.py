"""A layer of this library as a module of Equinox."""

# Equinox is an extra, so that it may be absent where types are checked; pyright then takes
# jax_bptt/interop/equinox.py for it.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from typing import Any

import equinox as eqx
from jax import Array

from jax_bptt.core.types import Algorithm, Cell, PyTree
from jax_bptt.interop.adaptors import sequences
from jax_bptt.layers.layer import Layer

_NAME = "interop.equinox.Recurrent"


class _Masks(eqx.Module):
    """The flag that `eqx.nn.inference_mode` sets; only layers that draw masks have it."""

    inference: bool


class Recurrent(eqx.Module):
    """A cell or layer of this library as an `eqx.Module`, over a whole sequence.

    Inputs are time-major: [T, I] for one sequence, as under `jax.vmap` over a batch, or
    [T, *batch, I] for a batch in one call. The layer is static, and
    the leaves are the arrays of `layer.init` alone, so that `jax.jit` and `jax.grad` take the
    module as well as `eqx.filter_jit` and `eqx.filter_grad`. A layer that draws masks has one more
    leaf, the boolean that `eqx.nn.inference_mode` sets.

    Attributes:
      params: the parameters, as `layer.init` makes them. To put others in, such as those that
        `jb.interop.torch.to_params` returns: `eqx.tree_at(lambda m: m.params, module, params)`.
      masks: of a layer that draws masks, whether it does; None of any other.
      layer: what is run, a `jb.Layer`.
      algorithm: as in `jb.unroll`.
    """

    params: PyTree
    masks: _Masks | None
    layer: Layer = eqx.field(static=True)
    algorithm: Algorithm | None = eqx.field(static=True)

    def __init__(
        self,
        layer: Cell | Layer,
        *,
        inference: bool = False,
        algorithm: Algorithm | None = None,
        key: Array,
    ):
        """Draw the parameters.

        Args:
          layer: a `jb.Cell`, or a `jb.Layer` such as a `jb.stack`.
          inference: whether a layer that draws masks draws none.
          algorithm: as in `jb.unroll`.
          key: a PRNG key.

        Raises:
          TypeError: `layer` is no cell or layer.

        Example:
          >>> import jax, jax.numpy as jnp, jax_bptt as jb
          >>> layer = jb.interop.equinox.Recurrent(jb.lstm(3, 5), key=jax.random.key(0))
          >>> last_state, ys = jax.vmap(layer)(jnp.ones((2, 7, 3)))
          >>> last_state.h.shape, ys.shape
          ((2, 5), (2, 7, 5))
        """
        self.layer = sequences.as_layer(_NAME, layer)
        self.algorithm = algorithm
        self.params = self.layer.init(sequences.typed(key))
        self.masks = _Masks(inference) if sequences.draws_masks(self.layer) else None

    def __call__(
        self,
        xs: PyTree,
        state: PyTree | None = None,
        *,
        lengths: Any = None,
        resets: Any = None,
        mask: Any = None,
        key: Array | None = None,
        inference: bool | None = None,
    ) -> tuple[PyTree, PyTree]:
        """Run the layer over a sequence, or a batch of them.

        Args:
          xs: [T, *batch, I].
          state: the state to start from; None for the layer's own.
          lengths: integer [*batch], as in `jb.unroll`.
          resets: bool [T, *batch], as in `jb.Layer`.
          mask: bool [T, *batch], as in `jb.unroll`.
          key: what a layer that draws masks draws them from; any other does not read it.
          inference: whether to draw no masks; None for what the module says.

        Returns:
          (last_state, ys), in the order of `jax.lax.scan`.

        Raises:
          RuntimeError: masks are to be drawn and there is no key.
          TypeError: an argument is of the wrong kind, structure or dtype.
          ValueError: a shape does not fit.
        """
        return self.layer.apply(
            self.params,
            xs,
            state,
            lengths=lengths,
            resets=resets,
            mask=mask,
            key=self._key(key, inference),
            algorithm=self.algorithm,
        )

    def initial_state(self, batch_shape: tuple[int, ...] = ()) -> PyTree:
        """Return the state that a call starts from by default.

        Args:
          batch_shape: of a batch; () for one sequence.

        Returns:
          The state of the layer.
        """
        return self.layer.initial_state(self.params, batch_shape)

    def _key(self, key: Array | None, inference: bool | None) -> Array | None:
        if self.masks is None:
            return None
        if self.masks.inference if inference is None else inference:
            return None
        if key is None:
            raise RuntimeError(
                f"{_NAME}: this layer draws masks and needs a key. Pass key=, or set "
                "inference=True, for all of a model by eqx.nn.inference_mode(model)."
            )
        return sequences.typed(key)
