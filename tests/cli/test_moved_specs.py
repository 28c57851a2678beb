"""A spec that a run, a pipeline or a search left behind belongs to the storage that it lies in."""

from pathlib import Path

import pytest

from glray.cli.app import load_spec
from glray.spec import Fork, to_yaml
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


def test_a_parent_beside_the_command_is_named_wherever_its_workers_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is not here is looked for in the storage, by the name that it has."""
    (tmp_path / "runs/base").mkdir(parents=True)
    path = tmp_path / "pipeline.yaml"
    monkeypatch.chdir(tmp_path)
    for run, named in {
        "runs/base/grow": str(tmp_path / "runs/base/grow"),
        "far/grow": "far/grow",
    }.items():
        start = Fork(run=run)
        path.write_text(to_yaml(tiny_spec(tmp_path / "storage", model=None, start=start)))
        found = load_spec(path, None).start
        assert found is not None
        assert found.run == named
