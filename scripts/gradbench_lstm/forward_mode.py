"""Loss and gradient in forward mode, in NumPy: what the models are checked against.

The tangent of every state with respect to every parameter is carried along. A channel depends on
its own parameters alone, so that one array [P, b] holds all tangents of a quantity [b]: of the
8 l + 1 parameters of a channel that come before the output, in the order in which they are listed,
8 for each layer and then the input's factor.
"""

import numpy as np

from gradbench_lstm.instances import Instance

F, I, O, G = range(4)  # noqa: E741  the gates in the order of the parameters


def loss_and_gradient(instance: Instance) -> tuple[float, np.ndarray]:
    """Return L and dL/d(main_params, extra_params) in one row, [8 l b + 3 b]."""
    layers, count, bits = instance.sizes
    w, b = instance.main_params.reshape(layers, 2, 4, bits).swapaxes(0, 1)
    w_in, w_out, b_out = instance.extra_params
    h, c = instance.state[0::2].copy(), instance.state[1::2].copy()
    dh = np.zeros((layers, 8 * layers + 1, bits))
    dc = np.zeros_like(dh)
    loss, d_inner, d_out, d_bias = 0.0, np.zeros(dh.shape[1:]), np.zeros(bits), np.zeros(bits)
    for t in range(count - 1):
        x, dx = w_in * instance.sequence[t], np.zeros_like(d_inner)
        dx[-1] = instance.sequence[t]
        for j in range(layers):
            a, da = [], []
            for gate in (F, I, O, G):
                read, d_read = (x, dx) if gate in (F, O) else (h[j], dh[j])
                d = d_read * w[j, gate]
                d[8 * j + gate] += read
                d[8 * j + 4 + gate] += 1
                a.append(read * w[j, gate] + b[j, gate])
                da.append(d)
            f, i, o = (1 / (1 + np.exp(-a[gate])) for gate in (F, I, O))
            g = np.tanh(a[G])
            dc[j] = (
                dc[j] * f
                + c[j] * f * (1 - f) * da[F]
                + g * i * (1 - i) * da[I]
                + i * (1 - g * g) * da[G]
            )
            c[j] = c[j] * f + i * g
            tanh_c = np.tanh(c[j])
            dh[j] = tanh_c * o * (1 - o) * da[O] + o * (1 - tanh_c * tanh_c) * dc[j]
            h[j] = o * tanh_c
            x, dx = h[j], dh[j]
        y, target = x * w_out + b_out, instance.sequence[t + 1]
        total = 2 + np.exp(y).sum()
        loss -= target @ (y - np.log(total))
        dy = target.sum() * np.exp(y) / total - target  # of the loss of this step
        d_inner += dy * w_out * dx
        d_out += dy * x
        d_bias += dy
    main = d_inner[:-1].reshape(2 * layers, 4 * bits)
    gradient = np.concatenate([main.ravel(), d_inner[-1], d_out, d_bias])
    scale = bits * (count - 1)
    return float(loss / scale), gradient / scale
