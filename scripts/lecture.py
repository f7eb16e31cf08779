"""The lecture's example: dE_N/dWs and dE_N/dWx as sums with one term for every state s_N .. s_1."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jax_bptt as jb
from jax_bptt.diagnostics.plots import plot_contributions
from jax_bptt.testing.arguments import Parser, positive

CELLS = {"elman": jb.elman, "lstm": jb.lstm, "gru": jb.gru}
MAX_WALK = 4  # states, and rows or columns, up to which every matrix is printed
MAX_ROWS = 30  # of the table of norms
MAX_ENTRIES = 2**27  # of all terms together: 1 GiB


class Example(NamedTuple):
    """A cell with its parameters, one sequence and the wanted output d_N of its last step."""

    cell: jb.Cell
    params: Any
    xs: jax.Array
    state: Any
    target: jax.Array


Named = dict[str, np.ndarray]
"""Arrays by the lecture's letters: `Ws` for the parameter `w_s`."""


def make_example(
    cell: str, steps: int, inputs: int, hidden: int, outputs: int, seed: int
) -> Example:
    """Draw an example in float64 (under x64); s_0 too, so that the s_1 term of Ws is not zero."""
    chosen = CELLS[cell](input_size=inputs, hidden_size=hidden, output_size=outputs)
    key_params, key_x, key_state, key_target = jax.random.split(jax.random.key(seed), 4)
    params = chosen.init(key_params)
    leaves, structure = jax.tree.flatten(chosen.initial_state(params, ()))
    keys = jax.random.split(key_state, len(leaves))
    draws = [0.5 * jax.random.normal(k, s.shape) for k, s in zip(keys, leaves, strict=True)]
    return Example(
        chosen,
        params,
        jax.random.normal(key_x, (steps, inputs)),
        jax.tree.unflatten(structure, draws),
        jax.random.normal(key_target, (outputs,)),
    )


def gradients(example: Example) -> tuple[Named, Named, Named]:
    """Return each state's term, and by jax.grad of the plain scan the whole and that of s_N alone.

    The terms have to add up to the whole.
    """
    cell, params, xs, state, target = example
    scan = jb.autodiff()

    def error(params, xs, state):
        _, ys = jb.unroll(cell, params, xs, state, algorithm=scan)
        return jnp.sum((target - ys[-1]) ** 2)

    before, _ = jb.unroll(cell, params, xs[:-1], state, algorithm=scan)
    _, ys = jb.unroll(cell, params, xs[-1:], before, algorithm=scan)
    terms = jb.contributions(cell, params, xs, state, -2 * (target - ys[-1]), step=len(xs))
    whole = jax.grad(error)(params, xs, state)
    # For jax.grad of one step from s_{N-1}, that state is a constant: the naive path.
    one_path = jax.grad(error)(params, xs[-1:], before)
    return by_name(terms), by_name(whole), by_name(one_path)


def by_name(tree: Any) -> Named:
    """Name the parameters in the lecture's letters."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path[-1].name.replace("w_", "W"): np.asarray(leaf) for path, leaf in leaves}


def rows(matrix: Any) -> list[str]:
    """Format a matrix or a row vector, one line a row."""
    return [
        "[" + " ".join(f"{value:10.6f}" for value in row) + " ]" for row in np.atleast_2d(matrix)
    ]


def print_beside(**blocks: Any) -> None:
    """Print matrices side by side, each under its name."""
    print_columns({name: rows(block) for name, block in blocks.items()})


def print_columns(columns: dict[str, list[str]]) -> None:
    """Print named columns of lines side by side."""
    table = [[name, *lines] for name, lines in columns.items()]
    widths = [max(map(len, column)) for column in table]
    for k in range(max(map(len, table))):
        cells = [column[k] if k < len(column) else "" for column in table]
        line = "   ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        print("    " + line.rstrip())


def chain(last: int, i: int) -> str:
    """Write out the chain from E_N to s_i: dE_3/dy_3 . dy_3/ds_3 . ds_3/ds_2."""
    links = [f"ds_{t}/ds_{t - 1}" for t in range(last, i, -1)]
    return " . ".join([f"dE_{last}/dy_{last}", f"dy_{last}/ds_{last}", *links])


def relative_gap(part: np.ndarray, whole: np.ndarray) -> float:
    """Return |part - whole| / |whole| in the Frobenius norm."""
    return float(np.linalg.norm(part - whole) / np.linalg.norm(whole))


def largest_gap(a: Any, b: Any) -> float:
    """Return the largest difference between two arrays, element by element."""
    return float(np.max(np.abs(np.asarray(a) - np.asarray(b))))


def print_walk(example: Example, terms: Named, total: Named, one_path: Named) -> None:
    """Print the lecture's own model with every matrix of every term."""
    cell, params, *arrays = example
    w_x, w_s, w_y = (np.asarray(w) for w in (params.w_x[:, 0], params.w_s[:, 0], params.w_y))
    weights, states = cell.prepare(params), [example.state]
    for x in example.xs:
        states.append(cell.step(weights, states[-1], cell.project(weights, x)))
    states = np.stack(states)
    xs, _, target = map(np.asarray, arrays)
    last = len(xs)
    y = states[last] @ w_y
    d_y = -2 * (target - y)

    print("\n1. The forward pass\n")
    print("    s_t = tanh(x_t Wx + s_(t-1) Ws)    y_t = s_t Wy", end="    ")
    print(f"E_{last} = sum((d_{last} - y_{last})^2)")
    print("    All drawn at random; s_0 too, for with s_0 = 0 the s_1 term of Ws is zero.\n")
    print_beside(Wx=w_x, Ws=w_s, Wy=w_y)
    print()
    steps = [f"{t:3d}" for t in range(last + 1)]
    columns = {"x_t": ["", *rows(xs)], "s_t": rows(states), "y_t": ["", *rows(states[1:] @ w_y)]}
    print_columns({"  t": steps} | columns)
    print()
    print_beside(**{f"d_{last}": target, f"d_{last} - y_{last}": target - y})
    print(f"\n    E_{last} = {np.sum((target - y) ** 2):.6f}")

    print_readout_chain(last, d_y, states[last], total["Wy"])
    print_naive_path(last, one_path["Ws"][:, 0], total["Ws"][:, 0])
    d_states = print_factors(last, d_y, w_s, w_y, states)
    heads = {"Ws": ("s_(i-1)", states[:-1]), "Wx": ("x_i", xs)}
    for number, (name, (letter, inputs)) in enumerate(heads.items(), start=5):
        print(f"\n{number}. {name}: the sum over the states s_{last} .. s_1\n")
        print(f"    d+s_i[k]/d{name}[j,k] = {letter}[j] (1 - s_i[k]^2)", end="    ")
        print("d+: direct dependence alone, s_(i-1) held fixed")
        worst = 0.0
        for i in range(last, 0, -1):
            written = np.outer(inputs[i - 1], d_states[i] * (1 - states[i] ** 2))
            term = terms[name][i - 1, :, 0]
            worst = max(worst, largest_gap(written, term))
            print(f"\n    s_{i} term = {chain(last, i)} . d+s_{i}/d{name}")
            for row in rows(term):
                print(f"    {row}")
        summed, whole = terms[name].sum(axis=0)[:, 0], total[name][:, 0]
        print()
        print_beside(**{"their sum": summed, "jax.grad": whole})
        gap = largest_gap(summed, whole)
        print(f"    largest difference, sum and jax.grad:                      {gap:.1e}")
        print(f"    largest difference, a term and its chain multiplied out:   {worst:.1e}")


def print_readout_chain(last: int, d_y: Any, state: Any, d_w_y: Any) -> None:
    """Print dE_N/dWy, which takes one step of the chain rule, element by element."""
    print("\n2. Wy: one step of the chain rule, element by element\n")
    print(f"    dE_{last}/dWy[j,k] = dE_{last}/dy_{last}[k] . dy_{last}[k]/dWy[j,k]", end="")
    print(f" = -2 (d_{last}[k] - y_{last}[k]) . s_{last}[j]\n")
    print("      j  k   -2 (d - y)[k]        s[j]     product    jax.grad  difference")
    for j, k in np.ndindex(d_w_y.shape):
        product, whole = d_y[k] * state[j], d_w_y[j, k]
        numbers = f"{d_y[k]:12.6f}{state[j]:12.6f}{product:12.6f}{whole:12.6f}"
        print(f"    {j + 1:3d}{k + 1:3d}    {numbers}{product - whole:12.1e}")


def print_naive_path(last: int, one_path: np.ndarray, whole: np.ndarray) -> None:
    """Print the gradient of Ws through s_N alone and how far it is from the whole one."""
    print(f"\n3. Ws, the naive way: the path through s_{last} alone, s_{last - 1} held fixed\n")
    print(f"    {chain(last, last)} . d+s_{last}/dWs\n")
    print_beside(**{"one path": one_path, "jax.grad": whole, "difference": one_path - whole})
    if last == 1:
        print("\n    With a single step there is no other path.")
        return
    print(f"\n    Off by {relative_gap(one_path, whole):.0%} of the gradient's norm:", end=" ")
    print(f"s_{last} depends on s_{last - 1}, which depends on Ws as well.")


def print_factors(last: int, d_y: Any, w_s: Any, w_y: Any, states: Any) -> dict[int, np.ndarray]:
    """Print every factor of the chains; return dE_N/ds_i, multiplied from the left, for each i."""
    print("\n4. The factors of the chains (row: what is differentiated; column: by what)\n")
    print_beside(**{f"dE_{last}/dy_{last}": d_y, f"dy_{last}/ds_{last} = Wy^T": w_y.T})
    d_states = {last: d_y @ w_y.T}
    factors = {}
    for t in range(last, 1, -1):
        jacobian = (1 - states[t] ** 2)[:, None] * w_s.T
        factors[f"ds_{t}/ds_{t - 1}"] = jacobian
        d_states[t - 1] = d_states[t] @ jacobian
    if factors:
        print("\n    ds_t/ds_(t-1) = diag(1 - s_t^2) Ws^T\n")
        print_beside(**factors)
    print()
    for i, d_state in d_states.items():
        print(f"    {rows(d_state)[0]} = dE_{last}/ds_{i} = {chain(last, i)}")
    return d_states


def print_table(last: int, terms: Named, total: Named, one_path: Named) -> None:
    """Print the norm of every term, for any cell and any number of steps N = `last`."""
    norms = {name: np.linalg.norm(term.reshape(last, -1), axis=1) for name, term in terms.items()}
    sums = {name: term.sum(axis=0) for name, term in terms.items()}
    print(f"\nFrobenius norm of each state's term of dE_{last}/dW, E_{last} = sum((d - y)^2)\n")
    print(f"    {'':12s}" + "".join(f"{name:>13s}" for name in terms))

    def line(label, values):
        print(f"    {label:12s}" + "".join(f"{value:13.5e}" for value in values))

    order = list(range(last, 0, -1))
    half = MAX_ROWS // 2
    left_out = order[half:-half] if last > MAX_ROWS else []
    for i in order:
        if i not in left_out:
            line(f"s_{i}", [norm[i - 1] for norm in norms.values()])
        elif i == left_out[0]:
            print(f"    ...         ({len(left_out)} states not shown)")
    print()
    line("their sum", [np.linalg.norm(s) for s in sums.values()])
    line("jax.grad", [np.linalg.norm(total[name]) for name in sums])
    line("difference", [largest_gap(s, total[name]) for name, s in sums.items()])
    print("\n    (difference: of the largest element)")
    gap = relative_gap(one_path["Ws"], total["Ws"])
    print(f"    The path through s_{last} alone misses dE_{last}/dWs by {gap:.2%} of its norm.")


def seed(text: str) -> int:
    """Read an integer from 0 to 2^32 - 1."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to 2^32 - 1, got {text!r}")
    return int(text)


def make_parser() -> Parser:
    """Return the command line's parser."""
    parser = Parser(prog="lecture.py", description=__doc__)
    add = parser.add_argument
    add("--steps", type=positive, default=3, metavar="N", help="N (3)")
    add("--inputs", type=positive, default=2, metavar="I", help="size of x (2)")
    add("--hidden", type=positive, default=3, metavar="H", help="size of s (3)")
    add("--outputs", type=positive, default=2, metavar="O", help="size of y (2)")
    add("--cell", choices=CELLS, default="elman", help="the cell (elman, the lecture's)")
    add("--seed", type=seed, default=0, metavar="K", help="of all draws (0)")
    add("--plot", type=Path, metavar="FILE", help="draw the terms of Wx and Ws (.png, .pdf, .svg)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    sizes = args.inputs, args.hidden, args.outputs
    weights = 4 * args.hidden * (args.inputs + args.hidden) + args.hidden * args.outputs
    if args.steps * weights > MAX_ENTRIES:
        parser.error("the terms would take more than 1 GiB; take fewer --steps or a smaller size")
    with jax.enable_x64(True):
        example = make_example(args.cell, args.steps, *sizes, args.seed)
        computed = gradients(example)
        print(f"{args.cell}: N = {args.steps} steps, I = {args.inputs} inputs, ", end="")
        print(f"H = {args.hidden} units, O = {args.outputs} outputs, float64, seed {args.seed}")
        if args.cell == "elman" and max(args.steps, *sizes) <= MAX_WALK:
            print_walk(example, *computed)
        else:
            print_table(args.steps, *computed)
    if args.plot is not None:
        terms, *_ = computed
        try:
            plot_contributions({name: terms[name] for name in ("Wx", "Ws")}).savefig(args.plot)
        except (ImportError, OSError, ValueError) as error:
            parser.error(f"--plot {args.plot}: {error}")
        print(f"\nThe terms are drawn in {args.plot}")
    return 0


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader who has seen enough is no error
    sys.exit(main())
