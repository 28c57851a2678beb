"""The pipelines that ship: each loads, and what its runs leave behind repeats it."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from benchmarks.study_records import PARTS
from glray.plan import make_plan
from glray.spec import ComparisonSpec, PipelineSpec, load_comparison, load_pipeline, to_yaml
from glray.tree import Trajectory, tree

FOLDER = Path(__file__).parents[1] / "pipelines"
SCALES = {"mini": "paper.py", "tiny": "paper_tiny.py", "full": "paper.py"}
SEVERAL = (*SCALES.values(), "study.py")
"""Files of several pipelines."""
PIPELINES = {
    path.stem: str(path) for path in sorted(FOLDER.glob("*.py")) if path.name not in SEVERAL
} | {
    f"{scale}-{name.replace('_', '-')}": f"{FOLDER / file}:{scale}.{name}"
    for scale, file in SCALES.items()
    for name in ("equal_time", "equal_tokens")
}
PIPELINES["study"] = f"{FOLDER / 'study.py'}:small.equal_tokens"
FIGURES = ("figure1", "figure2", "figure3", "figure4", "figure5", "long4096", "long8192")


def test_there_is_a_quickstart() -> None:
    assert "quickstart" in PIPELINES


@pytest.mark.parametrize("reference", PIPELINES.values(), ids=PIPELINES)
def test_a_pipeline_is_what_its_resolved_yaml_says(reference: str, tmp_path: Path) -> None:
    spec = load_pipeline(reference)
    resolved = tmp_path / "spec.yaml"
    resolved.write_text(to_yaml(spec))
    assert load_pipeline(resolved) == spec.resolved()


@pytest.mark.parametrize(("name", "reference"), PIPELINES.items(), ids=PIPELINES)
def test_a_pipeline_bears_its_files_name(name: str, reference: str) -> None:
    assert load_pipeline(reference).name == name.replace("_", "-")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_of_the_paper_loads_at_every_scale(scale: str, figure: str) -> None:
    spec = load_comparison(f"{FOLDER / SCALES[scale]}:{scale}.{figure}", num_seeds=5)
    assert spec.name == f"{scale}-{figure}"
    assert spec.seeds == (0, 1, 2, 3, 4)
    assert spec.claims


def test_figures_share_their_runs() -> None:
    """What figures 3, 4 and 5 need of the pipelines of figures 1 and 2 is the same there."""
    by_name: dict[str, PipelineSpec] = {}
    for figure in FIGURES:
        spec = load_comparison(f"{FOLDER / 'paper.py'}:mini.{figure}", num_seeds=1)
        for compared in spec.arms:
            pipeline = compared.pipeline.resolved()
            assert by_name.setdefault(pipeline.name, pipeline) == pipeline
    assert len(by_name) == 6


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_the_study_loads(part: str) -> None:
    spec = load_comparison(f"{FOLDER / 'study.py'}:small.{part.replace('-', '_')}", num_seeds=3)
    assert spec.name == f"study-{part}"
    assert spec.claims


def test_the_studys_arms_share_their_prefixes() -> None:
    """The shortest length is trained once up to 90% of the budget, but for the shuffled arm."""
    spec = load_pipeline(PIPELINES["study"])
    plans = [(arm, make_plan(spec, arm)) for arm in spec.trained_arms]
    branches = tree([Trajectory.of(spec, arm, 0, plan) for arm, plan in plans if plan])
    forks = {b.trajectory.arm: (b.trunk.arm, b.fork_step) for b in branches if b.trunk}
    assert forks["two-phase-64"] == ("growlength", 183)
    assert forks["two-phase-90"] == ("two-phase-64", 468)
    assert forks["llm32"] == ("two-phase-90", 658)
    assert not {"growlength", "growlength-shuffled"} & forks.keys()


# ---- the paper's pipelines and comparisons are those of glray 0.1

OF_0_1 = json.loads(
    # What was "mini" there is "tiny" today.
    (Path(__file__).parent / "fixtures" / "paper-0.1.json").read_text().replace('"mini', '"tiny')
)
RENAMED = {"ratios_share": "ratios_in"}
"""Fields by their name in 0.1. A claim's ``says`` is new everywhere: it writes its own."""


def leaves(value: object, path: str = "") -> dict[str, object]:
    """Every field of plain values that is set by its path, under today's names: what 0.1 had no
    field for is null."""
    if isinstance(value, dict):
        named: dict[Any, object] = {RENAMED.get(key, key): below for key, below in value.items()}
    elif isinstance(value, list) and value:
        named = dict(enumerate(value))
    else:
        return {} if value is None else {path: value}
    return {
        place: leaf
        for key, below in named.items()
        for place, leaf in leaves(below, f"{path}.{key}").items()
    }


@pytest.fixture(autouse=True)
def beside_the_pipelines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline may import its neighbours."""
    monkeypatch.syspath_prepend(FOLDER)


def paper_pipeline(name: str) -> PipelineSpec:
    """A pipeline of the paper by its own name."""
    scale, _, rest = name.partition("-")
    if rest.startswith("long"):
        return paper_comparison(name).arms[0].pipeline
    paper = runpy.run_path(str(FOLDER / SCALES[scale]))[scale]
    return paper.size(rest) if rest in paper.sizes else getattr(paper, rest.replace("-", "_"))()


def paper_comparison(name: str) -> ComparisonSpec:
    scale, _, figure = name.partition("-")
    return load_comparison(f"{FOLDER / SCALES[scale]}:{scale}.{figure}")


@pytest.mark.parametrize("name", OF_0_1["pipelines"])
def test_a_pipeline_of_the_paper_is_that_of_0_1(name: str) -> None:
    expected = OF_0_1["pipelines"][name]
    spec = paper_pipeline(name).resolved()
    found, recorded = spec.model_dump(mode="json"), expected["spec"]
    compute = recorded["compute"].keys() - {"checkpoint_every_tokens"}  # which follow a clock today
    for fields in (found, recorded):
        fields["compute"] = {field: fields["compute"][field] for field in compute}
    assert found["evaluation"].pop("stage_ends")  # always so in 0.1
    assert leaves(found) == leaves(recorded)
    assert list(expected["plans"]) == [arm.name for arm in spec.arms]
    calibrated = spec.derive(calibration={"step_microseconds": OF_0_1["calibration"]})
    for arm in calibrated.arms:
        plan = make_plan(calibrated, arm)
        assert plan is not None
        planned = [[stage.seq_len, stage.first_step, stage.num_steps] for stage in plan.stages]
        assert planned == expected["plans"][arm.name]


@pytest.mark.parametrize("name", OF_0_1["comparisons"])
def test_a_comparison_of_the_paper_is_that_of_0_1(name: str) -> None:
    expected = OF_0_1["comparisons"][name]
    spec = paper_comparison(name)
    found = spec.model_dump(mode="json") | {"seeds": list(spec.seeds)}
    for compared, arm in zip(found["arms"], spec.arms, strict=True):
        compared["pipeline"] = arm.pipeline.name
    for claims in (found.pop("claims"), expected.pop("claims")):
        assert claims  # they are others since 0.2: see below
    assert leaves(found) == leaves(expected)


def test_the_papers_claims_are_at_own_lengths_and_few_are_primary() -> None:
    def said(figure: str, *, primary: bool) -> list[str]:
        claims = paper_comparison(f"mini-{figure}").claims
        return [claim.says for claim in claims if claim.primary is primary]

    assert said("figure1", primary=True) == [
        "growlength has a lower held-out loss than llm1024, each at its own length",
        "growlength has a lower held-out loss than llm128, each at its own length",
    ]
    assert said("figure1", primary=False) == [
        "growlength has a lower held-out loss than llm128 at 128 tokens"
    ]
    assert said("figure4", primary=True) == [
        f"growlength-1 has a lower loss than {other} on long documents at 4,096 tokens"
        for other in ("llm1024", "llm128")
    ]
    assert sum(len(said(f"figure{n}", primary=True)) for n in range(1, 6)) == 13
