"""Trials ranked, told apart, on the front, and what they cost: by hand."""

import re
from pathlib import Path

import pytest

from glray.errors import UserError
from glray.report.answers import answer, cost, front, noise, rate_at_end, target, unranked
from glray.report.confirmation import Confirmation
from glray.report.effects import effects_of
from glray.report.search_sheets import confirmed, ranking
from glray.report.trials import Cost, Trials, far_limit
from glray.run.records import Stopped
from glray.run.run import STOPPED, Run, open_runs
from glray.spec import to_yaml

from .searched import write_trial
from .written import scored_at, write_run

BASELINES = ("8x100", "4x50-8x50")


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """Losses at 4 and 8. The documents of ``4x30-8x70`` lie 0.04 above and below in turn, those of
    the others at their mean."""
    directory = tmp_path / "toy-search"
    write_trial(directory, "8x100", {4: 4.9, 8: 4.5})
    write_trial(directory, "4x50-8x50", {4: 4.6, 8: 4.4}, slowdown=1.5)
    write_trial(directory, "4x30-8x70", {4: 4.7, 8: 4.41}, document_spread=0.04)
    write_trial(directory, "4x90-8x10", {4: 4.5, 8: 4.7}, fork=("4x50-8x50-seed0", 10))
    write_trial(directory, "4x20-8x80", {4: 4.7, 8: 4.6}, steps_done=6, diverged=True)
    write_trial(directory, "4x10-8x90", {4: 4.7, 8: 4.6}, steps_done=5)
    return directory


def trials_of(directory: Path) -> Trials:
    return Trials.of(open_runs([directory]), 8, BASELINES)


def test_trials_are_ranked_by_loss_and_the_others_last_by_name(toy: Path) -> None:
    trials = trials_of(toy)
    assert [(trial.name, trial.unranked) for trial in trials.ranked] == [
        ("4x50-8x50", ""),
        ("4x30-8x70", ""),
        ("8x100", ""),
        ("4x90-8x10", ""),
        ("4x10-8x90", "unfinished"),
        ("4x20-8x80", "diverged"),
    ]
    assert trials.fixed is trials.ranked[2]
    assert trials.equal is trials.best
    assert trials.ranked[1].shares == (0.3, 0.7)
    assert trials.ranked[1].boundaries == (0.3,)
    assert unranked(trials) == "Ranked last: 1 diverged: 4x20-8x80; 1 unfinished: 4x10-8x90."


def test_a_stopped_trial_is_said_to_be(toy: Path) -> None:
    reason = "is 0.31 ± 0.02 nats behind 4x50-8x50 at 8 tokens after 5 steps"
    Stopped(step=5, reason=reason).write(toy / "4x10-8x90-seed0" / STOPPED)
    trials = trials_of(toy)
    assert unranked(trials) == "Ranked last: 1 diverged: 4x20-8x80; 1 stopped: 4x10-8x90."
    assert f"4x10-8x90 was stopped: it {reason}." in ranking(trials).notes


def test_equal_losses_are_ranked_by_name(tmp_path: Path) -> None:
    for name in ("4x60-8x40", "4x20-8x80", "4x40-8x60"):
        write_trial(tmp_path / "toy", name, {8: 4.5})
    ranked = Trials.of(open_runs([tmp_path / "toy"]), 8).ranked
    assert [trial.name for trial in ranked] == ["4x20-8x80", "4x40-8x60", "4x60-8x40"]


def test_differences_are_paired_by_document(toy: Path) -> None:
    """±0.04 over 16 documents: 0.04 / √15, times Student's 2.131."""
    trials = trials_of(toy)
    assert {name: round(gap.mean, 6) for name, gap in trials.gaps.items()} == {
        "4x50-8x50": 0,
        "4x30-8x70": 0.01,
        "8x100": 0.1,
        "4x90-8x10": 0.3,
    }
    assert trials.gaps["4x30-8x70"].half == pytest.approx(2.131 * 0.04 / 15**0.5)
    assert trials.gaps["8x100"].half == 0
    assert trials.within_noise == {"4x30-8x70"}
    assert noise(trials).startswith(
        "1 of the other 3 cannot be told apart from 4x50-8x50 in the search, judged by 16 held-out "
        "documents (paired"
    )


def test_many_comparisons_are_adjusted_for(tmp_path: Path) -> None:
    """0.025 ± 0.022 alone is clear of 0; one of ten such is not."""
    write_trial(tmp_path / "toy", "4x50-8x50", {8: 4.4})
    write_trial(tmp_path / "toy", "4x1-8x99", {8: 4.425}, document_spread=0.04)
    trials = Trials.of(open_runs([tmp_path / "toy"]), 8)
    assert trials.within_noise == frozenset()
    assert noise(trials).startswith("The other one is worse than 4x50-8x50 in the search, ")
    for units in range(2, 11):
        name = f"4x{units}-8x{100 - units}"
        write_trial(tmp_path / "toy", name, {8: 4.425}, document_spread=0.04)
    trials = Trials.of(open_runs([tmp_path / "toy"]), 8)
    assert trials.gaps["4x1-8x99"].low > 0
    assert len(trials.within_noise) == 10
    assert noise(trials).startswith("None of the other 10 can be told apart from 4x50-8x50 in ")


def test_the_front_has_what_nothing_beats_at_both_lengths(toy: Path) -> None:
    trials = trials_of(toy)
    assert trials.short_seq_len == 4
    assert [trial.name for trial in trials.front] == ["4x50-8x50", "4x90-8x10"]
    assert front(trials) == (
        "2 schedules are on the front of loss at 4 against loss at 8 tokens: from 4x50-8x50 "
        "(4.600 and 4.400) to 4x90-8x10 (4.500 and 4.700)."
    )


def test_of_two_alike_at_the_long_length_the_lower_one_is_on_the_front(tmp_path: Path) -> None:
    write_trial(tmp_path / "toy", "4x50-8x50", {4: 4.6, 8: 4.4})
    write_trial(tmp_path / "toy", "4x60-8x40", {4: 4.5, 8: 4.4})
    trials = Trials.of(open_runs([tmp_path / "toy"]), 8)
    assert [trial.name for trial in trials.front] == ["4x60-8x40"]


def test_without_a_shorter_length_there_is_no_front(tmp_path: Path) -> None:
    write_trial(tmp_path / "toy", "4x50-8x50", {8: 4.4})
    trials = Trials.of(open_runs([tmp_path / "toy"]), 8)
    assert trials.front == ()
    assert front(trials) == ""


def test_the_answer_names_the_best_beside_the_baselines(toy: Path) -> None:
    assert answer(trials_of(toy)) == (
        "Of the 6 schedules tried at equal calibrated training time (20 s each), 4x50-8x50 has the "
        "lowest held-out loss at 8 tokens: 4.400 ± 0.050, and has equal shares; fixed 8 has 4.500, "
        "0.100 (95% 0.100 to 0.100) more."
    )


def test_the_fixed_length_is_the_one_at_its_best_rate(tmp_path: Path) -> None:
    directory = tmp_path / "toy"
    for lr, loss in ((1e-3, 4.6), (3e-3, 4.5), (1e-2, 4.7)):
        write_trial(directory, f"8x100-lr{lr:g}", {8: loss}, lr=lr)
        write_trial(directory, f"4x50-8x50-lr{lr:g}", {8: loss + 1}, lr=lr)
    write_trial(directory, "4x40-8x60-lr0.01", {8: 4.4}, lr=1e-2)
    trials = Trials.of(open_runs([directory]), 8, ("4x50-8x50-lr0.003",))
    assert "; fixed 8 at its best rate, 3e-3, has 4.500, 0.100 (95%" in answer(trials)
    assert "; equal shares at their best rate, 3e-3, have 5.500, 1.100 (95%" in answer(trials)
    assert rate_at_end(trials) == (
        "The peak rate of 4x40-8x60-lr0.01, 1e-2, is the highest that was tried, so a better one "
        "may lie beyond it."
    )


def test_the_longest_fixed_length_is_the_rival_of_shorter_lists(tmp_path: Path) -> None:
    """Though the arm that is searched has a longer length, and its equal shares with it."""
    for name, loss in (("4x100", 4.5), ("2x50-4x50", 4.4), ("4x50-8x50", 4.6)):
        write_trial(tmp_path / "toy", name, {4: loss})
    trials = Trials.of(open_runs([tmp_path / "toy"]), 4, ("4x100", "4x50-8x50"))
    assert "; fixed 4 has 4.500, 0.100 (95%" in answer(trials)


def gone_on(directory: Path) -> None:
    """Let the first stage be a parent's."""
    run = Run.open(directory)
    plan = run.plan.model_copy(update={"first_step": run.plan.stages[0].end_step})
    run.manifest.model_copy(update={"plan": plan}).write(directory / "run.json")
    (arm,) = run.spec.arms
    own = run.spec.derive(arms=[arm.derive(stages=arm.stages[1:])])
    (directory / "spec.yaml").write_text(to_yaml(own))


def test_a_parents_stages_are_not_the_trials(tmp_path: Path) -> None:
    """Each trial goes on for 20 s after the same 5 s at 4 tokens."""
    for folder, seed in (("search", 0), ("confirm", 1)):
        for name, own, loss in (
            ("8x100", [(8, 10)], 4.5),
            ("4x50-8x50", [(4, 10), (8, 5)], 4.4),
        ):
            stages = [(4, 5), *own]
            gone_on(write_run(tmp_path / folder, name, stages, {8: loss}, seed=seed))
    trials = Trials.of(open_runs([tmp_path / "search"]), 8, BASELINES)
    assert trials.fixed is trials.ranked[1]
    assert trials.equal is trials.ranked[0]
    assert [trial.boundaries for trial in trials.ranked] == [(0.5,), ()]
    assert [(its.label, its.factors) for its in effects_of(trials.ranked)] == [
        ("4-8", ()),
        ("8", ()),
    ]
    assert trials.cost().path_seconds == pytest.approx(40)
    confirmation = Confirmation.of(trials, open_runs([tmp_path / "confirm"]))
    assert confirmation is not None
    assert "-0.100 (95% -0.100 to -0.100) from the longest length" in confirmation.sentence


def test_seconds_to_the_fixed_lengths_loss(tmp_path: Path) -> None:
    """4.5 lies halfway between 4.6 at 12 s and 4.4 at 20 s."""
    directory = tmp_path / "toy"
    scored_at(write_trial(directory, "8x100", {8: 4.5}), 5, 5.0, 10.0)
    scored_at(write_trial(directory, "4x50-8x50", {8: 4.4}), 11, 4.6, 12.0)
    scored_at(write_trial(directory, "4x20-8x80", {8: 4.6}), 11, 4.7, 12.0)
    trials = Trials.of(open_runs([directory]), 8)
    assert trials.seconds_to_target == {"4x50-8x50": pytest.approx(16.0), "4x20-8x80": None}
    assert target(trials) == (
        "1 of the other 2 reached the final loss of 8x100, 4.500, 4x50-8x50 the soonest: after "
        "16.0 of 20.0 s."
    )


def test_boundaries_alone_do_not_say_when_a_loss_was_reached(toy: Path) -> None:
    assert trials_of(toy).seconds_to_target == {}


def test_the_cost_counts_what_was_shared_once(toy: Path) -> None:
    """8x100 20 s, 4x50-8x50 30 s, 4x30-8x70 20 s, 4x90-8x10 20 s with 10 s of another's; the two
    without an end 6 and 7 s or so, by their logs."""
    trials = trials_of(toy)
    lost = sum(trial.run.measured_seconds for trial in trials.unranked)
    spent = trials.cost(wall_seconds=200.0)
    assert spent.path_seconds == pytest.approx(90 + lost)
    assert spent.shared_seconds == 10
    assert spent.trained_seconds == pytest.approx(80 + lost)
    assert spent.other_seconds == pytest.approx(120 - lost)


def test_the_cost_is_said() -> None:
    assert cost(Cost(110.0, 30.0, 100.0)) == (
        "Training the trials took 80.0 s: the trials' 110.0 s less the 30.0 s that they share, "
        "which were not trained again. Everything else took 20.0 s, 20% of the 100.0 s from the "
        "command to the end of the search."
    )
    assert cost(Cost(80.0, 0.0)) == "Training the trials took 80.0 s."
    assert cost(Cost(80.0, 0.0, 50.0, at_once=2)).endswith(
        "Everything else took 20.0 s, 20% of 2 times the 50.0 s from the command to the end of the "
        "search, as 2 trials were trained at once."
    )
    assert Cost(80.0, 0.0, 50.0).other_seconds is None  # of other calls than those that trained


def test_losses_far_off_lie_beyond_four_times_the_median() -> None:
    assert far_limit([3.0, 3.1, 3.2]) == 3.2
    assert far_limit([3.0, 3.1, 9.0]) == pytest.approx(3.4)
    assert far_limit([3.0, 3.0, 9.0]) == 9.0


def test_trials_that_do_not_compare_are_refused(toy: Path) -> None:
    with pytest.raises(UserError, match="not scored at 16 tokens, so the trial cannot be ranked"):
        Trials.of(open_runs([toy]), 16)
    write_trial(toy, "4x60-8x40", {4: 4.5, 8: 4.7}, targets="bbbb")
    with pytest.raises(UserError, match=re.escape(f"{toy}: its 5 finished runs are not scored on")):
        trials_of(toy)


def test_the_table_has_every_trial(toy: Path) -> None:
    sheet = ranking(trials_of(toy))
    assert sheet.columns[:6] == ["", "schedule: length x share", "loss", "above the best",
                                 "within noise", "loss at 4"]  # fmt: skip
    assert [row[:6] for row in sheet.rows] == [
        ["1", "4x50-8x50", "4.400 ± 0.050", "best", "", "4.600 *"],
        ["2", "4x30-8x70", "4.410 ± 0.050", "0.010 ± 0.022", "yes", "4.700"],
        ["3", "8x100", "4.500 ± 0.050", "0.100 ± 0.000", "no", "4.900"],
        ["4", "4x90-8x10", "4.700 ± 0.050", "0.300 ± 0.000", "no", "4.500 *"],
        ["-", "4x10-8x90", "unfinished", "-", "-", "-"],
        ["-", "4x20-8x80", "diverged", "-", "-", "-"],
    ]
    assert sheet.rows[3][6:] == ["20.0", "20.0", "10.0"]
    assert sheet.notes[-1] == "4x20-8x80 diverged at step 6 (seq_len 8): its loss is not finite."


# ---- fresh seeds


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """0.02 above the search on average for the one that it chose, 0.01 for the baseline."""
    directory = tmp_path / "toy-confirm"
    for seed in (1, 2, 3):
        write_trial(directory, "4x30-8x70", {4: 4.7, 8: 4.41 + 0.01 * seed}, seed=seed)
        write_trial(directory, "8x100", {4: 4.9, 8: 4.49 + 0.01 * seed}, seed=seed)
    return directory


def test_the_winners_curse_is_said(toy: Path, fresh: Path) -> None:
    confirmation = Confirmation.of(trials_of(toy), open_runs([fresh]))
    assert confirmation is not None
    assert [(each.name, round(each.lost, 6)) for each in confirmation.schedules] == [
        ("4x30-8x70", 0.02),
        ("8x100", 0.01),
    ]
    assert confirmation.curse == (
        "Winner's curse: on 3 fresh seeds the chosen schedule has a mean loss of 4.430, 0.020 "
        "above its search score of 4.410; the baseline is 0.010 above its own."
    )
    assert confirmation.sentence == (
        "On 3 fresh seeds 4x30-8x70 is lowest, 4.430: -0.080 (95% -0.080 to -0.080) from the "
        "longest length throughout, paired by seed and document."
    )
    assert confirmed(confirmation).rows == [
        ["4x30-8x70", "chosen", "4.410", "4.430", "4.420 to 4.440", "+0.020", "-0.080 ± 0.000"],
        ["8x100", "baseline", "4.500", "4.510", "4.500 to 4.520", "+0.010", "-"],
    ]


def test_fresh_seeds_without_the_fixed_length_or_with_it_as_the_best(
    toy: Path, tmp_path: Path
) -> None:
    for name, losses in (("4x30-8x70", {8: 4.43}), ("8x100", {8: 4.42})):
        write_trial(tmp_path / name, name, losses, seed=1)
    trials, said = trials_of(toy), []
    for names in (["4x30-8x70"], ["4x30-8x70", "8x100"]):
        confirmation = Confirmation.of(trials, open_runs([tmp_path / name for name in names]))
        assert confirmation is not None
        said.append(confirmation.sentence)
    assert said == [
        "On 1 fresh seed 4x30-8x70 is lowest, 4.430.",
        "On 1 fresh seed 8x100 is lowest, 4.420, the longest length throughout.",
    ]


def test_the_fixed_length_on_fresh_seeds_is_that_of_its_best_rate(tmp_path: Path) -> None:
    for folder, seed in (("search", 0), ("confirm", 1)):
        for name, loss in (("8x100-lr0.001", 4.6), ("8x100-lr0.01", 4.5), ("4x50-8x50", 4.4)):
            write_trial(tmp_path / folder, name, {8: loss}, seed=seed)
    trials = Trials.of(open_runs([tmp_path / "search"]), 8)
    confirmation = Confirmation.of(trials, open_runs([tmp_path / "confirm"]))
    assert confirmation is not None
    apart = [each.against_fixed for each in confirmation.schedules]
    assert [each and round(each.mean, 6) for each in apart] == [-0.1, None, 0.1]


def test_a_fresh_run_that_diverged_is_named_and_its_seed_left_out(toy: Path, fresh: Path) -> None:
    write_trial(fresh, "4x30-8x70", {8: 4.4}, seed=4, steps_done=3, diverged=True)
    write_trial(fresh, "8x100", {4: 4.9, 8: 9.0}, seed=4)
    confirmation = Confirmation.of(trials_of(toy), open_runs([fresh]))
    assert confirmation is not None
    assert confirmation.num_seeds == 3
    assert confirmation.sentence.endswith("Left out: 4x30-8x70-seed4 diverged.")
    assert [round(each.score.loss, 6) for each in confirmation.schedules] == [4.43, 4.51]


def test_nothing_is_confirmed_before_a_fresh_run_has_ended(toy: Path, tmp_path: Path) -> None:
    write_trial(tmp_path / "new", "4x30-8x70", {8: 4.4}, seed=1, steps_done=3)
    assert Confirmation.of(trials_of(toy), open_runs([tmp_path / "new"])) is None
    write_trial(tmp_path / "other", "4x30-8x70", {8: 4.4}, seed=1, targets="bbbb")
    assert Confirmation.of(trials_of(toy), open_runs([tmp_path / "other"])) is None
