"""The templates of the pages that benchmarks render."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from glray.report.render import markdown


def template(name: str) -> Template:
    """A page's template, which lies beside this file."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["markdown"] = markdown
    return environment.get_template(name)
