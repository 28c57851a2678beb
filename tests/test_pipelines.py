"""The pipelines that ship: each loads, and what its runs leave behind repeats it."""

from pathlib import Path

import pytest

from glray.spec import load_comparison, load_pipeline, to_yaml

FOLDER = Path(__file__).parents[1] / "pipelines"
PIPELINES = {
    path.stem: str(path) for path in sorted(FOLDER.glob("*.py")) if path.stem != "paper"
} | {
    f"{scale}-{name.replace('_', '-')}": f"{FOLDER / 'paper.py'}:{scale}.{name}"
    for scale in ("mini", "full")
    for name in ("equal_time", "equal_tokens")
}
FIGURES = ("figure1", "figure2", "figure3", "figure4", "figure5", "long4096", "long8192")


def test_there_is_a_quickstart():
    assert "quickstart" in PIPELINES


@pytest.mark.parametrize("reference", PIPELINES.values(), ids=PIPELINES)
def test_a_pipeline_is_what_its_resolved_yaml_says(reference, tmp_path):
    spec = load_pipeline(reference)
    resolved = tmp_path / "spec.yaml"
    resolved.write_text(to_yaml(spec))
    assert load_pipeline(resolved) == spec.resolved()


@pytest.mark.parametrize(("name", "reference"), PIPELINES.items(), ids=PIPELINES)
def test_a_pipeline_bears_its_files_name(name, reference):
    assert load_pipeline(reference).name == name.replace("_", "-")


@pytest.mark.parametrize("scale", ["mini", "full"])
@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_of_the_paper_loads_at_both_scales(scale, figure):
    spec = load_comparison(f"{FOLDER / 'paper.py'}:{scale}.{figure}", num_seeds=5)
    assert spec.name == f"{scale}-{figure}"
    assert spec.seeds == (0, 1, 2, 3, 4)
    assert spec.claims


def test_figures_share_their_runs():
    """What figures 3, 4 and 5 need of the pipelines of figures 1 and 2 is the same there."""
    by_name = {}
    for figure in FIGURES:
        spec = load_comparison(f"{FOLDER / 'paper.py'}:mini.{figure}", num_seeds=1)
        for compared in spec.arms:
            pipeline = compared.pipeline.resolved()
            assert by_name.setdefault(pipeline.name, pipeline) == pipeline
    assert len(by_name) == 6
