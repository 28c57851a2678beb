"""Sheets as a terminal shows them, as Markdown, and as one HTML page."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich import box
from rich.console import Group, RenderableType
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
        shown += [_table(part), *(Text(note, style="dim") for note in part.notes)]
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


def _table(sheet: Sheet) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for index, name in enumerate(sheet.columns):
        lines = [line for row in sheet.rows for line in row[index].splitlines()]
        if index in sheet.left:
            table.add_column(Text(name), overflow="fold")
        else:
            width = max(map(len, lines), default=None)
            table.add_column(Text(name), justify="right", overflow="fold", min_width=width)
    for row in sheet.rows:
        table.add_row(*map(Text, row))
    return table
