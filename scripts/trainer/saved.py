"""A network put to use: text from it, and a file of one that was saved that JAX alone can run."""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax import lax

import jax_bptt as jb
from trainer import checkpoint, files, network, resume, text
from trainer.errors import InputError, optional_module, require, say

FIRST = np.zeros(1, np.int32)
"""The prompt of a sample without one: the first of the alphabet, in most texts the line break."""


class Trained(NamedTuple):
    """A network with its parameters and the record that came with them."""

    network: network.Network
    layer: jb.Layer
    params: Any
    record: dict[str, Any]


def load(folder: str) -> Trained:
    """Return the network of the newest good checkpoint; a damaged one is a line on stderr."""
    found, damaged = checkpoint.newest(Path(folder).absolute())
    if found is None:
        raise InputError(f"there is no checkpoint in {folder}: give the folder of a run")
    for error in damaged:
        say(f"damaged: {error}; taking step {found.record['step']}")
    sizes = network.Network(**found.record["network"])
    layer = network.build(sizes)
    with jax.enable_x64(sizes.precision == "float64"):
        like = jax.eval_shape(layer.init, jax.random.key(0))
    return Trained(sizes, layer, resume.parameters(found, like), found.record)


def draw(
    layer: jb.Layer,
    params: Any,
    prompt: np.ndarray,
    key: jax.Array,
    length: int,
    temperature: float,
) -> np.ndarray:
    """Return `length` characters drawn one after another, each the input for the next.

        x_t ~ softmax(y_t / temperature)

    The `prompt`, [N] int32 with N > 0, is read first, from the initial state.
    """

    def choose(key, logits):
        return jax.random.categorical(key, logits / temperature).astype(jnp.int32)

    def advance(carry, key):
        state, x = carry
        state, logits = layer.apply(params, x[None], state)
        return (state, choose(key, logits[0])), x

    @jax.jit
    def run(prompt, keys):
        state, logits = layer.apply(params, prompt, layer.initial_state(params, ()))
        return lax.scan(advance, (state, choose(keys[0], logits[-1])), keys[1:])[1]

    return np.asarray(run(jnp.asarray(prompt), jax.random.split(key, length + 1)))


def sample(args: argparse.Namespace) -> int:
    """Print the prompt and what the network makes of it; return the exit status."""
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
    with jax.enable_x64(sizes.precision == "float64"):
        key = jax.random.key(args.seed)
        drawn = draw(layer, params, ids, key, args.length, args.temperature)
    print(prompt + text.decode(alphabet, drawn))
    return 0


def export(args: argparse.Namespace) -> int:
    """Write the network as a file of `jax.export`, and a JSON file beside it; return the status.

    The function is `(state, xs) -> (state, ys)` over xs [T, B] or [T, B, I] for any T and B, with
    the parameters within. A state is a tuple of arrays [B, ...], so that who reads the file needs
    JAX and nothing else.
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

        content = jax_export.export(run, platforms=("cpu", "cuda", "tpu"))(start, xs).serialize()
    about = {
        "state": [[str(a.dtype), ["batch", *a.shape[1:]]] for a in leaves],
        "inputs": [str(xs.dtype), ["steps", "batch", *features]],
        **{name: record[name] for name in ("alphabet", "step", "network", "versions")},
    }
    files.write(beside, (json.dumps(about, indent=2) + "\n").encode())
    files.write(args.output, bytes(content))
    print(f"exported  step {record['step']} to {args.output} ({len(content):,} bytes)")
    return 0
