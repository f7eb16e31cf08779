"""The tools by name: this library's, and its rivals."""

import functools

import jax

from gradbench_lstm import rivals, wavefront
from gradbench_lstm.instances import InputError
from gradbench_lstm.protocol import Model

FORMS = {
    "jax-steps": rivals.steps(1),
    "jax-steps-unrolled": rivals.steps(4),
    "jax-layers": rivals.layers(1),
    "jax-layers-unrolled": rivals.layers(4),
}
NAMES = ("jax_bptt", *FORMS, "torch")


@functools.cache
def load(name: str) -> Model:
    """Return a model by its name; of those in JAX, float64 has to be on.

    Raises:
      InputError: what it needs is not installed.
    """
    if name == "torch":
        try:
            return Model(lambda instance: instance, rivals.torch_functions(), compiles=False)
        except ImportError:
            raise InputError("PyTorch is not installed (pip install torch)") from None
    if name == "jax_bptt":
        functions = {"objective": wavefront.objective, "jacobian": wavefront.jacobian}
    else:
        functions = rivals.jax_functions(FORMS[name])
    return Model(lambda instance: jax.block_until_ready(jax.device_put(instance)), functions, True)
