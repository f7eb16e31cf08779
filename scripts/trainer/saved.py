"""A network that was saved, put to use: text from it, and a file that JAX alone can run."""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export as jax_export

import jax_bptt as jb
from trainer import checkpoint, files, network, report, resume, text
from trainer.errors import InputError, optional_module, require, say
from trainer.sample import FIRST
from trainer.sample import sample as draw

PLATFORMS = ("cpu", "cuda", "tpu")
"""Platforms of an exported network."""


class Trained(NamedTuple):
    """A network with its parameters and the record that came with them."""

    network: network.Network
    layer: jb.Layer
    params: Any
    record: dict[str, Any]


def load(folder: str) -> Trained:
    """Return the network of the newest good checkpoint; a damaged one is a line on stderr.

    Raises:
      InputError: there is none.
    """
    found, damaged = checkpoint.newest(Path(folder).absolute(), lambda record: None)
    if found is None:
        raise InputError(f"there is no checkpoint in {folder}: give the folder of a run")
    for error in damaged:
        say(f"damaged: {error}; taking step {found.record['step']}")
    sizes = network.Network(**found.record["network"])
    layer = network.build(sizes)
    with jax.enable_x64(sizes.precision == "float64"):
        like = jax.eval_shape(layer.init, jax.random.key(0))
    return Trained(sizes, layer, resume.parameters(found, like), found.record)


def sample(args: argparse.Namespace) -> int:
    """Print the prompt and what the network makes of it; return the exit status.

    Raises:
      InputError: the network does not speak in characters, or not in those of the prompt.
    """
    sizes, layer, params, record = load(args.checkpoint)
    alphabet = record["alphabet"]
    require(
        bool(alphabet),
        f"{args.checkpoint} is a run of {record['settings']['job']}, which has no characters: "
        "sample from one of chars",
    )
    prompt = args.prompt or ""
    unknown = sorted(set(prompt) - set(alphabet))
    require(
        not unknown,
        f"--prompt has characters that the network has never read: {ascii(''.join(unknown))}; "
        "leave them out",
    )
    ids = np.array([alphabet.index(c) for c in prompt], np.int32) if prompt else FIRST
    options = {"length": args.length, "temperature": args.temperature}
    with jax.enable_x64(sizes.precision == "float64"):
        drawn = draw(layer, params, ids, jax.random.key(args.seed), **options)
    report.line(prompt + text.decode(alphabet, drawn))
    return 0


def export(args: argparse.Namespace) -> int:
    """Write the network as a file of `jax.export`, and a JSON file beside it; return the status.

    The function is `(state, xs) -> (state, ys)` over xs [T, B] or [T, B, I] for any T and B, with
    the parameters within. A state is a tuple of arrays [B, ...], so that who reads the file needs
    JAX and nothing else.

    Raises:
      InputError: a file cannot be written, or the extra is missing.
    """
    optional_module("flatbuffers", extra="export")
    beside = f"{args.output}.json"
    for path in (args.output, beside):
        files.try_out(path)
    sizes, layer, params, record = load(args.checkpoint)
    with jax.enable_x64(sizes.precision == "float64"):
        steps, batch = jax_export.symbolic_shape("steps, batch")
        of_one = jax.eval_shape(lambda: layer.initial_state(params, (1,)))
        leaves, structure = jax.tree.flatten(of_one)
        start = tuple(jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype) for a in leaves)
        features = () if sizes.vocabulary_size else (sizes.input_size,)
        kind = np.int32 if sizes.vocabulary_size else leaves[0].dtype
        xs = jax.ShapeDtypeStruct((steps, batch, *features), kind)

        @jax.jit
        def run(state, xs):
            last, ys = layer.apply(params, xs, jax.tree.unflatten(structure, state))
            return tuple(jax.tree.leaves(last)), ys

        content = jax_export.export(run, platforms=PLATFORMS)(start, xs).serialize()
    about = {
        "state": [[str(a.dtype), ["batch", *a.shape[1:]]] for a in leaves],
        "inputs": [str(xs.dtype), ["steps", "batch", *features]],
        **{name: record[name] for name in ("alphabet", "step", "network", "versions")},
    }
    files.write(beside, (json.dumps(about, indent=2) + "\n").encode())
    files.write(args.output, bytes(content))
    report.line(f"exported  step {record['step']} to {args.output} ({len(content):,} bytes)")
    return 0
