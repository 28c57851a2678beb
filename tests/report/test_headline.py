"""Sentences are checked for the figures and names that they must hold, not for their wording."""

from pathlib import Path
from typing import Any

import pytest

from glray.report.comparison import compare, paired_error
from glray.report.formats import documents_text
from glray.report.headline import headline
from glray.run.run import open_runs
from tests.report.written import write_run


def sentence_with(sentences: list[str], *parts: str) -> str:
    found = [text for text in sentences if all(part in text for part in parts)]
    assert len(found) == 1, (parts, sentences)
    return found[0]


def test_arms_compare_at_the_longest_trained_length_not_the_longest_evaluated(
    pipeline: Path,
) -> None:
    scores = compare(open_runs([pipeline]))

    assert [(score.label, score.seq_len, score.loss) for score in scores] == [
        ("grow", 8, 4.45),
        ("fixed8", 8, 4.69),
        ("fixed4", 8, 4.67),
    ]


def test_the_lowest_arm_leads_by_its_distance_to_the_next(pipeline: Path) -> None:
    sentences = headline(open_runs([pipeline]))

    result = sentence_with(sentences, "4.45 ± 0.05", "4.69 ± 0.05", "4.67 ± 0.05", "20 s each")
    assert "grow is lowest, 0.22 ± 0.00 nats below fixed4" in result
    assert "noise" not in result
    sentence_with(sentences, "150%", "fixed8", "480", "320")  # 15 steps against 10, of 32 tokens
    sentence_with(sentences, "1 seed", "16 held-out documents", "not over seeds")


def test_fewer_than_a_hundred_documents_are_called_few(pipeline: Path) -> None:
    sentence_with(headline(open_runs([pipeline])), "16 held-out documents (fewer than 100")
    assert documents_text(99).startswith("99 held-out documents (fewer than 100")
    assert documents_text(1000) == "1,000 held-out documents"


def test_a_growing_arm_that_loses_is_said_to(tmp_path: Path) -> None:
    write_run(tmp_path / "toy", "grow", [(4, 10), (8, 5)], {8: 5.0})
    write_run(tmp_path / "toy", "fixed8", [(8, 10)], {8: 4.5})

    assert (
        "fixed8 is lowest, 0.50 ± 0.00 nats below grow"
        in headline(open_runs([tmp_path / "toy"]))[0]
    )


@pytest.mark.parametrize(("difference", "is_noise"), [(0.0, True), (0.09, True), (0.11, False)])
def test_a_paired_difference_below_two_standard_errors_is_noise(
    tmp_path: Path, difference: float, is_noise: bool
) -> None:
    # Differences of 0.2 above and below their mean in turn: 0.2 / sqrt(15) = 0.0516 over 16.
    # What both arms find hard (a spread of 3 nats) cancels.
    write_run(tmp_path / "toy", "a", [(4, 10), (8, 5)], {8: 4.5}, document_spread=3.0)
    write_run(tmp_path / "toy", "b", [(8, 10)], {8: 4.5 + difference}, document_spread=3.2)
    runs = open_runs([tmp_path / "toy"])

    assert paired_error(*compare(runs)) == pytest.approx(0.2 / 15**0.5)
    assert ("within noise" in headline(runs)[0]) == is_noise


def test_a_run_slower_than_the_others_is_said_with_both_numbers(tmp_path: Path) -> None:
    write_run(tmp_path / "toy", "a", [(4, 10), (8, 5)], {8: 4.5}, slowdown=1.25)
    write_run(tmp_path / "toy", "b", [(8, 10)], {8: 4.9}, slowdown=1.5)

    sentence = sentence_with(headline(open_runs([tmp_path / "toy"])), "30.0", "20.0", "20% more")
    assert "b-seed0" in sentence
    assert "a-seed0" not in sentence


def test_what_slows_all_runs_alike_is_no_drift_between_arms(tmp_path: Path) -> None:
    write_run(tmp_path / "toy", "a", [(4, 10), (8, 5)], {8: 4.5}, slowdown=1.5)
    write_run(tmp_path / "toy", "b", [(8, 10)], {8: 4.9}, slowdown=1.52)
    assert "differ from that" not in " ".join(headline(open_runs([tmp_path / "toy"])))


def test_several_seeds_are_averaged_over_those_that_every_arm_finished(tmp_path: Path) -> None:
    for seed, loss in ((0, 4.4), (1, 4.6), (2, 9.0)):
        write_run(tmp_path / "toy", "a", [(4, 10), (8, 5)], {8: loss}, seed=seed)
    for seed, loss in ((0, 4.9), (1, 5.1)):
        write_run(tmp_path / "toy", "b", [(8, 10)], {8: loss}, seed=seed)
    write_run(tmp_path / "toy", "b", [(8, 10)], {8: 1.0}, seed=2, steps_done=9)
    runs = open_runs([tmp_path / "toy"])

    scores = compare(runs)

    assert [[run.seed for run in score.runs] for score in scores] == [[0, 1], [0, 1]]
    assert [score.loss for score in scores] == [pytest.approx(4.5), pytest.approx(5.0)]
    # the seeds are scored on the same documents: more of them do not shrink this error
    assert [score.standard_error for score in scores] == [pytest.approx(0.05)] * 2
    sentence_with(headline(runs), "2 seeds", "a 4.40 to 4.60", "b 4.90 to 5.10")
    sentence_with(headline(runs), "b-seed2", "9 of 10")


def test_seeds_that_overlap_are_within_noise(tmp_path: Path) -> None:
    for seed, (first, second) in enumerate([(4.0, 4.9), (4.8, 4.7)]):
        write_run(tmp_path / "toy", "a", [(4, 10), (8, 5)], {8: first}, seed=seed)
        write_run(tmp_path / "toy", "b", [(8, 10)], {8: second}, seed=seed)

    assert "within noise" in headline(open_runs([tmp_path / "toy"]))[0]


def test_two_seeds_are_paired_however_far_apart_they_are(tmp_path: Path) -> None:
    for seed, loss in enumerate([4.0, 4.8]):
        write_run(tmp_path / "toy", "a", [(4, 10), (8, 5)], {8: loss}, seed=seed)
        write_run(tmp_path / "toy", "b", [(8, 10)], {8: loss + 0.2}, seed=seed)

    assert "a is lowest, 0.20 ± 0.00 nats below b (paired by document)." in " ".join(
        headline(open_runs([tmp_path / "toy"]))
    )


@pytest.mark.parametrize(("third", "is_noise"), [(4.8, False), (4.45, True)])
def test_from_three_seeds_on_their_paired_differences_decide(
    tmp_path: Path, third: float, is_noise: bool
) -> None:
    # Differences of 0.3, 0.3 and 0.3 or -0.05; the seeds themselves lie further apart.
    for seed, (first, second) in enumerate([(4.0, 4.3), (5.0, 5.3), (4.5, third)]):
        write_run(tmp_path / "toy", "a", [(4, 10), (8, 5)], {8: first}, seed=seed)
        write_run(tmp_path / "toy", "b", [(8, 10)], {8: second}, seed=seed)

    sentence = headline(open_runs([tmp_path / "toy"]))[0]

    assert "95% interval over 3 seeds and 16 documents, paired: " in sentence
    assert ("within noise" in sentence) == is_noise
    if not is_noise:
        assert "a is lowest, 0.30 nats below b" in sentence
        assert "0.30 to 0.30" in sentence


def test_equal_tokens_compare_the_time_taken_instead(tmp_path: Path) -> None:
    options: dict[str, Any] = {"budget_seconds": None, "calibrated": False}
    write_run(tmp_path / "toy", "grow", [(4, 5), (8, 5)], {8: 4.5}, **options)
    write_run(tmp_path / "toy", "fixed8", [(8, 10)], {8: 4.4}, **options)

    sentences = headline(open_runs([tmp_path / "toy"]))

    sentence_with(sentences, "equal training tokens", "320")
    sentence_with(sentences, "75%", "15.0", "20.0")


def test_a_single_arm_is_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "toy", "grow", [(4, 10), (8, 5)], {8: 4.45})

    sentences = headline(open_runs([tmp_path / "toy"]))

    sentence_with(sentences, "grow", "4.45 ± 0.05", "20.0 s calibrated")
    assert "lowest" not in " ".join(sentences)


def test_one_held_out_document_has_no_standard_error(tmp_path: Path) -> None:
    write_run(tmp_path / "toy", "a", [(4, 10)], {4: 4.5}, standard_error=None)
    write_run(tmp_path / "toy", "b", [(4, 10)], {4: 4.625}, standard_error=None)

    sentences = headline(open_runs([tmp_path / "toy"]))

    assert "a is lowest, 0.125 nats below b" in sentences[0]
    sentence_with(sentences, "This is 1 seed: 1 held-out document is scored, so no error over")


def test_a_diverged_arm_is_named_and_never_lowest(tmp_path: Path) -> None:
    write_run(tmp_path / "toy", "a", [(8, 10)], {8: float("nan")})
    write_run(tmp_path / "toy", "b", [(8, 10)], {8: 4.7})
    write_run(tmp_path / "toy", "c", [(8, 10)], {8: 4.5})

    sentence = headline(open_runs([tmp_path / "toy"]))[0]

    assert "c is lowest, 0.20 ± 0.00 nats below b" in sentence
    assert "a diverged" in sentence


def test_a_run_that_ended_by_divergence_is_named_and_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "toy", "a", [(8, 10)], {8: 4.0}, steps_done=3, diverged=True)
    write_run(tmp_path / "toy", "b", [(8, 10)], {8: 4.7})
    write_run(tmp_path / "toy", "c", [(8, 10)], {8: 4.5})

    sentences = headline(open_runs([tmp_path / "toy"]))

    assert "c is lowest, 0.20 ± 0.00 nats below b" in sentences[0]
    assert sentences[-1] == (
        "Diverged and not compared: a-seed0 (at step 3 of 10, where its loss became non-finite)."
    )


def test_of_several_pipelines_a_run_that_diverged_is_named_with_its_own(tmp_path: Path) -> None:
    write_run(tmp_path / "one", "a", [(8, 10)], {8: 4.5})
    write_run(tmp_path / "two", "a", [(8, 10)], {8: 4.0}, steps_done=3, diverged=True)

    sentences = headline(open_runs([tmp_path / "one", tmp_path / "two"]))

    assert sentences[0].startswith("one/a: held-out loss at 8 tokens is 4.5")
    assert sentences[-1].startswith("Diverged and not compared: two/a-seed0 (at step 3 of 10")


def test_losses_on_other_held_out_targets_are_not_ranked(tmp_path: Path) -> None:
    write_run(tmp_path / "one", "a", [(8, 10)], {8: 4.5}, targets="aaaa")
    write_run(tmp_path / "two", "a", [(8, 10)], {8: 4.9}, targets="bbbb")

    sentences = headline(open_runs([tmp_path / "one", tmp_path / "two"]))

    sentence_with(sentences, "one/a", "two/a", "do not compare")
    assert "lowest" not in " ".join(sentences)


def test_the_seeds_of_an_arm_on_other_targets_have_no_mean(tmp_path: Path) -> None:
    for seed, targets in enumerate("aab"):
        write_run(tmp_path / "toy", "a", [(8, 10)], {8: 4.5 + seed}, seed=seed, targets=targets)

    sentences = headline(open_runs([tmp_path / "toy"]))

    sentence_with(sentences, "is 4.50, 5.50, 6.50 under its 3 seeds", "have no common mean")
    assert "means of" not in " ".join(sentences)


def test_what_can_no_longer_compare_is_not_waited_for(tmp_path: Path) -> None:
    for seed, diverged in enumerate("ab"):
        for name in "ab":
            steps = 3 if name == diverged else None
            write_run(
                tmp_path / "toy",
                name,
                [(8, 10)],
                {8: 4.5},
                seed=seed,
                steps_done=steps,
                diverged=name == diverged,
            )

    sentence_with(headline(open_runs([tmp_path / "toy"])), "in every arm: nothing compares.")


def test_a_budget_of_days_is_written_out(tmp_path: Path) -> None:
    for name in "ab":
        write_run(tmp_path / "toy", name, [(8, 10)], {8: 4.5}, budget_seconds=1_209_600.0)

    sentence_with(headline(open_runs([tmp_path / "toy"])), "(1,209,600 s each)")


def test_what_else_differs_between_the_runs_is_said(tmp_path: Path) -> None:
    write_run(tmp_path / "one", "a", [(8, 10)], {8: 4.5}, identity={"precision": "bfloat16"})
    write_run(tmp_path / "two", "b", [(4, 10)], {8: 4.9}, identity={"precision": "float32"})

    sentence = sentence_with(headline(open_runs([tmp_path / "one", tmp_path / "two"])), "differ in")

    assert "precision" in sentence
    assert "stages" not in sentence.partition("differ in")[2]


def test_arms_with_peak_rates_of_their_own_are_said_with_them(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "toy", "a", [(8, 10)], {8: 4.5}, seed=seed, lr=6e-3)
        write_run(tmp_path / "toy", "b", [(4, 10)], {8: 4.9}, seed=seed, lr=1.2e-2)

    sentences = headline(open_runs([tmp_path / "toy"]))

    sentence_with(sentences, "peak learning rates of their own: a 6e-3, b 1.2e-2.")
    assert "differ in" not in " ".join(sentences)


def test_nothing_finished_says_how_far_each_run_is(tmp_path: Path) -> None:
    write_run(tmp_path / "toy", "a", [(8, 10)], {8: 4.5}, steps_done=3)

    assert [part in headline(open_runs([tmp_path / "toy"]))[0] for part in ("a-seed0", "3 of 10")]


def test_predicted_and_measured_time_stand_together(tmp_path: Path) -> None:
    toy = tmp_path / "toy"
    write_run(toy, "grow", [(4, 10), (8, 5)], {8: 5.0}, predicted_seconds=16.0)
    write_run(toy, "fixed8", [(8, 10)], {8: 5.0})

    sentences = " ".join(headline(open_runs([toy])))

    assert "The profile had predicted grow-seed0 16.0 s, measured 20.0 (+25%)." in sentences
