"""Renders ``docs/metrics.md`` from ``docs/metrics.md.j2``, the records' docstrings and the gauges.

python docs/metrics.py
"""

from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from glray.files import write_text
from glray.ray.metrics import METRICS
from glray.record import Record
from glray.run import records

DOCS = Path(__file__).parent


def page() -> str:
    """The whole page."""
    template = (DOCS / "metrics.md.j2").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(template).render(table=table, gauges=gauges, **vars(records))


def table(record: type[Record]) -> str:
    """What a record is, then a row for each field."""
    rows = []
    for name, field in record.model_fields.items():
        known = [f"`{name}`", _extra(field, "unit"), _extra(field, "clock")]
        rows.append(f"| {' | '.join(known)} | {_line(field.description)} |")
    head = [
        _line(record.__doc__),
        "",
        "| name | unit | clock | definition |",
        "| --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *rows])


def gauges() -> str:
    """A row for each metric that Prometheus sees."""
    rows = [
        f"| `ray_{name}` | {', '.join(f'`{tag}`' for tag in metric.tags)} | {metric.definition} |"
        for name, metric in METRICS.items()
    ]
    return "\n".join(["| name | tags | definition |", "| --- | --- | --- |", *rows])


def _extra(field: Any, name: str) -> str:
    return (field.json_schema_extra or {}).get(name) or ""


def _line(text: str | None) -> str:
    return " ".join((text or "").replace("``", "`").split())


if __name__ == "__main__":
    write_text(DOCS / "metrics.md", page())
