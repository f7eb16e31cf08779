"""Recurrent layers with one bug each, every one of a kind that some framework had."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_bptt.testing import Subject, from_jax
from tests.testing import tanh_stack
from tests.testing.tanh_stack import Parts

RIGHT = tanh_stack.subject()

GRADIENT = {"finite_differences", "naive_loop", "adjoint_identity"}
"""Properties that any wrong gradient of params, xs or state violates."""


class Bug(NamedTuple):
    """A broken subject, the property that is there for it, and what else it violates."""

    subject: Subject
    caught_by: str
    besides: set[str] = set()


def _wrapped(change: Callable[..., Any]) -> Subject:
    """Let `change(gradient, *arguments, **options)` stand in for the right gradient."""

    def gradient(*arguments, **options):
        return change(RIGHT.gradient, *arguments, **options)

    return RIGHT._replace(gradient=gradient)


def _edited(edit: Callable[..., Any]) -> Subject:
    """Let `edit(d_params, d_xs, d_state)` have the last word on the right gradient."""
    return _wrapped(lambda right, *arguments, **options: edit(*right(*arguments, **options)))


def _without_middle_layer(d_params, d_xs, d_state):
    first, middle, last = d_params
    return (first, jax.tree.map(np.zeros_like, middle), last), d_xs, d_state


def _without_bias(d_params, d_xs, d_state):
    return tuple(d._replace(b=np.zeros_like(d.b)) for d in d_params), d_xs, d_state


def _without_one_bias_entry(d_params, d_xs, d_state):
    first, middle, last = d_params
    return (first, middle, last._replace(b=last.b * [1, 1, 0])), d_xs, d_state


def _without_state(d_params, d_xs, d_state):
    return d_params, d_xs, jax.tree.map(np.zeros_like, d_state)


def _last_state_unread(right, params, xs, state, cotangents, **options):
    return right(params, xs, state, ((None,) * len(state), cotangents[1]), **options)


def _unread_as_ones(right, params, xs, state, cotangents, **options):
    last, ys = cotangents
    last = tuple(np.ones_like(s) if d is None else d for s, d in zip(state, last, strict=True))
    return right(params, xs, state, (last, ys), **options)


def _memory_order(right, params, xs, state, cotangents, **options):
    as_it_lies = jax.tree.map(lambda c: c.ravel(order="K").reshape(c.shape), cotangents)
    return right(params, xs, state, as_it_lies, **options)


def _only_with_params(right, *arguments, wrt=("params",), **options):
    d_params, d_xs, d_state = right(*arguments, **options)
    return d_params, d_xs if "params" in wrt else np.zeros_like(d_xs), d_state


def _half_precision(right, *arguments, **options):
    def through_half(d):
        return d.astype(np.float16).astype(d.dtype) if d.dtype == np.float32 else d

    return jax.tree.map(through_half, right(*arguments, **options))


def _changing() -> Subject:
    calls = itertools.count()

    def change(right, *arguments, **options):
        d_params, d_xs, d_state = right(*arguments, **options)
        return d_params, d_xs * (1 + next(calls) % 3 * 4e-16), d_state

    return _wrapped(change)


def _state_behind_the_padding(params, xs, state, lengths=None, **options):
    if lengths is None:
        return RIGHT.forward(params, xs, state, **options)
    last_state = RIGHT.forward(params, xs, state)[0]
    return last_state, RIGHT.forward(params, xs, state, lengths=lengths)[1]


def _last_index_minus_one(params, xs, state, lengths=None, **options):
    """Take the state at index length - 1, which for a length of zero is that of the last step."""
    if lengths is not None:
        lengths = np.where(lengths == 0, len(xs), lengths)
    return RIGHT.forward(params, xs, state, lengths=lengths, **options)


@jax.custom_vjp
def _tanh(a):
    return jnp.tanh(a)


_tanh.defvjp(
    lambda a: (jnp.tanh(a), jnp.tanh(a)),
    lambda y, d: (jax.lax.stop_gradient(1 - y**2) * d,),
)


def _constant_jacobian(params, xs, state):
    """A reverse pass that takes its own Jacobians for constants: right once, and only once."""

    def advance(state, x):
        for k, p in enumerate(params):
            x = _tanh(x @ p.w_x + state[k] @ p.w_s + p.b[None])
            state = (*state[:k], x, *state[k + 1 :])
        return state, x

    return jax.lax.scan(advance, state, xs)


def _counter_as_float(params, xs, state):
    """A layer that counts its steps, in a state of integers that it returns as floats."""
    stack, count = state
    last, ys = _plain_scan(params, xs, stack)
    return (last, (count + len(xs)).astype(ys.dtype)), ys


def _counted(params, xs, state):
    stack, count = state
    last, ys = _plain_scan(params, xs, stack)
    return (last, count + len(xs)), ys


def _plain_scan(params, xs, state):
    return jax.lax.scan(lambda state, x: tanh_stack.step(params, state, x), state, xs)


COUNTED = from_jax(_counted, higher=None)

OPTIONS = {"ragged_lengths", "nan_padding", "zero_lengths", "per_step_masks", "resets"}

BUGS = {
    "products_in_forward_order": Bug(
        tanh_stack.subject(Parts(order=range)),
        "order_of_products",
        GRADIENT | OPTIONS | {"per_layer_gradients", "every_bias", "final_state_only"},
    ),
    "mask_of_step_0_reused": Bug(
        tanh_stack.subject(Parts(held=lambda mask, t: mask[0])), "per_step_masks"
    ),
    "middle_layer_dropped": Bug(
        _edited(_without_middle_layer), "per_layer_gradients", GRADIENT | {"every_bias"}
    ),
    "bias_dropped": Bug(_edited(_without_bias), "every_bias", GRADIENT),
    "one_entry_of_a_bias_dropped": Bug(_edited(_without_one_bias_entry), "every_bias", GRADIENT),
    "padding_times_zero": Bug(
        tanh_stack.subject(Parts(blank=lambda live, x: live * x)), "nan_padding"
    ),
    "initial_state_dropped": Bug(_edited(_without_state), "final_state_only", GRADIENT | OPTIONS),
    "last_state_dropped": Bug(
        _wrapped(_last_state_unread),
        "final_state_only",
        GRADIENT | OPTIONS | {"per_layer_gradients", "every_bias"},
    ),
    "reset_one_step_late": Bug(
        tanh_stack.subject(Parts(cut=lambda resets, t: resets[t - 1])), "resets"
    ),
    "state_behind_the_padding": Bug(
        RIGHT._replace(forward=_state_behind_the_padding),
        "ragged_lengths",
        {"nan_padding", "zero_lengths"},
    ),
    "length_zero_is_index_minus_one": Bug(
        RIGHT._replace(forward=_last_index_minus_one), "zero_lengths"
    ),
    "unread_outputs_count": Bug(_wrapped(_unread_as_ones), "zero_cotangents"),
    "constants_cut_the_gradient": Bug(_wrapped(_only_with_params), "closed_over"),
    "memory_order_of_cotangents": Bug(_wrapped(_memory_order), "strided_cotangents"),
    "sums_in_half_precision": Bug(_wrapped(_half_precision), "error_growth"),
    "different_every_time": Bug(_changing(), "repeatability"),
    "first_sequence_for_all": Bug(
        tanh_stack.subject(Parts(slope=lambda new: 1 - np.broadcast_to(new[:1], new.shape) ** 2)),
        "batch_permutation",
        GRADIENT
        | {"per_layer_gradients", "every_bias", "final_state_only"}
        | {"zero_lengths", "per_step_masks"},
    ),
    "constant_jacobian": Bug(
        from_jax(_constant_jacobian), "second_derivatives", {"third_derivatives"}
    ),
    "counter_as_float": Bug(from_jax(_counter_as_float, higher=None), "integer_state"),
}


def arguments(name: str) -> tuple[Any, Any, Any]:
    """Return a point (params, xs, state) for the bug of that name; one layer for those in JAX."""
    params, xs, state = tanh_stack.arguments()
    if name == "counter_as_float":
        return params[:1], xs, (state[:1], np.arange(tanh_stack.BATCH))
    return (params[:1], xs, state[:1]) if name == "constant_jacobian" else (params, xs, state)
