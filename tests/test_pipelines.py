"""The pipelines that ship: each loads, and what its runs leave behind repeats it."""

from pathlib import Path

import pytest

from glray.spec import load_pipeline, to_yaml

PIPELINES = sorted((Path(__file__).parents[1] / "pipelines").glob("*.py"))


def test_there_is_a_quickstart():
    assert "quickstart.py" in [path.name for path in PIPELINES]


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_a_pipeline_is_what_its_resolved_yaml_says(path, tmp_path):
    spec = load_pipeline(path)
    resolved = tmp_path / "spec.yaml"
    resolved.write_text(to_yaml(spec))
    assert load_pipeline(resolved) == spec.resolved()


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_a_pipeline_bears_its_files_name(path):
    assert load_pipeline(path).name == path.stem.replace("_", "-")
