"""The command `python -m jax_bptt.testing`: the matrix, its failures and its exit status."""

import importlib.util

import jax
import numpy as np
import pytest

from jax_bptt.testing import Report, Result, command
from jax_bptt.testing.libraries import roster


def run(capsys, *argv):
    # The command's user has JAX as it comes, and other libraries need it that way.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        status = command.main(argv)
    return status, capsys.readouterr().out


def rows(text):
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}


@pytest.mark.slow
def test_smoke(capsys):
    status, text = run(capsys, "--smoke", "--libraries", "jax_bptt,haiku,torch")
    assert status == 0, text
    present = ["jax_bptt"]
    for name, module in (("haiku", "haiku"), ("torch", "torch")):
        if importlib.util.find_spec(module):
            present.append(name)
        else:
            assert f"absent: {name}, not installed (pip install " in text
    table = rows(text.partition("\n\n")[2])
    assert table["finite_differences"] == ["ok"] * len(present)
    offered = {"jax_bptt": "ok", "haiku": "n/a", "torch": "ok"}
    assert table["ragged_lengths"] == [offered[name] for name in present]
    assert set(table) == {*present[:1], *command.SMOKE}
    assert f"jax {jax.__version__}" in text and "jax_bptt gru: 4 properties" in text


@pytest.mark.parametrize("name", ["flax", "nnx", "haiku", "equinox", "torch"])
def test_every_library_runs(capsys, name):
    if roster.absence(name):
        pytest.skip(f"{name} is not installed")
    argv = "--libraries", name, "--cells", "gru", "--properties", "finite_differences,every_bias"
    status, text = run(capsys, *argv)
    assert status == 0
    table = rows(text.partition("\n\n")[2])
    assert table["finite_differences"] == table["every_bias"] == ["ok"], text


@pytest.mark.slow
def test_each_layer_of_a_stack_goes_back_to_its_own_state(capsys):
    argv = "--libraries", "jax_bptt", "--cells", "stack", "--properties", "resets"
    status, text = run(capsys, *argv)
    assert status == 0 and rows(text.partition("\n\n")[2])["resets"] == ["ok"], text


def _broken(case):
    def gradient(*arguments, **options):
        d_params, d_xs, d_state = case.subject.gradient(*arguments, **options)
        return d_params, 1.01 * np.asarray(d_xs), d_state

    return case._replace(subject=case.subject._replace(gradient=gradient))


@pytest.mark.parametrize("name, status", [("jax_bptt", 1), ("haiku", 0)])
def test_only_a_failure_of_its_own_is_one_of_the_command(capsys, monkeypatch, name, status):
    if roster.absence(name):
        pytest.skip(f"{name} is not installed")
    adapter = roster.ADAPTERS[name]

    def cases(cells, sizes):
        return [_broken(case) for case in adapter.cases(cells, sizes)]

    monkeypatch.setitem(roster.ADAPTERS, name, adapter._replace(cases=cases))
    argv = "--libraries", name, "--cells", "gru", "--properties", "finite_differences"
    seen, text = run(capsys, *argv)
    assert seen == status
    assert f"{name} gru: finite_differences" in text and "worst for xs" in text
    line = f"python -m jax_bptt.testing --libraries {name} --cells gru --properties finite"
    assert line in text


def test_a_layer_that_does_not_run_fails_and_the_others_are_examined(capsys, monkeypatch, tmp_path):
    adapter = roster.ADAPTERS["jax_bptt"]

    def forward(*arguments, **options):
        raise TypeError("no float64 here\nat all")

    def cases(cells, sizes):
        broken, *rest = adapter.cases(cells, sizes)
        return [broken._replace(subject=broken.subject._replace(forward=forward)), *rest]

    monkeypatch.setitem(roster.ADAPTERS, "jax_bptt", adapter._replace(cases=cases))
    page = tmp_path / "page.md"
    argv = "--libraries", "jax_bptt", "--cells", "gru,elman", "--properties", "repeatability"
    status, text = run(capsys, *argv, "--markdown", str(page))
    assert status == 1 and "raises TypeError: no float64 here\n" in text
    assert "| repeatability | FAIL |" in page.read_text()
    assert "jax_bptt elman: 1 properties" in text


def test_the_matrix_has_the_worst_of_all_cells():
    good, bad, none = (Result("resets", passed, None, None, "") for passed in (True, False, None))
    reports = {
        "a": [Report("x", (good,)), Report("y", (bad,)), Report("z", (none,))],
        "b": [Report("x", (none,)), Report("y", (good,))],
        "c": [Report("x", ())],
    }
    table = command.matrix(reports, ["resets"])
    assert table.header == ["", "a", "b", "c"]
    assert table.cells == [["resets", "FAIL", "ok", "n/a"]]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--libraries", "theano"], "no 'theano'; there are jax_bptt, flax"),
        (["--cells", "ltsm"], "no 'ltsm'"),
        (["--properties", "beauty"], "no 'beauty'; there are finite_differences"),
    ],
)
def test_bad_arguments_are_one_line_and_status_two(capsys, argv, message):
    with pytest.raises(SystemExit) as stop:
        command.main(argv)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
