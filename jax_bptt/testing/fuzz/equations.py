"""Equations of the library's cells in plain NumPy, from their papers, for `jax_bptt.testing.fuzz`.

Nothing of the library's own arithmetic is used. Every array leads with an axis N that its letters
leave out: that many copies of a run are made at once, each with an imaginary step added to another
number, so that the imaginary parts of the outputs are exact derivatives. That needs functions that
are analytic: a comparison looks at real parts, and nothing is conjugated.

    params [N, ...]        state [N, B, H]        x [N, B, I]        h [N, B, H]
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

LOG_ZERO = -1e30
"""Where the stabiliser of an sLSTM starts."""


class Complex(NamedTuple):
    """A complex array as its two parts, each with an imaginary step of its own."""

    re: Any
    im: Any


class Equations(NamedTuple):
    """A cell, one step of it at a time.

    Attributes:
      step: `(weights, state, x, h) -> state`, h being what the recurrent product reads.
      hidden: `state -> h`.
      readout: `(weights, state) -> y`.
      prepare: `params -> weights`.
      start: `(params, zeros) -> state`, the initial state, for zeros of its shape.
    """

    step: Callable[..., Any]
    hidden: Callable[..., Any] = lambda s: s
    readout: Callable[..., Any] = lambda p, s: output(p, s)
    prepare: Callable[..., Any] = lambda p: p
    start: Callable[..., Any] = lambda p, zeros: zeros


def sigmoid(a):
    """Return the logistic function."""
    return 1 / (1 + np.exp(-a))


def softplus(a):
    """Return log(1 + e^a)."""
    return np.log(1 + np.exp(a))


def relu(a):
    """Return a where it is positive, else 0."""
    return np.where(a.real > 0, a, 0)


def output(p, h):
    """Return h W_y, or h without a readout."""
    return h if p.w_y is None else h @ p.w_y


def of_h(step: Callable) -> Equations:
    """Return equations whose product and readout see the field h of the state."""
    return Equations(step, lambda s: s.h, lambda p, s: output(p, s.h))


def gate(p, k, x, h):
    """Return the pre-activation of gate k."""
    return x @ p.w_x[:, :, k] + h @ p.w_s[:, :, k] + p.b[:, None, k]


def part(p, k, x):
    """Return the pre-activation of gate k that sees the input alone."""
    return x @ p.w_x[:, :, k] + p.b[:, None, k]


def elman(activation):
    """Elman (1990)."""
    return Equations(lambda p, s, x, h: activation(gate(p, 0, x, h)))


def indrnn(activation):
    """Li et al. (2018)."""
    return Equations(lambda p, s, x, h: activation(part(p, 0, x) + p.w_s[:, None] * h))


def ctrnn(time_step, euler):
    """Wilson and Cowan (1972): the leak by an Euler step, or exact."""

    def step(p, s, x, h):
        ratio = time_step * np.exp(-p.log_tau)[:, None]
        alpha = ratio if euler else 1 - np.exp(-ratio)
        return (1 - alpha) * s + alpha * np.tanh(gate(p, 0, x, h))

    return Equations(step)


def _gru(p, s, x, h):
    r, z = sigmoid(gate(p, 0, x, h)), sigmoid(gate(p, 1, x, h))
    n = np.tanh(part(p, 2, x) + r * (h @ p.w_s[:, :, 2] + p.b_n[:, None]))
    return (1 - z) * n + z * s


def _gru_reset_before(p, s, x, h):
    r, z = sigmoid(gate(p, 0, x, h)), sigmoid(gate(p, 1, x, h))
    return (1 - z) * np.tanh(gate(p, 2, x, r * h)) + z * s


def _mgu(p, s, x, h):
    f = sigmoid(gate(p, 0, x, h))
    return (1 - f) * s + f * np.tanh(part(p, 1, x) + f * (h @ p.w_s[:, :, 1]))


def _ugrnn(p, s, x, h):
    g = sigmoid(gate(p, 0, x, h))
    return g * s + (1 - g) * np.tanh(gate(p, 1, x, h))


GRU = Equations(_gru)
"""Chung et al. (2014), the reset after the product; gates r, z, n."""

GRU_RESET_BEFORE = Equations(_gru_reset_before)
"""Cho et al. (2014); gates r, z, n."""

MGU = Equations(_mgu)
"""Zhou et al. (2016), gated after the product; gates f, n."""

UGRNN = Equations(_ugrnn)
"""Collins et al. (2017); gates g, n."""


def _lstm(p, s, x, h):
    i, f, o = (sigmoid(gate(p, k, x, h)) for k in (0, 1, 3))
    c = f * s.c + i * np.tanh(gate(p, 2, x, h))
    return s._replace(h=o * np.tanh(c), c=c)


def _lstm_peephole(p, s, x, h):
    def peep(k, c):
        return p.w_c[:, None, k] * c

    i = sigmoid(gate(p, 0, x, h) + peep(0, s.c))
    f = sigmoid(gate(p, 1, x, h) + peep(1, s.c))
    c = f * s.c + i * np.tanh(gate(p, 2, x, h))
    return s._replace(h=sigmoid(gate(p, 3, x, h) + peep(2, c)) * np.tanh(c), c=c)


def _lstm_projected(p, s, x, h):
    new = _lstm(p, s, x, h)
    return new._replace(h=new.h @ p.w_p)


LSTM = of_h(_lstm)
"""Gers et al. (2000); gates i, f, g, o."""

LSTM_PEEPHOLE = of_h(_lstm_peephole)
"""Gers and Schmidhuber (2000)."""

LSTM_PROJECTED = of_h(_lstm_projected)
"""Sak et al. (2014)."""


def slstm(log_forget_gate):
    """Beck et al. (2024); gates i, f, z, o."""

    def step(p, s, x, h):
        log_i, log_f = gate(p, 0, x, h), log_forget_gate(gate(p, 1, x, h)) + s.m
        m = np.where(log_f.real > log_i.real, log_f, log_i)
        i, f = np.exp(log_i - m), np.exp(log_f - m)
        c, n = f * s.c + i * np.tanh(gate(p, 2, x, h)), f * s.n + i
        return s._replace(h=sigmoid(gate(p, 3, x, h)) * c / n, c=c, n=n, m=m)

    return of_h(step)._replace(start=lambda p, zeros: zeros._replace(m=zeros.m + LOG_ZERO))


def _norm(a, axes):
    deviation = a - a.mean(axes, keepdims=True)
    return deviation / np.sqrt((deviation * deviation).mean(axes, keepdims=True) + 1e-5)


def _gates(x, w):
    """Return the products [N, B, G, H] with a matrix [N, I, G, H]."""
    return np.stack([x @ w[:, :, k] for k in range(w.shape[2])], 2)


def _layer_norm_lstm(p, s, x, h):
    a = p.gain_x[:, None] * _norm(_gates(x, p.w_x), (2, 3)) + p.b[:, None]
    a = a + p.gain_s[:, None] * _norm(_gates(h, p.w_s), (2, 3))
    i, f, g, o = (a[:, :, k] for k in range(4))
    c = sigmoid(f) * s.c + sigmoid(i) * np.tanh(g)
    shown = p.gain_c[:, None] * _norm(c, 2) + p.b_c[:, None]
    return s._replace(h=sigmoid(o) * np.tanh(shown), c=c)


def _layer_norm_gru(p, s, x, h):
    def normed(a, w, gain):
        a = _gates(a, w)
        both = np.concatenate([_norm(a[:, :, :2], (2, 3)), _norm(a[:, :, 2:], (2, 3))], 2)
        return gain[:, None] * both

    a, u = normed(x, p.w_x, p.gain_x) + p.b[:, None], normed(h, p.w_s, p.gain_s)
    r, z = (sigmoid(a[:, :, k] + u[:, :, k]) for k in range(2))
    return (1 - z) * np.tanh(a[:, :, 2] + r * (u[:, :, 2] + p.b_n[:, None])) + z * s


LAYER_NORM_LSTM = of_h(_layer_norm_lstm)
"""Ba et al. (2016), supplement; gates i, f, g, o."""

LAYER_NORM_GRU = Equations(_layer_norm_gru)
"""Ba et al. (2016), supplement, with 1 - z for z; gates r, z, n."""


def _min_gru(p, s, x, h):
    z = sigmoid(part(p, 0, x))
    return (1 - z) * s + z * part(p, 1, x)


def _min_lstm(p, s, x, h):
    i, f = sigmoid(part(p, 0, x)), sigmoid(part(p, 1, x))
    return (f * s + i * part(p, 2, x)) / (f + i)


def _lru(p, s, x, h):
    radius, phase = np.exp(-np.exp(p.nu))[:, None], np.exp(p.theta)[:, None]
    gamma, a_re, a_im = np.exp(p.log_gamma)[:, None], radius * np.cos(phase), radius * np.sin(phase)
    return Complex(
        a_re * s.re - a_im * s.im + gamma * (x @ p.w_x[:, :, 0]),
        a_re * s.im + a_im * s.re + gamma * (x @ p.w_x[:, :, 1]),
    )


def _lru_readout(p, s):
    return s.re if p.w_y is None else s.re @ p.w_y[:, 0] - s.im @ p.w_y[:, 1]


MIN_GRU = Equations(_min_gru)
"""Feng et al. (2024), section 3.1; gates z, n."""

MIN_LSTM = Equations(_min_lstm)
"""Feng et al. (2024), section 3.2; gates i, f, n."""

LRU = Equations(_lru, readout=_lru_readout)
"""Orvieto et al. (2023), equations 6 and 7."""


def _convolved(images, kernel):
    """Slide a kernel [N, m, n, I, C] over images [N, B, h, w, I] with zeros around them."""
    m, n = kernel.shape[1:3]
    height, width = images.shape[2:4]
    around = [(0, 0), (0, 0), ((m - 1) // 2, m // 2), ((n - 1) // 2, n // 2), (0, 0)]
    padded = np.pad(images, around)
    return sum(
        padded[:, :, i : i + height, j : j + width] @ kernel[:, None, None, i, j]
        for i in range(m)
        for j in range(n)
    )


def _conv_lstm(p, s, x, h):
    def a(k):
        sums = _convolved(x, p.w_x[..., k, :]) + _convolved(h, p.w_s[..., k, :])
        return sums + p.b[:, None, None, None, k]

    c = sigmoid(a(1)) * s.c + sigmoid(a(0)) * np.tanh(a(2))
    return s._replace(h=sigmoid(a(3)) * np.tanh(c), c=c)


CONV_LSTM = of_h(_conv_lstm)._replace(
    readout=lambda p, s: s.h if p.w_y is None else s.h @ p.w_y[:, None, None]
)
"""Shi et al. (2015), without peepholes; gates i, f, g, o."""


def prepared(equations: Equations, matrices: Callable) -> Equations:
    """Return the equations with a recurrent matrix that is made of other parameters."""

    def prepare(p):
        return equations.prepare(p._replace(w_s=matrices(p.w_s)))

    return equations._replace(prepare=prepare)


def _per_gate(matrix, gates):
    return np.stack([matrix(g) for g in range(gates)], 2)


def low_rank(w):
    """W = u v."""
    return _per_gate(lambda g: w.u[:, :, g] @ w.v[:, :, g], w.u.shape[2])


def orthogonal(w):
    """Helfrich et al. (2018), W = (1 + A)^{-1} (1 - A), A skew-symmetric."""
    one = np.eye(w.a.shape[1])

    def cayley(g):
        skew = w.a[:, :, g] - np.swapaxes(w.a[:, :, g], 1, 2)
        return np.linalg.inv(one + skew) @ (one - skew)

    return _per_gate(cayley, w.a.shape[2])


def weight_norm(w):
    """Salimans and Kingma (2016), each column by itself."""
    return w.v * (w.g / np.sqrt((w.v * w.v).sum(1)))[:, None]


def spectral_norm(w):
    """Miyato et al. (2018). To first order in W, sigma is u^T W v with singular vectors held."""

    def normed(g):
        v = w[:, :, g]
        left, _, right = np.linalg.svd(v.real)
        sigma = np.einsum("ni,nij,nj->n", left[:, :, 0], v, right[:, 0])
        return v / sigma[:, None, None]

    return _per_gate(normed, w.shape[2])


def multi_head(w):
    """Blocks [N, heads, D, G, D] on the diagonal of [N, H, G, H], zeros elsewhere."""
    copies, heads, units, gates, _ = w.shape
    dense = np.zeros((copies, heads * units, gates, heads * units), w.dtype)
    for k in range(heads):
        own = slice(k * units, (k + 1) * units)
        dense[:, own, :, own] = w[:, k]
    return dense


def embedding(equations: Equations) -> Equations:
    """Return the equations on tokens, each of which stands for a row of a table."""
    return Equations(
        lambda p, s, k, h: equations.step(p.cell, s, p.embedding[:, k[0]], h),
        equations.hidden,
        lambda p, s: equations.readout(p.cell, s),
        lambda p: p._replace(cell=equations.prepare(p.cell)),
        lambda p, zeros: equations.start(p.cell, zeros),
    )


def learned_state(equations: Equations) -> Equations:
    """Return the equations with a start among the parameters."""

    def start(p, zeros):
        def leaf(learned, own):
            return own if learned is None else learned[:, None] + np.zeros_like(own)

        own = equations.start(p.cell, zeros)
        return jax.tree.map(leaf, p.start, own, is_leaf=lambda a: a is None)

    return equations._replace(prepare=lambda p: equations.prepare(p.cell), start=start)
