"""One sheet, three renderings."""

from glray.report.render import html, markdown
from glray.report.sheets import Sheet

from .test_table import rendered

SHEET = Sheet("Losses", ["run", "at\n128"], [["a|b", "4.5*\n±0.1"], ["[c]", "-"]], ["A note."])


def test_markdown_is_one_line_a_row_whatever_is_in_a_cell() -> None:
    assert markdown(SHEET).splitlines() == [
        "| run | at 128 |",
        "| --- | --- |",
        "| a\\|b | 4.5* ±0.1 |",
        "| [c] | - |",
    ]


def test_a_terminal_has_title_cells_as_they_are_and_notes() -> None:
    lines = [line.rstrip() for line in rendered([SHEET, "A sentence."]).splitlines()]
    assert lines == [
        "",
        "Losses",
        "       at",
        "run   128",
        "──────────",
        "a|b  4.5*",
        "     ±0.1",
        "[c]     -",
        "A note.",
        "A sentence.",
    ]


def test_numbers_are_never_broken_words_are() -> None:
    sheet = Sheet("", ["run", *["a header of words"] * 5], [["word" * 12, *["1,234,567.8"] * 5]])
    lines = rendered([sheet]).splitlines()
    assert sum(line.count("1,234,567.8") for line in lines) == 5
    assert max(len(line.rstrip()) for line in lines) <= 80


def test_no_number_is_cut_off_where_words_can_be_folded() -> None:
    columns = ["schedule", "", "in the search", "confirmed", "over seeds", "change", "from fixed"]
    name = "128x10-256x30-512x35-1024x25-lr3.16e-3"
    numbers = ["3.450", "3.500", "3.490 to 3.510", "+0.050", "-0.150 ± 0.012"]
    shown = rendered([Sheet("", columns, [[name, "baseline", *numbers]], left=(0, 1))])
    for number in numbers:
        assert number in shown
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80


def test_a_page_escapes_all_that_it_is_given() -> None:
    text = "<b>&"
    page = html(
        "page.html.j2",
        title=text,
        sentences=[text],
        results=[Sheet(text, [text], [[text]], [text])],
        details=[],
        plots={},
        specs=[(text, text)],
        targets=text,
        seq_lens=[8],
        are_rates_tuned=False,
        num_seeds=1,
        longest=8,
    )
    assert "<b>" not in page
    assert page.count("&lt;b&gt;&amp;") == 10
