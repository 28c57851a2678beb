"""Claims judged from records: literal losses over three seeds, intervals checkable by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest

from glray.report.outcome import Verdict, of_difference
from glray.report.verdict import judge
from glray.run.records import Calibration
from glray.run.run import Run
from glray.run.statistics import SEEDS_FOR_A_VERDICT, crossed, holm
from glray.spec import lower, same
from tests.report.written import far_context, write_run

T_975 = {2: 4.303, 3: 3.182, 15: 2.131}
"""Student's t of a 95% interval, from a printed table."""

LOWER = lower("grow", "fixed8", says="Growing is better", at=8)
USES, IDLE = (0.30, 0.31, 0.29, 0.30), (0.1, -0.1, 0.1, -0.1)
"""Far-context gains of four documents: 0.3 ± 0.013, and 0 ± 0.184."""


def arm(folder, name, stages, losses, gains=USES, **run):
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


def two_arms(folder, grow, fixed8, gains=(USES, USES), **run):
    grown = arm(folder, "grow", [(4, 10), (8, 5)], grow, gains[0])
    return {"grow": grown, "fixed8": arm(folder, "fixed8", [(8, 10)], fixed8, gains[1], **run)}


def judged(claim, arms):
    (judgement,) = judge([claim], [run for runs in arms.values() for run in runs], {})
    return judgement


TENTH = (4.9, 4.8, 4.7), (5.0, 5.0, 5.0)
"""Differences of -0.1, -0.2 and -0.3: mean -0.2, half 4.303 × 0.1 / √3 = 0.248."""
HUNDREDTH = (4.81, 4.8, 4.79), (5.0, 5.0, 5.0)
"""-0.19, -0.2, -0.21: half 4.303 × 0.01 / √3 = 0.025."""


def test_a_claim_is_supported_where_the_interval_excludes_zero(tmp_path):
    judgement = judged(LOWER, two_arms(tmp_path, *TENTH))
    assert judgement.outcome.verdict is Verdict.WITHIN_NOISE
    assert judgement.estimate.half == pytest.approx(T_975[2] * 0.1 / 3**0.5, abs=1e-5)
    judgement = judged(LOWER, two_arms(tmp_path / "b", *HUNDREDTH))
    assert judgement.outcome.verdict is Verdict.SUPPORTED
    assert judgement.sentence == (
        "Growing is better: SUPPORTED. grow 4.800, fixed8 5.000 nats at 8 tokens: -0.200 (95%: "
        "-0.225 to -0.175; 3 seeds ± 0.025, 16 documents ± 0.000; p 0.001, by Holm of 2 tests "
        "0.001). Long context: SUPPORTED. Gain from context beyond 2 tokens: grow +0.300 ± 0.013, "
        "fixed8 +0.300 ± 0.013 nats, +0.000 ± 0.000 (p 0.000, by Holm of 2 tests 0.000)."
    )


def test_a_claim_is_not_supported_where_the_other_is_lower(tmp_path):
    arms = two_arms(tmp_path, (5.19, 5.2, 5.21), (5.0, 5.0, 5.0))
    assert judged(LOWER, arms).outcome.verdict is Verdict.NOT_SUPPORTED


def test_documents_vary_as_seeds_do(tmp_path):
    grow, fixed8 = HUNDREDTH
    arms = two_arms(tmp_path, grow, fixed8, document_spread=0.4)
    judgement = judged(LOWER, arms)
    # Half of the documents are 0.4 above, half below: deviation 0.4 √(16/15), over √16.
    documents = judgement.estimate.parts["documents"]
    assert documents.standard_error == pytest.approx(0.4 / 15**0.5)
    assert documents.half == pytest.approx(T_975[15] * 0.4 / 15**0.5)
    assert judgement.estimate.parts["seeds"].half == pytest.approx(T_975[2] * 0.01 / 3**0.5)
    # The documents' part is nearly all of it, so that nearly all their degrees of freedom are left.
    assert judgement.estimate.degrees == 15
    error = (0.4**2 / 15 + 0.01**2 / 3) ** 0.5
    assert judgement.estimate.half == pytest.approx(T_975[15] * error)
    assert judgement.outcome.verdict is Verdict.WITHIN_NOISE


def test_each_is_judged_at_its_own_length_where_no_length_is_given(tmp_path):
    """fixed2, which never saw windows of 8, is best in its own on the same targets."""
    arms = two_arms(tmp_path, *HUNDREDTH)
    arms["fixed2"] = arm(tmp_path, "fixed2", [(2, 10)], (4.2, 4.2, 4.2), gains=USES)
    judgement = judged(lower("grow", "fixed2"), arms)
    assert judgement.means == pytest.approx((4.8, 4.5))
    assert judgement.outcome.verdict is Verdict.NOT_SUPPORTED
    assert "grow 4.800, fixed2 4.500 nats each at its own length: +0.300" in judgement.sentence
    # It is trained on the short context alone: nobody asks what it makes of a longer one.
    assert judged(lower("fixed2", "grow"), arms).long_context is None


# ---- long context


def test_a_model_that_sees_nothing_far_back_has_not_learnt_long_context(tmp_path):
    """grow's loss is far lower, and it makes nothing of what fixed8 uses."""
    judgement = judged(LOWER, two_arms(tmp_path, *HUNDREDTH, gains=(IDLE, USES)))
    assert judgement.outcome.verdict is Verdict.SUPPORTED
    assert judgement.long_context.outcome.verdict is Verdict.NOT_SUPPORTED  # -0.3 ± 0.193
    none = judged(LOWER, two_arms(tmp_path / "b", *HUNDREDTH, gains=((0.0, 0.001) * 2, USES)))
    assert none.long_context.outcome.verdict is Verdict.NOT_SUPPORTED
    assert "grow +0.001 ± 0.001, fixed8 +0.300 ± 0.013" in none.sentence


def test_a_baseline_that_does_not_use_its_context_proves_nothing(tmp_path):
    judgement = judged(LOWER, two_arms(tmp_path, *HUNDREDTH, gains=(USES, IDLE)))
    assert judgement.outcome.verdict is Verdict.SUPPORTED  # of efficiency it says nothing
    assert judgement.long_context.outcome.verdict is Verdict.INCONCLUSIVE
    assert "fixed8 gains nothing from context beyond 2 tokens" in judgement.sentence


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ((0.295, 0.305, 0.285, 0.295), Verdict.SUPPORTED),  # 0.005 less: within the margin
        ((0.20, 0.21, 0.19, 0.20), Verdict.NOT_SUPPORTED),  # 0.1 less
        ((0.40, 0.41, 0.39, 0.20), Verdict.UNDERPOWERED),  # 0.05 more, ± 0.16
    ],
)
def test_long_context_is_learnt_no_worse_than_throughout(tmp_path, gains, verdict):
    judgement = judged(LOWER, two_arms(tmp_path, *HUNDREDTH, gains=(gains, USES)))
    assert judgement.long_context.outcome.verdict is verdict


def test_without_an_arm_trained_long_throughout_the_gain_alone_counts(tmp_path):
    arms = two_arms(tmp_path, *HUNDREDTH)
    other = [replace(run, label="leap") for run in arms["grow"]]
    judgement = judged(lower("grow", "leap"), {"grow": arms["grow"], "leap": other})
    assert list(judgement.long_context.gains) == ["grow"]
    assert judgement.long_context.outcome.verdict is Verdict.SUPPORTED


def long_losses(arms, gains, targets=("a", "a")):
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


def test_windows_beyond_training_are_judged_where_context_is_used_on_these_documents(tmp_path):
    arms = two_arms(tmp_path, *HUNDREDTH)
    runs = [*arms["grow"], *arms["fixed8"]]
    claim = lower("grow", "fixed8", measure="long_loss", at=16)
    (used,) = judge([claim], runs, long_losses(arms, USES))
    assert used.means == pytest.approx((3.99, 4.99))
    assert used.outcome.verdict is Verdict.SUPPORTED
    (idle,) = judge([claim], runs, long_losses(arms, IDLE))  # though it is on held-out text
    assert idle.outcome.verdict is Verdict.INCONCLUSIVE
    assert "grow gains nothing from context beyond 2 tokens: +0.000 ± 0.184" in idle.sentence
    (other,) = judge([claim], runs, long_losses(arms, USES, targets=("a", "b")))
    assert "not scored on the same targets" in other.sentence


# ---- what proves nothing


def test_two_seeds_tell_nothing(tmp_path):
    judgement = judged(LOWER, two_arms(tmp_path, (4.0, 4.01), (5.0, 5.0)))
    assert judgement.outcome.verdict is Verdict.INCONCLUSIVE
    assert f"takes {SEEDS_FOR_A_VERDICT} seeds, here 2" in judgement.sentence
    assert "-0.995" in judgement.sentence  # the figure is said all the same


def test_losses_on_other_targets_do_not_compare(tmp_path):
    arms = two_arms(tmp_path, *HUNDREDTH, targets="b")
    assert "not scored on the same targets" in judged(LOWER, arms).sentence


def test_a_diverged_arm_is_no_evidence(tmp_path):
    arms = two_arms(tmp_path, (4.8, float("nan"), 4.8), (5.0, 5.0, 5.0))
    judgement = judged(LOWER, arms)
    assert judgement.outcome.verdict is Verdict.INCONCLUSIVE
    assert "unfinished, not scored or diverged: grow" in judgement.sentence
    assert judgement.record()["difference"] is None


def test_an_arm_without_boundaries_has_no_jump(tmp_path):
    judgement = judged(lower("grow", "fixed8", measure="jump"), two_arms(tmp_path, *HUNDREDTH))
    assert judgement.outcome.verdict is Verdict.INCONCLUSIVE
    assert "fixed8" in judgement.outcome.reason


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
def test_the_same_within_a_margin(tmp_path, losses, verdict):
    arms = two_arms(tmp_path, losses, (5.0, 5.0, 5.0))
    claim = same("grow", "fixed8", within=0.02, at=8)
    # Judged beside no other test.
    assert judged(claim.derive(), without_gains(arms)).outcome.verdict is verdict


def without_gains(arms):
    """The same runs as if far context had not been scored."""
    for runs in arms.values():
        for run in runs:
            (path,) = (run.directory / "evaluations").glob(f"step-{run.plan.num_steps:08d}.json")
            path.write_text(json.dumps(json.loads(path.read_text()) | {"far_context": None}))
    return {
        label: [replace(Run.open(run.directory), label=label) for run in runs]
        for label, runs in arms.items()
    }


def test_far_context_that_was_not_scored_is_said(tmp_path):
    arms = without_gains(two_arms(tmp_path, *HUNDREDTH))
    judgement = judged(LOWER, arms)
    assert judgement.outcome.verdict is Verdict.SUPPORTED
    assert "Long context: INCONCLUSIVE (far context is not scored: grow)." in judgement.sentence
    own = judged(lower("grow", "fixed8"), arms)
    assert "unfinished, not scored or diverged: grow and fixed8" in own.sentence


def test_seconds_have_a_range_and_no_interval(tmp_path):
    # Both train 20 calibrated seconds; fixed8 takes a quarter longer.
    arms = two_arms(tmp_path, (4.8, 4.8, 4.8), (5.0, 5.0, 5.0), slowdown=1.25)
    judgement = judged(LOWER.derive(measure="seconds", at=None), arms)
    assert judgement.shares == pytest.approx((-0.2, -0.2, -0.2))
    assert judgement.outcome.verdict is Verdict.SUPPORTED
    assert judgement.outcome.p is None
    numbers = "grow 20.0 s, fixed8 25.0 s measured: -20.0% (-20.0% to -20.0% in 3 repetitions)."
    assert judgement.sentence.endswith(numbers)


def test_an_odd_slow_run_is_no_proof_of_time_saved(tmp_path):
    slow = arm(tmp_path / "slow", "fixed8", [(8, 10)], (5.0,), slowdown=2.5)
    arms = two_arms(tmp_path, (4.8, 4.8, 4.8), (5.0, 5.0, 5.0), slowdown=0.98)
    arms["fixed8"] = [*arms["fixed8"][:2], replace(slow[0], label="fixed8")]
    judgement = judged(LOWER.derive(measure="seconds", at=None), arms)
    assert judgement.outcome.verdict is Verdict.WITHIN_NOISE
    assert "-60.0% to +2.0% in 3 repetitions" in judgement.sentence


# ---- many claims, and calibration


def test_a_page_of_claims_shares_its_odds(tmp_path):
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
    assert "p 0.020)" in described[0].sentence


def test_what_is_significant_of_many_by_holm():
    # Against 0.05 / 3, then / 2, then / 1.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []


def test_of_pages_of_twenty_claims_about_nothing_few_support_one():
    """Seeds and documents vary, no arm is better: at most 7% of 1,000 pages may say that one is."""
    rng = np.random.default_rng(0)
    tokens = np.full(24, 10)
    pages = 0
    for _ in range(1000):
        seeds = rng.normal(0, 0.02, (20, 3, 1))
        documents = rng.normal(0, 0.08, (20, 1, 24))
        rest = rng.normal(0, 0.1, (20, 3, 24))
        differences = seeds + documents + rest
        found = [of_difference(crossed(each, tokens)) for each in differences]
        adjusted = holm([outcome.p for outcome in found])
        pages += any(
            replace(outcome, p_adjusted=p, family=20).verdict is Verdict.SUPPORTED
            for outcome, p in zip(found, adjusted, strict=True)
        )
    assert pages <= 70


def test_the_calibrations_own_spread_is_part_of_an_interval(tmp_path):
    """fixed8's loss falls 1 nat while its tokens double; three calibrations differ in what a step
    costs at 8 and not at 4."""
    arms = two_arms(tmp_path, *HUNDREDTH)
    for run in arms["fixed8"]:
        last = run.evaluation_path(10)
        half = json.loads(last.read_text()) | {"step": 5, "tokens": 160, "far_context": None}
        half["lengths"][1]["loss"] += 1.0
        run.evaluation_path(5).write_text(json.dumps(half))
    e = float(np.e)
    microseconds = [round(1e6 * e**log) for log in (1.0, 1.03, 0.97)]
    Calibration(
        step_microseconds={4: 1_000_000, 8: microseconds[0]},
        repetitions=tuple({4: 1_000_000, 8: cost} for cost in microseconds),
    ).write(tmp_path / "calibration.json")
    part = judged(LOWER, arms).estimate.parts["calibrations"]
    # grow has a third of its steps at 8, fixed8 all: 2/3 of a spread of 0.03, over √3, times the
    # slope 1 / ln 2.
    assert part.count == 3
    assert part.standard_error == pytest.approx(2 / 3 * 0.03 / 3**0.5 / np.log(2), abs=1e-6)


def test_a_verdict_can_be_made_again_from_what_is_kept(tmp_path):
    """From the record's numbers and a printed table of Student's t alone."""
    kept = json.loads(json.dumps(judged(LOWER, two_arms(tmp_path, *HUNDREDTH)).record()))
    difference = kept["difference"]
    error = sum(part["standard_error"] ** 2 for part in difference["parts"].values()) ** 0.5
    assert difference["degrees"] == 2
    half = T_975[2] * error
    assert difference["mean"] + half < 0  # alone it is
    assert kept["p"] < 0.05 / kept["family"]  # and beside the others
    assert kept["verdict"] == "supported"
    assert kept["long_context"]["verdict"] == "supported"
