"""Draw the two pictures of the README.

    time            docs/gradient_time.svg, bars made of the table of the gradient's time that
                    scripts/bench.py has written into docs/benchmarks.md
    contributions   docs/contributions.svg: an LSTM is trained on the adding problem, then the
                    gradient of its last output is taken apart by the states it flows through

The files are plain SVG, so that the same figures make the same file.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jax_bptt as jb
from jax_bptt.testing.arguments import Parser
from jax_bptt.training.tasks import adding

DOCS = Path(__file__).resolve().parents[1] / "docs"
JAX_PEERS = "flax", "nnx", "haiku", "equinox"
COLOURS = "#1f6f8b", "#9aa5ab", "#c9a14a", "#b5651d"
STEPS, HIDDEN, BATCH, SHOWN = 40, 32, 64, 8
"""T, H, sequences in a batch and sequences in the picture, for the trained network."""


class Group(NamedTuple):
    """Bars of one row of the table: a title, and (name, time over the library's) of each."""

    title: str
    bars: list[tuple[str, float]]


class Maps(NamedTuple):
    """Contributions [sequences, N] before and after training, the marks [N, sequences], errors."""

    before: np.ndarray
    after: np.ndarray
    marks: np.ndarray
    errors: tuple[float, float]


def read_table(page: str) -> tuple[list[Group], str]:
    """Return the rows of the table of `bench.py grad` in a page, and where it was measured."""
    _, _, rest = page.partition("<!-- bench grad -->")
    part, end, _ = rest.partition("<!-- end of bench grad -->")
    lines = part.strip().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    if not end or len(rows) < 3:
        raise ValueError("there is no table between the markers of `bench grad`")
    header, _, *rows = rows
    by_cell: dict[str, list[dict[str, float]]] = {}
    for row in (dict(zip(header, row, strict=True)) for row in rows):
        if row["cell"]:
            by_cell.setdefault(row["cell"], []).append(_ratios(row))
    found = []
    for cell, ratios in by_cell.items():
        sizes = "one size" if len(ratios) == 1 else f"geometric mean of {len(ratios)} sizes"
        names = dict.fromkeys(name for each in ratios for name in each)
        bars = [(name, _mean([each[name] for each in ratios if name in each])) for name in names]
        found.append(Group(f"{cell.upper()}, {sizes}", [("jax_bptt", 1.0), *bars]))
    caption = [line.strip() for line in lines if line[:1] not in ("|", "")]
    return found, caption[0]


def _ratios(row: dict[str, str]) -> dict[str, float]:
    """Return the ratios of a row that are drawn; of the JAX libraries the smallest alone."""
    found = {name[2:]: float(r) for name, r in row.items() if name[:2] == "x " and r != "-"}
    peers = [found[name] for name in JAX_PEERS if name in found]
    fastest = {"fastest of four in JAX": min(peers)} if peers else {}
    picked = {name: found[name] for name in ("plain scan", "torch") if name in found}
    return {"plain scan": found["plain scan"]} | fastest | picked


def _mean(ratios: list[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios))))


def draw_bars(groups: list[Group], caption: str) -> str:
    """Return the picture of the bars."""
    scale = 330 / max(ratio for group in groups for _, ratio in group.bars)
    parts = [_text(10, 20, "Time of the gradient, in times of jax_bptt's (shorter is faster)", 14)]
    y = 44
    for group in groups:
        parts.append(_text(10, y, group.title, 12))
        y += 8
        for (name, ratio), colour in zip(group.bars, COLOURS, strict=False):
            parts.append(_text(186, y + 11, name, 11, anchor="end"))
            parts.append(_rect((192, y, ratio * scale, 14), colour))
            parts.append(_text(197 + ratio * scale, y + 11, f"{ratio:.2f}", 11))
            y += 18
        y += 20
    machine, _, versions = caption.partition("; ")
    for line in (machine, *_wrapped(versions, 100)):
        parts.append(_text(10, y, line, 10))
        y += 14
    return _svg((620, y), parts)


def train(updates: int, seed: int = 0) -> Maps:
    """Train an LSTM on the adding problem; return its contributions before and after."""
    cell = jb.lstm(2, HIDDEN, output_size=1)
    rng = np.random.default_rng(seed)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(5e-3))

    def error(params, xs, targets):
        _, ys = jb.unroll(cell, params, xs)
        return jnp.mean((ys[-1, :, 0] - targets) ** 2)

    @jax.jit
    def update(params, memory, xs, targets):
        changes, memory = optimizer.update(jax.grad(error)(params, xs, targets), memory)
        return optax.apply_updates(params, changes), memory

    @jax.jit
    def norms(params, xs):
        """Return |dy_N/dWx through s_i| for each sequence and i, in shares of the largest."""

        def of_one(xs):
            terms = jb.contributions(cell, params, xs, None, jnp.ones(1), step=STEPS)
            return jnp.sqrt(jnp.sum(terms.w_x**2, axis=(1, 2, 3)))

        found = jax.vmap(of_one, in_axes=1)(xs)
        return found / found.max(axis=1, keepdims=True)

    def draw(batch):
        return [jnp.float32(a) for a in adding(rng, length=STEPS, batch=batch)]

    params = cell.init(jax.random.key(seed))
    memory = optimizer.init(params)
    test, (xs, _) = draw(1024), draw(SHOWN)
    before, first = norms(params, xs), error(params, *test)
    for _ in range(updates):
        params, memory = update(params, memory, *draw(BATCH))
    errors = float(first), float(error(params, *test))
    return Maps(np.array(before), np.array(norms(params, xs)), np.array(xs[:, :, 1]), errors)


def draw_maps(maps: Maps, caption: str) -> str:
    """Return the picture of the contributions, a row for each sequence and a column per state."""
    side, left = 13, 70
    parts = [_text(10, 20, f"The gradient of y_{STEPS}, by the state s_i it flows through", 14)]
    y = 44
    named = ("before training", maps.before), ("after training", maps.after)
    for (name, shares), found in zip(named, maps.errors, strict=True):
        parts.append(_text(10, y, f"{name}: mean squared error {found:.2g}", 12))
        y += 10
        for row, share in enumerate(shares):
            parts.append(_text(left - 8, y + 10, f"sequence {row + 1}", 9, anchor="end"))
            for i, value in enumerate(share):
                box = left + i * side, y, side - 1, side - 1
                marked = maps.marks[i, row] > 0
                parts.append(_rect(box, _shade(value), stroke="#d1495b" if marked else None))
            y += side + 1
        parts += [
            _text(left + i * side + 6, y + 10, str(i + 1), 9, anchor="middle")
            for i in (0, *range(9, STEPS, 10))
        ]
        y += 34
    parts.append(_text(left, y - 10, "i. Outlined in red: the two numbers to be added.", 10))
    parts.append(_text(10, y + 8, caption, 10))
    return _svg((620, y + 18), parts)


def _shade(value: float) -> str:
    """Return white for 0 and dark blue for 1."""
    return "#" + "".join(f"{round(255 + (dark - 255) * value):02x}" for dark in (10, 60, 90))


def _rect(box: tuple[float, ...], fill: str, stroke: str | None = None) -> str:
    x, y, width, height = box
    line = f' stroke="{stroke}" stroke-width="2"' if stroke else ""
    where = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect {where} fill="{fill}"{line}/>'


def _text(x: float, y: float, text: str, size: int, anchor: str = "start") -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"'
    return f"<text {where}>{escape(text)}</text>"


def _wrapped(text: str, width: int) -> list[str]:
    """Break a list with commas into lines."""
    lines = [""]
    for word in text.split(", "):
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += ", " * bool(lines[-1]) + word
    return lines


def _svg(size: tuple[int, int], parts: list[str]) -> str:
    width, height = size
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
    head += f' width="{width}" height="{height}" font-family="sans-serif" fill="#222">'
    paper = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    return "\n".join([head, paper, *parts, "</svg>\n"])


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the pictures that are named, both by default."""
    parser = Parser(prog="figures", description=__doc__)
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="time, contributions")
    parser.add_argument("--updates", type=int, default=2000, help="of the training; default 2000")
    parser.add_argument("--folder", type=Path, default=DOCS, help="to write to; default docs")
    args: Any = parser.parse_args(argv)
    if unknown := set(args.pictures) - {"time", "contributions"}:
        parser.error(f"no picture {unknown.pop()!r}; there are time, contributions")
    if not args.folder.is_dir():
        parser.error(f"no folder {args.folder}")
    if not args.pictures or "time" in args.pictures:
        picture = draw_bars(*read_table((DOCS / "benchmarks.md").read_text(encoding="utf-8")))
        (args.folder / "gradient_time.svg").write_text(picture, encoding="utf-8")
    if not args.pictures or "contributions" in args.pictures:
        caption = f"LSTM of {HIDDEN} units, {args.updates} updates, batches of {BATCH}; "
        caption += (
            f"jax {jax.__version__}. Norms of the terms of dy_{STEPS}/dWx, largest of a row: 1."
        )
        picture = draw_maps(train(args.updates), caption)
        (args.folder / "contributions.svg").write_text(picture, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
