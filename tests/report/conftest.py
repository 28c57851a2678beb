"""A pipeline on disk without training, with numbers that can be checked by eye."""

from pathlib import Path

import pytest

from .written import write_run


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """Three finished arms of 20 calibrated seconds: growing 4 → 8, fixed 8, fixed 4."""
    directory = tmp_path / "toy"
    write_run(directory, "grow", [(4, 10), (8, 5)], {4: 4.6, 8: 4.45, 16: 4.5})
    write_run(directory, "fixed8", [(8, 10)], {4: 4.8, 8: 4.69, 16: 4.7})
    write_run(directory, "fixed4", [(4, 20)], {4: 4.5, 8: 4.67, 16: 6.5})
    names = ("grow", "fixed8", "fixed4")
    (directory / "spec.yaml").write_text("arms:\n" + "".join(f"- name: {name}\n" for name in names))
    return directory
