"""Cells such as a user writes, each with its naive reference: what `from_step` has to carry."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import jax_bptt as jb
from tests.reference import Reference, sigmoid

I, H = 2, 3  # noqa: E741 - the axis letters of the package


def normal(key: Array, *shape: int) -> Array:
    return jax.random.normal(key, shape) / 2


def zeros(batch_shape: tuple[int, ...], size: int = H, dtype: Any = None) -> Array:
    return jnp.zeros((*batch_shape, size), dtype)


def spread(b: Array, like: Array) -> Array:
    return jnp.broadcast_to(b, like.shape)


def switched() -> tuple[jb.Cell, Reference]:
    """Plain step; dicts as params, state, inputs and outputs; floats and integers as inputs."""

    def init(key):
        keys = jax.random.split(key, 2)
        return {"a": normal(keys[0], H, H), "in": {"u": normal(keys[1], I, H), "b": jnp.ones(H)}}

    def step(p, state, x):
        s, trace = state["s"], state["trace"]
        z = s @ p["a"] + x["v"] @ p["in"]["u"]
        moved = jnp.tanh(z + spread(p["in"]["b"], z))
        s = jnp.where(x["hold"][..., None] == 1, s, moved)
        return {"s": s, "trace": 0.9 * trace + s.sum(-1) ** 2}

    def reference(xp, p, state, x):
        moved = xp.tanh(x["v"] @ p["in"]["u"] + p["in"]["b"][None] + state["s"] @ p["a"])
        hold = (x["hold"] == 1)[:, None]
        s = hold * state["s"] + (1 - hold) * moved
        total = s[:, 0] + s[:, 1] + s[:, 2]
        return {"s": s, "trace": 0.9 * state["trace"] + total * total}

    cell = jb.from_step(
        step,
        init=init,
        initial_state=lambda p, b: {"s": zeros(b), "trace": jnp.zeros(b)},
        input_spec={
            "hold": jax.ShapeDtypeStruct((), jnp.int32),
            "v": jax.ShapeDtypeStruct((I,), jnp.float32),
        },
    )
    return cell, Reference(reference)


def minimal_gated() -> tuple[jb.Cell, Reference]:
    """Gated step without a hand-written pair, two state leaves, a feedback that is a dict."""

    class State(NamedTuple):
        s: Array
        mean: Array

    def init(key):
        keys = jax.random.split(key, 3)
        return normal(keys[0], H, H), normal(keys[1], H, H), normal(keys[2], I, H)

    def mix(w, state):
        return {"forget": state.s @ w[0], "new": (state.s + state.mean) @ w[1]}

    def pointwise(w, state, drive, feedback):
        f = jax.nn.sigmoid(drive + feedback["forget"])
        s = f * state.s + (1 - f) * jnp.tanh(2.0 * drive + feedback["new"])
        return State(s, 0.8 * state.mean + 0.2 * s)

    def reference(xp, p, state, x):
        forget, new, inputs = p
        f = sigmoid(xp, x @ inputs + state.s @ forget)
        n = xp.tanh(2 * (x @ inputs) + state.s @ new + state.mean @ new)
        s = f * state.s + (1 - f) * n
        return State(s, state.mean * 0.8 + s * 0.2)

    cell = jb.from_step(
        jb.GatedStep(mix, pointwise),
        init=init,
        initial_state=lambda p, b: State(zeros(b), zeros(b)),
        input_shape=(I,),
        project=lambda w, x: x @ w[2],
        readout=lambda w, state: {"s": state.s, "energy": (state.s**2).sum(-1)},
        any_batch=True,
    )
    outputs = {"energy": lambda s: (s * s) @ np.ones(H), "s": lambda s: s}
    return cell, Reference(reference, lambda xp, p, s: {k: f(s.s) for k, f in outputs.items()})


def peephole() -> tuple[jb.Cell, Reference]:
    """Gated step whose pointwise part reads weights: Gers and Schmidhuber (2000), one gate."""

    class Weights(NamedTuple):
        w_s: Array
        w_x: Array
        peep: Array

    def init(key):
        keys = jax.random.split(key, 3)
        return Weights(normal(keys[0], H, H), normal(keys[1], I, H), normal(keys[2], H))

    def pointwise(w, c, drive, feedback):
        i = jax.nn.sigmoid(drive + feedback + spread(w.peep, c) * c)
        return (1 - i) * c + i * jnp.tanh(drive)

    def mix(w, c):
        return c @ w.w_s

    def reference(xp, p, c, x):
        i = sigmoid(xp, x @ p.w_x + c @ p.w_s + c * p.peep[None])
        return c - i * c + i * xp.tanh(x @ p.w_x)

    cell = jb.from_step(
        jb.GatedStep(mix, pointwise),
        init=init,
        initial_state=lambda p, b: zeros(b),
        input_shape=(I,),
        project=lambda w, x: x @ w.w_x,
    )
    return cell, Reference(reference)


def complex_diagonal() -> tuple[jb.Cell, Reference]:
    """Complex parameters and state, nothing to mix: the diagonal recurrence of Orvieto (2023)."""

    def init(key):
        keys = jax.random.split(key, 4)
        return {
            "log_decay": normal(keys[0], H),
            "angle": normal(keys[1], H),
            "b": jax.lax.complex(normal(keys[2], I, H), normal(keys[3], I, H)),
            "c": jax.lax.complex(normal(keys[3], H, 2), normal(keys[2], H, 2)),
        }

    def prepare(p):
        eigenvalues = jnp.exp(jax.lax.complex(-jnp.exp(p["log_decay"]), p["angle"]))
        return {"eigenvalues": eigenvalues, "b": p["b"], "c": p["c"]}

    def reference(xp, p, s, x):
        magnitude = xp.exp(-xp.exp(p["log_decay"]))[None]
        angle = p["angle"][None]
        return s * magnitude * (xp.cos(angle) + 1j * xp.sin(angle)) + (x + 0j) @ p["b"]

    cell = jb.from_step(
        jb.GatedStep(
            mix=lambda w, s: (),
            pointwise=lambda w, s, drive, feedback: spread(w["eigenvalues"], s) * s + drive,
        ),
        init=init,
        initial_state=lambda p, b: zeros(b, dtype=p["b"].dtype),
        input_shape=(I,),
        project=lambda w, x: jax.lax.complex(x, jnp.zeros_like(x)) @ w["b"],
        readout=lambda w, s: (s @ w["c"]).real,
        prepare=prepare,
    )
    return cell, Reference(reference, lambda xp, p, s: xp.real(s @ p["c"]))


def weight_norm() -> tuple[jb.Cell, Reference]:
    """A start learned with the weights, and weight normalisation, Salimans and Kingma (2016)."""

    def init(key):
        keys = jax.random.split(key, 4)
        return [normal(keys[0], I + H, H), jnp.ones(H), normal(keys[1], H), normal(keys[2], H, 1)]

    def prepare(params):
        v, g, start, w_y = params
        w = v * spread(g / jnp.sqrt((v**2).sum(0)), v)
        return {"x": w[:I], "s": w[I:], "y": w_y}

    def normalised(xp, params):
        v, g, start, w_y = params
        norms = xp.stack([xp.sqrt(v[:, k] @ v[:, k]) for k in range(H)])
        return g[None] * v / norms[None], w_y

    def reference(xp, p, s, x):
        return xp.tanh(xp.concatenate([x, s], axis=1) @ p[0])

    cell = jb.from_step(
        lambda w, s, drive: jnp.tanh(drive + s @ w["s"]),
        init=init,
        initial_state=lambda p, b: jnp.broadcast_to(p[2], (*b, H)),
        input_shape=(I,),
        project=lambda w, x: x @ w["x"],
        readout=lambda w, s: s @ w["y"],
        prepare=prepare,
        any_batch=True,
    )
    return cell, Reference(reference, lambda xp, p, s: s @ p[1], normalised)


class Counted(NamedTuple):
    """A state with a leaf that has no gradient."""

    s: Array
    steps: Array


def _counted_reference(xp, p, state, x):
    pace = 1 / (1 + xp.asarray(state.steps, np.float64))
    s = state.s + pace[:, None] * (xp.tanh(state.s @ p[0] + x @ p[1]) - state.s)
    return Counted(s, state.steps + 1)


def _counted_pointwise(w, state, drive, feedback):
    pace = 1 / (1 + state.steps.astype(drive.dtype))
    s = state.s + pace[..., None] * (jnp.tanh(feedback + drive) - state.s)
    return Counted(s, state.steps + 1)


def counted(*, gated: bool) -> tuple[jb.Cell, Reference]:
    """An integer step counter in the state, which sets the pace; plain or gated."""

    def init(key):
        key_s, key_x = jax.random.split(key)
        return normal(key_s, H, H), normal(key_x, I, H)

    def mix(w, state):
        return state.s @ w[0]

    gated_step = jb.GatedStep(mix, _counted_pointwise)
    cell = jb.from_step(
        gated_step if gated else lambda w, s, drive: gated_step(w, s, drive),
        init=init,
        initial_state=lambda p, b: Counted(zeros(b), jnp.ones(b, jnp.int32)),
        input_shape=(I,),
        project=lambda w, x: x @ w[1],
        readout=lambda w, state: state.s,
    )
    return cell, Reference(_counted_reference, lambda xp, p, state: state.s)


class Clock(NamedTuple):
    """The units' values and the number of the next step."""

    s: Array
    t: Array


def clockwork() -> tuple[jb.Cell, Reference]:
    """Units on clocks, each moving every 1, 2 or 4 steps and read by no slower one: Koutnik (2014).

    The period decides which units are updated, as in the paper, and the masked matrix which of
    them they read; the masking is part of `prepare`, so that the gradient of an absent weight is 0.
    """
    periods = np.array([1, 2, 4], np.int32)
    faster = periods[:, None] >= periods  # w_s[j, k] leads from unit j to a k as fast or faster

    def init(key):
        keys = jax.random.split(key, 3)
        return {
            "w_x": normal(keys[0], I, H),
            "w_s": normal(keys[1], H, H),
            "b": normal(keys[2], H),
        }

    def project(w, x):
        z = x @ w["w_x"]
        return z + spread(w["b"], z)

    def mix(w, state):
        return state.s @ w["w_s"]

    def pointwise(w, state, drive, feedback):
        runs = state.t[..., None] % periods.reshape((1,) * state.t.ndim + (H,)) == 0
        return Clock(jnp.where(runs, jnp.tanh(drive + feedback), state.s), state.t + 1)

    def reference(xp, p, state, x):
        units = []
        for k, period in enumerate(periods):
            read = sum(state.s[:, j] * p["w_s"][j, k] for j in range(k, H))
            new = xp.tanh(x @ p["w_x"][:, k] + p["b"][k] + read)
            runs = (state.t % period == 0) + 0.0
            units.append(runs * new + (1 - runs) * state.s[:, k])
        return Clock(xp.stack(units, axis=1), state.t + 1)

    cell = jb.from_step(
        jb.GatedStep(mix, pointwise),
        init=init,
        initial_state=lambda p, b: Clock(zeros(b), jnp.zeros(b, jnp.int32)),
        input_shape=(I,),
        project=project,
        readout=lambda w, state: state.s,
        prepare=lambda p: p | {"w_s": jnp.where(faster, p["w_s"], 0.0)},
        any_batch=True,
    )
    return cell, Reference(reference, lambda xp, p, state: state.s)
