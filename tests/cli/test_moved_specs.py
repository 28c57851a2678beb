"""A spec that a run, a pipeline or a search left behind belongs to the storage that it lies in."""

from pathlib import Path

import pytest

from glray.cli.app import load_spec
from glray.spec import to_yaml
from tests.tiny import tiny_spec


@pytest.mark.parametrize(
    ("file", "beside"),
    [
        ("tiny/best.yaml", "tiny-search"),
        ("tiny/spec.yaml", "tiny/grow-seed0/run.json"),
        ("tiny/grow-seed0/spec.yaml", "tiny/grow-seed0/run.json"),
    ],
)
def test_it_is_read_with_the_storage_around_it(tmp_path: Path, file: str, beside: str) -> None:
    moved = tmp_path / "moved"
    path = moved / file
    path.parent.mkdir(parents=True)
    path.write_text(to_yaml(tiny_spec(tmp_path / "before")))
    assert load_spec(path, None).compute.storage == str(tmp_path / "before")
    sign = moved / beside
    sign.parent.mkdir(parents=True, exist_ok=True)
    sign.touch() if sign.suffix else sign.mkdir()
    assert load_spec(path, None).compute.storage == str(moved)
