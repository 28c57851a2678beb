"""Claims judged from records: literal losses over three seeds, intervals checkable by hand."""

from dataclasses import replace

import pytest

from glray.report.verdict import Verdict, judge
from glray.run.run import Run
from glray.spec import ClaimSpec
from tests.report.written import write_run

LOWER = ClaimSpec(says="Growing is better", arm="grow", against="fixed8")


def arms_of(tmp_path, grow, fixed8, *, context_gain=(0.1, 0.1, 0.1), targets=("a", "a"), **run):
    """Losses at 8 of ``grow`` and ``fixed8``, one a seed; ``fixed8`` is ``context_gain`` worse in
    windows of 4."""
    arms = {"grow": [], "fixed8": []}
    for seed, loss in enumerate(grow):
        written = write_run(
            tmp_path, "grow", [(4, 10), (8, 5)], {4: loss, 8: loss}, seed=seed, targets=targets[0]
        )
        arms["grow"].append(replace(Run.open(written), label="grow"))
    for seed, (loss, gain) in enumerate(zip(fixed8, context_gain, strict=False)):
        losses = {4: loss + gain, 8: loss}
        written = write_run(
            tmp_path, "fixed8", [(8, 10)], losses, seed=seed, targets=targets[1], **run
        )
        arms["fixed8"].append(replace(Run.open(written), label="fixed8"))
    return arms


def judged(claim, arms):
    (judgement,) = judge([claim], [run for runs in arms.values() for run in runs], {})
    return judgement


def test_a_claim_holds_where_the_interval_excludes_zero(tmp_path):
    # Differences -0.1, -0.2, -0.3: mean -0.2, half 4.303 × 0.1 / √3 = 0.248.
    arms = arms_of(tmp_path, (4.9, 4.8, 4.7), (5.0, 5.0, 5.0))
    assert judged(LOWER, arms).verdict is Verdict.WITHIN_NOISE
    assert judged(LOWER, arms).half == pytest.approx(0.2484, abs=1e-4)
    # -0.19, -0.2, -0.21: half 4.303 × 0.01 / √3 = 0.025.
    arms = arms_of(tmp_path / "b", (4.81, 4.8, 4.79), (5.0, 5.0, 5.0))
    judgement = judged(LOWER, arms)
    assert judgement.verdict is Verdict.SUPPORTED
    assert judgement.sentence == (
        "Growing is better: SUPPORTED. grow 4.800, fixed8 5.000 nats at 8 tokens: -0.200 (95% over "
        "3 seeds, paired: -0.225 to -0.175)."
    )


def test_a_claim_does_not_hold_where_the_other_is_lower(tmp_path):
    arms = arms_of(tmp_path, (5.19, 5.2, 5.21), (5.0, 5.0, 5.0))
    assert judged(LOWER, arms).verdict is Verdict.NOT_SUPPORTED


def test_two_seeds_tell_nothing(tmp_path):
    arms = arms_of(tmp_path, (4.0, 4.01), (5.0, 5.0))
    judgement = judged(LOWER, arms)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert "takes 3 seeds, here 2" in judgement.sentence
    assert "-0.995" in judgement.sentence  # the figure is said all the same


@pytest.mark.parametrize("gain", [(0.0, 0.0, 0.0), (0.3, -0.1, 0.2), (-0.1, -0.1, -0.1)])
def test_a_baseline_that_does_not_use_its_context_proves_nothing(tmp_path, gain):
    arms = arms_of(tmp_path, (4.81, 4.8, 4.79), (5.0, 5.0, 5.0), context_gain=gain)
    judgement = judged(LOWER, arms)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert "fixed8 does not use its context" in judgement.reason
    seconds = LOWER.derive(measure="seconds")
    assert judged(seconds, arms).verdict is not Verdict.INCONCLUSIVE


def test_losses_on_other_targets_do_not_compare(tmp_path):
    arms = arms_of(tmp_path, (4.81, 4.8, 4.79), (5.0, 5.0, 5.0), targets=("a", "b"))
    assert "same held-out targets" in judged(LOWER, arms).reason


def test_a_diverged_arm_is_no_evidence(tmp_path):
    arms = arms_of(tmp_path, (4.8, float("nan"), 4.8), (5.0, 5.0, 5.0))
    judgement = judged(LOWER, arms)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert "unfinished, not scored or diverged: grow" in judgement.sentence


def longer(run: Run, seq_len: int) -> Run:
    """The same records under another fixed length."""
    stage = run.plan.stages[0].model_copy(update={"seq_len": seq_len})
    plan = run.plan.model_copy(update={"stages": (stage,)})
    return replace(run, manifest=run.manifest.model_copy(update={"plan": plan}))


def test_a_baseline_that_diverged_or_is_not_scored_proves_nothing(tmp_path):
    arms = arms_of(tmp_path, (4.81, 4.8, 4.79), (5.0, 5.0, 5.0))
    assert judged(LOWER, arms).verdict is Verdict.SUPPORTED
    # The longest fixed arm, and it has no loss at 16.
    arms["fixed16"] = [replace(longer(run, 16), label="fixed16") for run in arms["fixed8"]]
    judgement = judged(LOWER.derive(at=8), arms)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert "fixed16, the baseline, is not scored at 4 and 16, or diverged" in judgement.reason


def test_without_a_fixed_arm_the_claims_own_must_use_its_context(tmp_path):
    arms = arms_of(tmp_path, (4.81, 4.8, 4.79), (5.0, 5.0, 5.0))
    alone = {"grow": arms["grow"], "leap": [replace(run, label="leap") for run in arms["grow"]]}
    judgement = judged(ClaimSpec(says="s", arm="grow", against="leap"), alone)
    assert "grow does not use its context" in judgement.reason


def test_long_losses_on_other_tokens_do_not_compare(tmp_path):
    arms = arms_of(tmp_path, (4.81, 4.8, 4.79), (5.0, 5.0, 5.0))
    claim = LOWER.derive(measure="long_loss", at=16)

    def scored(targets):
        return {
            (run.directory, "whole"): {
                "targets_sha256": targets[label],
                "positions": {"extrapolation": [{"seq_len": 16, "loss": loss - 0.01 * run.seed}]},
            }
            for (label, loss) in (("grow", 4.0), ("fixed8", 5.0))
            for run in arms[label]
        }

    runs = [*arms["grow"], *arms["fixed8"]]
    (same,) = judge([claim], runs, scored({"grow": "a", "fixed8": "a"}))
    assert same.verdict is Verdict.SUPPORTED
    (other,) = judge([claim], runs, scored({"grow": "a", "fixed8": "b"}))
    assert "same tokens of the long documents" in other.reason


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ((5.005, 5.0, 4.995), Verdict.SUPPORTED),  # 0 ± 0.012
        ((5.02, 5.0, 4.98), Verdict.WITHIN_NOISE),  # 0 ± 0.05
        ((5.105, 5.1, 5.095), Verdict.NOT_SUPPORTED),  # 0.1 ± 0.012
        ((4.905, 4.9, 4.895), Verdict.NOT_SUPPORTED),
    ],
)
def test_the_same_within_a_margin(tmp_path, losses, verdict):
    arms = arms_of(tmp_path, losses, (5.0, 5.0, 5.0))
    assert judged(LOWER.derive(within=0.02), arms).verdict is verdict


def test_seconds_count_as_a_share_of_the_others(tmp_path):
    # Both train 20 calibrated seconds; fixed8 takes a quarter longer.
    arms = arms_of(tmp_path, (4.8, 4.8, 4.8), (5.0, 5.0, 5.0), slowdown=1.25)
    judgement = judged(LOWER.derive(measure="seconds"), arms)
    assert judgement.difference == pytest.approx(-0.2)
    assert "grow 20.0 s, fixed8 25.0 s measured: -20.0%" in judgement.sentence


def test_an_arm_without_boundaries_has_no_jump(tmp_path):
    arms = arms_of(tmp_path, (4.8, 4.8, 4.8), (5.0, 5.0, 5.0))
    judgement = judged(LOWER.derive(measure="jump"), arms)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert "fixed8" in judgement.reason
