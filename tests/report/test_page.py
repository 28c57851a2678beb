import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from glray.errors import UserError
from glray.report.page import Report
from glray.run.run import open_runs
from tests.report.written import write_run


class Page(HTMLParser):
    """Tags and attributes of a page, its table rows and its text."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


def page_of(directory: Path, paths: list[Path]) -> Page:
    return Page(Report(open_runs(paths)).write(directory).read_text(encoding="utf-8"))


def test_the_page_is_one_file_that_loads_nothing(pipeline: Path, tmp_path: Path) -> None:
    page = page_of(tmp_path / "out", [pipeline])

    assert page.open == []
    sources = [attrs["src"] for tag, attrs in page.seen if tag == "img"]
    assert len(sources) == 5
    assert all(source and source.startswith("data:image/png;base64,") for source in sources)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.seen}
    assert not [attrs for _, attrs in page.seen if "href" in attrs]


@pytest.mark.usefixtures("undrawn")
def test_the_page_holds_the_figures_of_each_run(pipeline: Path, tmp_path: Path) -> None:
    page = page_of(tmp_path / "out", [pipeline])

    losses = ["4.600\n±0.050", "4.450\n±0.050", "4.500*\n±0.050"]
    assert ["grow", *losses, "1.150", "1.113", "1.125"] in page.rows
    assert ["grow", "4", "8", "10", "320", "10.0", "1,000.0", "1,000.0"] in page.rows
    assert ["grow", "8", "4", "5", "160", "10.0", "2,000.0", "2,000.0"] in page.rows
    assert ["grow", "4", "10", "320", "10.0", "10.0", "5.600", "5.450", "5.500"] in page.rows
    assert "abc1234" in page.text
    assert "A Processor" in page.text


@pytest.mark.usefixtures("undrawn")
def test_text_from_records_cannot_become_markup(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>&"
    run = write_run(tmp_path / "toy", "a", [(8, 10)], {8: 4.5})
    record = (run / "run.json").read_text().replace('"a"', f'"{name}"').replace("A Proc", name)
    (run / "run.json").write_text(record)
    spec = (run / "spec.yaml").read_text()
    assert "storage: runs\n" in spec
    (run / "spec.yaml").write_text(spec.replace("storage: runs\n", f"storage: {name}\n"))

    page = page_of(tmp_path / "out", [run])

    assert "script" not in {tag for tag, _ in page.seen}
    assert page.text.count(name) >= 3


def test_an_unfinished_run_is_shown_as_such(tmp_path: Path) -> None:
    write_run(tmp_path / "toy", "grow", [(4, 10), (8, 5)], {4: 4.6}, steps_done=12)

    page = page_of(tmp_path / "out", [tmp_path / "toy"])

    assert any(row[:3] == ["grow", "4-8", "12/15"] for row in page.rows)
    assert "unfinished" in page.text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("step", [1, 12])  # before and after the first evaluation
def test_a_run_that_diverged_is_shown_as_such_alone_and_beside_others(
    tmp_path: Path, step: int
) -> None:
    wild = write_run(
        tmp_path / "toy", "grow", [(4, 10), (8, 5)], {8: 4.6}, steps_done=step, diverged=True
    )
    write_run(tmp_path / "toy", "fixed8", [(8, 10)], {8: 4.5})

    for paths in ([wild], [tmp_path / "toy"]):
        page = page_of(tmp_path / "out", paths)

        assert any(row[:3] == ["grow", "4-8", f"{step}/15"] for row in page.rows)
        assert f"grow diverged at step {step} (seq_len 8): its loss is not finite." in page.text
        assert "unfinished" not in page.text


def test_a_run_without_a_step_still_makes_a_page(tmp_path: Path) -> None:
    write_run(tmp_path / "toy", "grow", [(4, 10)], {4: 4.6}, steps_done=0)

    page = page_of(tmp_path / "out", [tmp_path / "toy"])

    assert any(row[:3] == ["grow", "4", "0/10"] for row in page.rows)
    assert not [tag for tag, _ in page.seen if tag == "img"]


@pytest.mark.usefixtures("undrawn")
def test_writing_again_replaces_the_page_and_leaves_no_partial_file(
    pipeline: Path, tmp_path: Path
) -> None:
    first = page_of(tmp_path / "out", [pipeline / "grow-seed0"])
    second = page_of(tmp_path / "out", [pipeline])

    assert len(second.rows) > len(first.rows)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(str(tmp_path)) + ".*0 runs"):
        Report([]).write(tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_the_page_says_what_each_boundary_did(pipeline: Path, tmp_path: Path) -> None:
    page = page_of(tmp_path / "out", [pipeline])

    # Documents fall by 0.1 and 0.3; the gradient is twice the median right after the boundary.
    old, new = (["5.500", "5.300", "-0.200 ± 0.100"], ["5.000", "4.800", "-0.200 ± 0.100"])
    assert ["grow", "4→8", "10", *old, *new, "× 2.00"] in page.rows
    assert ["grow", "4→8", "10", "-0.500", "+0.000", "-0.750", "+0.250"] in page.rows


@pytest.mark.usefixtures("undrawn")
def test_a_page_without_a_boundary_does_not_speak_of_them(tmp_path: Path) -> None:
    write_run(tmp_path / "toy", "fixed8", [(8, 10)], {8: 4.69})

    assert "At the boundaries" not in page_of(tmp_path / "out", [tmp_path / "toy"]).text
