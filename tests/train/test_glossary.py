"""docs/metrics.md has every logged name, and no other."""

import json
import math
import re
import runpy
from pathlib import Path

import pytest

from glray.data.corpus import PreparedCorpus
from glray.files import read_json
from glray.ray.metrics import METRICS
from glray.run.records import Divergence, Progress
from glray.train.announcer import Announcer
from glray.train.context import WorkerContext
from glray.train.worker import train_all
from tests.planned import planned

from ..tiny import tiny_spec

GLOSSARY = Path(__file__).parents[2] / "docs" / "metrics.md"


def glossary() -> dict[str, list[str]]:
    """{heading of a file or list: the names in the first column under it}."""
    sections: dict[str, list[str]] = {}
    heading = ""
    for line in GLOSSARY.read_text().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ").strip("`")
        elif name := re.match(r"\| `(\w+)` \|", line):
            sections.setdefault(heading, []).append(name[1])
    return sections


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory, corpus: PreparedCorpus) -> dict[str, set[str]]:
    """{heading of the glossary: the names of that file}, after a tiny pipeline."""
    progress: list[Progress] = []
    spec = tiny_spec(tmp_path_factory.mktemp("logged"), only=("grow",))
    with pytest.MonkeyPatch.context() as patch:
        # What is written, for the file keeps the last and not all reach it.
        patch.setattr(Announcer, "progress", lambda self, value: progress.append(value))
        train_all(spec, corpus, WorkerContext())
    (run,) = planned(spec, corpus)
    diverged = Divergence(step=1, seq_len=8, what="loss", loss=math.nan, grad_norm=math.nan)
    lines = [
        json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()
    ]
    evaluation = read_json(run.evaluation_path(run.plan.num_steps))
    boundary = read_json(run.boundary_path(run.plan.stage_ends[0]))
    return {
        "metrics.jsonl": set().union(*lines),
        "progress.json": set().union(*(json.loads(p.model_dump_json()) for p in progress)),
        "training": set().union(
            *(json.loads(p.training.model_dump_json()) for p in progress if p.training)
        ),
        "evaluations/step-*.json": set(evaluation),
        "lengths": set().union(*evaluation["lengths"]),
        "far_context": set(evaluation["far_context"]),
        "far_context.losses": set().union(*evaluation["far_context"]["losses"]),
        "boundaries/step-*.json": set(boundary),
        "jump": set(boundary["jump"]),
        "result.json": set(read_json(run.directory / "result.json")),
        "Prometheus": {
            f"ray_{name}" for name in METRICS
        },  # tests/ray/test_metrics.py has scraped them
        "diverged.json": set(json.loads(diverged.model_dump_json())),
    }


def test_the_page_is_rendered_from_the_records() -> None:
    page = runpy.run_path(str(GLOSSARY.with_suffix(".py")))["page"]
    assert GLOSSARY.read_text(encoding="utf-8") == page(), "run python docs/metrics.py"


def test_the_glossary_has_a_section_for_each_file(logged: dict[str, set[str]]) -> None:
    assert set(glossary()) == set(logged)


def test_each_logged_name_is_defined_once(logged: dict[str, set[str]]) -> None:
    defined = glossary()
    for file, names in logged.items():
        assert sorted(defined[file]) == sorted(names)
