"""A schedule that grows late looks worst until it arrives: ASHA drops it, glray's rule keeps it."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from glray.plan import make_plan
from glray.run.records import Evaluation, LengthLoss
from glray.search.stopping import Standing, stop
from glray.spec import OptimizerSpec

from ..tiny import arm, tiny_spec

STEPS = (20, 40, 60, 80, 100)
CURVES = {
    #            length trained up to each step,  held-out loss in windows of that length, and of 32
    "fixed": ((32, 32, 32, 32, 32), (6.0, 5.2, 4.7, 4.4, 4.2), (6.0, 5.2, 4.7, 4.4, 4.2)),
    "early": ((8, 32, 32, 32, 32), (5.6, 4.9, 4.5, 4.25, 4.05), (6.3, 4.9, 4.5, 4.25, 4.05)),
    "middle": ((8, 8, 32, 32, 32), (5.6, 4.8, 4.45, 4.1, 3.95), (6.3, 6.1, 4.45, 4.1, 3.95)),
    "late": ((8, 8, 8, 8, 32), (5.6, 4.8, 4.4, 4.2, 3.8), (6.3, 6.1, 6.2, 6.3, 3.8)),
}
"""Four trials of 100 steps, which train at 8 and then at 32, or only at 32. The last one wins, and
until it arrives at 32 its loss there is by far the highest."""

WINNER = "late"
NUM_DOCUMENTS = 40
RNG = np.random.default_rng(0)
LEVELS = RNG.normal(0, 1, NUM_DOCUMENTS)
"""How hard each document is: far more than the trials differ by, and the same for all of them."""


def standing(trial: str, at: int, seq_lens: tuple[int, ...], loss: float) -> Standing:
    """After ``STEPS[at]`` steps, at the length trained; its documents differ in level and noise."""
    stage_start = max((STEPS[n] for n in range(at) if seq_lens[n] != seq_lens[at]), default=0)
    noise = np.random.default_rng([ord(trial[0]), at]).normal(0, 0.05, NUM_DOCUMENTS)
    return Standing(
        trial,
        step=STEPS[at],
        seq_len=seq_lens[at],
        stage_steps=STEPS[at] - stage_start,
        lr=1e-2 * (1 - STEPS[at] / 200),
        document_tokens=np.full(NUM_DOCUMENTS, 64),
        document_losses=loss + LEVELS + noise - noise.mean() - LEVELS.mean(),
    )


def stopped_by_rule(max_behind: float | None) -> dict[str, str]:
    """Those of the trials, all trained at once, that the rule stops before their end, and why."""
    seen: list[Standing] = []
    stopped: dict[str, str] = {}
    for at in range(len(STEPS) - 1):
        now = [
            standing(trial, at, seq_lens, losses[at])
            for trial, (seq_lens, losses, _) in CURVES.items()
            if trial not in stopped
        ]
        seen += now
        for one in now:
            if why := stop(one, seen, max_behind):
                stopped[one.trial] = why.sentence
    return stopped


@pytest.mark.parametrize("reduction_factor", [2, 4])
def test_asha_on_the_longest_length_drops_the_winner_and_the_rule_keeps_it(
    reduction_factor: int,
) -> None:
    """ASHA compares a trial with those that have reported before it, so here the winner is last."""
    assert min(CURVES, key=lambda trial: CURVES[trial][2][-1]) == WINNER
    asha = ASHAScheduler(
        time_attr="step",
        metric="loss",
        mode="min",
        max_t=1000,
        grace_period=20,
        reduction_factor=reduction_factor,
    )
    trials = {trial: SimpleNamespace(trial_id=trial) for trial in CURVES}
    for trial in trials.values():
        asha.on_trial_add(None, trial)
    dropped = []
    for at, step in enumerate(STEPS):
        for name, (_, _, at_longest) in CURVES.items():
            if name not in dropped:
                result = {"step": step, "loss": at_longest[at]}
                if asha.on_trial_result(None, trials[name], result) == TrialScheduler.STOP:
                    dropped.append(name)
    assert WINNER in dropped
    assert WINNER not in stopped_by_rule(max_behind=0.0)


def test_the_rule_stops_what_is_behind_where_it_has_every_advantage() -> None:
    """After 40 steps fixed has trained at 32 for 40 of them, early for 20, and is 0.30 behind it.
    After 60 early is 0.05 behind middle, after 80 it is 0.15. The two at 8 are alike."""
    stopped = stopped_by_rule(max_behind=0.1)
    assert stopped.keys() == {"fixed", "early"}
    assert stopped["fixed"].startswith("is 0.30 ± 0.0")
    assert stopped["fixed"].endswith("nats behind early at 32 tokens after 40 steps")
    assert stopped_by_rule(max_behind=0.6) == {}


def test_by_default_none_is_stopped() -> None:
    assert stopped_by_rule(max_behind=None) == {}


def one(trial: str, loss: float, **fields: object) -> Standing:
    """Of 40 documents after 40 steps at 32 tokens, 20 of them in that stage."""
    document_losses = loss + LEVELS + 0.02 * RNG.normal(0, 1, NUM_DOCUMENTS)
    declared: dict[str, object] = {
        "step": 40,
        "seq_len": 32,
        "stage_steps": 20,
        "lr": 1e-2,
        "document_tokens": np.full(NUM_DOCUMENTS, 64),
        "document_losses": document_losses,
    }
    return Standing(trial, **(declared | fields))  # type: ignore[arg-type]


def test_only_a_rival_without_a_head_start_counts() -> None:
    trial = one("trial", 5.0)
    for rival, counts in (
        (one("rival", 4.0), True),
        (one("rival", 4.0, stage_steps=5), True),
        (one("rival", 4.0, lr=2e-2), True),
        (one("rival", 4.0, seq_len=8), False),
        (one("rival", 4.0, step=60), False),
        (one("rival", 4.0, stage_steps=21), False),
        (one("rival", 4.0, lr=9e-3), False),
        (one("trial", 4.0), False),
        (one("rival", 6.0), False),
    ):
        assert (stop(trial, [trial, rival], 0.0) is not None) == counts, rival


def test_losses_are_paired_by_document() -> None:
    """The documents' levels vary by 1 nat, the trials differ by 0.05 in all of them: unpaired, a
    standard error of 0.2 would hide that. A difference within the noise stops nothing."""
    trial, rival = one("trial", 5.05), one("rival", 5.0)
    found = stop(trial, [rival], 0.0)
    assert found is not None
    assert found.sentence.startswith("is 0.05 ± 0.01 nats behind rival at 32 tokens after 40 steps")
    noisy = one("rival", 5.0, document_losses=trial.document_losses[::-1] - 0.05)
    assert stop(trial, [noisy], 0.0) is None
    assert stop(trial, [rival], 0.1) is None


def test_a_trial_that_shares_all_its_steps_is_not_behind() -> None:
    trial = one("trial", 5.0)
    twin = one("twin", 5.0, document_losses=trial.document_losses)
    assert stop(trial, [twin], 0.0) is None


def test_a_standing_is_read_from_an_evaluation(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path, optimizer=OptimizerSpec(lr=1e-2))
    plan = make_plan(spec, arm("grow", 8, 16, 32))
    assert plan is not None
    assert plan.stage_ends == (4, 8, 12)

    def evaluated(step: int, trained_seq_len: int) -> Standing | None:
        scores = [
            LengthLoss(
                seq_len=seq_len,
                loss=float(seq_len),
                standard_error=None,
                document_losses=np.array([float(seq_len)]),
                bits_per_byte=1.0,
                loss_by_position=np.zeros(seq_len),
            )
            for seq_len in (8, 32)
        ]
        evaluation = Evaluation(
            step=step,
            tokens=step * 64,
            calibrated_seconds=None,
            measured_seconds=1.0,
            trained_seq_len=trained_seq_len,
            eval_seconds=1.0,
            targets_sha256="0",
            num_documents=1,
            document_tokens=np.array([128]),
            num_target_tokens=128,
            lengths=tuple(scores),
        )
        return Standing.of("trial", plan, spec.optimizer, evaluation)

    in_last = evaluated(10, 32)
    assert in_last is not None
    assert (in_last.step, in_last.seq_len, in_last.stage_steps) == (10, 32, 2)
    assert in_last.document_losses.tolist() == [32.0]
    at_boundary = evaluated(4, 8)  # the end of the first stage, not yet the second
    assert at_boundary is not None
    assert (at_boundary.seq_len, at_boundary.stage_steps) == (8, 4)
    assert 0 < in_last.lr < at_boundary.lr < 1e-2
    assert evaluated(8, 16) is None  # not scored at 16
