"""Naive linear, layer-normalised, projected and convolutional cells; see `tests.reference`."""

from typing import Any

from tests.reference import gate, sigmoid


def eigenvalues(xp, p):
    """Orvieto et al. (2023), equation 6: |lambda| = exp(-exp(nu)), arg lambda = exp(theta)."""
    radius, phase = xp.exp(-xp.exp(p.nu)), xp.exp(p.theta)
    return radius * xp.cos(phase) + 1j * (radius * xp.sin(phase))


def lru(xp, p, s, x):
    """Orvieto et al. (2023), equation 7, with B and C given as real and imaginary parts."""
    driven = x @ p.w_x[:, 0] + 1j * (x @ p.w_x[:, 1])
    return eigenvalues(xp, p)[None] * s + xp.exp(p.log_gamma)[None] * driven


def lru_readout(xp, p, s):
    return xp.real(s @ (p.w_y[0] + 1j * p.w_y[1]))


def part(p, k, x):
    """Return x W_x + b of gate k of a cell whose gates see the input alone."""
    return x @ p.w_x[:, k] + p.b[None, k]


def min_gru(xp, p, s, x):
    """Feng et al. (2024), section 3.1; z is the weight of the candidate."""
    z = sigmoid(xp, part(p, 0, x))
    return (1 - z) * s + z * part(p, 1, x)


def min_lstm(xp, p, s, x):
    """Feng et al. (2024), section 3.2; gates i, f."""
    i, f = sigmoid(xp, part(p, 0, x)), sigmoid(xp, part(p, 1, x))
    return (f * s + i * part(p, 2, x)) / (f + i)


def norm(xp, rows):
    """Ba et al. (2016), equation 4, with 1e-5 added to the variance; rows [B, N]."""
    n = rows.shape[1]
    mean = xp.sum(rows, axis=1)[:, None] / n
    variance = xp.sum((rows - mean) ** 2, axis=1)[:, None] / n
    return (rows - mean) / xp.sqrt(variance + 1e-5)


def gate_norms(xp, product, gain):
    """Return gain norm(product) gate by gate, with one norm over all gates of `product`."""
    normed = norm(xp, product.reshape(len(product), -1)).reshape(product.shape)
    return [gain[None, k] * normed[:, k] for k in range(product.shape[1])]


def products(xp, x, w):
    return xp.stack([x @ w[:, k] for k in range(w.shape[1])], axis=1)


def layer_norm_lstm(xp, p, state, x):
    """Ba et al. (2016), supplementary equations 20 to 22; gates i, f, g, o."""
    h, c = state
    from_x = gate_norms(xp, products(xp, x, p.w_x), p.gain_x)
    from_h = gate_norms(xp, products(xp, h, p.w_s), p.gain_s)
    i, f, g, o = (a + u + p.b[None, k] for k, (a, u) in enumerate(zip(from_x, from_h, strict=True)))
    c = sigmoid(xp, f) * c + sigmoid(xp, i) * xp.tanh(g)
    shown = p.gain_c[None] * norm(xp, c) + p.b_c[None]
    return type(state)(sigmoid(xp, o) * xp.tanh(shown), c)


def layer_norm_gru(xp, p, s, x):
    """Ba et al. (2016), supplementary equations for the GRU, with 1 - z for z; gates r, z, n."""
    a_r, a_z = gate_norms(xp, products(xp, x, p.w_x[:, :2]), p.gain_x[:2])
    u_r, u_z = gate_norms(xp, products(xp, s, p.w_s[:, :2]), p.gain_s[:2])
    r = sigmoid(xp, a_r + u_r + p.b[None, 0])
    z = sigmoid(xp, a_z + u_z + p.b[None, 1])
    a_n = p.gain_x[2][None] * norm(xp, x @ p.w_x[:, 2]) + p.b[None, 2]
    u_n = p.gain_s[2][None] * norm(xp, s @ p.w_s[:, 2]) + p.b_n[None]
    return (1 - z) * xp.tanh(a_n + r * u_n) + z * s


def lstm_projected(xp, p, state, x):
    """Sak et al. (2014), without peepholes and non-recurrent projection; gates i, f, g, o."""
    h, c = state
    i, f, o = (sigmoid(xp, gate(p, k, x, h)) for k in (0, 1, 3))
    c = f * c + i * xp.tanh(gate(p, 2, x, h))
    return type(state)((o * xp.tanh(c)) @ p.w_p, c)


def convolve(xp, images, kernel) -> Any:
    """Cross-correlate images [B, h, w, N] with kernel [m, n, N, C], zeros around the image."""
    m, n = kernel.shape[:2]
    height, width = images.shape[1:3]
    around = [(0, 0), ((m - 1) // 2, m // 2), ((n - 1) // 2, n // 2), (0, 0)]
    padded = xp.pad(images, around)
    return sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(m) for j in range(n)
    )


def conv_lstm(xp, p, state, x):
    """Shi et al. (2015), equation 3 without the peepholes; gates i, f, g, o."""
    h, c = state

    def gates(images, kernel):
        flat = convolve(xp, images, kernel.reshape(*kernel.shape[:3], -1))
        return flat.reshape(*c.shape[:3], 4, c.shape[3])

    a = gates(x, p.w_x) + gates(h, p.w_s) + p.b[None, None, None]
    i, f, g, o = (a[:, :, :, k] for k in range(4))
    c = sigmoid(xp, f) * c + sigmoid(xp, i) * xp.tanh(g)
    return type(state)(sigmoid(xp, o) * xp.tanh(c), c)
