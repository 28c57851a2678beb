"""How a run is executed: compiled, recomputed, in micro-batches that fit; and what it says."""

import multiprocessing
import resource
import signal
from collections.abc import Iterable
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from glray.data.corpus import PreparedCorpus
from glray.data.windows import Batch
from glray.errors import UserError
from glray.files import read_json
from glray.run.checkpoint import committed_checkpoints, step_of
from glray.run.records import TrainState
from glray.run.run import Run
from glray.spec import ComputeSpec, OptimizerSpec, PipelineSpec
from glray.train.checkpoint import Saver, load_checkpoint
from glray.train.context import WorkerContext
from glray.train.execution import choose_kernels, is_deterministic
from glray.train.group import Coordinator, WorkerGroup
from glray.train.optimizer import build_optimizer
from glray.train.probe import micro_batches
from glray.train.trainee import Trainee
from glray.train.worker import train_all
from tests.planned import planned

from ..tiny import tiny_spec
from ..weights import same_weights, weights_of
from .test_loop import metrics


def spec_with(storage: Path, **compute: object) -> PipelineSpec:
    """Of the growing arm alone."""
    spec = tiny_spec(storage, only=("grow",))
    return spec.derive(compute=compute)


def trained(storage: Path, corpus: PreparedCorpus, **compute: object) -> Run:
    spec = spec_with(storage, **compute)
    train_all(spec, corpus, WorkerContext())
    (run,) = planned(spec, corpus)
    return run


@pytest.fixture(scope="module")
def plain(trained_storage: Path, corpus: PreparedCorpus) -> Run:
    return planned(tiny_spec(trained_storage), corpus)[0]


def test_recomputing_activations_changes_no_bit(
    plain: Run, tmp_path: Path, corpus: PreparedCorpus
) -> None:
    assert same_weights(trained(tmp_path, corpus, activation_checkpointing=True), plain)


def test_every_length_is_compiled_before_the_clock_starts(
    plain: Run, tmp_path: Path, corpus: PreparedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = []

    warm_up = Trainee.warm_up

    def watched(trainee: Trainee, batches: Iterable[Batch]) -> None:
        warm_up(trainee, batches)
        graphs.append(counters["stats"]["unique_graphs"])

    monkeypatch.setattr(Trainee, "warm_up", watched)
    monkeypatch.setattr(  # an evaluation compiles too, off the clock
        "glray.train.loop.evaluate", lambda session: None
    )
    counters.clear()
    arms = [{"name": "grow", "stages": [{"seq_len": 16}, {"seq_len": 32}]}]
    spec = spec_with(tmp_path / "one", compile=True).derive(arms=arms)
    train_all(spec, corpus, WorkerContext())
    assert graphs == [counters["stats"]["unique_graphs"]]
    assert graphs[0] >= 2
    (run,) = planned(spec, corpus)
    losses = [line["loss"] for line in metrics(run)]
    # The first step's loss is that of any length's first windows but for their context.
    assert losses[0] == pytest.approx(metrics(plain)[0]["loss"], rel=1e-2)
    assert losses[-1] < losses[0]

    # Stopped inside a stage and gone on, it ends with the same bits.
    again = spec.derive(compute={"storage": str(tmp_path / "two")})
    asked = iter([False, False, True])
    train_all(again, corpus, WorkerContext(stop=lambda: next(asked)))
    train_all(again, corpus, WorkerContext())
    assert same_weights(planned(again, corpus)[0], run)


def test_micro_batches_are_probed_once_and_then_reused(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    run = trained(tmp_path, corpus, micro_batch_tokens="auto")
    path = tmp_path / "tiny" / "micro_batches.json"
    (found,) = read_json(path)["probed"]
    probed = found["micro_batch_tokens"]
    assert probed == {"8": 64, "16": 64, "32": 64}  # a whole batch fits
    (executed,) = read_json(run.directory / "run.json")["executions"]
    assert executed["micro_batch_tokens"] == probed
    written = path.stat().st_mtime_ns
    more = spec_with(tmp_path, micro_batch_tokens="auto").derive(seeds=(0, 1))
    train_all(more, corpus, WorkerContext())
    assert path.stat().st_mtime_ns == written


def test_micro_batches_are_known_again_when_their_conditions_come_back(
    tmp_path: Path, corpus: PreparedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of an elastic group of 2, 3 and again 2 workers; here the batch changes instead."""
    probed = []

    def probe(work: object, most_rows: dict[int, int], ctx: WorkerContext) -> dict[int, int]:
        probed.append(most_rows)
        return most_rows

    monkeypatch.setattr(micro_batches, "_rows_on_cpu", probe)
    path = tmp_path / "micro_batches.json"
    small = spec_with(tmp_path, micro_batch_tokens="auto")
    large = small.derive(tokens_per_batch=128)
    found = [
        micro_batches.micro_batches(spec, corpus, WorkerContext(), path)
        for spec in (small, large, small, large)
    ]
    assert found == [dict.fromkeys(("8", "16", "32"), n) for n in (64, 128, 64, 128)]
    assert len(probed) == 2
    beside = [WorkerContext(group=WorkerGroup(0, n, Coordinator(n))) for n in (3, 2, 1)]
    widest = small.derive(tokens_per_batch=256)
    for ctx in beside:  # what fits beside two others fits when these have ended
        micro_batches.micro_batches(widest, corpus, ctx, path)
    assert len(probed) == 3
    micro_batches.micro_batches(small, corpus, beside[0], path)
    assert len(probed) == 4


def test_on_a_gpu_micro_batches_are_halved_until_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[int, int, int | None]] = []
    monkeypatch.setattr(micro_batches, "gpu_budget_bytes", lambda device: 0)
    monkeypatch.setattr(
        micro_batches, "gpu_peak_bytes", lambda work, device, budget: work() or tried[-1][2]
    )

    def work(seq_len: int, rows: int) -> None:
        tried.append((seq_len, rows, 1 if seq_len * rows <= 3000 else None))

    found = micro_batches._rows_on_gpu(work, {128: 20, 1024: 7}, WorkerContext())
    assert found == {1024: 2, 128: 20}
    assert [rows for _, rows, _ in tried] == [7, 4, 2, 20]


def test_a_resume_that_cannot_keep_the_bits_says_so(tmp_path: Path, corpus: PreparedCorpus) -> None:
    spec = spec_with(tmp_path)
    asked = iter([False, False, True])
    train_all(spec, corpus, WorkerContext(stop=lambda: next(asked)))
    step = step_of(committed_checkpoints(planned(spec, corpus)[0].checkpoints)[-1])
    other = spec.derive(compute={"micro_batch_tokens": 64})
    train_all(other, corpus, WorkerContext())
    events = (tmp_path / "tiny" / "events.log").read_text()
    assert f"bit-identity ends at step {step}: micro_batch_tokens {{'8': 32" in events
    assert events.count("bit-identity") == 1
    executions = read_json(tmp_path / "tiny" / "grow-seed0" / "run.json")["executions"]
    assert [entry["first_step"] for entry in executions] == [0, step]


def test_bits_are_promised_where_kernels_are_deterministic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu, cpu = WorkerContext(device=torch.device("cuda")), WorkerContext()
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert is_deterministic(cpu.device)
    assert not is_deterministic(gpu.device)
    asked = ComputeSpec(deterministic=True)
    for compute, ctx in ((ComputeSpec(), gpu), (asked, cpu)):  # nothing to choose
        choose_kernels(compute, ctx)
        assert not torch.are_deterministic_algorithms_enabled()
    try:
        choose_kernels(asked, gpu)
        assert is_deterministic(gpu.device)
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
        assert not is_deterministic(gpu.device)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


def test_a_resume_without_deterministic_kernels_says_that_bits_are_not_promised(
    tmp_path: Path, corpus: PreparedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glray.train.execution.is_deterministic", lambda device: False)  # a GPU's
    spec = spec_with(tmp_path).derive(only=["fixed32"])
    asked = iter([False, True])
    train_all(spec, corpus, WorkerContext(stop=lambda: next(asked)))
    train_all(spec, corpus, WorkerContext())
    events = (tmp_path / "tiny" / "events.log").read_text()
    assert events.count("bits are not promised") == 1
    assert "fixed32-seed0: bits are not promised from step 3 on: this GPU's kernels may" in events
    (executed,) = read_json(tmp_path / "tiny" / "fixed32-seed0" / "run.json")["executions"]
    assert executed["deterministic"] is False


def fill_the_disk(spec: PipelineSpec, corpus: PreparedCorpus, answer: SimpleQueue[str]) -> None:
    """Train where no file can grow beyond 20,000 bytes, as on a full disk."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    try:
        train_all(spec, corpus, WorkerContext())
    except UserError as error:
        answer.put(str(error))


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    plain: Run, tmp_path: Path, corpus: PreparedCorpus
) -> None:
    spec = spec_with(tmp_path)
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    process = context.Process(target=fill_the_disk, args=(spec, corpus, answer))
    process.start()
    process.join(60)
    run = planned(spec, corpus)[0]
    said = answer.get()
    assert f"{run.checkpoints}: the checkpoint of step 3 cannot be written: File too large" in said
    assert list(run.checkpoints.iterdir()) == []
    train_all(spec, corpus, WorkerContext())
    assert same_weights(run, plain)


def test_the_random_state_and_the_moments_come_back(plain: Run, tmp_path: Path) -> None:
    tensors = weights_of(plain)
    names = {name.split(".", 1)[0] for name in tensors}
    assert names == {"model", "exp_avg", "exp_avg_sq"}
    assert all(tensor.abs().sum() > 0 for name, tensor in tensors.items() if "bias" not in name)

    def network_and_optimizer() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        network = torch.nn.Linear(3, 2)
        return network, build_optimizer(network, OptimizerSpec(lr=0.1))

    network, optimizer = network_and_optimizer()
    network(torch.ones(4, 3)).square().sum().backward()
    optimizer.step()
    saver = Saver(tmp_path, WorkerContext())
    saver.begin(TrainState(step=1), network, optimizer)
    drawn = torch.rand(5)
    saver.commit()

    fresh, other = network_and_optimizer()
    (path,) = committed_checkpoints(tmp_path)
    assert load_checkpoint(path, fresh, other, WorkerContext()).step == 1
    assert torch.equal(torch.rand(5), drawn)
    for ours, theirs in zip(fresh.parameters(), network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(other.state[ours][moment], optimizer.state[theirs][moment])
            assert other.state[ours][moment].any()


def test_an_arm_that_joins_later_ends_as_if_it_had_been_there(
    plain: Run, tmp_path: Path, corpus: PreparedCorpus
) -> None:
    alone = tiny_spec(tmp_path, only=("fixed32",))
    train_all(alone, corpus, WorkerContext())
    directory = tmp_path / "tiny"
    assert [path.parent.name for path in directory.glob("*/result.json")] == ["fixed32-seed0"]
    assert "only: null" in (directory / "spec.yaml").read_text()
    fixed = (directory / "fixed32-seed0" / "result.json").read_bytes()

    train_all(tiny_spec(tmp_path), corpus, WorkerContext())
    assert (directory / "fixed32-seed0" / "result.json").read_bytes() == fixed
    joined, together = (
        read_json(grow / "run.json")["fingerprint"]
        for grow in (directory / "grow-seed0", plain.directory)
    )
    assert joined == together
