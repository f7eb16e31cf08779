"""Inputs of the `lstm` evaluation: as JSON, as files of ADBench, and drawn at random.

A file of ADBench has a line `l c b`, the [2 l, 4 b] main parameters, the [3, b] extra parameters
and the [2 l, b] state, with an empty line after each, and then the sequence: c characters of text,
or in older files c rows of b numbers.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FIELDS = ("main_params", "extra_params", "state", "sequence")
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"


class InputError(Exception):
    """An input that cannot be used; the message is one line."""


class Instance(NamedTuple):
    """One input, float64: [2 l, 4 b], [3, b], [2 l, b] and [c, b]."""

    main_params: np.ndarray
    extra_params: np.ndarray
    state: np.ndarray
    sequence: np.ndarray

    @property
    def sizes(self) -> tuple[int, int, int]:
        """l, c and b."""
        return len(self.state) // 2, *self.sequence.shape

    def to_json(self) -> dict[str, Any]:
        """Return it as GradBench sends it."""
        return {name: getattr(self, name).tolist() for name in FIELDS}


def from_json(fields: Any) -> Instance:
    """Return the input of a message.

    Raises:
      InputError: a field is missing, is no matrix of finite numbers, or does not fit the others.
    """
    if not isinstance(fields, dict):
        raise InputError(f"input must be an object with {', '.join(FIELDS)}, got {_short(fields)}")
    return checked(*(_matrix(fields, name) for name in FIELDS))


def checked(*arrays: np.ndarray) -> Instance:
    """Return arrays in the order of `FIELDS` as an instance, if their shapes agree."""
    instance = Instance(*arrays)
    rows, bits = instance.state.shape
    if rows < 2 or rows % 2 or not bits:
        raise InputError(f"state must be [2 l, b], two rows for each layer, got [{rows}, {bits}]")
    expected = ((rows, 4 * bits), (3, bits), (rows, bits))
    for name, array, shape in zip(FIELDS, instance, expected, strict=False):
        if array.shape != shape:
            raise InputError(
                f"{name} must be {list(shape)} for l={rows // 2} and b={bits} of the state, "
                f"got {list(array.shape)}"
            )
    count, width = instance.sequence.shape
    if width != bits or count < 2:
        raise InputError(
            f"sequence must be [c, {bits}] with c of 2 or more, got {list(instance.sequence.shape)}"
        )
    return instance


def _matrix(fields: dict[str, Any], name: str) -> np.ndarray:
    if name not in fields:
        raise InputError(f"input has no {name}; it needs {', '.join(FIELDS)}")
    try:
        array = np.array(fields[name], np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.ndim != 2 or not np.isfinite(array).all():
        raise InputError(f"{name} must be rows of equally many finite numbers")
    return array


def read(path: Path) -> Instance:
    """Read a file of ADBench, its sequence in either form.

    Raises:
      InputError: the file cannot be read, or is not of that format.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    try:
        return _parsed(text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _parsed(text: str) -> Instance:
    first, _, rest = text.partition("\n")
    try:
        layers, count, bits = map(int, first.split())
    except ValueError:
        raise InputError(f"line 1 must be 'l c b', three integers, got {_short(first)}") from None
    if min(layers, count, bits) < 1:
        raise InputError(f"l, c and b must be positive, got {layers} {count} {bits}")
    arrays = []
    for name, rows in zip(FIELDS, (2 * layers, 3, 2 * layers), strict=False):
        width = 4 * bits if name == "main_params" else bits
        lines = rest.removeprefix("\n").split("\n", rows)
        arrays.append(_rows(name, lines[:rows], (rows, width)))
        rest = lines[rows] if len(lines) > rows else ""
    tail = rest.removeprefix("\n")
    if len(tail.removesuffix("\n")) == count or len(tail) == count:
        return checked(*arrays, encode(tail[:count], bits))
    # c rows of numbers have more than c characters, so that the length tells the forms apart.
    lines = tail.rstrip("\n").split("\n")
    if len(lines) != count:
        raise InputError(
            f"the sequence must be {count} characters or {count} rows of {bits} numbers, got "
            f"{len(tail)} characters in {len(lines)} rows"
        )
    return checked(*arrays, _rows("sequence", lines, (count, bits)))


def _rows(name: str, lines: list[str], shape: tuple[int, int]) -> np.ndarray:
    try:
        array = np.array([line.split() for line in lines], np.float64)
    except ValueError:
        array = np.empty(0)
    if array.shape != shape or not np.isfinite(array).all():
        raise InputError(f"{name} must be {shape[0]} rows of {shape[1]} finite numbers")
    return array


def write(path: Path, instance: Instance, text: str | None = None) -> None:
    """Write a file of ADBench, with the sequence as rows of bits, or as the text it encodes."""
    lines = [" ".join(map(str, instance.sizes)), ""]
    for array in instance[:3]:
        lines += [" ".join(map(repr, row)) for row in array.tolist()] + [""]
    rows = [" ".join(f"{bit:g}" for bit in row) for row in instance.sequence.tolist()]
    lines += rows if text is None else [text]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def encode(text: str, bits: int) -> np.ndarray:
    """Return [c, b], the code point of each character in binary, the most significant bit first.

    Raises:
      InputError: a character has more bits.
    """
    codes = np.array([ord(character) for character in text])
    if len(codes) and codes.max() >= 2**bits:
        raise InputError(f"the character {chr(codes.max())!r} does not fit into b={bits} bits")
    return (codes[:, None] >> np.arange(bits)[::-1] & 1).astype(np.float64)


def bits_of(text: str) -> int:
    """Return b as GradBench takes it, the logarithm of the largest code point rounded up."""
    return math.ceil(math.log2(max(map(ord, text))))


def generate(layers: int, count: int, seed: int = 0) -> tuple[Instance, str]:
    """Draw an instance, and the text of c = `count` characters it encodes.

    Parameters and state are uniform on [0, 1). The text is of random words; its apostrophe is
    U+2019, which makes for b = 14 bits, as GradBench's own text has them.
    """
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(2, 2 + len(LETTERS))
    text = ""
    while len(text) < count:
        word = rng.choice(list(LETTERS), rng.integers(2, 9), p=weights / weights.sum())
        text += "".join(word) + ("’s\n" if rng.random() < 0.2 else " ")
    text = "’" + text[: count - 1]
    bits = bits_of(text)
    shapes = (2 * layers, 4 * bits), (3, bits), (2 * layers, bits)
    return checked(*(rng.random(shape) for shape in shapes), encode(text, bits)), text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
