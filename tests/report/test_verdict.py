"""Claims judged from records: literal losses over three seeds, intervals checkable by hand."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glray.report.far_context import GAIN_MARGIN
from glray.report.long_losses import LongLosses
from glray.report.outcome import Outcome, Verdict, adjusted, judge_difference, judge_gain
from glray.report.verdict import Judgement, LongContext, judge, sentences
from glray.run.records import Calibration
from glray.run.run import Run
from glray.run.statistics import SEEDS_FOR_A_VERDICT, Estimate, Part, crossed, holm
from glray.spec import ClaimSpec, lower, same
from tests.report.written import far_context, write_run

T_975 = {2: 4.303, 3: 3.182, 15: 2.131}
"""Student's t of a 95% interval, from a printed table."""

AROUND = Part(standard_error=0.002, count=9, degrees=8)
"""± 0.005."""

LOWER = lower("grow", "fixed8", says="Growing is better", at=8)
USES, IDLE = (0.30, 0.31, 0.29, 0.30), (0.1, -0.1, 0.1, -0.1)
"""Far-context gains of four documents: 0.3 ± 0.013, and 0 ± 0.184."""


def arm(
    folder: Path,
    name: str,
    stages: list[tuple[int, int]],
    losses: Sequence[float],
    gains: Sequence[float] = USES,
    **run: Any,
) -> list[Run]:
    """Runs whose loss at 8 is one of ``losses`` a seed, at 4 the same; in windows of 8 their four
    documents have it on far targets, in windows of 2 ``gains`` more."""
    runs = []
    for seed, loss in enumerate(losses):
        far = {2: [loss + gain for gain in gains]}
        if max(n for n, _ in stages) > 2:
            far[8] = [loss] * len(gains)
        written = write_run(folder, name, stages, {4: loss, 8: loss}, seed=seed, far=far, **run)
        runs.append(replace(Run.open(written), label=name))
    return runs


def two_arms(
    folder: Path,
    grow: Sequence[float],
    fixed8: Sequence[float],
    gains: tuple[Sequence[float], Sequence[float]] = (USES, USES),
    **run: Any,
) -> dict[str, list[Run]]:
    grown = arm(folder, "grow", [(4, 10), (8, 5)], grow, gains[0])
    return {"grow": grown, "fixed8": arm(folder, "fixed8", [(8, 10)], fixed8, gains[1], **run)}


def reopened(arms: dict[str, list[Run]]) -> dict[str, list[Run]]:
    """The same, read again."""
    return {
        label: [replace(Run.open(run.directory), label=label) for run in runs]
        for label, runs in arms.items()
    }


def judged(claim: ClaimSpec, arms: dict[str, list[Run]]) -> Judgement:
    (judgement,) = judge([claim], [run for runs in arms.values() for run in runs], {})
    return judgement


TENTH = (4.9, 4.8, 4.7), (5.0, 5.0, 5.0)
"""Differences of -0.1, -0.2 and -0.3: mean -0.2, half 4.303 × 0.1 / √3 = 0.248."""
HUNDREDTH = (4.81, 4.8, 4.79), (5.0, 5.0, 5.0)
"""-0.19, -0.2, -0.21: half 4.303 × 0.01 / √3 = 0.025."""


def test_a_claim_is_supported_where_the_interval_excludes_zero(tmp_path: Path) -> None:
    judgement = judged(LOWER, two_arms(tmp_path, *TENTH))
    assert judgement.outcome.verdict is Verdict.WITHIN_NOISE
    assert estimate_of(judgement).half == pytest.approx(T_975[2] * 0.1 / 3**0.5, abs=1e-5)
    judgement = judged(LOWER, two_arms(tmp_path / "b", *HUNDREDTH))
    assert judgement.outcome.verdict is Verdict.SUPPORTED
    assert sentences([judgement, judgement]) == [
        "Growing is better: SUPPORTED. grow 4.800, fixed8 5.000 nats at 8 tokens: -0.200 (95%: "
        "-0.225 to -0.175; 3 seeds ± 0.025, only 16 documents ± 0.000; without the calibration's "
        "error). p < 0.001; < 0.001 by Holm for 2 tests.",
        "grow has learnt to use long context as well as fixed8: SUPPORTED. Gain from context "
        "beyond 2 tokens: grow +0.300 ± 0.013, fixed8 +0.300 ± 0.013 nats, difference "
        "+0.000 ± 0.000 (p < 0.001; < 0.001 by Holm for 2 tests).",
    ]


def test_a_claim_is_not_supported_where_the_other_is_lower(tmp_path: Path) -> None:
    arms = two_arms(tmp_path, (5.19, 5.2, 5.21), (5.0, 5.0, 5.0))
    assert judged(LOWER, arms).outcome.verdict is Verdict.NOT_SUPPORTED


def test_documents_vary_as_seeds_do(tmp_path: Path) -> None:
    grow, fixed8 = HUNDREDTH
    arms = two_arms(tmp_path, grow, fixed8, document_spread=0.4)
    judgement = judged(LOWER, arms)
    # Half of the documents are 0.4 above, half below: deviation 0.4 √(16/15), over √16.
    documents = estimate_of(judgement).parts["documents"]
    assert documents.standard_error == pytest.approx(0.4 / 15**0.5)
    assert documents.half == pytest.approx(T_975[15] * 0.4 / 15**0.5)
    assert estimate_of(judgement).parts["seeds"].half == pytest.approx(T_975[2] * 0.01 / 3**0.5)
    # Together they vary more than either, and less than both at their worst; the documents' part
    # is nearly all of it.
    assert documents.half < estimate_of(judgement).half < documents.half + 0.01
    assert judgement.outcome.verdict is Verdict.WITHIN_NOISE


def test_each_is_judged_at_its_own_length_where_no_length_is_given(tmp_path: Path) -> None:
    """fixed2, which never saw windows of 8, is best in its own on the same targets."""
    arms = two_arms(tmp_path, *HUNDREDTH)
    arms["fixed2"] = arm(tmp_path, "fixed2", [(2, 10)], (4.2, 4.2, 4.2), gains=USES)
    judgement = judged(lower("grow", "fixed2"), arms)
    assert judgement.means == pytest.approx((4.8, 4.5))
    assert judgement.outcome.verdict is Verdict.NOT_SUPPORTED
    assert "grow 4.800, fixed2 4.500 nats each at its own length: +0.300" in judgement.numbers
    # It is trained on the short context alone: nobody asks what it makes of a longer one.
    assert judged(lower("fixed2", "grow"), arms).long_context is None


# ---- long context


def test_a_model_that_sees_nothing_far_back_has_not_learnt_long_context(tmp_path: Path) -> None:
    """grow's loss is far lower, and it makes nothing of what fixed8 uses."""
    judgement = judged(LOWER, two_arms(tmp_path, *HUNDREDTH, gains=(IDLE, USES)))
    assert judgement.outcome.verdict is Verdict.SUPPORTED
    assert long_context_of(judgement).outcome.verdict is Verdict.NOT_SUPPORTED  # -0.3 ± 0.193
    none = judged(LOWER, two_arms(tmp_path / "b", *HUNDREDTH, gains=((0.0, 0.001) * 2, USES)))
    assert long_context_of(none).outcome.verdict is Verdict.NOT_SUPPORTED
    assert "grow +0.001 ± 0.001, fixed8 +0.300 ± 0.013" in long_context_of(none).sentence


def test_a_baseline_that_does_not_use_its_context_proves_nothing(tmp_path: Path) -> None:
    judgement = judged(LOWER, two_arms(tmp_path, *HUNDREDTH, gains=(USES, IDLE)))
    assert judgement.outcome.verdict is Verdict.SUPPORTED  # of efficiency it says nothing
    assert long_context_of(judgement).outcome.verdict is Verdict.INCONCLUSIVE
    assert "fixed8's own gain is not clear of 0" in long_context_of(judgement).sentence


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ((0.295, 0.305, 0.285, 0.295), Verdict.SUPPORTED),  # 0.005 less: within the margin
        ((0.20, 0.21, 0.19, 0.20), Verdict.NOT_SUPPORTED),  # 0.1 less
        ((0.40, 0.41, 0.39, 0.20), Verdict.UNDERPOWERED),  # 0.05 more, ± 0.16
    ],
)
def test_long_context_is_learnt_no_worse_than_throughout(
    tmp_path: Path, gains: tuple[float, float, float, float], verdict: Verdict
) -> None:
    judgement = judged(LOWER, two_arms(tmp_path, *HUNDREDTH, gains=(gains, USES)))
    assert long_context_of(judgement).outcome.verdict is verdict


@pytest.mark.parametrize(
    ("gain", "difference", "verdict"),
    [
        (0.300, -0.0195, Verdict.WITHIN_NOISE),  # about as far behind as the margin
        (0.300, -0.0205, Verdict.WITHIN_NOISE),
        (0.300, -0.0300, Verdict.NOT_SUPPORTED),
        (0.300, -0.0100, Verdict.SUPPORTED),
        (-0.001, None, Verdict.NOT_SUPPORTED),  # surely less than counts, whatever its sign
        (+0.001, None, Verdict.NOT_SUPPORTED),
        (+0.021, None, Verdict.SUPPORTED),
    ],
)
def test_no_verdict_turns_at_a_hair(
    gain: float, difference: float | None, verdict: Verdict
) -> None:
    apart = None if difference is None else Estimate(difference, {"seeds": AROUND})
    outcome = judge_gain(Estimate(gain, {"seeds": AROUND}), apart)
    assert adjusted([("it", outcome)])["it"].verdict is verdict
    assert GAIN_MARGIN == 0.02


def test_each_arm_trained_throughout_is_a_test_of_its_own(tmp_path: Path) -> None:
    """Beside fixed8 grow gains as much, beside fixed8b 0.4 less; whichever claim comes first."""
    arms = two_arms(tmp_path, *HUNDREDTH)
    more = tuple(gain + 0.4 for gain in USES)
    arms["fixed8b"] = arm(tmp_path, "fixed8b", [(8, 10)], (5.0, 5.0, 5.0), more)
    runs = [run for each in arms.values() for run in each]
    claims = [LOWER, lower("grow", "fixed8b", at=8)]
    for order in (claims, claims[::-1]):
        found = {j.claim.against: long_context_of(j).outcome for j in judge(order, runs, {})}
        assert found["fixed8"].verdict is Verdict.SUPPORTED
        assert found["fixed8b"].verdict is Verdict.NOT_SUPPORTED
        assert found["fixed8"].family == 4


def test_without_an_arm_trained_long_throughout_the_gain_alone_counts(tmp_path: Path) -> None:
    arms = two_arms(tmp_path, *HUNDREDTH)
    other = [replace(run, label="leap") for run in arms["grow"]]
    judgement = judged(lower("grow", "leap"), {"grow": arms["grow"], "leap": other})
    assert list(long_context_of(judgement).gains) == ["grow"]
    assert long_context_of(judgement).outcome.verdict is Verdict.SUPPORTED


def estimate_of(judgement: Judgement) -> Estimate:
    assert judgement.estimate is not None
    return judgement.estimate


def long_context_of(judgement: Judgement) -> LongContext:
    assert judgement.long_context is not None
    return judgement.long_context


def long_losses(
    arms: dict[str, list[Run]], gains: Sequence[float], targets: tuple[str, str] = ("a", "a")
) -> LongLosses:
    """On two long documents of 30 and 10 targets."""
    return {
        (run.directory, "whole"): {
            "targets_sha256": target,
            "document_tokens": [30, 10],
            "far_context": far_context({2: [3.0 + gain for gain in gains], 8: [3.0] * len(gains)}),
            "positions": {
                "extrapolation": [
                    {"seq_len": 16, "loss": 0.0, "document_losses": [loss - 0.01 * run.seed] * 2}
                ]
            },
        }
        for (label, loss), target in zip((("grow", 4.0), ("fixed8", 5.0)), targets, strict=True)
        for run in arms[label]
    }


def test_windows_beyond_training_are_judged_where_context_is_used_on_these_documents(
    tmp_path: Path,
) -> None:
    arms = two_arms(tmp_path, *HUNDREDTH)
    runs = [*arms["grow"], *arms["fixed8"]]
    claim = lower("grow", "fixed8", measure="long_loss", at=16)
    (used,) = judge([claim], runs, long_losses(arms, USES))
    assert used.means == pytest.approx((3.99, 4.99))
    assert used.outcome.verdict is Verdict.SUPPORTED
    (idle,) = judge([claim], runs, long_losses(arms, IDLE))  # though it is on held-out text
    assert idle.outcome.verdict is Verdict.INCONCLUSIVE
    assert "grow's gain from context beyond 2 tokens is not clear of 0" in idle.sentence
    (other,) = judge([claim], runs, long_losses(arms, USES, targets=("a", "b")))
    assert "not scored on the same targets" in other.sentence


# ---- what proves nothing


def test_two_seeds_tell_nothing(tmp_path: Path) -> None:
    judgement = judged(LOWER, two_arms(tmp_path, (4.0, 4.01), (5.0, 5.0)))
    assert judgement.outcome.verdict is Verdict.INCONCLUSIVE
    assert f"takes {SEEDS_FOR_A_VERDICT} seeds, here 2" in judgement.sentence
    assert "-0.995" in judgement.sentence  # the figure is said all the same
    described = judged(LOWER.derive(primary=False), two_arms(tmp_path, (4.0, 4.01), (5.0, 5.0)))
    assert described.outcome.verdict is Verdict.DESCRIPTIVE
    assert long_context_of(described).outcome.verdict is Verdict.DESCRIPTIVE


def test_losses_on_other_targets_do_not_compare(tmp_path: Path) -> None:
    arms = two_arms(tmp_path, *HUNDREDTH, targets="b")
    assert "not scored on the same targets" in judged(LOWER, arms).sentence


def test_a_diverged_arm_is_no_evidence(tmp_path: Path) -> None:
    arms = two_arms(tmp_path, (4.8, float("nan"), 4.8), (5.0, 5.0, 5.0))
    judgement = judged(LOWER, arms)
    assert judgement.outcome.verdict is Verdict.INCONCLUSIVE
    assert "diverged: grow" in judgement.sentence
    assert judgement.record()["difference"] is None


@pytest.mark.parametrize("fields", [{}, {"measure": "seconds", "at": None}, {"at": None}])
def test_a_run_that_ended_by_divergence_is_no_evidence(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    arms = two_arms(tmp_path, *HUNDREDTH)
    shutil.rmtree(tmp_path / "fixed8-seed1")
    wild = write_run(tmp_path, "fixed8", [(8, 10)], {8: 5.0}, seed=1, steps_done=3, diverged=True)
    arms["fixed8"][1] = replace(Run.open(wild), label="fixed8")
    judgement = judged(LOWER.derive(**fields), arms)
    assert judgement.outcome.verdict is Verdict.INCONCLUSIVE
    assert "diverged: fixed8-seed1" in judgement.sentence
    assert "unfinished" not in judgement.sentence


def test_one_document_is_no_evidence_however_sure_the_seeds(tmp_path: Path) -> None:
    arms = two_arms(tmp_path, *HUNDREDTH, standard_error=None)
    for runs in arms.values():
        for run in runs:
            path = run.evaluation_path(run.plan.num_steps)
            one = json.loads(path.read_text())
            one |= {"num_documents": 1, "document_tokens": [320]}
            for length in one["lengths"]:
                length["document_losses"] = [length["loss"]]
            path.write_text(json.dumps(one))
    judgement = judged(LOWER, reopened(arms))
    assert judgement.outcome.verdict is Verdict.INCONCLUSIVE
    assert "only one document is scored" in judgement.sentence


def test_seeds_on_other_targets_than_the_first_are_not_averaged(tmp_path: Path) -> None:
    arms = two_arms(tmp_path, *HUNDREDTH)
    path = arms["grow"][2].evaluation_path(15)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"targets_sha256": "b"}))
    arms["grow"][2] = replace(Run.open(arms["grow"][2].directory), label="grow")
    for claim in (LOWER, lower("grow", "fixed8")):
        assert judged(claim, arms).outcome.verdict is Verdict.INCONCLUSIVE
    assert "its seeds are not scored on the same targets: grow" in judged(LOWER, arms).sentence


def test_an_arm_without_boundaries_has_no_jump(tmp_path: Path) -> None:
    judgement = judged(lower("grow", "fixed8", measure="jump"), two_arms(tmp_path, *HUNDREDTH))
    assert judgement.outcome.verdict is Verdict.INCONCLUSIVE
    assert "fixed8" in judgement.outcome.reason


def test_a_boundary_without_a_jump_is_not_called_diverged(tmp_path: Path) -> None:
    """grow's first boundary of three jumps by -0.5, the others do not grow."""
    arms = {
        name: arm(tmp_path, name, [(4, 5), (8, 6), (4, 7), (8, 5)], (4.8, 4.8, 4.8))
        for name in ("grow", "other")
    }
    for run in arms["grow"]:
        for step in (6, 7):
            path = run.directory / "boundaries" / f"step-{step:08d}.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"jump": None}))
    judgement = judged(lower("grow", "other", measure="jump"), arms)
    assert judgement.means == pytest.approx((-0.5, -0.5))


def test_a_short_arm_is_not_asked_for_long_context_though_a_seed_diverged(tmp_path: Path) -> None:
    arms = two_arms(tmp_path, *HUNDREDTH)
    arms["fixed2"] = arm(tmp_path, "fixed2", [(2, 20)], (5.0, 5.0))
    wild = write_run(tmp_path, "fixed2", [(2, 20)], {}, seed=2, steps_done=3, diverged=True)
    arms["fixed2"].append(replace(Run.open(wild), label="fixed2"))
    assert judged(lower("fixed2", "grow"), arms).long_context is None


# ---- the same, and seconds


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ((5.005, 5.0, 4.995), Verdict.SUPPORTED),  # 0 ± 0.012
        ((5.012, 5.01, 5.008), Verdict.SUPPORTED),  # 0.010 ± 0.005
        ((5.02, 5.0, 4.98), Verdict.UNDERPOWERED),  # 0 ± 0.05: the interval is wider than ± 0.02
        ((5.021, 5.015, 5.009), Verdict.WITHIN_NOISE),  # 0.015 ± 0.015
        ((5.105, 5.1, 5.095), Verdict.NOT_SUPPORTED),  # 0.1 ± 0.012
        ((4.905, 4.9, 4.895), Verdict.NOT_SUPPORTED),
    ],
)
def test_the_same_within_a_margin(
    tmp_path: Path, losses: tuple[float, float, float], verdict: Verdict
) -> None:
    arms = two_arms(tmp_path, losses, (5.0, 5.0, 5.0))
    claim = same("grow", "fixed8", within=0.02, at=8)
    # Judged beside no other test.
    assert judged(claim.derive(), without_gains(arms)).outcome.verdict is verdict


def without_gains(arms: dict[str, list[Run]]) -> dict[str, list[Run]]:
    """The same runs as if far context had not been scored."""
    for runs in arms.values():
        for run in runs:
            (path,) = (run.directory / "evaluations").glob(f"step-{run.plan.num_steps:08d}.json")
            path.write_text(json.dumps(json.loads(path.read_text()) | {"far_context": None}))
    return {
        label: [replace(Run.open(run.directory), label=label) for run in runs]
        for label, runs in arms.items()
    }


def test_far_context_that_was_not_scored_is_said(tmp_path: Path) -> None:
    arms = without_gains(two_arms(tmp_path, *HUNDREDTH))
    judgement = judged(LOWER, arms)
    assert judgement.outcome.verdict is Verdict.SUPPORTED
    assert (
        "INCONCLUSIVE (no far-context gain is known: grow)." in long_context_of(judgement).sentence
    )
    own = judged(lower("grow", "fixed8"), arms)
    assert "(far context is not scored: grow; far context is not scored: fixed8)." in own.sentence


def test_seconds_have_a_range_and_no_interval(tmp_path: Path) -> None:
    # Both train 20 calibrated seconds; fixed8 takes a quarter longer.
    arms = two_arms(tmp_path, (4.8, 4.8, 4.8), (5.0, 5.0, 5.0), slowdown=1.25)
    judgement = judged(LOWER.derive(measure="seconds", at=None), arms)
    assert judgement.shares == pytest.approx((-0.2, -0.2, -0.2))
    assert judgement.outcome.verdict is Verdict.SUPPORTED
    assert judgement.outcome.p is None
    numbers = "grow 20.0 s, fixed8 25.0 s measured: -20.0% (-20.0% to -20.0% in 3 repetitions)."
    assert judgement.sentence.endswith(numbers)


def test_seconds_are_those_of_steps_timed_side_by_side_if_they_were(tmp_path: Path) -> None:
    # 10 steps of 4 and 5 of 8 against 10 of 8, at 1 : 2, 1 : 3 and 1 : 1.5 seconds. The first run
    # was slow, which does not count.
    options: dict[str, Any] = {"budget_seconds": None, "calibrated": False}
    arms = {
        name: arm(tmp_path, name, stages, (5.0, 5.0, 5.0), slowdown=slowdown, **options)
        for name, stages, slowdown in [
            ("grow", [(4, 10), (8, 5)], 9.0),
            ("fixed8", [(8, 10)], 1.0),
        ]
    }
    repetitions = [{4: 1_000_000, 8: cost} for cost in (2_000_000, 3_000_000, 1_500_000)]
    recorded = Calibration(step_microseconds=repetitions[0], repetitions=repetitions)
    recorded.write(tmp_path / "calibration.json")
    judgement = judged(LOWER.derive(measure="seconds", at=None), arms)
    assert judgement.shares == pytest.approx((20 / 20 - 1, 25 / 30 - 1, 17.5 / 15 - 1))
    assert judgement.outcome.verdict is Verdict.WITHIN_NOISE
    assert "grow 20.8 s, fixed8 21.7 s calibrated" in judgement.sentence


def test_what_is_not_primary_has_no_verdict_on_seconds_either(tmp_path: Path) -> None:
    arms = two_arms(tmp_path, (4.8, 4.8, 4.8), (5.0, 5.0, 5.0), slowdown=1.25)
    judgement = judged(LOWER.derive(measure="seconds", at=None, primary=False), arms)
    assert judgement.outcome.verdict is Verdict.DESCRIPTIVE


def test_an_odd_slow_run_is_no_proof_of_time_saved(tmp_path: Path) -> None:
    slow = arm(tmp_path / "slow", "fixed8", [(8, 10)], (5.0,), slowdown=2.5)
    arms = two_arms(tmp_path, (4.8, 4.8, 4.8), (5.0, 5.0, 5.0), slowdown=0.98)
    arms["fixed8"] = [*arms["fixed8"][:2], replace(slow[0], label="fixed8")]
    judgement = judged(LOWER.derive(measure="seconds", at=None), arms)
    assert judgement.outcome.verdict is Verdict.WITHIN_NOISE
    assert "-60.0% to +2.0% in 3 repetitions" in judgement.sentence
    alone = {label: runs[:1] for label, runs in arms.items()}
    assert "in 1 repetition)" in judged(LOWER.derive(measure="seconds", at=None), alone).sentence


# ---- many claims, and calibration


def test_a_page_of_claims_shares_its_odds(tmp_path: Path) -> None:
    """Differences of p 0.022 alone; of two such claims the chance is twice that, so neither is."""
    grow, fixed8 = (4.85, 4.8, 4.75), (5.0, 5.0, 5.0)  # -0.2 ± 0.124: t is 6.93, p 0.0202
    arms = without_gains(two_arms(tmp_path, grow, fixed8))
    runs = [run for each in arms.values() for run in each]
    (alone,) = judge([LOWER], runs, {})
    assert alone.outcome.p == pytest.approx(0.0202, abs=1e-4)
    assert alone.outcome.verdict is Verdict.SUPPORTED
    several = [LOWER, LOWER.derive(at=4), LOWER.derive(says="and again")]
    assert {j.outcome.verdict for j in judge(several, runs, {})} == {Verdict.WITHIN_NOISE}
    rest = [LOWER, LOWER.derive(at=4, primary=False), LOWER.derive(says="s", primary=False)]
    first, *described = judge(rest, runs, {})
    assert first.outcome.verdict is Verdict.SUPPORTED
    assert {j.outcome.verdict for j in described} == {Verdict.DESCRIPTIVE}
    assert "DESCRIPTIVE" in described[0].sentence
    assert described[0].sentence.endswith("p = 0.020.")


def test_what_is_significant_of_many_by_holm() -> None:
    # Against 0.05 / 3, then / 2, then / 1.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []


@pytest.mark.parametrize(
    ("seeds", "documents", "rest", "num_documents"),
    [(0.02, 0.08, 0.02, 100), (0.027, 0.05, 0.02, 100), (0.027, 0.09, 0.05, 24)],
)
def test_of_pages_of_twenty_claims_about_nothing_few_have_a_verdict(
    seeds: float, documents: float, rest: float, num_documents: int
) -> None:
    """Three seeds and documents vary, no arm is better: at most 7% of 500 pages may say that one is
    better or worse. The deviations are those of the paper's comparisons at the mini scale."""
    rng = np.random.default_rng(0)
    tokens = np.full(num_documents, 10)
    pages = 0
    for _ in range(500):
        by_seed = rng.normal(0, seeds, (20, 3, 1))
        by_document = rng.normal(0, documents, (20, 1, num_documents))
        differences = by_seed + by_document + rng.normal(0, rest, (20, 3, num_documents))
        found = [judge_difference(crossed(each, tokens)) for each in differences]
        verdicts = {each.verdict for each in adjusted(list(enumerate(found))).values()}
        pages += verdicts != {Verdict.WITHIN_NOISE}
    assert pages <= 35


def test_what_is_asked_twice_is_one_test() -> None:
    once = Outcome(Verdict.SUPPORTED, p=0.03)
    assert adjusted([("a", once), ("a", once)])["a"].verdict is Verdict.SUPPORTED
    assert adjusted([("a", once), ("b", once)])["a"].verdict is Verdict.WITHIN_NOISE


def test_the_calibrations_own_spread_is_part_of_an_interval(tmp_path: Path) -> None:
    """fixed8's loss falls 1 nat while its tokens double. By three calibrations its 160 seconds are
    80, 100 and 64 steps of length 8; grow has 80 seconds of length 4, always 80 steps, and half as
    many of length 8."""
    arms = two_arms(tmp_path, *HUNDREDTH)
    for run in arms["fixed8"]:
        last = run.evaluation_path(10)
        half = json.loads(last.read_text()) | {"step": 5, "tokens": 160, "far_context": None}
        half["lengths"][1]["loss"] += 1.0
        run.evaluation_path(5).write_text(json.dumps(half))
    repetitions = [{4: 1_000_000, 8: cost} for cost in (2_000_000, 1_600_000, 2_500_000)]
    Calibration(step_microseconds=repetitions[0], repetitions=repetitions).write(
        tmp_path / "calibration.json"
    )
    part = estimate_of(judged(LOWER, arms)).parts["calibrations"]
    apart = np.log([(80 + 40) / 80, (80 + 50) / 100, (80 + 32) / 64])
    assert (part.count, part.degrees) == (3, 2)
    assert part.standard_error == pytest.approx(apart.std(ddof=1) / 3**0.5 / np.log(2))
    for run in arms["fixed8"]:  # scored before the run went on with other targets
        third = json.loads(run.evaluation_path(5).read_text()) | {"step": 4, "tokens": 128}
        third["lengths"][1]["loss"] += 5.0
        run.evaluation_path(4).write_text(json.dumps(third | {"targets_sha256": "b"}))
    assert estimate_of(judged(LOWER, reopened(arms))).parts["calibrations"] == part
    # A fixed arm that is not compared, and diverged, has no say in it.
    diverged = arm(tmp_path, "fixed4", [(4, 20)], (float("nan"),) * 3)
    assert estimate_of(judged(LOWER, {"fixed4": diverged, **arms})).parts["calibrations"] == part
    wild = write_run(tmp_path, "fixed2", [(2, 20)], {}, steps_done=3, diverged=True)
    ended = [replace(Run.open(wild), label="fixed2")]
    assert estimate_of(judged(LOWER, {"fixed2": ended, **arms})).parts["calibrations"] == part
    # A repetition that leaves a stage without a step gives no plan: the sentence says so.
    Calibration(
        step_microseconds=repetitions[0], repetitions=[*repetitions, {4: 1_000_000, 8: 10**9}]
    ).write(tmp_path / "calibration.json")
    assert "without the calibration's error" in judged(LOWER, reopened(arms)).numbers


def test_seeds_with_other_documents_under_the_same_name_do_not_compare(tmp_path: Path) -> None:
    arms = two_arms(tmp_path, *HUNDREDTH)
    path = arms["grow"][0].evaluation_path(15)
    other = json.loads(path.read_text())
    other["far_context"] = far_context({2: [5.0], 8: [4.8]})
    path.write_text(json.dumps(other))
    arms["grow"][0] = replace(Run.open(arms["grow"][0].directory), label="grow")
    judgement = judged(lower("grow", "fixed8"), arms)
    assert judgement.outcome.verdict is Verdict.INCONCLUSIVE
    assert long_context_of(judgement).outcome.verdict is Verdict.INCONCLUSIVE
