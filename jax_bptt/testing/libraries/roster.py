"""Which libraries there are adapters for, and which of them are installed."""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

import jax

import jax_bptt as jb
from jax_bptt.testing.libraries import (
    equinox_layers,
    flax_layers,
    haiku_layers,
    keras_layers,
    own,
    torch_layers,
)
from jax_bptt.testing.libraries.layers import Adapter

OWN = "jax_bptt"

ADAPTERS: dict[str, Adapter] = {
    OWN: own.ADAPTER,
    "flax": flax_layers.LINEN,
    "nnx": flax_layers.NNX,
    "haiku": haiku_layers.ADAPTER,
    "equinox": equinox_layers.ADAPTER,
    "keras": keras_layers.ADAPTER,
    "torch": torch_layers.ADAPTER,
}
"""The libraries by the names that the command's user knows them by."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore warnings: what a library deprecates is not for us to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def absence(name: str) -> str | None:
    """Import a library; return why it cannot take part, or None if it can."""
    adapter = ADAPTERS[name]
    try:
        with undisturbed():
            importlib.import_module(adapter.module)
    except ModuleNotFoundError:
        return f"not installed (pip install {adapter.package})"
    except (ImportError, AttributeError) as error:  # made for another version of JAX
        return f"cannot be imported beside jax {jax.__version__}: {error}"
    return None


def version(package: str) -> str:
    """Return the version of a distribution that is installed, or of this library as it lies."""
    return jb.__version__ if package == OWN else metadata.version(package)
