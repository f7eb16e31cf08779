"""The pictures of the README: bars as the table says, and a short training."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jax
import numpy as np
import pytest

from scripts import figures

DOCS = Path(__file__).parents[2] / "docs"

PAGE = """# Benchmarks
<!-- bench grad -->
| T, B, I, H | cell | jax_bptt bptt, ms | devices | x plain scan | x flax | x haiku | x torch |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| 4, 3, 2, 1 | gru | 5.5 | 2 | 1.50 | 0.90 | 1.20 | 2.00 |
| 8, 3, 2, 1 | gru | 9.5 | 2 | 6.00 | 4.00 | 3.60 | 8.00 |
| 4, 3, 2, 1 | elman | 7 | 2 | 1.10 | - | 3.00 | - |
| geometric mean, all rows |  |  |  | 1.20 | 0.90 | 1.90 | 2.00 |

A processor, 2 cores; jax_bptt 0.1.0, jax 0.10.2
`python scripts/bench.py grad`
<!-- end of bench grad -->
"""


def test_bars_are_those_of_the_table():
    groups, caption = figures.read_table(PAGE)
    assert [title for title, _ in groups] == [
        "GRU, geometric mean of 2 sizes",
        "ELMAN, one size",
    ]
    names = ["jax_bptt", "plain scan", "fastest of four in JAX", "torch"]
    assert [name for name, _ in groups[0].bars] == names
    np.testing.assert_allclose([ratio for _, ratio in groups[0].bars], [1, 3, 0.9 * 2, 4])
    assert groups[1].bars == [
        ("jax_bptt", 1.0),
        ("plain scan", pytest.approx(1.1)),
        ("fastest of four in JAX", pytest.approx(3)),
    ]
    assert caption == "A processor, 2 cores; jax_bptt 0.1.0, jax 0.10.2"


def test_a_page_without_a_table_is_an_error():
    with pytest.raises(ValueError, match="no table"):
        figures.read_table("# Benchmarks\n<!-- bench grad -->\n<!-- end of bench grad -->\n")


def test_the_picture_is_that_of_the_page():
    """After `bench.py grad --markdown docs/benchmarks.md` run `scripts/figures.py time`."""
    picture = figures.draw_bars(*figures.read_table((DOCS / "benchmarks.md").read_text()))
    assert (DOCS / "gradient_time.svg").read_text() == picture


@pytest.mark.slow
def test_pictures_are_written(tmp_path):
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        assert figures.main(["--updates", "2", "--folder", str(tmp_path)]) == 0
    for name in ("gradient_time.svg", "contributions.svg"):
        ElementTree.parse(tmp_path / name)
    boxes = (tmp_path / "contributions.svg").read_text().count("<rect")
    assert boxes == 1 + 2 * figures.SHOWN * figures.STEPS
    marks = (tmp_path / "contributions.svg").read_text().count("stroke-width")
    assert marks == 2 * 2 * figures.SHOWN


@pytest.mark.parametrize(
    "argv, message",
    [(["time", "space"], "no picture 'space'"), (["--folder", "nowhere"], "no folder nowhere")],
)
def test_bad_arguments_take_one_line(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        figures.main(argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1
