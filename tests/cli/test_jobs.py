"""What cannot be submitted is said before anything is."""

import logging
import socket
from pathlib import Path
from typing import Any

import pytest
import typer

from glray.cli.jobs import check_paths, exit_as
from glray.errors import UserError
from glray.ray.jobs import Job, Jobs, identity_of, job_fingerprint
from glray.spec import (
    ComputeSpec,
    Fork,
    MixtureCorpus,
    PipelineSpec,
    SourceSpec,
    StdlibCorpus,
    TextCorpus,
    TokenizerFile,
)

from ..tiny import tiny_spec

TEXT = SourceSpec(name="text", weight=1, corpus=TextCorpus(paths=("/text", "text/*.txt")))
STDLIB = SourceSpec(name="stdlib", weight=1, corpus=StdlibCorpus())


def declared(**fields: object) -> PipelineSpec:
    return tiny_spec(Path("/shared"), **fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"compute": ComputeSpec()}, "compute.storage 'runs'"),
        ({"compute": ComputeSpec(storage="~/runs")}, "compute.storage '~/runs'"),
        ({"corpus": TextCorpus(paths=("text",))}, "corpus.paths 'text'"),
        ({"corpus": MixtureCorpus(sources=(STDLIB, TEXT))}, "corpus.sources.1.corpus.paths"),
        ({"tokenizer": TokenizerFile(path="tokenizer.json")}, "tokenizer.path 'tokenizer.json'"),
        ({"model": None, "init": "pythia"}, "init 'pythia'"),
    ],
)
def test_a_path_on_this_machine_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"^{said} .*relative to a folder of this machine"):
        check_paths(declared(**fields))


def test_what_every_node_may_see_passes() -> None:
    check_paths(declared(tokenizer=TokenizerFile(path="/shared/tokenizer.json")))
    check_paths(declared(corpus=TextCorpus(paths=("s3://bucket/text", "/text/*.txt"))))
    check_paths(declared(compute=ComputeSpec(storage="s3://bucket/runs")))
    check_paths(declared(model=None, start=Fork(run="tiny/grow")))  # looked for in the storage


def test_a_uri_with_a_credential_is_not_sent() -> None:
    with pytest.raises(UserError, match="s3:// URL holds a credential") as error:
        check_paths(declared(corpus=TextCorpus(paths=("s3://key:secret@bucket/text",))))
    assert "secret@" not in str(error.value)


def test_execution_is_no_identity_but_another_storage_is_another_job() -> None:
    spec = declared()
    other = spec.derive(compute={"log_every_steps": 7}, evaluation={"num_tokens": 64})
    longer, elsewhere = spec.derive(budget={"tokens": 6400}), tiny_spec(Path("/elsewhere"))
    one, executed, trained, placed = (
        job_fingerprint(it.model_dump(mode="json")) for it in (spec, other, longer, elsewhere)
    )
    assert one == executed
    assert len({one, trained, placed}) == 3
    assert identity_of(spec.model_dump())["arms"]["fixed32"]["stages"][0]["seq_len"] == 32


@pytest.fixture
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client sets is unset again."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    monkeypatch.setattr(logging.getLogger("ray"), "handlers", [])


@pytest.mark.usefixtures("_own_environment")
def test_an_address_without_a_dashboard_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # Ray would ask this one
    with pytest.raises(
        UserError, match=r"^--address 10\.0\.0\.1:6379: .*its URL, http://HEAD:8265"
    ):
        Jobs("10.0.0.1:6379")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(UserError, match=f"^--address {address}: no Ray dashboard answers"):
            Jobs(address)


@pytest.mark.usefixtures("_own_environment")
def test_what_ray_without_default_lacks_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # As its import leaves it where aiohttp is not installed.
    monkeypatch.setattr("ray.dashboard.modules.job.sdk.requests", None)
    with pytest.raises(UserError, match=r"pip install 'glray\[cluster\]'"):
        Jobs("http://127.0.0.1:8265")


def ended(status: str, exit_code: int | None) -> Job:
    return Job("glray-tiny-0a1b2c3d-12", {}, status, "its node died", 0.0, 1.0, exit_code)


@pytest.mark.parametrize(
    ("status", "exit_code", "passed_on"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 3, 3),
        ("FAILED", -9, 137),  # killed
        ("FAILED", 137, 137),  # the same through a shell
        ("STOPPED", None, 143),
    ],
)
def test_the_exit_status_of_a_job_is_passed_on(
    status: str, exit_code: int | None, passed_on: int
) -> None:
    with pytest.raises(typer.Exit) as exit_:
        exit_as(ended(status, exit_code))
    assert exit_.value.exit_code == passed_on


def test_a_job_that_was_lost_with_its_node_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^glray-tiny-0a1b2c3d-12: its node died: .*resumes"):
        exit_as(ended("FAILED", None))
    assert ended("FAILED", None).attempt == 12
