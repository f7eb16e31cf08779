"""The state of a run as a checkpoint, and a checkpoint as the state of a run."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.training import loop
from trainer import checkpoint
from trainer.errors import InputError, require, say

LOSSES = "losses"
FREE = {"sample", "temperature", "order", "plot", "json", "check", "text", "devices"}
FREE |= {"checkpoint", "checkpoint_every", "telemetry"}
"""Options that a run may go on with changed. The text is known by its content, and a telemetry by
whether there is any."""


class Run(NamedTuple):
    """A run so far.

    Attributes:
      progress: the place, and all that steps change.
      losses: of every step.
      timed: the number of steps within `progress.seconds`.
      finished: whether there is no step left to do.
    """

    progress: loop.Progress
    losses: list[float]
    timed: int = 0
    finished: bool = False


def settings(arguments: dict[str, Any], devices: int, data: str | None) -> dict[str, Any]:
    """Return the options that decide every bit of a run.

    Args:
      arguments: of the command line.
      devices: the number over which the batch is split, and its gradient summed.
      data: what tells the text from others.
    """
    kept = {name: value for name, value in arguments.items() if name not in FREE}
    watched = {"watched": True} if arguments.get("telemetry") else {}
    return kept | watched | {"devices": devices, "text": data}


def save(folder: Path, run: Run, about: dict[str, Any]) -> bool:
    """Save a run; return whether that went well. If not, one line says so, and nothing is lost.

    Args:
      folder: from `checkpoint.opened`.
      run: where it stands.
      about: what else the record holds: settings, network, alphabet, versions.
    """
    progress = run.progress
    arrays = {name: np.asarray(leaf) for name, leaf in _named(progress.learner).items()}
    arrays[LOSSES] = np.asarray(run.losses, np.float64)
    record = about | {
        "step": progress.step,
        "seconds": progress.seconds,
        "timed": run.timed,
        "finished": run.finished,
    }
    try:
        checkpoint.write(folder, record, arrays)
    except Exception as error:  # a full disk is an error of C++ as often as one of the system
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split())[:200]
        say(f"step {progress.step} was not saved in {folder}: {reason}")
        return False
    return True


def restore(folder: Path, begun: Run, about: dict[str, Any]) -> Run:
    """Return the run that was saved last, or the one that has begun if none was.

    What is damaged is set aside, with a line for each.

    Args:
      folder: from `checkpoint.opened`.
      begun: the run at its beginning, whose arrays say where those of the saved one belong.
      about: as `save` gets it; the settings must be those that were saved.

    Raises:
      InputError: it was saved with other settings, in another format, or none is good.
    """
    saved, damaged = checkpoint.newest(
        folder, lambda record: _require_same(folder, record["settings"], about["settings"])
    )
    if saved is None:
        return begun
    record, arrays = saved
    for error in damaged:
        say(f"damaged, set aside: {error}; going on from step {record['step']}")
    checkpoint.set_aside(folder, record["step"])
    if record["versions"] != about["versions"]:
        theirs, ours = (_joined(each["versions"]) for each in (record, about))
        say(f"saved by {theirs}, and this is {ours}: the last bits may differ from here on")
    names = _named(begun.progress.learner)
    found = {name: _kind(arrays[name]) for name in arrays if name != LOSSES}
    wanted = {name: _kind(leaf) for name, leaf in names.items()}
    differing = sorted(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))
    require(
        not differing,
        f"{folder} holds other arrays than this network has: {', '.join(differing[:3])}; take the "
        "version of jax_bptt that saved it, or another --checkpoint",
    )
    # Copies, since the first step donates them.
    leaves = [jnp.array(jax.device_put(arrays[name], a.sharding)) for name, a in names.items()]
    learner = jax.tree.unflatten(jax.tree.structure(begun.progress.learner), leaves)
    losses = arrays[LOSSES].tolist()
    progress = loop.Progress(record["step"], record["seconds"], losses[-1], learner)
    return Run(progress, losses, record["timed"], record["finished"])


def parameters(saved: checkpoint.Saved, like: Any) -> Any:
    """Return the parameters of a checkpoint, in NumPy arrays, as a pytree like `like`.

    Raises:
      InputError: it holds others, of another version of the library.
    """
    names = _named(loop.Learner(like, (), ()))
    kinds = {name: _kind(leaf) for name, leaf in names.items()}
    fits = all(n in saved.arrays and _kind(saved.arrays[n]) == kinds[n] for n in kinds)
    require(
        fits, f"the parameters are not those of this version: it was {saved.record['versions']}"
    )
    return jax.tree.unflatten(jax.tree.structure(like), [saved.arrays[name] for name in names])


def _require_same(folder: Path, saved: dict[str, Any], given: dict[str, Any]) -> None:
    given = json.loads(json.dumps(given))
    differing = [k for k in saved.keys() | given.keys() if saved.get(k) != given.get(k)]
    if not differing:
        return
    theirs, ours = (
        ", ".join(f"--{key.replace('_', '-')} {side.get(key)}" for key in sorted(differing))
        for side in (saved, given)
    )
    raise InputError(
        f"the run in {folder} has {theirs}, and this one {ours}: give the options of that run to "
        "go on, or another --checkpoint to begin"
    )


def _named(learner: loop.Learner) -> dict[str, Any]:
    paths, _ = jax.tree_util.tree_flatten_with_path(learner)
    return {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in paths}


def _kind(array: Any) -> tuple[str, tuple[int, ...]]:
    return str(array.dtype), array.shape


def _joined(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
