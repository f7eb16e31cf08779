"""The state of a run as a checkpoint, and a checkpoint as the state of a run."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.training import loop
from trainer import checkpoint
from trainer.errors import require, say

LOSSES = "losses"
FREE = {"sample", "temperature", "order", "plot", "json", "check", "text", "devices"}
FREE |= {"checkpoint", "checkpoint_every", "telemetry"}
"""Options that a run may go on with changed. The text is known by its content, and a telemetry by
whether there is any."""


class Run(NamedTuple):
    """A run so far."""

    progress: loop.Progress  # the place, and all that steps change
    losses: list[float]  # of every step
    timed: int = 0  # the number of steps within `progress.seconds`
    finished: bool = False  # whether there is no step left to do


def settings(arguments: dict[str, Any], devices: int, data: str | None) -> dict[str, Any]:
    """Return the options that decide every bit of a run, with what tells its text from others."""
    kept = {name: value for name, value in arguments.items() if name not in FREE}
    watched = {"watched": True} if arguments.get("telemetry") else {}
    return kept | watched | {"devices": devices, "text": data}


def save(folder: Path | None, run: Run, about: dict[str, Any]) -> bool:
    """Save a run, if there is a folder, and what else is to be known about it.

    Return whether that went well; if not, one line says so, and nothing is lost.
    """
    if folder is None:
        return True
    progress = run.progress
    arrays = {name: np.asarray(leaf) for name, leaf in _named(progress.learner).items()}
    arrays[LOSSES] = np.asarray(run.losses, np.float64)
    place = {"step": progress.step, "seconds": progress.seconds}
    record = about | place | {"timed": run.timed, "finished": run.finished}
    try:
        checkpoint.write(folder, record, arrays)
    except Exception as error:  # a full disk is an error of C++ as often as one of the system
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split())[:200]
        say(f"step {progress.step} was not saved in {folder}: {reason}")
        return False
    return True


def restore(folder: Path, begun: Run, about: dict[str, Any]) -> Run:
    """Return the run that was saved last, or the one that has begun if none was.

    What is damaged is set aside, with a line for each. Arrays go where those of `begun` are.
    """
    saved, damaged = checkpoint.newest(folder)
    if saved is None:
        return begun
    record, arrays = saved
    _require_same(folder, record["settings"], about["settings"])
    for error in damaged:
        say(f"damaged, set aside: {error}; going on from step {record['step']}")
    checkpoint.set_aside(folder, record["step"])
    if record["versions"] != about["versions"]:
        theirs, ours = (_joined(each["versions"]) for each in (record, about))
        say(f"saved by {theirs}, and this is {ours}: the last bits may differ from here on")
    losses = arrays.pop(LOSSES).tolist()
    # Copies, since the first step donates them.
    learner = jax.tree.map(
        lambda array, like: jnp.array(jax.device_put(array, like.sharding)),
        _filled(begun.progress.learner, saved),
        begun.progress.learner,
    )
    progress = loop.Progress(record["step"], record["seconds"], losses[-1], learner)
    return Run(progress, losses, record["timed"], record["finished"])


def parameters(saved: checkpoint.Saved, like: Any) -> Any:
    """Return the parameters of a checkpoint, in NumPy arrays, as a pytree like `like`."""
    arrays = {name: a for name, a in saved.arrays.items() if name.startswith("params.")}
    return _filled(loop.Learner(like, (), ()), saved._replace(arrays=arrays)).params


def _filled(like: Any, saved: checkpoint.Saved) -> Any:
    """Return a pytree like `like` of the arrays that were saved, which must be those it has."""
    named = _named(like)
    found, wanted = (
        {name: (str(array.dtype), array.shape) for name, array in each.items()}
        for each in (saved.arrays, named)
    )
    differing = sorted({name for name, _ in found.items() ^ wanted.items()})
    require(
        not differing,
        f"other arrays were saved than this network has: {', '.join(differing[:3])}; take the "
        f"version that saved them ({_joined(saved.record['versions'])}), or another --checkpoint",
    )
    return jax.tree.unflatten(jax.tree.structure(like), [saved.arrays[name] for name in named])


def _require_same(folder: Path, saved: dict[str, Any], given: dict[str, Any]) -> None:
    differing = sorted(k for k in saved.keys() | given.keys() if saved.get(k) != given.get(k))
    theirs, ours = (
        ", ".join(f"--{key.replace('_', '-')} {side.get(key)}" for key in differing)
        for side in (saved, given)
    )
    require(
        not differing,
        f"the run in {folder} has {theirs}, and this one {ours}: give the options of that run to "
        "go on, or another --checkpoint to begin",
    )


def _named(learner: loop.Learner) -> dict[str, Any]:
    paths = jax.tree_util.tree_leaves_with_path(learner)
    return {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in paths}


def _joined(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
