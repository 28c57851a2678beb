"""What a comparison leaves: labelled runs, a record without the machine, long documents' losses."""

import json
import math
import shutil
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from glray.files import write_json
from glray.report.compared import compared, comparison_record, labelled_runs
from glray.report.long_losses import LongLosses, long_loss, long_sheet
from glray.report.page import Report
from glray.spec import ClaimSpec, ComparedArm, ComparisonSpec, load_pipeline, lower
from tests.report.written import write_run

from .test_table import rendered, rows_of


def length(seq_len: int, loss: float) -> dict[str, Any]:
    return {"seq_len": seq_len, "loss": loss, "standard_error": 0.1, "document_losses": [loss]}


@pytest.fixture
def spec(tmp_path: Path) -> ComparisonSpec:
    """Two arms of two pipelines under two seeds."""
    arm = {"name": "grow", "stages": [{"seq_len": 4}, {"seq_len": 8}]}
    fields = {
        "arms": [arm],
        "tokens_per_batch": 32,
        "chunk_len": 8,
        "seeds": (0, 1),
        "search": None,
        "compute": {"storage": str(tmp_path)},
    }
    pipelines = [
        load_pipeline("pipelines/quickstart.py").derive(name=name, **fields)
        for name in ("small", "large")
    ]
    claim = ClaimSpec(says="small is better", arm="small-grow", against="large-grow")
    return ComparisonSpec(
        name="sizes",
        title="Two sizes",
        arms=tuple(ComparedArm(pipeline=p, arm="grow", label=f"{p.name}-grow") for p in pipelines),
        claims=(claim,),
    )


@pytest.fixture
def comparison(spec: ComparisonSpec, tmp_path: Path) -> Report:
    """``small-grow`` is also scored at 8 and 16."""
    for name, loss in (("small", 3.0), ("large", 3.5)):
        for seed in (0, 1):
            losses = {4: 4.0, 8: loss + seed}
            far = {2: [4.0, 4.0], 8: [loss + seed] * 2}
            write_run(tmp_path / name, "grow", [(4, 10), (8, 5)], losses, seed=seed, far=far)
    runs = labelled_runs(spec)
    long_losses: LongLosses = {
        (tmp_path / "small" / f"grow-seed{seed}", protocol): {
            "stride": None,
            "targets_sha256": "aaaa",
            "num_documents": 2,
            "num_target_tokens": 32,
            "positions": {
                "extrapolation": [length(8, 2.0 + seed), length(16, 3.0 + seed)],
                "interpolation": [length(8, 2.0 + seed), length(16, 2.5 + seed)],
            },
        }
        for seed in (0, 1)
        for protocol in ("whole", "sliding")
    }
    return compared(spec, runs, long_losses)


def test_runs_bear_the_comparisons_labels_arm_by_arm(comparison: Report) -> None:
    assert [(run.label, run.seed) for run in comparison.runs] == [
        ("small-grow", 0),
        ("small-grow", 1),
        ("large-grow", 0),
        ("large-grow", 1),
    ]


def test_long_losses_by_protocol_and_placing(comparison: Report) -> None:
    first, _, other, _ = comparison.runs
    assert long_loss(comparison.long_losses, first, 16) == 3.0
    assert long_loss(comparison.long_losses, first, 16, "sliding", "interpolation") == 2.5
    assert math.isnan(long_loss(comparison.long_losses, first, 32))
    assert math.isnan(long_loss(comparison.long_losses, other, 16))


def test_the_table_of_long_losses_has_means_over_seeds(comparison: Report) -> None:
    text = rendered([long_sheet(comparison.runs, comparison.long_losses)])
    (row,) = [row for row in rows_of(text, "small-grow") if row[1:3] == ["whole", "interpolation"]]
    assert row == ["small-grow", "whole", "interpolation", "2.500", "3.000"]


def test_the_record_has_every_figure_and_the_page_its_verdict(
    spec: ComparisonSpec, comparison: Report, tmp_path: Path
) -> None:
    page = comparison.write(tmp_path / "out")
    write_json(tmp_path / "out" / "comparison.json", comparison_record(spec, comparison))
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert record["seeds"] == [0, 1]
    assert record["claims"][0]["difference"]["mean"] == pytest.approx(-0.5)
    assert record["claims"][0]["verdict"] == "inconclusive"
    small = record["arms"][0]
    assert (small["pipeline"], small["arm"], small["lr"]) == ("small", "grow", 3e-3)
    assert record["rates"] == []
    assert [run["heldout"]["loss"]["8"] for run in small["runs"]] == [3.0, 4.0]
    assert small["runs"][0]["seconds"]["evaluation"] == 1.0
    # What judging again needs: every evaluation, and the last by document and by position.
    scored, last = small["runs"][0]["evaluations"], small["runs"][0]["heldout"]
    assert scored[-1]["loss"] == last["loss"]
    assert [each["step"] for each in scored] == [
        each.step for each in comparison.runs[0].evaluations
    ]
    tokens, losses = last["document_tokens"], last["document_losses"]["8"]
    total = sum(loss * num_tokens for loss, num_tokens in zip(losses, tokens, strict=True))
    assert total / sum(tokens) == pytest.approx(last["loss"]["8"], abs=1e-4)
    assert len(last["loss_by_position"]["8"]) == 8
    assert last["far_context"]["losses"][-1]["document_losses"] == [3.0, 3.0]
    assert record["environments"][0]["runs"] == 4
    assert len(record["long_documents"]) == 4
    text = page.read_text()
    assert "small is better: INCONCLUSIVE" in text
    assert (tmp_path / "out" / "long_documents.png").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_diverged_run_is_null_in_the_record(
    spec: ComparisonSpec, comparison: Report, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "small" / "grow-seed1")
    stages = [(4, 10), (8, 5)]
    write_run(tmp_path / "small", "grow", stages, {8: 3.0}, seed=1, steps_done=12, diverged=True)
    report = compared(spec, labelled_runs(spec), comparison.long_losses)
    report.write(tmp_path / "out")
    write_json(tmp_path / "out" / "comparison.json", comparison_record(spec, report))
    text = (tmp_path / "out" / "comparison.json").read_text()
    record = json.loads(text, parse_constant=pytest.fail)
    finished, wild = record["arms"][0]["runs"]
    assert finished["diverged"] is None
    assert wild["diverged"]["step"] == wild["steps"] == 12
    assert wild["diverged"]["loss"] is wild["heldout"] is wild["checksum"] is None
    assert record["claims"][0]["verdict"] == "inconclusive"
    assert "diverged: small-grow-seed1" in report.judgements[0].sentence


def test_a_verdict_is_made_again_from_comparison_json_alone(tmp_path: Path) -> None:
    """By a printed table of Student's t: 4.303 under 2 degrees of freedom."""
    arms = [{"name": n, "stages": s} for n, s in (("grow", (4, 8)), ("fixed8", (8,)))]
    fields = {"arms": arms, "tokens_per_batch": 32, "chunk_len": 8, "seeds": (0, 1, 2)}
    fields |= {"search": None, "compute": {"storage": str(tmp_path)}, "name": "toy"}
    pipeline = load_pipeline("pipelines/quickstart.py").derive(**fields)
    compared_arms = pipeline["grow", "fixed8"]
    spec = ComparisonSpec(
        name="toy", title="Two arms", arms=compared_arms, claims=(lower("grow", "fixed8"),)
    )
    for seed, loss in enumerate((4.81, 4.8, 4.79)):
        for name, stages, own in (("grow", [(4, 10), (8, 5)], loss), ("fixed8", [(8, 10)], 5.0)):
            far = {2: [own + 0.3, own + 0.31], 8: [own, own]}
            write_run(tmp_path / "toy", name, stages, {8: own}, seed=seed, far=far)
    report = compared(spec, labelled_runs(spec), {})
    write_json(tmp_path / "comparison.json", comparison_record(spec, report))

    kept = json.loads((tmp_path / "comparison.json").read_text())
    differences = []
    for grow, fixed in zip(*(arm["runs"] for arm in kept["arms"]), strict=True):
        own, other = (run["heldout"]["far_context"] for run in (grow, fixed))
        tokens = own["document_tokens"]
        pairs = zip(
            own["losses"][-1]["document_losses"],
            other["losses"][-1]["document_losses"],
            strict=True,
        )
        gaps = [(ours - theirs) * n for (ours, theirs), n in zip(pairs, tokens, strict=True)]
        differences.append(sum(gaps) / sum(tokens))
    assert differences == pytest.approx([-0.19, -0.2, -0.21])
    half = 4.303 * stdev(differences) / 3**0.5  # the documents do not differ at all
    (claim,) = kept["claims"]
    assert claim["difference"]["mean"] == pytest.approx(mean(differences))
    assert claim["difference"]["half"] == pytest.approx(half, abs=1e-6)
    assert mean(differences) + half < 0
    assert claim["verdict"] == "supported"


@pytest.mark.usefixtures("undrawn")
def test_without_long_documents_there_is_no_plot_of_them(
    spec: ComparisonSpec, comparison: Report, tmp_path: Path
) -> None:
    compared(spec, comparison.runs, {}).write(tmp_path / "out")
    assert not (tmp_path / "out" / "long_documents.png").exists()
