"""The one table of cells and algorithms that every property test runs over: one line adds a row."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from tests import reference, reference_variants, reference_wrappers, user_cells
from tests.reference import Reference, is_inexact

I, H, O, V = 2, 3, 2, 5  # noqa: E741 - the axis letters of the package
BATCH, STEPS = (6,), 7


class Row(NamedTuple):
    """A cell and the independent reference that it must agree with."""

    cell: jb.Cell
    reference: Reference


def _tanh(xp, a):
    return xp.tanh(a)


def _softplus(xp, a):
    return xp.logaddexp(xp.zeros_like(a), a)


def _with_readout(step: Callable) -> Reference:
    return Reference(step, reference.linear_readout)


def _lstm(xp, p, s):
    return s.h


def _log_sigmoid(xp, a):
    return -_softplus(xp, -a)


def _begun(params, batch_shape):
    """Start an sLSTM as if it had seen something, so that its first step does not forget all."""
    start = _SLSTM.initial_state(params, batch_shape)
    return start._replace(n=jnp.ones_like(start.n), m=jnp.zeros_like(start.m))


def _embedded(xp, p, s, k):
    return reference.lstm(xp, p.cell, s, p.embedding[k])


_SIZES: Any = dict(input_size=I, hidden_size=H)
_SLSTM = jb.slstm(**_SIZES)

CELLS = {
    "elman": Row(jb.elman(**_SIZES), Reference(reference.elman(_tanh))),
    "elman_readout": Row(
        jb.elman(**_SIZES, output_size=O, activation=jax.nn.softplus),
        _with_readout(reference.elman(_softplus)),
    ),
    "lstm": Row(jb.lstm(**_SIZES), Reference(reference.lstm, _lstm)),
    "lstm_readout": Row(
        jb.lstm(**_SIZES, output_size=O, forget_bias=0.5),
        Reference(reference.lstm, lambda xp, p, s: s.h @ p.w_y),
    ),
    "gru": Row(jb.gru(**_SIZES), Reference(reference.gru)),
    "gru_readout": Row(jb.gru(**_SIZES, output_size=O), _with_readout(reference.gru)),
    "gru_reset_before": Row(
        jb.gru_reset_before(**_SIZES, output_size=O), _with_readout(reference.gru_reset_before)
    ),
    "lstm_peephole": Row(
        jb.lstm_peephole(**_SIZES, output_size=O),
        Reference(reference.lstm_peephole, lambda xp, p, s: s.h @ p.w_y),
    ),
    "mgu": Row(jb.mgu(**_SIZES), Reference(reference.mgu)),
    "ugrnn": Row(jb.ugrnn(**_SIZES, output_size=O), _with_readout(reference.ugrnn)),
    "indrnn": Row(
        jb.indrnn(**_SIZES, output_size=O, activation=jnp.tanh),
        _with_readout(reference.indrnn(_tanh)),
    ),
    "indrnn_linear": Row(
        jb.indrnn(**_SIZES, activation=None), Reference(reference.indrnn(lambda xp, a: a))
    ),
    "slstm": Row(
        _SLSTM._replace(initial_state=_begun), Reference(reference.slstm(_log_sigmoid), _lstm)
    ),
    "ctrnn": Row(
        jb.ctrnn(**_SIZES, time_step=0.5, time_constant=1.5, output_size=O),
        _with_readout(reference.ctrnn(0.5)),
    ),
    "clockwork": Row(*user_cells.clockwork()),
    "lru": Row(jb.lru(**_SIZES), Reference(reference_variants.lru, lambda xp, p, s: xp.real(s))),
    "lru_readout": Row(
        jb.lru(**_SIZES, output_size=O),
        Reference(reference_variants.lru, reference_variants.lru_readout),
    ),
    "min_gru": Row(jb.min_gru(**_SIZES), Reference(reference_variants.min_gru)),
    "min_lstm": Row(
        jb.min_lstm(**_SIZES, output_size=O), _with_readout(reference_variants.min_lstm)
    ),
    # Of five units: the norm of three may be near a point where their variance is zero, about which
    # finite differences know little.
    "layer_norm_lstm": Row(
        jb.layer_norm_lstm(input_size=I, hidden_size=5),
        Reference(reference_variants.layer_norm_lstm, _lstm),
    ),
    "layer_norm_gru": Row(
        jb.layer_norm_gru(input_size=I, hidden_size=5, output_size=O),
        _with_readout(reference_variants.layer_norm_gru),
    ),
    "lstm_projected": Row(
        jb.lstm_projected(**_SIZES, projection_size=2),
        Reference(reference_variants.lstm_projected, _lstm),
    ),
    "conv_lstm": Row(
        jb.conv_lstm(**_SIZES, image_shape=(2, 3), kernel_shape=(2, 2)),
        Reference(reference_variants.conv_lstm, _lstm),
    ),
    "embedding": Row(
        jb.embedding(jb.lstm(**_SIZES), vocabulary_size=V), Reference(_embedded, _lstm)
    ),
    "low_rank": Row(
        jb.low_rank(jb.lstm(**_SIZES), rank=2),
        Reference(reference.lstm, _lstm, reference_wrappers.low_rank),
    ),
    "orthogonal": Row(
        jb.orthogonal(jb.elman(**_SIZES)),
        Reference(reference.elman(_tanh), prepare=reference_wrappers.orthogonal),
    ),
    "normalised": Row(
        jb.weight_norm(jb.gru(**_SIZES, output_size=O)),
        Reference(reference.gru, reference.linear_readout, reference_wrappers.weight_norm),
    ),
    "spectral_norm": Row(
        jb.spectral_norm(jb.gru_reset_before(**_SIZES)),
        Reference(reference.gru_reset_before, prepare=reference_wrappers.spectral_norm),
    ),
    "multi_head": Row(
        jb.multi_head(jb.gru(input_size=I, hidden_size=4, output_size=O), heads=2),
        Reference(reference.gru, reference.linear_readout, reference_wrappers.multi_head),
    ),
    "learned_state": Row(
        jb.learned_state(jb.lstm(**_SIZES)),
        Reference(reference.lstm, _lstm, reference_wrappers.learned_state),
    ),
    "switched": Row(*user_cells.switched()),
    "minimal_gated": Row(*user_cells.minimal_gated()),
    "peephole": Row(*user_cells.peephole()),
    "complex_diagonal": Row(*user_cells.complex_diagonal()),
    "weight_norm": Row(*user_cells.weight_norm()),
    "counted": Row(*user_cells.counted(gated=False)),
    "counted_gated": Row(*user_cells.counted(gated=True)),
}


ALGORITHMS = {
    "bptt": jb.bptt(),
    "bptt_1": jb.bptt(block_length=1),
    "bptt_3": jb.bptt(block_length=3),
    "bptt_kept": jb.bptt(block_length=3, recompute=False),
    "autodiff": jb.autodiff(),
    # Far from any adjoint there is: exact, but through a pass of its own.
    "clipped": jb.clipped(norm=1e9),
    "fused": jb.fused(),
    # Three blocks and a step that is left over; the second block is passed by before the third.
    "checkpointed": jb.checkpointed(count=0, block_length=2),
    "checkpointed_on_host": jb.checkpointed(block_length=3, on_host=True),
    "parallel_adjoint": jb.parallel_adjoint(block_length=3),
}

# Those with a recursion of their own.
OTHERS = {"checkpointed", "checkpointed_on_host", "clipped", "parallel_adjoint"}

# One of each kind, for properties that rest with the algorithm: a gated step with a hand-written
# pair, a plain step, a gated step that reads weights unit by unit, integers in the state, a complex
# diagonal step.
KINDS = ["lstm_readout", "gru_reset_before", "peephole", "counted", "lru_readout"]


# A gated step and a plain one, for what takes long.
FEW = ["lstm_readout", "gru_reset_before"]

# Each kind once, and each algorithm but the one that falls back on another without a kernel.
QUICK = set(zip(KINDS, ["bptt", "bptt_3", "bptt_kept", "autodiff", "bptt_1"], strict=True))


def slow_unless(quick: bool, *values: Any) -> Any:
    """Leave a row out of the quick run; -m slow takes it."""
    return pytest.param(*values, marks=() if quick else pytest.mark.slow)


# The kinds, of which the quick run takes the first.
each_kind_in_time = pytest.mark.parametrize(
    "name", [slow_unless(name == KINDS[0], name) for name in KINDS]
)
# The quick run takes every cell in blocks with a remainder, by the plain derivative and by one more
# of those that share the scans of `bptt`, in turn; and the kinds by every algorithm. All of a cell
# in a row: one process computes its reference.
IN_TURN = "bptt", "bptt_1", "bptt_kept", "fused"
each_cell_by_each_algorithm = pytest.mark.parametrize(
    "name, algorithm",
    [
        slow_unless(
            name in KINDS or algorithm in ("bptt_3", "autodiff", IN_TURN[k % len(IN_TURN)]),
            *(name, algorithm),
        )
        for k, name in enumerate(CELLS)
        for algorithm in ALGORITHMS
    ],
)
# Every row there is, of which the quick run takes the kinds, and any cell in blocks of three steps.
each_cell_in_time = pytest.mark.parametrize(
    "name", [slow_unless(name in KINDS, name) for name in CELLS]
)
each_cell_in_less_time = pytest.mark.parametrize(
    "name", [slow_unless(name == KINDS[0], name) for name in CELLS]
)


class Problem(NamedTuple):
    """Arguments of an unroll in NumPy, with cotangents for (last_state, ys)."""

    params: Any
    xs: Any
    state: Any
    cotangents: Any


@functools.cache
def problem(name: str, batch_shape: tuple[int, ...] = BATCH, steps: int = STEPS) -> Problem:
    """Draw every number at random, so that no bias, start or cotangent hides behind a zero.

    Concrete numbers, wherever the first call happens to be: they are shared by all tests.
    """
    with jax.ensure_compile_time_eval():
        return _draw(name, batch_shape, steps)


def _draw(name: str, batch_shape: tuple[int, ...], steps: int) -> Problem:
    rng = np.random.default_rng(0)
    cell = CELLS[name].cell

    def noise(leaf):
        if np.issubdtype(leaf.dtype, np.complexfloating):
            return rng.normal(size=leaf.shape) + 1j * rng.normal(size=leaf.shape)
        return rng.normal(size=leaf.shape)

    def perturbed(leaf):
        leaf = np.asarray(leaf)
        return leaf + 0.3 * noise(leaf) if is_inexact(leaf) else leaf

    def draw(spec):
        if jnp.issubdtype(spec.dtype, jnp.integer):
            return rng.integers(0, V, size=(steps, *batch_shape), dtype=np.int32)
        return rng.normal(size=(steps, *batch_shape, *spec.shape))

    params = jax.tree.map(perturbed, cell.init(jax.random.key(0)))
    state = jax.tree.map(perturbed, cell.initial_state(params, batch_shape))
    xs = jax.tree.map(draw, cell.input_spec)
    y = jax.eval_shape(lambda p, s: cell.readout(cell.prepare(p), s), params, state)
    ys = jax.tree.map(lambda a: np.zeros((steps, *a.shape), a.dtype), y)
    cotangents = jax.tree.map(lambda a: noise(a) if is_inexact(a) else None, (state, ys))
    return Problem(params, xs, state, cotangents)


def run(name: str, algorithm: jb.Algorithm | None, params, xs, state):
    return jb.unroll(CELLS[name].cell, params, xs, state, algorithm=algorithm)


def gradient(name: str, algorithm: jb.Algorithm | None, p: Problem) -> tuple[Any, Any]:
    """Return (outputs, d(params, xs, state)) by `jax.grad` of a loss with p's cotangents."""

    def loss(arguments):
        outputs = run(name, algorithm, *arguments)
        return reference.pair(jnp, p.cotangents, outputs), outputs

    arguments = p.params, p.xs, p.state
    gradients, outputs = jax.grad(loss, has_aux=True, allow_int=True)(arguments)
    return outputs, without_int(gradients)


@functools.cache
def compiled(name: str, algorithm: str) -> Callable[[Problem], tuple[Any, Any]]:
    """Return the jitted `gradient`, compiled once per shape for all tests."""
    return jax.jit(functools.partial(gradient, name, ALGORITHMS[algorithm]))


@functools.cache
def expected(name: str, batch_shape: tuple[int, ...] = BATCH, steps: int = STEPS) -> Any:
    """Return (outputs, gradients) of the naive loops, for T >= 1."""
    p, naive = problem(name, batch_shape, steps), CELLS[name].reference
    outputs = reference.unroll(np, naive, p.params, p.state, p.xs, batch_shape)
    gradients = reference.gradients(naive, p.params, p.state, p.xs, batch_shape, p.cotangents)
    return outputs, without_int(gradients)


def without_int(gradients: Any) -> Any:
    """Put None where `jax.grad(allow_int=True)` has arrays of the dtype float0."""
    return jax.tree.map(lambda g: None if g.dtype == jax.dtypes.float0 else g, gradients)


def assert_close(got: Any, want: Any, tolerance: float) -> None:
    """Compare trees leaf by leaf, in the largest norm relative to the leaf's own scale."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape, (jax.tree_util.keystr(path), a.shape, b.shape)
        wide = np.promote_types(a.dtype, np.float64)
        a, b = a.astype(wide), b.astype(wide)
        scale = np.abs(b).max(initial=0)
        error = np.abs(a - b).max(initial=0)
        assert error <= tolerance * scale, (
            f"{jax.tree_util.keystr(path)}: off by {error:.3g} at a scale of {scale:.3g}, "
            f"{error / scale if scale else np.inf:.3g} relative, {tolerance:.3g} allowed"
        )
