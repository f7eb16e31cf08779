"""The tools by name: this library's, and its rivals."""

import functools

import jax

from gradbench_lstm import rivals, wavefront
from gradbench_lstm.instances import InputError, Instance
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
            functions = rivals.torch_functions()
        except ImportError:
            raise InputError("PyTorch is not installed (pip install torch)") from None
        return Model(lambda instance: instance, _spread(functions), compiles=False)
    if name == "jax_bptt":
        functions = {"objective": wavefront.objective, "jacobian": wavefront.jacobian}
    else:
        functions = rivals.jax_functions(FORMS[name])
    waiting = {key: _waiting(function) for key, function in functions.items()}
    return Model(_on_device, _spread(waiting), compiles=True)


def _on_device(instance: Instance) -> tuple[jax.Array, ...]:
    return tuple(jax.block_until_ready(jax.device_put(array)) for array in instance)


def _waiting(function):
    """Return the function such that it returns when its result is there, not when it is begun."""
    return lambda *args: jax.block_until_ready(function(*args))


def _spread(functions):
    return {key: lambda args, f=function: f(*args) for key, function in functions.items()}
