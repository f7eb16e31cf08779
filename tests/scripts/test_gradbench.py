import importlib
import itertools
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jax_bptt as jb

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module", autouse=True)
def scripts():
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(autouse=True)
def default_mode():
    # The script's user has JAX as it comes, but for float64.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def part(name):
    return importlib.import_module(f"gradbench_lstm.{name}")


def tiny(layers, count, bits=3):
    """Weights of both signs, so that no gate is on one side alone."""
    rng = np.random.default_rng(layers + 10 * count)
    shapes = (2 * layers, 4 * bits), (3, bits), (2 * layers, bits)
    bits_of_text = rng.integers(0, 2, (count, bits)).astype(float)
    return part("instances").checked(*(rng.standard_normal(s) for s in shapes), bits_of_text)


def loop(instance):
    """The loss as the equations are written, one number at a time."""
    layers, count, bits = instance.sizes
    w_in, w_out, b_out = instance.extra_params
    h, c = instance.state[0::2].copy(), instance.state[1::2].copy()
    total = 0.0
    for t in range(count - 1):
        ys = []
        for k in range(bits):
            x = instance.sequence[t, k] * w_in[k]
            for j in range(layers):
                w, b = (instance.main_params[2 * j + r].reshape(4, bits)[:, k] for r in (0, 1))
                f, o = (1 / (1 + np.exp(-(x * w[n] + b[n]))) for n in (0, 2))
                i = 1 / (1 + np.exp(-(h[j, k] * w[1] + b[1])))
                c[j, k] = f * c[j, k] + i * np.tanh(h[j, k] * w[3] + b[3])
                x = h[j, k] = o * np.tanh(c[j, k])
            ys.append(x * w_out[k] + b_out[k])
        norm = np.log(2 + np.exp(ys).sum())
        total += sum(instance.sequence[t + 1] * (np.array(ys) - norm))
    return -total / (bits * (count - 1))


def differences(instance):
    """The gradient of `loop` by central differences."""
    found = []
    for name in ("main_params", "extra_params"):
        for index in np.ndindex(getattr(instance, name).shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = getattr(instance, name).copy()
                moved[index] += step
                ends.append(loop(instance._replace(**{name: moved})))
            found.append((ends[0] - ends[1]) / 2e-5)
    return np.array(found)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_forward_mode_is_the_slope_of_the_equations(layers):
    instance = tiny(layers, 4)
    loss, gradient = part("forward_mode").loss_and_gradient(instance)
    assert abs(loss - loop(instance)) < 1e-14
    np.testing.assert_allclose(gradient, differences(instance), rtol=0, atol=1e-9)


SIZES = list(itertools.product((1, 2, 3), (2, 3, 7)))


def agrees(name, instance):
    model = part("models").load(name)
    loss, gradient = part("forward_mode").loss_and_gradient(instance)
    arguments = model.place(instance)
    found = np.asarray(model.functions["jacobian"](*arguments))
    assert abs(float(model.functions["objective"](*arguments)) - loss) <= 1e-12 * abs(loss)
    np.testing.assert_allclose(found, gradient, rtol=0, atol=1e-12 * np.abs(gradient).max())


@pytest.mark.parametrize(
    ("layers", "count"),
    [pytest.param(*size, marks=[] if size == (1, 3) else [pytest.mark.slow]) for size in SIZES],
)
def test_model_is_forward_mode(layers, count):
    agrees("jax_bptt", tiny(layers, count))


@pytest.mark.slow
def test_blocks_are_forward_mode(monkeypatch):
    monkeypatch.setattr(part("wavefront"), "FORWARD_BLOCK", 4)
    monkeypatch.setattr(part("wavefront"), "REVERSE_BLOCK", 3)
    agrees("jax_bptt", tiny(2, 9))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jax-steps", "jax-layers-unrolled", "torch"])
def test_rivals_are_forward_mode(name):
    if name == "torch":
        pytest.importorskip("torch")
    agrees(name, tiny(3, 7))


def test_the_reverse_pass_of_the_cell_is_what_runs():
    wavefront, instance = part("wavefront"), tiny(1, 4)
    cell = wavefront.wavefront(1, 3)

    def doubled(residuals, d_state):
        return jax.tree.map(lambda a: 2 * a, cell.step.pointwise_bwd(residuals, d_state))

    broken = cell._replace(step=cell.step._replace(pointwise_bwd=doubled))
    main, *others = instance

    def loss(main):
        return wavefront.loss((main, others[0]), *others[1:], broken, jb.bptt())

    found = jax.grad(loss)(main)
    gradient = part("forward_mode").loss_and_gradient(instance)[1]
    assert np.abs(np.asarray(found).ravel() - gradient[:24]).max() > 0.1 * abs(gradient).max()


class Recorder:
    """A model that counts its calls and computes nothing."""

    def __init__(self, compiles=False, result=1.5):
        self.calls, self.result = 0, result
        functions = {"objective": self.call, "jacobian": self.call}
        self.model = part("protocol").Model(lambda instance: instance, functions, compiles)
        self.tool = part("protocol").Tool("recorder", lambda: self.model)

    def call(self, *arguments):
        self.calls += 1
        return np.array(self.result)

    def ask(self, message):
        line = message if isinstance(message, bytes) else json.dumps(message).encode()
        return part("protocol").answer(self.tool, line)


def evaluation(**changes):
    fields = tiny(1, 2).to_json() | {"min_runs": 1, "min_seconds": 0}
    message = {"id": 5, "kind": "evaluate", "module": "lstm", "function": "objective"}
    return message | {"input": fields | changes}


def test_round_trip():
    protocol, models = part("protocol"), part("models")
    instance = tiny(1, 3)
    fields = instance.to_json() | {"min_runs": 3, "min_seconds": 0}
    asked = {"module": "lstm", "input": fields, "description": "l=1,c=3"}
    messages = [
        {"id": 0, "kind": "start", "eval": "lstm", "config": {}},
        {"id": 1, "kind": "define", "module": "lstm"},
        {"id": 2, "kind": "evaluate", "function": "objective"} | asked,
        {"id": 3, "kind": "analysis", "of": 2, "valid": True},
        {"id": 4, "kind": "evaluate", "function": "jacobian"} | asked,
        {"id": 5, "kind": "of a later version"},
    ]
    lines = [json.dumps(message).encode() + b"\n" for message in messages]
    written = []
    tool = protocol.Tool("jax_bptt", lambda: models.load("jax_bptt"))
    protocol.serve(tool, [*lines, b"\n"], written.append)
    assert all(text.endswith("\n") and text.count("\n") == 1 for text in written)
    answers = [json.loads(text) for text in written]
    assert [answer["id"] for answer in answers] == list(range(6))
    assert answers[0] == {"id": 0, "tool": "jax_bptt"}
    assert answers[1] == {"id": 1, "success": True}
    assert answers[3] == {"id": 3} and answers[5] == {"id": 5}
    loss, gradient = part("forward_mode").loss_and_gradient(instance)
    assert abs(answers[2]["output"] - loss) < 1e-14
    np.testing.assert_allclose(answers[4]["output"], gradient, rtol=0, atol=1e-14)
    for answer in answers[2], answers[4]:
        assert [t["name"] for t in answer["timings"]] == ["compile", *["evaluate"] * 3]
        assert all(isinstance(t["nanoseconds"], int) for t in answer["timings"])


@pytest.mark.parametrize("compiles", [False, True])
def test_runs_until_both_limits_are_met(compiles):
    recorder = Recorder(compiles)
    answer = recorder.ask(evaluation(min_runs=4))
    assert answer["success"] and answer["output"] == 1.5
    assert recorder.calls == 4 + compiles == len(answer["timings"])
    recorder = Recorder()
    answer = recorder.ask(evaluation(min_seconds=1e-3))
    assert sum(t["nanoseconds"] for t in answer["timings"]) >= 1e6 and recorder.calls > 1


WRONG = {
    b"{": "no JSON",
    b"\xff": "no JSON",
    b"[" * 100_000: "no JSON",
    b"[1]": "an object with an id",
    b'{"kind": "start"}': "an object with an id",
}


@pytest.mark.parametrize("line", WRONG, ids=range(len(WRONG)))
def test_what_is_no_message_gets_one_line(line):
    answer = Recorder().ask(line)
    assert answer["id"] is None and answer["success"] is False
    assert WRONG[line] in answer["error"] and "\n" not in answer["error"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"module": "gmm"}, "no module 'gmm'; this tool has lstm"),
        ({"function": "hessian"}, "no function 'hessian'; there are objective, jacobian"),
        ({"function": None}, "no function None"),
        ({"input": 3}, "input must be an object with main_params"),
    ],
)
def test_wrong_messages(change, error):
    answer = Recorder().ask(evaluation() | change)
    assert answer["id"] == 5 and answer["success"] is False and error in answer["error"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"state": [[0.0] * 3] * 3}, "state must be [2 l, b]"),
        ({"main_params": [[0.0] * 11] * 2}, "main_params must be [2, 12] for l=1 and b=3"),
        ({"extra_params": [[0.0] * 3] * 2}, "extra_params must be [3, 3]"),
        ({"sequence": [[1.0] * 3]}, "sequence must be [c, 3] with c of 2 or more"),
        ({"sequence": [[1.0] * 3, [1.0]]}, "sequence must be rows of equally many"),
        ({"sequence": [["a"] * 3] * 2}, "sequence must be rows of equally many"),
        ({"sequence": [[float("nan")] * 3] * 2}, "finite numbers"),
        ({"min_runs": 1.5}, "min_runs must be a whole number, got 1.5"),
        ({"min_runs": -1}, "min_runs must be finite and not negative"),
        ({"min_seconds": "1"}, "min_seconds must be a number, got '1'"),
        ({"min_seconds": float("inf")}, "min_seconds must be finite"),
    ],
)
def test_wrong_inputs(change, error):
    answer = Recorder().ask(evaluation(**change))
    assert answer["id"] == 5 and answer["success"] is False and error in answer["error"]
    assert "\n" not in answer["error"]


def test_a_missing_field_and_an_infinite_result():
    message = evaluation()
    del message["input"]["state"]
    assert "input has no state" in Recorder().ask(message)["error"]
    answer = Recorder(result=np.inf).ask(evaluation())
    assert answer["error"] == "the objective of this input is not finite"


def test_a_failure_inside_is_answered():
    tool = Recorder().tool._replace(load=lambda: 1 / 0)
    answer = part("protocol").answer(tool, json.dumps(evaluation()).encode())
    assert answer["error"] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("rows", [False, True])
def test_files_both_ways(tmp_path, rows):
    instances = part("instances")
    made, text = instances.generate(2, 50, seed=3)
    assert made.sizes == (2, 50, 14) and len(text) == 50
    instances.write(tmp_path / "a.txt", made, None if rows else text)
    read = instances.read(tmp_path / "a.txt")
    for one, other in zip(made, read, strict=True):
        np.testing.assert_array_equal(one, other)
    again = instances.generate(2, 50, seed=3)[0]
    np.testing.assert_array_equal(made.main_params, again.main_params)


def test_a_text_is_its_code_points_in_binary(tmp_path):
    instances = part("instances")
    lines = ["1 4 8", "", *[" ".join(["0.5"] * 32)] * 2, "", *[" ".join(["1e-1"] * 8)] * 3, ""]
    lines += [*[" ".join(["0"] * 8)] * 2, "", "A\n\nz"]
    (tmp_path / "a.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    read = instances.read(tmp_path / "a.txt")
    assert read.sequence.tolist() == [[int(d) for d in f"{ord(k):08b}"] for k in "A\n\nz"]
    assert instances.bits_of("a’") == 14


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("1 4 3", "1 4", "line 1 must be 'l c b'"),
        ("1 4 3", "0 4 3", "must be positive"),
        ("1 4 3", "1 5 3", "5 characters or 5 rows of 3 numbers, got"),
        ("1 4 3", "2 4 3", "main_params must be 4 rows of 12"),
        ("1 0 1\n", "1 0 x\n", "sequence must be 4 rows of 3"),
        ("1 0 1\n1 0 1\n1 0 1\n1 0 1\n", "text", "'x' does not fit into b=3 bits"),
    ],
)
def test_wrong_files(tmp_path, old, new, error):
    instances = part("instances")
    path = tmp_path / "a.txt"
    arrays = np.zeros((2, 12)), np.zeros((3, 3)), np.zeros((2, 3)), np.array([[1.0, 0, 1]] * 4)
    instances.write(path, instances.checked(*arrays))
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(instances.InputError, match=str(path)) as caught:
        instances.read(path)
    assert error in str(caught.value)


def test_file_that_is_not_there(tmp_path, capsys):
    script = importlib.import_module("gradbench")
    assert script.main(["drive", "--files", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert script.main(["drive", "--results", str(tmp_path / "none" / "a")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "argv", ["--layers 2,x", "--chars 0", "--tools jax,numpy", "--seconds nan", "--seconds -1"]
)
def test_wrong_arguments(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        importlib.import_module("gradbench").main(["drive", *argv.split()])
    assert caught.value.code == 2 and capsys.readouterr().err.count("\n") == 1
