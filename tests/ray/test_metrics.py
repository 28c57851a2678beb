"""What Prometheus finds at a node's endpoint after a run on real Ray, and what Grafana asks for."""

import json
import re
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from glray.data.corpus import PreparedCorpus
from glray.files import read_json
from glray.ray import train as ray_train
from glray.ray.metrics import METRICS, Gauges, Prometheus
from glray.ray.train import fit
from glray.run.run import Run
from tests.planned import planned

from ..tiny import tiny_spec

SAMPLE = re.compile(r"ray_(glray_\w+)\{(.*)\} (.+)")
DASHBOARD = Path(__file__).parents[2] / "dashboards" / "glray.json"

Samples = dict[str, dict[frozenset[tuple[str, str]], float]]
"""{metric: {its own tags: value}}."""


def scraped(pipeline: str) -> Samples:
    """glray's samples of a pipeline at this node's endpoint."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found: Samples = {}
    for sample in filter(None, map(SAMPLE.fullmatch, lines)):
        name, labels, value = sample.groups()
        tags = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if tags["pipeline"] == pipeline:
            own = frozenset((tag, tags[tag]) for tag in METRICS[name].tags)
            found.setdefault(name, {})[own] = float(value)
    return found


@pytest.mark.ray
def test_prometheus_sees_a_run(
    ray_local: None, corpus: PreparedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In this process, as on a cluster of its own: a group takes half a minute to start.
    monkeypatch.setattr(ray_train, "is_own_cluster", lambda: True)
    spec = tiny_spec(tmp_path, name="scraped", only=("grow",))
    threads, begin = torch.get_num_threads(), time.time()
    fit(spec, corpus)
    torch.set_num_threads(threads)

    (run,) = planned(spec, corpus)
    other = Prometheus(run, rank=1)  # of which only its own share is of interest
    for step, waited in ((1, 9.0), (3, 0.5), (4, 1.0)):
        other.write(step, {"train/measured_seconds": step, "train/data_wait_seconds": waited})
        if step != 3:
            other.flush()
    other.write(4, {"train/loss": 9.0, "heldout/loss/8": 9.0, "train/memory_bytes": 4096})
    other.close()

    end = time.monotonic() + 60  # Ray's processes report every 10 s
    while not (samples := scraped("scraped")) and time.monotonic() < end:
        time.sleep(0.5)
    assert samples.keys() == METRICS.keys()

    last = json.loads((run.directory / "metrics.jsonl").read_text().splitlines()[-1])
    of_run = {("pipeline", "scraped"), ("run", run.name)}
    for name in ("step", "stage", "seq_len", "tokens", "loss", "grad_norm", "lr", "mfu"):
        assert samples[f"glray_{name}"] == {frozenset(of_run): pytest.approx(last[name])}
    assert samples["glray_num_steps"] == {frozenset(of_run): 12}
    assert samples["glray_heldout_loss"] == heldout_losses(run, of_run)
    (saved,) = samples["glray_saved_timestamp_seconds"].values()
    assert begin <= saved <= time.time()
    first, second = (frozenset(of_run | {("rank", rank)}) for rank in "01")
    waits = samples["glray_data_wait_share"]
    assert waits.keys() == {first, second}
    assert 0 <= waits[first] < 1
    assert waits[second] == 0.5  # 1.5 s of the 3 s after its first flush
    assert samples["glray_memory_bytes"] == {first: last["memory_bytes"], second: 4096}
    of_group = {("pipeline", "scraped"), ("group", "0")}
    assert samples["glray_restarts"] == {
        frozenset(of_group | {("reason", reason)}): 0 for reason in ("failure", "preemption")
    }


def heldout_losses(run: Run, tags: set[tuple[str, str]]) -> dict[frozenset[tuple[str, str]], Any]:
    """The samples that the run's last evaluation is seen as."""
    evaluation = read_json(run.evaluation_path(run.plan.num_steps))
    return {
        frozenset(tags | {("seq_len", str(length["seq_len"]))}): pytest.approx(length["loss"])
        for length in evaluation["lengths"]
    }


@pytest.mark.ray
@pytest.mark.soak  # Ray drops a value after 20 s
def test_a_value_is_seen_until_its_run_ends(ray_local: None) -> None:
    gauges = Gauges(pipeline="kept", run="grow-seed0")
    gauges.set("glray_step", 7)
    seen = {"glray_step": {frozenset({("pipeline", "kept"), ("run", "grow-seed0")}): 7}}
    for expected, seconds in ((seen, 60), ({}, 60)):
        end = time.monotonic() + seconds
        while scraped("kept") != expected:
            assert time.monotonic() < end
            time.sleep(0.5)
        if expected:
            time.sleep(40)
            assert scraped("kept") == expected
            gauges.close()


def test_the_dashboard_asks_for_metrics_and_tags_that_there_are() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    shown = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            names = re.findall(r"ray_(\w+)", target["expr"])
            assert names, panel["title"]
            assert METRICS.keys() >= set(names), panel["title"]
            tags = set.intersection(*(set(METRICS[name].tags) for name in names))
            asked = re.findall(r"(\w+)=~", target["expr"])
            asked += re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
            assert tags >= set(asked), panel["title"]
            shown |= set(names)
    assert shown == METRICS.keys()
    queries = [variable["query"] for variable in dashboard["templating"]["list"]]
    asked = re.findall(r"label_values\(ray_(\w+)\S*, (\w+)\)", " ".join(queries))
    assert asked == [("glray_step", "pipeline"), ("glray_step", "run")]
    assert set(METRICS["glray_step"].tags) == {"pipeline", "run"}
