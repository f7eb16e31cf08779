"""Gradient flossing: Lyapunov exponents are pushed to zero before training.

    copy   y_t = x_{t-D}
    xor    y_t = x_{t-D} xor x_{t-D/2}

A tanh network with random Gaussian weights forgets along most directions within a few steps, and no
gradient says what to keep. Flossing is gradient descent on mean_i (exponent_i)^2 of the first k
exponents, without any target. After it the same training, on the same data, is tried again.

R. Engelken (2023), "Gradient flossing: improving gradient descent through dynamic control of
Jacobians", NeurIPS.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchmarks import pages, pictures
from jax import Array

import jax_bptt as jb
from jax_bptt import diagnostics
from jax_bptt.testing import tables
from jax_bptt.testing.arguments import Parser

SEEDS, BATCH, LEARNED = 3, 16, 0.95
"""Number of runs of each kind; sequences of an update; share of answers that counts as learned."""


class Case(NamedTuple):
    """Sizes of a task and a network: H, D, T, k, updates before and of training, learning rate."""

    units: int
    delay: int
    steps: int
    exponents: int
    flossing: int
    updates: int
    rate: float


CASES = {
    "copy": Case(64, 58, 130, 58, 150, 3000, 1e-3),
    "xor": Case(32, 24, 72, 28, 200, 3000, 1e-3),
}


def drawn(task: str, case: Case, key: Array) -> tuple[Array, Array]:
    """Return random bits as inputs of -1 and 1, [T, B, 1], and what to answer from step D on."""
    bits = jax.random.bernoulli(key, 0.5, (case.steps, BATCH))
    delayed = jnp.roll(bits, case.delay, 0)
    if task == "xor":
        delayed ^= jnp.roll(bits, case.delay // 2, 0)
    return jnp.where(bits, 1.0, -1.0)[..., None], delayed[case.delay :]


def started(case: Case, key: Array, orthogonal: bool) -> tuple[jb.Cell, Any]:
    """Return the network, and parameters with recurrent weights of variance 1 / H."""
    cell = jb.elman(1, case.units, output_size=1)
    params = cell.init(key)
    if not orthogonal:
        drawn = jax.random.normal(key, params.w_s.shape) / np.sqrt(case.units)
        params = params._replace(w_s=drawn)
    return cell, params


def spectrum(task: str, case: Case, cell: jb.Cell, params: Any, key: Array) -> Array:
    """Return the first k exponents on one sequence of the task."""
    xs, _ = drawn(task, case, key)
    run = diagnostics.trajectory(cell, params, xs[:, 0])
    return diagnostics.lyapunov_spectrum(run, count=case.exponents).exponents


def descended(
    loss: Any, optimizer: optax.GradientTransformation, params: Any, keys: Array
) -> tuple[Any, Array]:
    """Return the parameters after an update for each key, and what `loss` returns besides."""

    def update(carry, key):
        params, state = carry
        gradient, shown = jax.grad(loss, has_aux=True)(params, key)
        change, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, change), state), shown

    first = params, optimizer.init(params)
    (params, _), shown = jax.lax.scan(update, first, keys)
    return params, shown


def flossed(task: str, case: Case, cell: jb.Cell, params: Any, key: Array) -> Any:
    """Return parameters whose first k exponents have been pushed to zero."""

    def loss(params, key):
        return jnp.mean(spectrum(task, case, cell, params, key) ** 2), None

    return descended(loss, optax.adam(1e-3), params, jax.random.split(key, case.flossing))[0]


def trained(task: str, case: Case, cell: jb.Cell, params: Any, key: Array) -> Array:
    """Return the share of right answers at each update of training, on new data each time."""

    def loss(params, key):
        xs, answers = drawn(task, case, key)
        logits = jb.unroll(cell, params, xs)[1][case.delay :, :, 0]
        right = jnp.mean(((logits > 0) == answers).astype(logits.dtype))
        losses = optax.sigmoid_binary_cross_entropy(logits, answers.astype(logits.dtype))
        return jnp.mean(losses), right

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(case.rate))
    return descended(loss, optimizer, params, jax.random.split(key, case.updates))[1]


class Kind(NamedTuple):
    """A kind of start: root mean square of the first k exponents before training, right answers.

    Their share is [SEEDS, updates].
    """

    exponents: float
    right: np.ndarray


def tried(task: str, case: Case, kind: str) -> Kind:
    """Return what becomes of a kind of start: "plain", "flossed" or "orthogonal"."""

    @jax.jit
    @jax.vmap
    def run(seed):
        keys = jax.random.split(jax.random.key(seed), 4)
        cell, params = started(case, keys[0], kind == "orthogonal")
        if kind == "flossed":
            params = flossed(task, case, cell, params, keys[1])
        before = spectrum(task, case, cell, params, keys[2])
        return before, trained(task, case, cell, params, keys[3])

    exponents, right = run(jnp.arange(SEEDS))
    return Kind(float(jnp.sqrt(jnp.mean(exponents**2))), np.asarray(right))


NAMES = {
    "plain": "Gaussian, as drawn",
    "flossed": "Gaussian, flossed",
    "orthogonal": "orthogonal, the library's default",
}


def table(task: str, case: Case, found: dict[str, Kind]) -> tables.Table:
    """Return the table of all kinds of start."""
    lines = []
    for kind, (exponents, right) in found.items():
        last = right[:, -max(case.updates // 20, 1) :].mean(1)
        shares = " ".join(f"{share:.2f}" for share in last)
        learned = " ".join(str(_learned(run) or "never") for run in right)
        lines.append([NAMES[kind], f"{exponents:.3f}", shares, learned])
    header = ["recurrent weights", "exponents, rms", "right at the end, by seed"]
    header.append(f"updates to {LEARNED:.0%}")
    title = (
        f"Delayed {task}, D = {case.delay}: {case.units} tanh units, {case.updates} updates, "
        f"{case.flossing} of flossing before on {case.exponents} exponents; a guess is 0.50"
    )
    return tables.Table(title, header, lines)


def _smooth(right: np.ndarray) -> np.ndarray:
    """Return means over stretches of updates, about a hundred of them."""
    stretch = max(right.shape[-1] // 100, 1)
    whole = right.shape[-1] // stretch * stretch
    return right[..., :whole].reshape(*right.shape[:-1], -1, stretch).mean(-1)


def _learned(right: np.ndarray) -> int | None:
    """Return after how many updates a run is right often enough, None for never."""
    means = _smooth(right)
    reached = np.flatnonzero(means >= LEARNED)
    return int((reached[0] + 1) * (len(right) // len(means))) if reached.size else None


def draw(task: str, case: Case, found: dict[str, Kind], path: Path) -> None:
    """Draw the share of right answers against updates, a line for each seed."""
    figure, axes = pictures.figure_of(figsize=(6, 3.2))
    colours = {"plain": "#b5651d", "flossed": "#1f6f8b", "orthogonal": "#999999"}
    for kind, (_, right) in found.items():
        means = _smooth(right)
        at = np.linspace(0, case.updates, means.shape[1] + 1)[1:]
        for seed, line in enumerate(means):
            label = None if seed else NAMES[kind]
            axes.plot(at, line, color=colours[kind], label=label, linewidth=1.2)
    count = {kind: sum(_learned(r) is not None for r in each.right) for kind, each in found.items()}
    axes.axhline(0.5, color="gray", linewidth=0.8, linestyle=":")
    axes.set_title(
        f"Delayed {task}, {case.delay} steps: {count['flossed']} of {SEEDS} flossed networks learn "
        f"it, {count['plain']} of {SEEDS} as drawn",
        fontsize=10,
    )
    axes.set_xlabel("updates of training")
    axes.set_ylabel("share of right answers")
    axes.legend(frameon=False, fontsize="small", loc="lower right", bbox_to_anchor=(1, 0.12))
    pictures.save(figure, path)


def parser() -> Parser:
    """Return the parser of the command line."""
    top = Parser(prog="flossing", description=__doc__)
    top.add_argument("task", choices=sorted(CASES))
    top.add_argument("--smoke", action="store_true", help="a few updates of a small network")
    pages.add_option(top)
    top.add_argument("--plot", type=Path, metavar="FILE")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a task and print it; return the exit status."""
    args = parser().parse_args(argv)
    page = pages.opened(parser(), args.markdown, f"flossing {args.task}", argv)
    case = Case(6, 2, 12, 2, 3, 20, 1e-2) if args.smoke else CASES[args.task]
    found = {kind: tried(args.task, case, kind) for kind in NAMES}
    pages.show(page, table(args.task, case, found))
    if args.plot is not None:
        draw(args.task, case, found, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
