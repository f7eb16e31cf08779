"""What goes wrong through the user's input, said in one line."""

import importlib
from types import ModuleType


class InputError(ValueError):
    """What the user gave cannot be used; the message is one line for the terminal."""


def require(condition: bool, message: str) -> None:
    """Raise `InputError(message)` unless `condition` holds."""
    if not condition:
        raise InputError(message)


def optional_module(name: str, *, extra: str) -> ModuleType:
    """Import module `name`, which comes with an optional `extra` of this package.

    Raises:
      InputError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        raise InputError(
            f"{package} is not installed: run pip install 'jax_bptt[{extra}]', "
            f'or from a clone pip install -e ".[{extra}]"'
        ) from error
