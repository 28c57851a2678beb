"""docs/results.md is what benchmarks/results/*.json make of it, and nothing else."""

import json
import re

from benchmarks.results import PAGE, RESULTS, arms_sheet, page
from glray.report.render import markdown


def test_the_page_is_rendered_from_the_results() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python benchmarks/results.py"


def test_its_plots_are_there() -> None:
    for plot in re.findall(r"\]\((results/[^)]+)\)", page()):
        assert (PAGE.parent / plot).is_file()


def test_no_result_names_a_folder_of_the_machine_that_made_it() -> None:
    for path in RESULTS.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r'"/(home|root|tmp|work|Users|mnt)/', text), path
        assert not re.search(r"[ =](/home|/root|/tmp|/work|/Users)/", text), path


def test_each_result_says_where_it_comes_from() -> None:
    for path in RESULTS.rglob("*.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        assert result["command"].startswith("python benchmarks/")
        assert {"commit", "processor", "torch"} <= set(result["environment"])


def test_a_diverged_run_and_missing_jumps_are_dashes() -> None:
    """Of three seeds one has no number: no mean is made of the others."""
    run = {
        "tokens": 1000,
        "seconds": dict.fromkeys(
            ("calibrated", "measured", "warm_up", "evaluation", "checkpoints"), 1.0
        ),
        "heldout": {"loss": {"128": 4.0, "1024": 3.5}},
        "boundaries": [{"from": 128, "to": 1024, "jump": 0.25}],
    }
    wild = run | {"heldout": {"loss": {"128": float("nan")}}, "boundaries": [{"jump": None}]}
    ended = run | {"heldout": None, "boundaries": []}
    arms = [
        {"label": "ended", "stages": [128, 1024], "runs": [ended, run, run]},
        {"label": "tame", "stages": [128, 1024], "runs": [run, run, run]},
        {"label": "wild", "stages": [128, 1024], "runs": [run, wild, run]},
    ]
    early, tame, lost = markdown(arms_sheet(arms)).splitlines()[2:]
    assert early.endswith("| - | - | - |")
    assert "| 4.000 ± 0.000 | 3.500 ± 0.000 | +0.250 |" in tame
    assert lost.endswith("| - | - | - |")
