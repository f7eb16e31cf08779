import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from jax_bptt.testing import tables

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module", autouse=True)
def scripts():
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


def part(name):
    return importlib.import_module(f"gradbench_lstm.{name}")


def row(count, ms, error=1e-15):
    functions = {"ms": ms, "rounds": 1, "error": error, "form": "layers"}
    tools = {name: dict.fromkeys(("objective", "jacobian"), functions) for name in ("jax_bptt",)}
    slower = dict.fromkeys(("objective", "jacobian"), functions | {"ms": 3 * ms})
    return {"l": 2, "c": count, "b": 14, "tools": tools | {"jax": slower}}


def test_tables_and_results(tmp_path):
    driver = part("driver")
    path = tmp_path / "rows.json"
    driver.merged(path, [row(4096, 2.0), row(1024, 1.0)])
    rows = driver.merged(path, [row(1024, 0.5)])
    assert [(r["c"], r["tools"]["jax_bptt"]["objective"]["ms"]) for r in rows] == [
        (1024, 0.5),
        (4096, 2.0),
    ]
    here, elsewhere = driver.tables(rows)
    assert here.cells[0] == ["2, 1024", "0.5", "0.5", *["1.5 (3.0)"] * 2, "layers, layers", "1e-15"]
    codipack = next(line for line in elsewhere.cells if line[0] == "codipack")
    assert codipack == ["codipack", "2.28, 4.91", "8.93, 19.8"]
    assert "2, 4096" in tables.markdown(here)
    assert driver.wrong(row(2, 1.0)) == []
    assert len(driver.wrong(row(2, 1.0, error=float("nan")))) == 4
    assert driver.relative_error(np.zeros(3), np.ones(2)) == float("inf")


class Paced:
    """In place of a tool's process: the times of its runs, in order."""

    def __init__(self, arguments):
        self.ms = {"jax-steps": 9.0, "jax-steps-unrolled": 1.0}.get(arguments[1], 1.2)
        self.asked = {"objective": 0, "jacobian": 0}
        PACED[arguments] = self

    def __enter__(self):
        return self.evaluate

    def __exit__(self, *_):
        pass

    def evaluate(self, name, fields):
        self.asked[name] += 1
        return 1.0, [self.ms, self.ms + self.asked[name]]


PACED = {}


def test_candidates_take_turns_while_they_have_a_chance(monkeypatch):
    driver = part("driver")
    monkeypatch.setattr(driver, "piped", Paced)
    measured = driver.measure(part("instances").generate(1, 3)[0], ["jax_bptt", "jax"], seconds=1.0)
    asked = {arguments[1]: paced.asked["jacobian"] for arguments, paced in PACED.items()}
    assert asked.pop("jax-steps") == 1 and set(asked.values()) == {driver.ROUNDS}
    fastest = measured["tools"]["jax"]["objective"]
    assert (fastest["form"], fastest["ms"]) == ("steps-unrolled", 2.5)  # (1 + 1 + 3) / 2, round 3
    assert driver.wrong(measured)
    PACED.clear()
    driver.measure(part("instances").generate(1, 3)[0], ["jax_bptt"], seconds=1e-3)
    assert all(paced.asked == {"objective": 1, "jacobian": 1} for paced in PACED.values())


@pytest.mark.slow
def test_drive(tmp_path, capsys):
    script = importlib.import_module("gradbench")
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- bench gradbench -->\n<!-- end of bench gradbench -->\nb\n")
    assert script.main(["write", "--layers", "1", "--chars", "5", str(tmp_path / "a.txt")]) == 0
    argv = ["drive", "--files", str(tmp_path / "a.txt"), "--tools", "jax_bptt", "--seconds", "0"]
    assert script.main([*argv, "--markdown", str(page)]) == 0
    assert "1, 5" in capsys.readouterr().out
    assert page.read_text().startswith("a\n") and "jax_bptt objective, ms" in page.read_text()
