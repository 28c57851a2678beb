"""docs/scale.md is what docs/scale.py makes of the kept results, and nothing else."""

import runpy
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"


def test_the_page_is_rendered_from_the_results() -> None:
    page = runpy.run_path(str(PAGE.with_suffix(".py")))["page"]
    assert PAGE.read_text(encoding="utf-8") == page(), "run python docs/scale.py"
