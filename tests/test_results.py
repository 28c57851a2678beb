"""docs/results.md is what benchmarks/results/*.json make of it, and nothing else."""

import json
import re

from benchmarks.results import PAGE, RESULTS, page


def test_the_page_is_rendered_from_the_results():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python benchmarks/results.py"


def test_its_plots_are_there():
    for plot in re.findall(r"\]\((results/[^)]+)\)", page()):
        assert (PAGE.parent / plot).is_file()


def test_no_result_names_a_folder_of_the_machine_that_made_it():
    for path in RESULTS.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r'"/(home|root|tmp|work|Users|mnt)/', text), path
        assert not re.search(r"[ =](/home|/root|/tmp|/work|/Users)/", text), path


def test_each_result_says_where_it_comes_from():
    for path in RESULTS.glob("*.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        assert result["command"].startswith("python benchmarks/")
        assert {"commit", "processor", "torch"} <= set(result["environment"])
