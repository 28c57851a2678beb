"""The little HTML that the page needs. All text is escaped here, so that no record can inject."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

STYLE = """
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  "DejaVu Sans", sans-serif; color: #1a1a1a; background: #fff; max-width: 60rem;
  margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; }
h2 { font-size: 1.12rem; margin: 2.2rem 0 .5rem; border-bottom: 1px solid #ccc;
  padding-bottom: .2rem; }
p { margin: .5rem 0; max-width: 48rem; }
.headline { border-left: 3px solid #0072b2; padding: .1rem 0 .1rem 1rem; margin: 1rem 0; }
.note, figcaption { color: #555; font-size: .87rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums;
  margin: .6rem 0; }
th, td { padding: .22rem .7rem .22rem 0; text-align: right; vertical-align: top;
  white-space: nowrap; }
th { border-bottom: 1px solid #888; font-weight: 600; vertical-align: bottom;
  white-space: normal; }
td { border-bottom: 1px solid #eee; }
.text { text-align: left; }
figure { margin: 1rem 0 1.8rem; break-inside: avoid; }
figure img { width: 100%; max-width: 800px; height: auto; display: block; }
dt { font-weight: 600; }
dd { margin: 0 0 .5rem 0; max-width: 48rem; }
details { margin: .6rem 0; }
pre { font-size: .8rem; background: #f6f6f6; padding: .8rem; white-space: pre-wrap; }
@media print {
  body { max-width: none; margin: 0; font-size: 9.5pt; }
  table { font-size: .8rem; }
  .scroll { overflow: visible; }
  figure img { max-width: 100%; }
  h2 { break-after: avoid; }
  tr { break-inside: avoid; }
}
"""


def document(title: str, body: Sequence[str]) -> str:
    """A whole page without scripts or links; ``body`` is markup."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            f'<head><meta charset="utf-8"><title>{escape(title)}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{STYLE}</style></head>",
            "<body>",
            *body,
            "</body>",
            "</html>",
            "",
        ]
    )


def opening(title: str, sentences: Sequence[str]) -> str:
    """The page's title over what is to be read first."""
    lines = [paragraph(sentence) for sentence in sentences]
    return "\n".join([f"<h1>{escape(title)}</h1>", '<div class="headline">', *lines, "</div>"])


def section(title: str, *parts: str) -> str:
    """A heading and its markup."""
    return "\n".join(["<section>", f"<h2>{escape(title)}</h2>", *parts, "</section>"])


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text; ``kind`` is a class of the style sheet."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, num_text: int = 1) -> str:
    """A table of plain text whose first ``num_text`` columns are words, the others figures."""

    def line(tag: str, cells: Sequence[str]) -> str:
        marked = [
            f'<{tag} class="text">{escape(cell)}</{tag}>'
            if index < num_text
            else f"<{tag}>{escape(cell)}</{tag}>"
            for index, cell in enumerate(cells)
        ]
        return f"<tr>{''.join(marked)}</tr>"

    return "\n".join(
        [
            '<div class="scroll"><table>',
            f"<thead>{line('th', columns)}</thead>",
            "<tbody>",
            *(line("td", row) for row in rows),
            "</tbody></table></div>",
        ]
    )


def definitions(entries: Sequence[tuple[str, str]]) -> str:
    """Terms, each with a sentence or two of plain text."""
    parts = [f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in entries]
    return "\n".join(["<dl>", *parts, "</dl>"])


def folded(title: str, text: str) -> str:
    """Preformatted text behind a line to click."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def picture(png: Path, alternative: str, caption: str) -> str:
    """A PNG inside the page itself, with a caption."""
    data = base64.b64encode(png.read_bytes()).decode("ascii")
    return (
        f'<figure><img alt="{escape(alternative)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
