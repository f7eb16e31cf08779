"""Pictures of training, and of the unfolded network: what they state, and what they refuse."""

from typing import Any

import numpy as np
import pytest

from jax_bptt.diagnostics import plots

pytest.importorskip("matplotlib")


def line(step: int, loss: float, norm: float, decades: dict[str, int], nonfinite: int = 0) -> Any:
    seen = {"rms": 1.0, "nonfinite": nonfinite, "decades": decades}
    return {"step": step, "loss": loss, "gradient_norm": norm, "adjoints": {"[0]": seen}}


LINES = [line(10, 2.0, 0.5, {"-2": 3, "-1": 1}), line(20, 1.0, 4.0, {"1": 4}, nonfinite=2)]


def test_telemetry_states_the_loss_and_the_largest_gradient():
    axes = plots.telemetry(LINES)
    assert axes.get_title(loc="left") == (
        "Loss 2 at step 10, 1 at step 20;\nthe largest gradient is 4 at step 20; adjoints not "
        "finite in 1 of 2 lines"
    )
    loss: Any = axes.lines[0].get_ydata()
    assert loss.tolist() == [2.0, 1.0]
    with pytest.raises(ValueError, match=r"^plots.telemetry: there are no lines yet"):
        plots.telemetry([])


def test_decades_are_shares_of_the_adjoints():
    axes = plots.telemetry_decades(LINES, "[0]")
    found: Any = axes.collections[0].get_array()
    assert found.filled(0).tolist() == [[0.75, 0], [0.25, 0], [0, 0], [0, 1]]
    assert axes.get_title(loc="left").endswith("the median |dL/ds_t| is in the decade of 1e1")
    with pytest.raises(ValueError, match=r"no layer '\[1\]'; there are \['\[0\]'\]"):
        plots.telemetry_decades(LINES, "[1]")


def test_paths_are_as_wide_as_their_contributions():
    terms = {"w_s": np.array([[3.0, 4.0], [0.0, 0.0], [8.0, 6.0]])}
    axes = plots.unfolded(terms)
    widths = [path.get_linewidth() for path in axes.patches]
    assert widths[0] / widths[2] == pytest.approx(0.5) and widths[1] == 0
    shares = [text.get_text() for text in axes.texts if text.get_text().endswith("%")]
    assert shares == ["33 %", "0 %", "67 %"]
    with pytest.raises(ValueError, match=r"with the same N from 1 to 12, got \[\(13,\)\]"):
        plots.unfolded(np.ones(13))
