"""A page of HTML that needs nothing but itself: pictures are inline SVG."""

import html
import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 Georgia, serif; color: #1a1a1a; background: #fff; margin: 2em auto;
  max-width: 110em; padding: 0 1.5em; }
h1 { font-size: 1.6em; line-height: 1.25; max-width: 40em; }
h2 { font-size: 1.15em; margin: 2em 0 .3em; border-top: 1px solid #bbb; padding-top: .6em; }
h3 { font-size: 1em; margin: .5em 0 .2em; }
p { max-width: 46em; margin: .3em 0 .7em; }
.row { display: grid; gap: 1em; grid-template-columns: repeat(auto-fit, minmax(22em, 1fr)); }
.row > div { break-inside: avoid; min-width: 0; }
svg { width: 100%; height: auto; max-width: 44em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .2em .9em .2em 0; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
footer { color: #555; font-size: .85em; margin-top: 2em; border-top: 1px solid #bbb; }
@media print { body { font-size: 10pt; margin: 0; } h2 { break-after: avoid; } }
"""


class Section(NamedTuple):
    """A heading, how to read what is beneath it, and side by side the HTML of each name."""

    heading: str
    about: str
    cells: dict[str, str]


def page(
    heading: str, intro: str, parts: Sequence[Section | str], *, footer: str, refresh: int = 0
) -> str:
    """Return a page.

    Args:
      heading: the finding, as plain text.
      intro: plain text.
      parts: sections, and HTML as it is.
      footer: plain text, such as the command that wrote it.
      refresh: seconds after which a browser reads the file again; 0 for never.
    """
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    body = "\n".join(part if isinstance(part, str) else _section(part) for part in parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">{again}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(heading)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        f"<h1>{html.escape(heading)}</h1>\n<p>{html.escape(intro)}</p>\n{body}\n"
        f"<footer>{html.escape(footer)}</footer>\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    cells = "\n".join(
        f"<div><h3>{html.escape(name)}</h3>\n{content}</div>"
        for name, content in section.cells.items()
    )
    return (
        f"<h2>{html.escape(section.heading)}</h2>\n<p>{html.escape(section.about)}</p>\n"
        f'<div class="row">{cells}</div>'
    )


def words(text: str) -> str:
    """Return lines of text as paragraphs."""
    return "\n".join(f"<p>{html.escape(line)}</p>" for line in text.splitlines())


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table of plain text."""
    rows = [_row("th", header), *(_row("td", line) for line in lines)]
    return "\n".join(["<table>", *rows, "</table>"])


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def svg(axes: Any, name: str) -> str:
    """Return the figure of `axes` as an SVG element whose ids are those of no other.

    Args:
      axes: Matplotlib's.
      name: one word, unlike that of any other picture of the page.
    """
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        axes.figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-")
    label = html.escape(axes.get_title(loc="left"), quote=True)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
