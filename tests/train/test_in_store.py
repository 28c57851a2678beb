"""A run whose storage is a bucket: trained, killed, resumed, forked and read like one here."""

import json
import multiprocessing
import os
import signal
import threading
from itertools import count
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from typer.testing import CliRunner

from glray.cli import app
from glray.data.corpus import PreparedCorpus
from glray.errors import UserError
from glray.files import (
    AnyPath,
    StorePath,
    as_path,
    copy_tree,
    files_below,
    leases,
    read_log,
    sha256_of,
    write_text,
)
from glray.run.checkpoint import (
    CommittedFile,
    adopt,
    checkpoint_path,
    commit,
    committed_checkpoints,
    remove_checkpoint,
    step_of,
    verify,
)
from glray.run.records import TrainState
from glray.run.run import Run, pipeline_directory
from glray.spec import PipelineSpec
from glray.train.context import WorkerContext
from glray.train.export import export_run
from glray.train.scoring import ScoringProtocol, find_model, score_model
from glray.train.tensor_files import tensor_reader
from glray.train.worker import train_all
from tests.measuring import measure_briefly
from tests.planned import planned

from ..killing import same_run
from ..stores import BUCKET, Headers, StoreServer, emptied
from ..tiny import tiny_spec
from ..weights import same_weights
from .test_forks import ARMS, forking_spec, records, trained


def in_bucket(spec: PipelineSpec, prefix: str) -> PipelineSpec:
    return spec.derive(compute={"storage": f"s3://{BUCKET}/{prefix}"})


def train_and_die(spec: PipelineSpec, corpus: PreparedCorpus) -> None:
    """Train until a checkpoint is committed and another one begun."""
    torch.set_num_threads(1)
    measure_briefly()
    leases.LEASE_SECONDS = 4.0
    asked = count(1)

    def stop() -> bool:
        if next(asked) == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    train_all(spec, corpus, WorkerContext(stop=stop))


@pytest.fixture(scope="module")
def resumed(
    server: StoreServer, corpus: PreparedCorpus, tmp_path_factory: pytest.TempPathFactory
) -> list[Run]:
    """Both arms of the tiny pipeline, trained in a bucket and killed on the way."""
    emptied()
    spec = in_bucket(tiny_spec(tmp_path_factory.mktemp("unused")), "runs")
    process = multiprocessing.get_context("spawn").Process(
        target=train_and_die, args=(spec, corpus)
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    runs = planned(spec, corpus)
    assert 3 <= step_of(committed_checkpoints(runs[0].checkpoints)[-1]) < 12
    train_all(spec, corpus, WorkerContext())
    return runs


def test_a_run_that_was_killed_ends_as_one_here_does(
    resumed: list[Run], finished: list[Run]
) -> None:
    for run, undisturbed in zip(resumed, finished, strict=True):
        assert same_weights(run, undisturbed)
        assert records(run) == records(undisturbed)
        ours, theirs = Run.open(run.directory), Run.open(undisturbed.directory)
        assert ours.manifest.fingerprint == theirs.manifest.fingerprint
        for checkpoint in committed_checkpoints(run.checkpoints):
            verify(checkpoint)
    names = files_below(resumed[0].directory.parent)
    assert not [name for name in names if "/.partial" in name]
    folders = {name.rpartition("/")[0] for name in names if "checkpoints/step" in name}
    assert {f"{folder}/COMMITTED" for folder in folders if "tensors" not in folder} <= {*names}
    log = read_log(resumed[0].directory.parent / "events.log").decode()
    assert "grow-seed0: resumed at step" in log
    assert log.splitlines() == sorted(log.splitlines(), key=lambda line: line[:19])


def test_what_is_read_of_it_is_the_same(
    resumed: list[Run], finished: list[Run], tmp_path: Path, undrawn: None
) -> None:
    shown = []
    for runs, out in ((resumed, f"s3://{BUCKET}/report"), (finished, str(tmp_path / "report"))):
        result = CliRunner().invoke(app, ["report", str(runs[0].directory.parent), "--out", out])
        assert result.exit_code == 0, result.exception
        assert as_path(f"{out}/report.html").is_file()
        _, _, heldout = result.output.partition("Held-out loss")  # before it are seconds
        lines = heldout.splitlines()
        shown.append([line for line in lines if out not in line and " took " not in line])
    assert shown[0] == shown[1]
    protocol = ScoringProtocol(seq_lens=(8, 32))
    ours, theirs = (score_model(runs[0].directory, protocol) for runs in (resumed, finished))
    assert ours.by_positions == theirs.by_positions


def test_its_model_is_exported_here_and_there(
    resumed: list[Run], finished: list[Run], tmp_path: Path
) -> None:
    there = StorePath(f"s3://{BUCKET}/models/grow")
    for run, path in ((resumed[0], there), (resumed[0], tmp_path / "a"), (finished[0], tmp_path)):
        export_run(run.directory, path / "model")
    for name in files_below(tmp_path / "model"):
        assert sha256_of(there / "model" / name) == sha256_of(tmp_path / "model" / name), name
        assert sha256_of(tmp_path / "a/model" / name) == sha256_of(tmp_path / "model" / name), name
    network = find_model(there / "model", torch.device("cpu")).model.network
    expected = find_model(tmp_path / "model", torch.device("cpu")).model.network.state_dict()
    assert all(torch.equal(w, expected[name]) for name, w in network.state_dict().items())
    with pytest.raises(UserError, match="is there already"):
        export_run(resumed[0].directory, there / "model")


def test_a_run_copied_from_a_store_goes_on_here(
    resumed: list[Run], finished: list[Run], tmp_path: Path
) -> None:
    copy_tree(resumed[0].directory, tmp_path / "tiny/grow-seed0")
    here = Run.open(tmp_path / "tiny/grow-seed0")
    assert records(here) == records(finished[0])
    assert here.is_finished


def test_a_storage_copied_from_a_store_is_resumed_here(
    finished: list[Run], corpus: PreparedCorpus, tmp_path: Path
) -> None:
    there, here = in_bucket(tiny_spec(tmp_path), "copied"), tiny_spec(tmp_path / "here")
    asked = iter([False, False, True])
    train_all(there, corpus, WorkerContext(stop=lambda: next(asked)))
    copy_tree(pipeline_directory(there), pipeline_directory(here))
    events = pipeline_directory(here) / "events.log"
    assert events.is_dir()  # in parts
    train_all(here, corpus, WorkerContext())
    for run, undisturbed in zip(planned(here, corpus), finished, strict=True):
        assert same_run(run, undisturbed)
    lines = events.read_text().splitlines()
    assert any("grow-seed0: starts" in line for line in lines)
    assert any("grow-seed0: resumed at step" in line for line in lines)
    assert not list(pipeline_directory(here).rglob("*.parts"))


def test_runs_fork_within_a_store(corpus: PreparedCorpus, tmp_path: Path) -> None:
    arms = (ARMS[1], ARMS[3])
    here = trained(forking_spec(tmp_path, *arms), corpus)
    there = trained(in_bucket(forking_spec(tmp_path, *arms), "forks"), corpus)
    for arm, run in there.items():
        assert records(run) == records(here[arm])
        assert same_weights(run, here[arm])
    fork = Run.open(there["half"].directory).manifest.fork
    assert fork is not None
    assert (fork.run, fork.step) == ("grow-seed0", 8)


def test_runs_go_on_from_a_parent_in_a_store(
    resumed: list[Run], finished: list[Run], corpus: PreparedCorpus, tmp_path: Path
) -> None:
    children = []
    for runs, prefix in ((resumed, "children"), (finished, None)):
        start = {"run": str(runs[0].directory.parent / "grow")}
        spec = tiny_spec(tmp_path, name="child", model=None, start=start, chunk_len=32)
        spec = spec.derive(arms=spec.arms[1:])
        train_all(in_bucket(spec, prefix) if prefix else spec, corpus, WorkerContext())
        children += planned(in_bucket(spec, prefix) if prefix else spec, corpus)
    there, here = children
    assert same_weights(there, here)
    assert records(there) == records(here)


def test_a_store_that_is_away_for_a_while_is_waited_for(
    finished: list[Run], corpus: PreparedCorpus, tmp_path: Path, server: StoreServer
) -> None:
    """It goes away at the third logging boundary, for as long as a lease counts."""
    spec, asked = in_bucket(tiny_spec(tmp_path), "away"), count(1)

    def stop() -> bool:
        if next(asked) == 3:
            server.refuse("503 Slow Down")
            threading.Timer(3, server.recover).start()
        return False

    train_all(spec, corpus, WorkerContext(stop=stop))
    for run, undisturbed in zip(planned(spec, corpus), finished, strict=True):
        assert same_weights(run, undisturbed)
        assert records(run) == records(undisturbed)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    finished: list[Run], corpus: PreparedCorpus, tmp_path: Path, server: StoreServer
) -> None:
    spec = in_bucket(tiny_spec(tmp_path), "refused")
    (run, _) = planned(spec, corpus)

    def refuses(request: str, _: Headers) -> bool:
        return request.startswith(("PUT", "POST")) and "step-00000006/tensors" in request

    with (
        server.refusing("403 Forbidden", refuses),
        pytest.raises(UserError, match=r"the checkpoint of step 6 cannot be written") as caught,
    ):
        train_all(spec, corpus, WorkerContext())
    assert "\n" not in str(caught.value)
    assert step_of(committed_checkpoints(run.checkpoints)[-1]) == 4
    train_all(spec, corpus, WorkerContext())
    assert same_weights(run, finished[0])


def commit_empty(checkpoints: AnyPath, step: int) -> AnyPath:
    """A checkpoint without tensors."""
    path = checkpoint_path(checkpoints, step)
    commit(path, path, TrainState(step=step), {})
    return path


def is_deletion(request: str, _: Headers) -> bool:
    return request.endswith("?delete") or request.startswith("DELETE")


def test_a_checkpoint_counts_although_older_ones_could_not_be_deleted(
    bucket: StorePath, server: StoreServer
) -> None:
    for step in (1, 2):
        commit_empty(bucket, step)
    with server.refusing("403 Forbidden", is_deletion):
        commit_empty(bucket, 3)
    assert [step_of(path) for path in committed_checkpoints(bucket)] == [1, 2, 3]
    commit_empty(bucket, 4)
    assert [step_of(path) for path in committed_checkpoints(bucket)] == [3, 4]


def test_a_checkpoint_that_is_half_deleted_does_not_count(
    bucket: StorePath, server: StoreServer
) -> None:
    path, deletions = commit_empty(bucket, 1), count(1)

    def refuses(request: str, headers: Headers) -> bool:
        return is_deletion(request, headers) and next(deletions) > 1

    with server.refusing("403 Forbidden", refuses), pytest.raises(PermissionError):
        remove_checkpoint(path)
    assert files_below(path) == ["state.json"]
    commit_empty(bucket, 2)
    assert files_below(path) == []


def test_what_a_killed_attempt_left_goes_with_the_next_commit_and_is_not_adopted(
    bucket: StorePath, tmp_path: Path
) -> None:
    """Otherwise a copy here would be refused for a file that its manifest does not name."""
    path = checkpoint_path(bucket, 1)
    write_text(path / "tensors/rank-0-0badcafe.safetensors", "killed")
    commit_empty(bucket, 1)
    assert files_below(path) == ["COMMITTED", "state.json"]
    write_text(path / "tensors/rank-0-0badcafe.safetensors", "still writing")
    adopt(path, checkpoint_path(tmp_path, 1))
    verify(checkpoint_path(tmp_path, 1))
    assert files_below(checkpoint_path(tmp_path, 1)) == ["COMMITTED", "state.json"]


def test_a_checkpoint_that_is_gone_is_not_adopted(bucket: StorePath, tmp_path: Path) -> None:
    write_text(bucket / "half/step-00000001/state.json", "{}")
    for source in (bucket / "gone/step-00000001", bucket / "half/step-00000001", tmp_path / "gone"):
        for place in (bucket / "fork", tmp_path / "fork"):
            with pytest.raises(FileNotFoundError, match="COMMITTED"):
                adopt(source, checkpoint_path(place, 1))
    assert files_below(bucket / "fork") == files_below(tmp_path / "fork") == []


def test_each_rank_reads_what_it_needs_of_several_files(
    tmp_path: Path, server: StoreServer
) -> None:
    """A tensor of which two ranks wrote a half each, between others that nobody asks for."""
    tensors = {"whole": torch.arange(100.0), "halves": torch.arange(12.0).view(4, 3)}
    shares = (
        {"whole": (tensors["whole"], [0]), "halves": (tensors["halves"][:2], [0, 0])},
        {"other": (torch.zeros(5), [0]), "halves": (tensors["halves"][2:], [2, 0])},
    )
    path = StorePath(f"s3://{BUCKET}/sharded/step-00000001")
    files = {}
    for rank, share in enumerate(shares):
        offsets = {name: {"saved_offsets": offset} for name, (_, offset) in share.items()}
        own = tmp_path / f"rank-{rank}.safetensors"
        whole = {name: tensor.contiguous() for name, (tensor, _) in share.items()}
        save_file(whole, own, {"DCP_SHARDING_INFO": json.dumps(offsets), "format": "pt"})
        files[own.name] = CommittedFile(bytes=own.stat().st_size, sha256=sha256_of(own))
    copy_tree(tmp_path, path / "tensors")
    write_text(path / "tensors/rank-0-killed.safetensors", "of an attempt that was killed")
    commit(path, path, TrainState(step=1), files)
    verify(path)
    found = {"halves": torch.zeros(4, 3)}
    server.requests.clear()
    with tensor_reader(path) as reader:
        dcp.load(found, storage_reader=reader, no_dist=True)
    assert torch.equal(found["halves"], tensors["halves"])
