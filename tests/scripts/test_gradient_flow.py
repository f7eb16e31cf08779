"""The page on where the gradient flows: complete in itself, and of well-formed pictures."""

import importlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import jax
import pytest

pytest.importorskip("matplotlib")
SCRIPTS = Path(__file__).parents[2] / "scripts"
VOID = "meta", "br", "link", "img"
SMALL = "--length 12 --hidden 4 --batch 4 --steps 6".split()


class Page(HTMLParser):
    """The links of a page, its ids, and the elements that are still open."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.loaded, self.inside = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self._see(tag, attrs)

    def handle_startendtag(self, tag, attrs):
        self._see(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def _see(self, tag, attrs):
        assert tag not in ("script", "link", "iframe", "object", "img")
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
            if key in ("src", "href", "xlink:href", "data", "srcset"):
                # Colour bars are images in the page itself.
                within = value.startswith("data:image/png;base64,")
                (self.inside if value.startswith("#") else self.loaded).extend([value][within:])


def check(text):
    """Assert that nothing is loaded, ids are unique and found, and return the pictures."""
    page = Page(text)
    assert page.open == [] and page.loaded == []
    assert "@import" not in text and "url(http" not in text
    assert len(page.ids) == len(set(page.ids))
    referred = {link[1:] for link in page.inside} | set(re.findall(r"url\(#([^)]+)\)", text))
    assert referred and referred <= set(page.ids)
    pictures = re.findall(r"<svg.*?</svg>", text, re.S)
    for picture in pictures:
        assert ElementTree.fromstring(picture).tag.endswith("svg")
    return pictures


def main(name, argv):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return importlib.import_module(name).main(argv)


@pytest.mark.slow
def test_cells_side_by_side(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    out = tmp_path / "page.html"
    argv = [*SMALL, "--cells", "lstm,elman", "--output", str(out)]
    assert main("gradient_flow", argv) == 0
    text = out.read_text()
    assert len(check(text)) == 12
    assert "<h1>To within 1 %, the gradient comes from windows of " in text
    assert "steps of lstm and" in text and "Newton&#x27;s method" in text


@pytest.mark.slow
def test_moments_of_training(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    out = tmp_path / "page.html"
    argv = [*SMALL, "--cells", "gru", "--task", "copy", "--moments", "--output", str(out)]
    assert main("gradient_flow", argv) == 0
    assert len(check(out.read_text())) == 18 and "gru, after 3 steps" in out.read_text()


@pytest.mark.slow
def test_a_run_of_the_trainer(tmp_path, monkeypatch):
    """Its checkpoint has a column for each layer, its telemetry a map for each."""
    pytest.importorskip("tensorboardX")
    pytest.importorskip("orbax.checkpoint")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    saved, seen, out = (str(tmp_path / name) for name in ("saved", "seen", "page.html"))
    options = "--cell gru --layers 2 --hidden 4 --batch 4 --length 10 --steps 20"
    folders = ["--checkpoint", saved, "--telemetry", seen]
    assert main("train", ["adding", *options.split(), *folders]) == 0
    assert main("gradient_flow", ["--checkpoint", saved, "--output", out]) == 0
    text = Path(out).read_text()
    assert len(check(text)) == 12 and "gru, layer 0" in text and "gru, layer 1" in text
    assert main("gradient_flow", ["--watch", seen, "--once", "--output", out]) == 0
    assert len(check(Path(out).read_text())) == 3


@pytest.mark.slow
@pytest.mark.parametrize("job", ["chars", "digits"])
def test_a_checkpoint_of_each_kind_of_job(job, tmp_path, monkeypatch, capsys):
    """Of a text its checkpoint has a digest: the files are named again."""
    for module in ("orbax.checkpoint", "sklearn"):
        pytest.importorskip(module)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    saved, out, text = (str(tmp_path / name) for name in ("saved", "page.html", "text"))
    Path(text).write_text("to be or not to be, that is the question. " * 200)
    named = ["--text", text] if job == "chars" else []
    argv = [*"--hidden 4 --batch 4 --steps 2 --checkpoint".split(), saved, *named]
    if job == "chars":
        argv += "--window 10 --order 1".split()
    assert main("train", [job, *argv]) == 0
    look = ["--checkpoint", saved, "--output", out]
    assert main("gradient_flow", [*look, *named]) == 0
    assert len(check(Path(out).read_text())) >= 6
    if job == "chars":
        with pytest.raises(SystemExit):
            main("gradient_flow", look)
        assert "is of another text" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_is_watched(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    out = tmp_path / "page.html"
    argv = ["--watch", str(tmp_path), "--once", "--output", str(out)]
    assert main("gradient_flow", argv) == 0
    assert "Nothing to see yet" in out.read_text() and "http-equiv" not in out.read_text()
    seen = {"[0]": {"rms": 1.0, "nonfinite": 0, "decades": {"-3": 4, "-1": 1}}}
    whole = {"step": 10, "loss": 2.0, "gradient_norm": 3.0, "adjoints": seen}
    # The second line is being written.
    (tmp_path / "telemetry.jsonl").write_text(json.dumps(whole) + '\n{"step": 20, "adjoints": {}')
    assert main("gradient_flow", argv) == 0
    assert len(check(out.read_text())) == 2 and "<h1>Loss 2 at step 10;" in out.read_text()
    watching = importlib.import_module("gradient_flow")
    text = watching.watched(tmp_path, refresh=7, footer="")
    assert '<meta http-equiv="refresh" content="7">' in text
    lines = [whole | {"step": step} for step in range(1000)]
    assert [line["step"] for line in watching.spread(lines)][-2:] == [996, 999]


def test_a_page_that_loads_something_is_found():
    with pytest.raises(AssertionError):
        check('<svg id="a" href="http://example.org/a.png"/>')
