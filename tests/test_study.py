"""benchmarks/study.py: what it refuses, what it says is left, and the page that it renders."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.study import register, status, train
from benchmarks.study_findings import findings
from benchmarks.study_page import PAGE, page
from benchmarks.study_records import KEPT, MARGIN, Work
from benchmarks.study_results import Results
from glray.errors import UserError
from glray.files import read_json, write_json
from glray.report.recommend import FINDINGS, Findings
from tests.integration.test_survival import processes_of

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "study.py"
RATES = {"llm64": 1e-2, "llm8": 2e-2, "growlength": 1e-2}
TRIED = {"5e-3": 5e-3, "1e-2": 1e-2, "2e-2": 2e-2, "4e-2": 4e-2}


def test_the_page_is_rendered_from_the_records() -> None:
    found = page(KEPT)
    assert PAGE.read_text(encoding="utf-8") == found, "run python benchmarks/study.py --render"


def test_the_readme_has_the_contrasts_of_the_records() -> None:
    results = Results.of(KEPT)
    assert results is not None
    readme = (PAGE.parents[1] / "README.md").read_text(encoding="utf-8")
    for contrast in results.contrasts(MARGIN):
        found = contrast.over_seeds
        numbers = f"**{found.mean:+.3f}** ({found.low:+.3f} to {found.high:+.3f})"
        assert f"{numbers.replace('-', '−')} | {contrast.verdict} |" in readme


def test_what_is_recommended_is_what_the_records_say() -> None:
    found = findings(KEPT)
    assert found is not None
    assert Findings.read(FINDINGS) == found, "run python benchmarks/study.py --render"


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """The toy study, in a repository of its own."""
    results = tmp_path / "results"
    results.mkdir()
    git(results, "init", "-q")
    return Work("toy", tmp_path / "runs", results)


def git(folder: Path, *arguments: str) -> None:
    own = ("-c", "user.name=glray", "-c", "user.email=glray@example.org")
    subprocess.run(["git", *own, "-C", str(folder), *arguments], check=True)


def run_of(lr: float, loss: float, lengths: list[int], gain: float = 0.1) -> dict[str, Any]:
    """One run's record: two documents of 32 targets, the shorter windows ``gain`` above."""
    far = {str(n): [loss, loss + 1] for n in lengths[-1:]}
    if len(lengths) > 1:
        far = {str(lengths[0]): [loss + gain, loss + 1 + gain], **far}
    return {"lr": lr, "diverged": None, "far": {"document_tokens": [32, 32], **far}}


def write_pilot(work: Work, best: dict[str, float], gain: float = 0.1) -> None:
    """A pilot in which each arm has its lowest loss at one of the rates."""
    arms = {
        f"{name}-lr{text}": run_of(lr, 5.0 - (lr == best[name]), lengths, gain)
        for name, lengths in (("llm64", [8, 64]), ("llm8", [8]), ("growlength", [8, 64]))
        for text, lr in TRIED.items()
    }
    write_json(work.results / "pilot.json", {"arms": arms})


def write_plan(work: Work) -> None:
    """A registered and committed plan."""
    write_pilot(work, RATES)
    register(work)
    git(work.results, "add", "-A")
    git(work.results, "commit", "-qm", "The plan")


# ---- the plan comes before its results


def test_what_the_pilot_has_not_settled_is_not_registered(work: Work) -> None:
    with pytest.raises(UserError, match="there is no pilot, so no rate is chosen"):
        register(work)
    write_pilot(work, RATES | {"llm8": 4e-2})
    with pytest.raises(UserError, match=r"llm8 is best at 0\.04, an end of the rates"):
        register(work)
    write_pilot(work, RATES | {"llm64": 2e-2})
    with pytest.raises(UserError, match=r"llm64 is best at 0\.02, .* trains it at 0\.01"):
        register(work)
    write_pilot(work, RATES, gain=-2.0)
    with pytest.raises(UserError, match=r"llm64 gains -2\.000 ± 0\.000 nats from context"):
        register(work)
    assert not work.registration.exists()


def test_nothing_is_trained_without_a_plan_that_holds(work: Work) -> None:
    with pytest.raises(UserError, match="the study is not registered"):
        train(work, ["core"], None)
    write_pilot(work, RATES)
    register(work)
    with pytest.raises(UserError, match="is not committed"):
        train(work, ["core"], None)
    with pytest.raises(UserError, match="the study is registered, and a plan that changes is none"):
        register(work)
    plan = read_json(work.registration)
    plan["design"]["core"]["llm64"]["optimizer"]["lr"] = 0.5
    write_json(work.registration, plan)
    with pytest.raises(UserError, match=r"llm64\.optimizer\.lr: 0\.5 → 0\.01"):
        train(work, ["core"], None)


# ---- what is left


def test_what_is_left_is_counted_once(work: Work) -> None:
    """Of 8 arms of 60 steps 363 of 1,440 are shared under three seeds; the decays have 6, 7 and 9
    steps, the longer run 24."""
    lines = status(work, ["core"])
    left = (8 * 60 - 363 // 3 + 24) * 128 + round(7680 * 0.2 * 0.5)
    left += round(7680 * 0.2 * 0.6) + round(7680 * 0.2 * 0.8)
    assert lines[0] == f"core seed 0: 0 of 12 runs done, {left:,} tokens left"
    assert lines[-1].startswith(f"{3 * left:,} tokens left; no run has finished here")


# ---- the page


def write_records(
    work: Work, seeds: int, losses: dict[str, float], part: str = "core", spread: float = 0.001
) -> None:
    """Seeds that agree but for the spread and a name's length, in which each arm has its loss."""
    tokens = {"llm64-50": 3840, "llm64-60": 4608, "llm64-80": 6144, "llm8-longer": 9216}
    for seed in range(seeds):
        arms = {}
        for label, loss in losses.items():
            short = label.startswith("llm8")
            own = run_of(1e-2, loss + spread * seed * len(label), [8] if short else [8, 64])
            by_length = {"8" if short else "64": tokens.get(label, 7680)}
            arms[label] = own | {"tokens_by_seq_len": by_length, "processor": "one"}
        record = {"registered": {"commit": "abc1234"}, "document_tokens": [32, 32], "arms": arms}
        write_json(work.record(part, seed), record)


LOSSES = {
    "llm64": 3.0,
    "llm8": 3.2,
    "growlength": 2.9,
    "two-phase-90": 2.9,
    "growlength-shuffled": 2.95,
    "llm64-50": 3.0 + 0.5 * float(np.log(2)),
    "llm64-60": 3.0 - 0.5 * float(np.log(0.6)),
    "llm64-80": 3.0 - 0.5 * float(np.log(0.8)),
    "llm8-longer": 3.1,
}


def test_no_result_is_shown_before_the_last_seed(work: Work) -> None:
    write_plan(work)
    write_records(work, 2, LOSSES)
    text = page(work)
    assert "Not yet trained to its end: 2 of 3 seeds" in text
    assert "commit abc1234, before the first seed trained" in text
    assert "growlength − llm64 |" not in text
    assert "*Break-even*" not in text


def test_the_page_of_a_whole_study(work: Work) -> None:
    """At equal costs growing is worth e^(0.1 / 0.5) = 1.22 of its own time, all at full length."""
    write_plan(work)
    write_records(work, 3, LOSSES)
    text = page(work)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    (growing,) = (row for row in rows if row[:1] == ["growlength − llm64"])
    assert growing[1].startswith("-0.095 (-0.107 to -0.083)")
    assert growing[-1] == "supported"
    (phases,) = (row for row in rows if row[:1] == ["growlength − two-phase-90"])
    assert phases[-1] == "within noise, the same"
    (worth,) = (row for row in rows if row[:1] == ["growlength"] and "to" in row[1])
    assert worth == ["growlength", *[worth[1]] * 3, worth[4]]
    assert float(worth[1].split()[0]) == pytest.approx(np.exp(0.095 / 0.5), abs=0.02)
    assert "*Break-even*" in text
    assert (
        "- **On equal tokens:** Growing from 8 to 64 reaches a lower loss than 64 tokens "
        "throughout: -0.095 nats (-0.107 to -0.083)."
    ) in text
    assert (
        "Growing from 8 to 64 cannot be told from 8 for 90% of the tokens and 64 for the rest: "
        "-0.002 nats (-0.007 to +0.003); any difference is below 0.02."
    ) in text
    assert "64 throughout would need 1.20 (1.16 to 1.25) times as long" in text


def test_a_further_question_is_answered_by_interval_and_margin(work: Work) -> None:
    """Arms whose names are as long as growing's differ from it by the same under each seed."""
    losses = {"growlength": 2.9, "rewarmed64": 2.9, "rewarmed-x": 2.93}
    write_records(work, 3, losses | {"far-too-long-a-name": 2.92}, "rewarming", spread=0.004)
    text = page(work)
    assert "### rewarming: Does the rate have to warm up again at each boundary?" in text
    assert "| rewarmed64 | 3 | +0.000 (+0.000 to +0.000) | the same |" in text
    assert "| rewarmed-x | 3 | +0.030 (+0.030 to +0.030) | higher |" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| far-too-long"))
    assert row.endswith("| not known: too few seeds |")


def test_a_diverged_run_makes_its_contrasts_inconclusive(work: Work) -> None:
    write_records(work, 3, LOSSES)
    record = read_json(work.record("core", 1))
    record["arms"]["llm8"] |= {"diverged": "diverged at step 7", "far": None}
    write_json(work.record("core", 1), record)
    text = page(work)
    assert "Diverged: llm8 under seed 1 (diverged at step 7)" in text
    assert "growlength − llm8 |" not in text
    assert "| growlength − llm64 |" in text


def test_what_is_recommended_is_what_schedules_were_worth(work: Work) -> None:
    """Of arms that grow alone, and not before the last seed."""
    write_records(work, 2, LOSSES)
    assert findings(work) is None
    write_records(work, 3, LOSSES)
    for seed in range(3):
        record = read_json(work.record("core", seed))
        record["arms"]["growlength"]["tokens_by_seq_len"] = {"8": 1920, "64": 5760}
        write_json(work.record("core", seed), record)
    found = findings(work)
    assert found is not None
    assert (found.seq_lens, found.num_tokens) == ((8, 16, 32, 64), 7680)
    assert [tried.name for tried in found.schedules] == ["growlength", "two-phase-90"]
    growing = found.schedules[0]
    assert growing.stages == ((0.125, 0.25), (1.0, 0.75))
    assert growing.num_seeds == 3
    assert growing.extended
    mean, low, high = growing.worth
    assert mean == pytest.approx(np.exp(0.095 / 0.5), abs=0.02)
    assert low < mean < high


# ---- the whole of it


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_study_that_is_killed_goes_on(work: Work, tmp_path: Path) -> None:
    """Three seeds of the toy study, the first killed while it trains; the page is made of their
    records alone."""
    write_plan(work)
    own: tuple[object, ...] = (
        "--study",
        "toy",
        "--results",
        work.results,
        "--page",
        tmp_path / "study.md",
        "--findings",
        tmp_path / "study.json",
    )
    own += ("--storage", work.storage, "--only", "core")
    script = [sys.executable, str(SCRIPT), *map(str, own)]

    marked = os.environ | {"GLRAY_TEST": str(tmp_path)}

    def started() -> subprocess.Popen[bytes]:
        return subprocess.Popen(script, start_new_session=True, env=marked)

    killed = started()
    metrics = work.storage / "toy" / "growlength-seed0" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size) and killed.poll() is None:
        time.sleep(0.05)
    assert killed.poll() is None, "it ended by itself"
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    for process in processes_of(tmp_path):  # Ray's
        os.kill(process, signal.SIGKILL)
    assert not work.record("core", 0).exists()

    assert started().wait() == 0
    assert list(work.records("core")) == [0, 1, 2]
    text = (tmp_path / "study.md").read_text()
    assert "All 3 seeds are trained" in text
    assert status(work, ["core"])[-1].startswith("0 tokens left: 0.0 h at the")

    assert (tmp_path / "results" / "study.png").exists()

    shutil.rmtree(work.storage)
    assert page(work) == text
