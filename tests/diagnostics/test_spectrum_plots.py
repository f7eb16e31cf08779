"""Pictures of spectra and gates: titles that state what is there, and nothing that is not."""

import jax.numpy as jnp
import numpy as np
import pytest

from jax_bptt.diagnostics import JacobianSpectrum, LyapunovSpectrum, Saturation, plots


def exponents(values, batch=()):
    times = np.arange(1, 51)
    final = jnp.broadcast_to(jnp.asarray(values), (*batch, len(values)))
    running = final[None] * (1.02 - 1 / times.reshape(-1, *[1] * final.ndim))
    return LyapunovSpectrum(final, running, jnp.asarray(times), jnp.zeros(batch))


@pytest.mark.slow
def test_exponents():
    axes = plots.lyapunov_spectrum(exponents([0.1, -0.2, -np.inf], (3,)))
    title = axes.get_title(loc="left")
    assert "double every 6.93 steps" in title and "dimension 1.5" in title
    assert "1 of 3 exponents" in title
    assert [text.get_text() for text in axes.texts] == ["+0.100", "-0.200"]
    assert len(axes.lines) == 3 and len(axes.collections) == 2  # the third line is that of zero
    title = plots.lyapunov_spectrum(exponents([-0.2])).get_title(loc="left")
    assert "halved every 3.47 steps" in title and "dimension" not in title
    nothing = plots.lyapunov_spectrum(exponents([-np.inf])).get_title(loc="left")
    assert nothing == "Every perturbation is forgotten within a step"
    many = plots.lyapunov_spectrum(exponents(np.linspace(-0.1, -1, 20)))
    assert [text.get_text() for text in many.texts] == ["-0.100", "-1.000"]


def test_singular_values():
    logs = jnp.log(10.0) * jnp.array([[0.5, -0.5, -3.0], [0.5, -0.5, -3.0]])
    axes = plots.jacobian_spectrum(JacobianSpectrum(logs, 10, 30))
    assert "20 steps keep 2 of 3" in axes.get_title(loc="left")
    np.testing.assert_allclose(np.asarray(axes.lines[1].get_ydata()), [0.5, -0.5, -3])
    assert not axes.texts
    below = JacobianSpectrum(logs.astype(jnp.float32) * jnp.float32(4), 10, 30)
    (text,) = plots.jacobian_spectrum(below).texts
    assert text.get_text() == "rounding of float32"
    spans = [JacobianSpectrum(logs * k, 20 - k, 20) for k in (1, 2, 3)]
    axes = plots.jacobian_spectrum(spans)
    assert "3 steps keep 0 of 3" in axes.get_title(loc="left") and len(axes.lines) == 4
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["number 3", "largest"]


def test_gates():
    found = Saturation(
        {"i": jnp.array([0.0, 0.5]), "f": jnp.array([0.1, 0.1])},
        {"i": jnp.array([0.5, 0.0]), "f": jnp.array([0.9, 0.7])},
    )
    axes = plots.saturation(found)
    assert axes.get_title(loc="left") == (
        "f is at its lower end 10% of the time, at its upper 80%; i the least, 50% in all"
    )
    assert [text.get_text() for text in axes.texts] == ["25% | 25%", "10% | 80%"]
