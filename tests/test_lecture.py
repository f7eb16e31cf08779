"""The lecture's sums, every element by nested loops over the chain rule; and its script."""

import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bptt as jb
from scripts import lecture
from tests.registry import slow_unless

TOLERANCE = 1e-12  # relative, float64


def forward(w_x, w_s, b, xs, s_0):
    """s_t[k] = tanh(b[k] + sum_i x_t[i] Wx[i,k] + sum_j s_{t-1}[j] Ws[j,k])."""
    states = [s_0]
    for x in xs:
        state = []
        for k in range(len(s_0)):
            total = b[k]
            for i in range(len(x)):
                total += x[i] * w_x[i][k]
            for j in range(len(s_0)):
                total += states[-1][j] * w_s[j][k]
            state.append(math.tanh(total))
        states.append(state)
    return states


def error_by_output(w_y, state, target):
    """dE_N/dy_N[o] = -2 (d_N[o] - y_N[o])."""
    d_y = []
    for o in range(len(target)):
        y = 0.0
        for k in range(len(state)):
            y += state[k] * w_y[k][o]
        d_y.append(-2.0 * (target[o] - y))
    return d_y


def jacobian_from(w_s, states, last, i):
    """ds_N/ds_i[k][l] = product over t = N..i+1 of ds_t/ds_{t-1}, an element at a time."""
    size = range(len(w_s))
    product = [[1.0 if k == m else 0.0 for m in size] for k in size]
    for t in range(last, i, -1):
        longer = [[0.0 for _ in size] for _ in size]
        for k in size:
            for m in size:
                for q in size:
                    step = (1.0 - states[t][q] ** 2) * w_s[m][q]  # ds_t[q]/ds_{t-1}[m]
                    longer[k][m] += product[k][q] * step
        product = longer
    return product


def term(d_y, w_y, jacobian, state, inputs):
    """sum over o, k, m of dE/dy[o] dy[o]/ds_N[k] ds_N[k]/ds_i[m] d+s_i[m]/dW[r,c].

    The direct dependence of s_i[m] on W[r,c] is (1 - s_i[m]^2) inputs[r] for m = c, else zero.
    """
    size = range(len(state))
    matrix = [[0.0 for _ in size] for _ in inputs]
    for r in range(len(inputs)):
        for c in size:
            for o in range(len(d_y)):
                for k in size:
                    for m in size:
                        direct = (1.0 - state[m] ** 2) * inputs[r] if m == c else 0.0
                        matrix[r][c] += d_y[o] * w_y[k][o] * jacobian[k][m] * direct
    return matrix


def by_hand(arrays, last):
    """From (Wx, Ws, b, Wy, xs, s_0, d_N), return [N, rows, H] terms of Wx, Ws, b; dE_N/dWy."""
    w_x, w_s, b, w_y, xs, s_0, target = (np.asarray(a).tolist() for a in arrays)
    states = forward(w_x, w_s, b, xs, s_0)
    d_y = error_by_output(w_y, states[last], target)
    terms = {"w_x": [], "w_s": [], "b": []}
    for i in range(1, last + 1):
        jacobian = jacobian_from(w_s, states, last, i)
        for name, inputs in ("w_x", xs[i - 1]), ("w_s", states[i - 1]), ("b", [1.0]):
            terms[name].append(term(d_y, w_y, jacobian, states[i], inputs))
    d_w_y = [[0.0 for _ in target] for _ in s_0]
    for j in range(len(s_0)):
        for k in range(len(target)):
            d_w_y[j][k] = d_y[k] * states[last][j]
    return {name: np.array(matrices) for name, matrices in terms.items()}, np.array(d_w_y)


def assert_close(got, want, axis=None):
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape and got.dtype == want.dtype == np.float64
    others = tuple(k for k in range(want.ndim) if k != axis)
    assert np.all(np.abs(got - want) <= TOLERANCE * np.abs(want).max(others, keepdims=True))


@pytest.mark.parametrize(
    "steps, last, sizes",
    [(3, 3, (2, 3, 2)), (6, 5, (2, 3, 2)), (4, 1, (1, 2, 1))],
    ids=["the lecture's s_3, s_2, s_1", "N = 5 of T = 6", "N = 1"],
)
def test_every_element_of_every_term(steps, last, sizes):
    inputs, hidden, outputs = sizes
    rng = np.random.default_rng(11)
    shapes = [(inputs, hidden), (hidden, hidden), (hidden,), (hidden, outputs)]
    shapes += [(steps, inputs), (hidden,), (outputs,)]
    numbers = [0.8 * rng.standard_normal(shape) for shape in shapes]
    w_x, w_s, b, w_y, xs, s_0, target = numbers
    want, want_w_y = by_hand(numbers, last)

    cell = jb.elman(input_size=inputs, hidden_size=hidden, output_size=outputs)
    params = jb.Params(*map(jnp.asarray, (w_x[:, None], w_s[:, None], b[None], w_y)))

    @jax.jit
    def terms(params, xs, s_0):
        _, ys = jb.unroll(cell, params, xs, s_0)
        d_y = -2 * (target - ys[last - 1])
        return jb.contributions(cell, params, xs, s_0, d_y, step=last)

    got = terms(params, xs, s_0)
    assert_close(got.w_x[:, :, 0], want["w_x"], axis=0)
    assert_close(got.w_s[:, :, 0], want["w_s"], axis=0)
    assert_close(got.b, want["b"], axis=0)
    assert_close(got.w_y[-1], want_w_y)
    assert not np.any(got.w_y[:-1])


def test_the_loops_agree_with_a_difference_quotient():
    rng = np.random.default_rng(5)
    shapes = [(2, 3), (3, 3), (3,), (3, 2), (3, 2), (3,), (2,)]
    numbers = [0.8 * rng.standard_normal(shape) for shape in shapes]
    terms, d_w_y = by_hand(numbers, 3)

    def error(which, place, change):
        moved = [a.copy() for a in numbers]
        moved[which][place] += change
        w_x, w_s, b, w_y, xs, s_0, target = (a.tolist() for a in moved)
        d_y = error_by_output(w_y, forward(w_x, w_s, b, xs, s_0)[-1], target)
        return sum((d / 2.0) ** 2 for d in d_y)

    # A central difference is off by h^2 from its truncation and by eps/h from rounding.
    step = np.finfo(np.float64).eps ** (1 / 3)
    gradients = terms["w_x"].sum(axis=0), terms["w_s"].sum(axis=0), terms["b"].sum(axis=0)[0], d_w_y
    for which, gradient in enumerate(gradients):
        for place in np.ndindex(gradient.shape):
            quotient = (error(which, place, step) - error(which, place, -step)) / (2 * step)
            assert abs(quotient - gradient[place]) <= 100 * step**2 * np.abs(gradient).max()


def printed_matrix(lines, size):
    """Read the leftmost matrix that stands in the first `size` rows of `lines`."""
    texts = [re.search(r"\[([^\]]*)\]", line) for line in lines[: size[0]]]
    return np.array([[float(x) for x in text[1].split()] for text in texts if text])


def printed_under(output, section, heading, size):
    """Read the leftmost matrix below the first line with `heading` in the section so titled."""
    lines = output.splitlines()
    start = next(k for k, line in enumerate(lines) if re.match(rf"\d\. {section}", line))
    row = next(k for k in range(start, len(lines)) if heading in lines[k])
    return printed_matrix(lines[row + 1 :], size)


def example_by_hand(seed):
    _, params, xs, state, target = lecture.make_example("elman", 3, 2, 3, 2, seed)
    arrays = params.w_x[:, 0], params.w_s[:, 0], params.b[0], params.w_y, xs, state, target
    return by_hand(arrays, 3)


@pytest.mark.slow
def test_the_script_prints_the_lecture(capsys, tmp_path):
    picture = tmp_path / "terms.png"
    assert lecture.main(["--seed", "3", "--plot", str(picture)]) == 0
    output = capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    terms, d_w_y = example_by_hand(seed=3)
    last_digit = 0.6e-6
    for name, letter in ("w_s", "Ws"), ("w_x", "Wx"):
        size = terms[name].shape[1:]
        for i in 1, 2, 3:
            got = printed_under(output, f"{letter}: the sum", f"s_{i} term = ", size)
            assert got.shape == size and np.all(np.abs(got - terms[name][i - 1]) <= last_digit)
        got = printed_under(output, f"{letter}: the sum", "their sum", size)
        assert got.shape == size and np.all(np.abs(got - terms[name].sum(axis=0)) <= last_digit)
    one_path = printed_under(output, "Ws, the naive way", "one path", (3, 3))
    assert np.all(np.abs(one_path - terms["w_s"][2]) <= last_digit)
    for j, k in np.ndindex(d_w_y.shape):
        element = re.search(rf"^ +{j + 1}  {k + 1} +(.*)$", output, re.MULTILINE)
        assert element is not None
        product, whole = map(float, element[1].split()[2:4])
        assert abs(product - d_w_y[j, k]) <= last_digit and abs(whole - product) <= last_digit
    gaps = re.findall(r"largest difference, .*: +(\S+)$", output, re.MULTILINE)
    assert len(gaps) == 4 and max(map(float, gaps)) <= 1e-12
    assert "dE_3/dy_3 . dy_3/ds_3 . ds_3/ds_2 . ds_2/ds_1 . d+s_1/dWs" in output


@pytest.mark.parametrize(
    "options, states",
    [
        pytest.param("--steps 8", 8, marks=pytest.mark.slow),
        pytest.param("--cell gru --steps 40", 30, marks=pytest.mark.slow),
        pytest.param("--cell lstm", 3, marks=pytest.mark.slow),
    ],
)
def test_the_script_prints_a_table_of_norms(options, states, capsys, tmp_path):
    assert lecture.main([*options.split(), "--plot", str(tmp_path / "terms.svg")]) == 0
    output = capsys.readouterr().out
    assert len(re.findall(r"^ +s_\d+ ", output, re.MULTILINE)) == states
    rows = {
        label: [float(x) for x in re.findall(r"\d\.\S+e[+-]\d+", line)]
        for label in ("their sum", "jax.grad", "difference")
        for line in output.splitlines()
        if line.strip().startswith(label + " ")
    }
    assert rows["their sum"] == pytest.approx(rows["jax.grad"], rel=1e-5) and rows["their sum"]
    assert max(rows["difference"]) <= TOLERANCE * max(rows["jax.grad"])
    assert (tmp_path / "terms.svg").stat().st_size > 1000


def test_one_step_has_one_path(capsys):
    assert lecture.main(["--steps", "1"]) == 0
    assert "there is no other path" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        "--steps 0",
        "--hidden 1.5",
        "--cell rnn",
        "--seed -1",
        "--sneps 3",
        "--steps 100000 --hidden 100",
    ],
)
def test_bad_arguments_take_one_line(options, capsys):
    with pytest.raises(SystemExit) as stop:
        lecture.main(options.split())
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert captured.err.startswith("lecture.py: ") and captured.err.count("\n") == 1


@pytest.mark.parametrize("name", [slow_unless(False, "nowhere/terms.png"), "terms.xyz"])
def test_a_picture_that_cannot_be_written(name, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        lecture.main(["--steps", "1", "--plot", str(tmp_path / name)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and name in error


def test_a_picture_without_matplotlib(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit) as stop:
        lecture.main(["--steps", "1", "--plot", str(tmp_path / "terms.png")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "jax_bptt[plot]" in error
