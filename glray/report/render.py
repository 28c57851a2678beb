"""Sheets as a terminal shows them, as Markdown, and as one HTML page."""

from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from glray.report.sheets import Sheet


def terminal(*parts: Sheet | str) -> Group:
    """Tables and sentences, one under another. Numbers are never broken, words are."""
    shown: list[RenderableType] = []
    for part in parts:
        if isinstance(part, str):
            shown.append(Text(part))
            continue
        shown += [Text(f"\n{part.title}", style="bold")] if part.title else []
        shown += [_Table(part), *(Text(note, style="dim") for note in part.notes)]
    return Group(*shown)


def markdown(sheet: Sheet) -> str:
    """The table alone."""
    lines = [sheet.columns, ["---"] * len(sheet.columns), *sheet.rows]
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)


def html(template: str, **values: Any) -> str:
    """A template of this folder filled in. All text is escaped, so that no record can inject."""
    environment = Environment(
        loader=PackageLoader("glray", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template(template).render(values)


@dataclass(frozen=True)
class _Table:
    """A sheet's table, as wide as there is room."""

    sheet: Sheet

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = _table(self.sheet)
        unbounded = options.update(max_width=1_000_000)
        least = Measurement.get(console, unbounded, table).minimum
        yield table if least <= options.max_width else _table(self.sheet, is_narrow=True)


def _table(sheet: Sheet, *, is_narrow: bool = False) -> Table:
    """``is_narrow`` says that words have to be folded: then columns of numbers are as wide as these
    and no wider, or rich would take room from them and cut the last ones off."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for index, name in enumerate(sheet.columns):
        if index in sheet.left:
            table.add_column(Text(name), overflow="fold")
            continue
        lines = [line for row in sheet.rows for line in row[index].splitlines()]
        least = max(map(len, lines), default=None)
        width = max(map(len, [*lines, *name.split()]), default=None) if is_narrow else None
        table.add_column(Text(name), justify="right", overflow="fold", min_width=least, width=width)
    for row in sheet.rows:
        table.add_row(*map(Text, row))
    return table
