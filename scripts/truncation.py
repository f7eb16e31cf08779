"""Two textbook cases of a gradient that is cut.

    balance   influence balancing (Tallec and Ollivier 2017): short windows see an influence of the
              wrong sign, and training walks away from the optimum; windows of 41 steps and more,
              and random cuts that are reweighted, go there
    copy      remember a symbol until it is asked for, with a delay below, at and above the window

`balance` prints the truncated gradient's coefficient for every window beside its closed form.
"""

import functools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks import pages, pictures

import jax_bptt as jb
from jax_bptt.testing import tables
from jax_bptt.testing.arguments import Parser, positive
from jax_bptt.training import loop, losses, tasks

PLUS, MINUS = 10, 13
UNITS = PLUS + MINUS
OPTIMUM = -1 / 6
"""Best theta: the first unit settles at -6 theta, and is to be 1."""

STEPS = 128
"""Steps between two updates, after which the state has settled."""

START, RATE, UPDATES = 0.5, 0.02, 1500
WINDOWS = 1, 10, 40, 41, 60, 100
ARTBP = ("artbp(0.01)", 0.01), ("artbp(PowerLaw(50))", jb.PowerLaw(50.0))
SEEDS = 8
FAR = 1e3
"""Theta beyond which a run counts as one that walks away."""

WINDOW = 12
DELAYS = 6, 10, 11, 16
"""From a symbol to the signal: the symbol is the first of D + 2 steps, its recall the last."""


def balanced() -> jb.Cell:
    """Return s_t = A s_{t-1} + theta v with the output s_t[0]; theta is the parameter, [].

    A has 1/2 on its diagonal and above it, v ten units of 1 and thirteen of -1.
    """
    matrix = 0.5 * (np.eye(UNITS) + np.eye(UNITS, k=1))
    signs = np.repeat([1.0, -1.0], [PLUS, MINUS])

    def step(theta, state, x):
        return state @ matrix.T.astype(state.dtype) + theta * signs.astype(state.dtype)

    return jb.from_step(
        step,
        init=lambda key: jnp.asarray(START),
        initial_state=lambda theta, batch: jnp.ones((*batch, UNITS), theta.dtype),
        readout=lambda theta, state: state[..., 0],
        input_shape=(1,),
    )


def last_output(
    theta: Any, state: Any, steps: int, algorithm: jb.Algorithm | None
) -> tuple[Any, Any]:
    """Return s_T[0] after so many steps, and s_T."""
    xs = jnp.zeros((steps, 1), jnp.result_type(theta))
    state, ys = jb.unroll(balanced(), theta, xs, state, algorithm=algorithm)
    return ys[-1], state


def coefficient(window: int) -> float:
    """Return c_K = d s_T[0] / d theta by a sliding window of K steps, by the library."""
    algorithm = jb.truncated(window, sliding=True)
    state = jnp.zeros(UNITS, jnp.float64)
    gradient = jax.grad(lambda theta: last_output(theta, state, STEPS, algorithm)[0])
    return float(jax.jit(gradient)(jnp.float64(START)))


def closed_form(window: int) -> float:
    """Return sum_{k < K} (A^k v)[0], where (A^k v)[0] = 2^-k sum_j C(k, j) v_j."""
    signs = [1] * PLUS + [-1] * MINUS
    terms = (
        sum(math.comb(k, j) * sign for j, sign in enumerate(signs)) / 2**k for k in range(window)
    )
    return math.fsum(terms)


@functools.partial(jax.jit, static_argnums=(0, 1))
def descended(algorithm: Any, updates: int, key: jax.Array, scale: float) -> jax.Array:
    """Return theta after each update of gradient descent on (s_T[0] - 1)^2 / 2.

    The algorithm may be a function that makes one of a key, another one at each update. The state
    is carried from one update to the next.
    """

    def update(carry, key):
        theta, state = carry
        chosen = algorithm if isinstance(algorithm, jb.Algorithm) else algorithm(key)

        def loss(theta):
            output, last = last_output(theta, state, STEPS, chosen)
            return 0.5 * (output - 1) ** 2, last

        d_theta, state = jax.grad(loss, has_aux=True)(theta)
        theta = jnp.clip(theta - scale * d_theta, -2 * FAR, 2 * FAR)
        return (theta, state), theta

    first = jnp.float64(START), jnp.ones(UNITS, jnp.float64)
    return jax.lax.scan(update, first, jax.random.split(key, updates))[1]


def balance(updates: int, windows: Sequence[int]) -> tuple[list[tables.Table], dict[int, float]]:
    """Return the tables of the coefficients and of the runs, and c_K by window."""
    found = {window: coefficient(window) for window in windows}
    shown = [k for k in (1, 5, 10, 19, 30, 40, 41, 50, 60, 80, 100) if k in found]
    lines = [[str(k), f"{found[k]:.4f}", f"{closed_form(k):.4f}"] for k in shown]
    worst = max(abs(found[k] - closed_form(k)) / max(1, abs(closed_form(k))) for k in found)
    title = (
        f"The coefficient c_K of the truncated gradient (K = 1..{max(found)}: error {worst:.0e})"
    )
    coefficients = tables.Table(title, ["window K", "jax_bptt", "closed form"], lines)

    key, runs = jax.random.key(0), []
    named = {f"truncated({k}, sliding=True)": jb.truncated(k, sliding=True) for k in WINDOWS}
    for name, algorithm in (named | {"bptt()": jb.bptt()}).items():
        theta = np.asarray(descended(algorithm, updates, key, RATE))
        runs.append([name, _ending(theta), ""])
    for name, rate in ARTBP:
        cut = functools.partial(jb.artbp, rate)
        by_seed = jax.vmap(lambda key, cut=cut: descended(cut, updates, key, RATE / 10))
        thetas = np.asarray(by_seed(jax.random.split(key, SEEDS)))[:, -updates // 10 :]
        spread = f"{thetas.mean(axis=1).std():.3f}"
        runs.append([name, f"{thetas.mean():.4f}", spread])
    header = ["gradient", "theta at the end", "spread over seeds"]
    title = f"Training from theta = {START}, the optimum being {OPTIMUM:.4f}"
    return [coefficients, tables.Table(title, header, runs)], found


def _ending(theta):
    gone = np.flatnonzero(np.abs(theta) > FAR)
    if gone.size:
        return f"walks away: beyond {FAR:.0f} after {gone[0] + 1} updates"
    return f"{theta[-1]:.4f}"


def draw(found: dict[int, float], path: Path) -> None:
    """Draw c_K against the window, with its sign change marked."""
    figure, axes = pictures.figure_of(figsize=(6, 3.2))
    windows, values = list(found), list(found.values())
    first = next(k for k in windows if found[k] < 0)
    axes.axhline(0, color="gray", linewidth=1)
    axes.plot(windows, values, color="#1f6f8b", label="truncated gradient")
    axes.plot(windows, [-6.0] * len(windows), "--", color="#b5651d", label="exact gradient")
    axes.plot([first], [found[first]], "o", color="#1f6f8b")
    axes.annotate(f"right sign from K = {first}", (first, found[first]), (first + 4, 4))
    axes.set_title(f"A window below {first} steps gives the gradient the wrong sign", fontsize=10)
    axes.set_xlabel("window K, steps")
    axes.set_ylabel("coefficient of the gradient")
    axes.legend(frameon=False)
    pictures.save(figure, path)


def copied(updates: int) -> tables.Table:
    """Return the table of what a GRU remembers by truncated and by exact gradients."""
    lines = []
    for delay in DELAYS:
        cells = [str(delay), str(delay + 2)]
        for algorithm in (jb.truncated(WINDOW, sliding=True), jb.bptt()):
            cells.append(f"{_accuracy(delay, updates, algorithm):.2f}")
        lines.append(cells)
    header = ["delay", "steps a window needs", f"truncated({WINDOW}, sliding=True)", "bptt()"]
    title = (
        f"Share of symbols recalled, of {tasks.SYMBOLS} kinds; a guess is {1 / tasks.SYMBOLS:.2f}"
    )
    return tables.Table(title, header, lines)


def _accuracy(delay: int, updates: int, algorithm: jb.Algorithm) -> float:
    """Return the share of symbols that are recalled after training."""
    cell = jb.gru(16, 32, output_size=tasks.TOKENS)
    layer = jb.layer(jb.embedding(cell, vocabulary_size=tasks.TOKENS))
    batches = tasks.drawn(functools.partial(tasks.copy, delay=delay, symbols=1, batch=32), 0)
    settings = loop.Settings(1e-2, 1.0, updates)
    first = loop.start(layer.init(jax.random.key(0)), None, settings)
    loss = losses.fresh(layer, losses.cross_entropy, algorithm)
    *_, last = loop.fit(loss, first, batches, settings)
    xs, targets = tasks.copy(np.random.default_rng(1), delay=delay, symbols=1, batch=512)
    _, ys = layer.apply(last.learner.params, xs)
    return float(jnp.mean(ys[-1].argmax(-1) == targets[-1]))


def parser() -> Parser:
    """Return the parser of the command line."""
    top = Parser(prog="truncation", description=__doc__)
    modes = top.add_subparsers(dest="mode", required=True)
    for name, updates in (("balance", UPDATES), ("copy", 600)):
        sub = modes.add_parser(name, prog=f"truncation {name}")
        sub.add_argument("--updates", type=positive, default=updates, help=f"default {updates}")
        pages.add_option(sub)
        if name == "balance":
            sub.add_argument(
                "--windows", type=positive, default=100, help="K to go to, default 100"
            )
            sub.add_argument("--plot", type=Path, metavar="FILE")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a case and print it; return the exit status."""
    args = parser().parse_args(argv)
    page = pages.opened(parser(), args.markdown, f"truncation {args.mode}", argv)
    if args.mode == "balance":
        with jax.enable_x64(True):
            results, found = balance(args.updates, range(1, args.windows + 1))
        if args.plot is not None:
            draw(found, args.plot)
    else:
        results = [copied(args.updates)]
    pages.show(page, *results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
