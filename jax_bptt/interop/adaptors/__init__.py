"""Layers of this library as layers of others: one module a library, which imports it.

They are reached as `jax_bptt.interop.nnx.Recurrent` and its like, and imported when they are first
asked for, so that `import jax_bptt` needs none of these libraries.
"""

import importlib
from collections.abc import Callable
from typing import Any


def lazily(module: str, library: str, names: tuple[str, ...]) -> Callable[[str], Any]:
    """Return the `__getattr__` of `jax_bptt.interop.<module>`, which imports layers when needed.

    Args:
      module: the name of the module, here and there.
      library: the distribution that it needs, and the name of the extra that installs it.
      names: of the classes that it has.

    Returns:
      A function of a name.
    """

    def attribute(name):
        if name not in names:
            raise AttributeError(f"module 'jax_bptt.interop.{module}' has no attribute {name!r}")
        try:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != library:
                raise
            raise ModuleNotFoundError(
                f"jax_bptt.interop.{module}.{name} needs {library}: "
                f"pip install 'jax_bptt[{library}]'",
                name=error.name,
            ) from error

    return attribute
