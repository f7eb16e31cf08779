"""Pictures of where a gradient flows: the titles state what was found."""

from typing import Any

import numpy as np
import pytest

from jax_bptt.diagnostics import TruncationCurve, plots

pytest.importorskip("matplotlib")


def title(axes):
    return axes.get_title(loc="left")


def test_a_contribution_map_says_how_far_the_gradient_reaches():
    distance = np.subtract.outer(np.arange(9), np.arange(9))
    size = np.where(distance >= 0, 0.09 ** np.abs(distance), 0)
    axes = plots.contribution_map({"w_s": size, "w_x": 2 * size})
    assert title(axes) == "What reaches a loss falls to 1 % within 2 of 8 steps"
    drawn: Any = axes.images[0].get_array()
    assert drawn[3, 2] == pytest.approx(0.09 * 5**0.5)
    lasting = plots.contribution_map(np.where(distance >= 0, 1.0, 0))
    assert title(lasting) == "What reaches a loss is above 1 % of its largest over all 8 steps"
    assert title(plots.contribution_map(0 * size)) == "Nothing reaches any loss"
    with pytest.raises(ValueError, match=r"plots.contribution_map: found must .*\(9, 9, 2\)"):
        plots.contribution_map(np.zeros((9, 9, 2)))


def test_a_truncation_curve_marks_the_window_for_one_per_cent():
    bias: Any = np.array([0.5, 0.005, 0.2, 0.01, 0.0])
    curve = TruncationCurve(bias, 1 - bias, bias, bias)
    found = title(plots.truncation_curve(curve))
    assert found == "From a window of 4 steps on, the gradient is biased by at most 1 %"
    few = TruncationCurve(*(a[:3] for a in curve))
    found = title(plots.truncation_curve(few))
    assert found == "No window of up to 3 steps has a bias of at most 1 %"


def test_adjoint_norms_say_how_they_grow():
    norms = 2.0 ** -np.arange(5.0)[:, None] * np.ones((5, 3))
    found = "Backwards, |dL/ds_t| grows to 16 times its size: 2 a step"
    assert title(plots.adjoint_norms(norms)) == found
    norms[3:] = 0
    found = "Backwards from step 3 to 1, |dL/ds_t| grows to 4 times its size: 2 a step"
    assert title(plots.adjoint_norms(norms)) == found
    assert title(plots.adjoint_norms(0 * norms)) == "|dL/ds_t| is zero throughout"
    axes = plots.adjoint_norms(norms)
    assert plots.adjoint_norms(norms, axes) is axes
