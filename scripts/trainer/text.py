"""Text as training data: the corpus, its held-out part, and windows that continue one another."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainer.errors import InputError, require, track

PASSAGES_PER_FILE = 40
"""Number of passages at least into which a file is cut; whole ones are held out."""
LONGEST_PASSAGE = 20_000
"""Characters of a passage at most."""
SHARE, HELD_OUT = 0.1, 1_000_000
"""Share of the characters that is held out, and their number, at most: reading a million takes a
network seconds, and their mean is settled."""


class Corpus(NamedTuple):
    """A text as numbers, in the smallest unsigned integers that hold the alphabet."""

    characters: str  # the alphabet of the whole text, sorted; k stands for `characters[k]`
    train: np.ndarray  # [N]
    held_out: np.ndarray  # [M], never trained on


def reference_documents() -> list[str]:
    """Return the language reference that every CPython carries, one document a topic.

    Topics repeat one another: a fifth of the text is paragraphs that stood in an earlier topic.
    Only the first appearance is kept, so that no held-out paragraph was trained on.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise InputError(
            "this Python carries no pydoc_data.topics; give a text of your own with --text FILE"
        ) from error
    seen: set[tuple[str, ...]] = set()
    documents = []
    for topic in topics.values():
        kept = []
        for paragraph in topic.split("\n\n"):
            words = tuple(paragraph.split())
            if words not in seen:
                seen.add(words)
                kept.append(paragraph)
        documents.append("\n\n".join(kept) + "\n\n")
    return documents


def read_documents(paths: Sequence[str]) -> list[str]:
    """Return the user's files as documents, each cut into passages of equal length."""
    documents = []
    for path in track(paths, "reading"):
        try:
            content = Path(path).read_bytes()
            require(b"\0" not in content, f"{path} is a binary file (it has NUL bytes), not text")
            text = content.decode("utf-8").replace("\r\n", "\n")
        except OSError as error:
            raise InputError(f"cannot read the text {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path} is not UTF-8 text (byte {error.start}); convert it, e.g. with iconv"
            ) from error
        passages = max(PASSAGES_PER_FILE, len(text) // LONGEST_PASSAGE)
        cuts = [len(text) * k // passages for k in range(passages + 1)]
        documents += [text[a:b] for a, b in zip(cuts, cuts[1:], strict=False) if a < b]
    return documents


def split(documents: Sequence[str]) -> Corpus:
    """Hold out whole documents, spread over the text, and number the characters.

    A document is held out when that keeps the held-out share of all that has been read so far at
    or below `SHARE`, or less of a text so long that this would be more than `HELD_OUT` characters.
    An alphabetical or chronological order then leans neither part to one end, and no document is in
    both.
    """
    share = min(SHARE, HELD_OUT / max(sum(map(len, documents)), 1))
    train, held_out = [], []
    read = held = 0
    for document in documents:
        read += len(document)
        if held + len(document) <= share * read:
            held += len(document)
            held_out.append(document)
        else:
            train.append(document)
    require(
        bool(train) and held > 1,
        f"the text is too short to hold a part of it out: {read} characters; give a longer one",
    )
    seen = np.zeros(sys.maxunicode + 1, bool)
    for document in track(documents, "collecting the alphabet"):
        seen[_codes(document)] = True
    alphabet = np.flatnonzero(seen)
    number = np.zeros(len(seen), np.min_scalar_type(len(alphabet)))
    number[alphabet] = np.arange(len(alphabet))

    def encoded(part):
        return np.concatenate([number[_codes(d)] for d in track(part, "numbering characters")])

    characters = "".join(map(chr, alphabet.tolist()))
    return Corpus(characters, encoded(train), encoded(held_out))


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def fingerprint(corpus: Corpus) -> str:
    """Return what tells this training text from others, in a few words."""
    digest = hashlib.sha256(corpus.characters.encode())
    digest.update(corpus.train.tobytes())
    return f"{len(corpus.train):,} characters with sha256 {digest.hexdigest()[:12]}"


def training_windows(
    ids: np.ndarray, length: int, batch: int
) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """Return the function from w to window w, each of which continues the one before.

    Lane b reads the text `ids` [N] in a circle from position b N / B, so that window w of it covers

        n = b N / B + w T, ..., b N / B + (w + 1) T - 1        (mod N)

    and the state a network has at the end of a window is the one to start the next from. A window
    is inputs [T, B] and targets [T, B], the character after each, int32.
    """
    needed = length * batch + 1
    require(
        len(ids) >= needed,
        f"the training text has {len(ids)} characters, too few for one window of the batch: "
        f"{length} steps x {batch} lanes + 1 = {needed}; give a longer text, or a shorter "
        "window or smaller batch",
    )
    first = np.arange(batch) * len(ids) // batch + np.arange(length)[:, None]

    def window(number):
        at = (first + number * length % len(ids)) % len(ids)
        return ids[at].astype(np.int32), ids[(at + 1) % len(ids)].astype(np.int32)

    return window


def held_out_windows(
    ids: np.ndarray, length: int, batch: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return windows that predict every character of a text [M] but the first exactly once.

    The text is cut into B lanes that are read side by side; each starts from a fresh state. A
    window is inputs and targets, [T, B] int32, and whether a target counts, [T, B]: False where a
    lane is filled up beyond its end.
    """
    targets = len(ids) - 1
    lane = -(-targets // batch)
    windows = []
    for start in range(0, lane, length):
        steps = start + np.arange(length)[:, None]
        at = np.arange(batch) * lane + steps
        counts = (steps < lane) & (at < targets)
        at = np.minimum(at, targets - 1)
        windows.append((ids[at].astype(np.int32), ids[at + 1].astype(np.int32), counts))
    return windows


def decode(characters: str, ids: np.ndarray) -> str:
    """Return the text that `ids` [N] stands for in the alphabet `characters`."""
    return "".join(characters[k] for k in ids)
