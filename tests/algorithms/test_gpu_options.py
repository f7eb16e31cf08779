import jax
import jax.numpy as jnp
import pytest

import jax_bptt as jb


def test_the_options_are_known_to_the_compiler_and_change_no_value():
    cell = jb.lstm(input_size=3, hidden_size=4)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((6, 2, 3))

    def loss(params):
        return jnp.sum(jb.unroll(cell, params, xs)[1] ** 2)

    plain = jax.jit(jax.grad(loss))(params)
    optioned = jax.jit(jax.grad(loss), compiler_options=jb.gpu_compiler_options())(params)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, plain, optioned))


def test_a_name_the_compiler_does_not_know_is_refused():
    options = jb.gpu_compiler_options() | {"xla_gpu_no_such_option": 1}
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_gpu_no_such_option"):
        jax.jit(jnp.sin, compiler_options=options)(1.0)


def test_every_call_returns_a_new_dict():
    jb.gpu_compiler_options().clear()
    assert "WHILE" in str(jb.gpu_compiler_options()["xla_gpu_enable_command_buffer"])
