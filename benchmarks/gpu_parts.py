"""The parts of ``benchmarks/gpu.py``. Each takes its measures one by one, what matters first."""

import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.measures import Measures
from benchmarks.processes import kill_processes_of, start_glray_run
from glray.data.corpus import PreparedCorpus, PreparedSource
from glray.model import loss
from glray.model.attention import DocumentPlaces, causal_attention
from glray.model.flops import training_flops_per_token
from glray.run.profile import Setting
from glray.run.run import Run
from glray.spec import PYTHIA_160M, GPTNeoXModel, PipelineSpec, fixed, to_yaml
from glray.train.context import WorkerContext, device_clock
from glray.train.parallel import computing_in, release_models
from glray.train.probe.memory import gpu_budget_bytes
from glray.train.probe.peak import matmul_peak
from glray.train.probe.profile import ProfiledModel
from glray.train.trainee import Trainee
from glray.train.worker import train_all
from tests.planned import planned
from tests.tokens import write_tokens

ENDING_SECONDS = 20.0
"""What ``run`` leaves of its time to end what it started."""


@dataclass(frozen=True)
class Scale:
    """What is measured: Pythia-160M, as the paper has it."""

    model: GPTNeoXModel = PYTHIA_160M
    vocab_size: int = 50_304
    compiled: bool = True
    batches: tuple[int, ...] = (16_384, 65_536)
    """Tokens of a step, all at once."""
    seq_lens: tuple[int, ...] = (1024, 128, 4096, 16_384)
    largest_of: tuple[int, ...] = (128, 16_384, 1024, 4096, 256, 512, 2048, 8192)
    """Lengths whose largest batch is searched; the first two are compared."""
    steps: int = 20
    """Timed together."""
    loop_steps: int = 200
    run_steps: int = 300
    checkpoint_every_steps: int = 50

    @property
    def tokens(self) -> int:
        """Of one step, where one is enough."""
        return self.batches[0]

    def pipeline(self, storage: Path, **fields: object) -> PipelineSpec:
        """One arm at the first length in bfloat16, on text that every Python has."""
        seq_len = self.seq_lens[0]
        declared = {
            "name": "gpu",
            "corpus": {"kind": "stdlib"},
            "tokenizer": {"kind": "bpe", "vocab_size": min(4096, self.vocab_size)},
            "model": self.model.model_dump(),
            "arms": [fixed(seq_len).model_dump()],
            "budget": {"tokens": self.run_steps * self.tokens},
            "tokens_per_batch": self.tokens,
            "optimizer": {"lr": 6e-4},
            "precision": "bfloat16",
            "evaluation": {"seq_lens": (seq_len,), "num_tokens": 4 * seq_len},
            "compute": {
                "storage": str(storage),
                "use_gpu": self.compiled,
                "compile": self.compiled,
                "micro_batch_tokens": "auto",
                "checkpoint_every_tokens": self.checkpoint_every_steps * self.tokens,
            },
        }
        return PipelineSpec.model_validate(declared | fields)

    def profiled(self, seq_lens: tuple[int, ...], *, compiled: bool) -> ProfiledModel:
        """The model at the vocabulary of Pythia, for these lengths."""
        tokenizer = {"kind": "bpe", "vocab_size": self.vocab_size}
        spec = self.pipeline(Path("nowhere"), tokenizer=tokenizer)
        return ProfiledModel.under(Setting("sdpa", compiled, "bfloat16"), spec, seq_lens)


TOY = Scale(
    model=GPTNeoXModel(num_layers=2, hidden_size=32, num_heads=2, intermediate_size=64),
    vocab_size=512,
    compiled=False,
    batches=(256,),
    seq_lens=(64, 128),
    largest_of=(64, 128),
    steps=2,
    loop_steps=12,
    run_steps=20,
    checkpoint_every_steps=2,
)


# ---- loss


def loss_part(measures: Measures, scale: Scale, work: Path) -> None:
    """Everything that a step consists of, alone."""
    ctx = measures.ctx
    ways = (False, True) if scale.compiled else (False,)
    for compiled in ways:
        name = f"loss, {'compiled' if compiled else 'eager'}"
        measures.take(name, partial(_loss_alone, ctx, scale, compiled=compiled))
        measures.take(f"{name}, error", partial(_loss_error, ctx, scale, compiled=compiled))
    measures.take("matrix products", partial(_peak, ctx))
    for seq_len in scale.seq_lens:
        measures.take(f"a block at {seq_len}", partial(_block, ctx, scale, seq_len))
    measures.take("kernels of a step", partial(_kernels, scale))
    if ctx.device.type == "cuda":  # on a CPU flex attention has no backward pass
        measures.take("documents apart, error", partial(_documents_apart_error, ctx))


def _loss_inputs(ctx: WorkerContext, scale: Scale, num_targets: int) -> list[torch.Tensor]:
    generator = torch.Generator(ctx.device).manual_seed(0)
    hidden, weight = (
        torch.randn(rows, scale.model.hidden_size, device=ctx.device, generator=generator).to(
            torch.bfloat16
        )
        for rows in (num_targets, scale.vocab_size)
    )
    targets = torch.randint(
        scale.vocab_size, (num_targets,), device=ctx.device, generator=generator
    )
    return [hidden.requires_grad_(), weight.mul_(0.05).requires_grad_(), targets]


def _loss_alone(ctx: WorkerContext, scale: Scale, *, compiled: bool) -> dict[str, Any]:
    """Forward and backward of the loss of a batch's tokens; memory beyond its inputs."""
    hidden, weight, targets = _loss_inputs(ctx, scale, scale.tokens)

    def work() -> None:
        summed = loss._SummedLoss.apply(hidden, weight, targets, compiled)  # type: ignore[no-untyped-call]
        summed.backward()
        hidden.grad = weight.grad = None

    return {"targets": scale.tokens} | _timed(ctx, work)


def _loss_error(ctx: WorkerContext, scale: Scale, *, compiled: bool) -> dict[str, Any]:
    """How far loss and gradients are from those of the plain loss in float32, relative."""
    inputs = _loss_inputs(ctx, scale, min(2560, scale.tokens))  # the last chunk is shorter
    hidden, weight, targets = inputs
    ours = loss._SummedLoss.apply(*inputs, compiled)  # type: ignore[no-untyped-call]
    gradients = torch.autograd.grad(ours, (hidden, weight))
    logits = hidden.float() @ weight.float().T
    plain = F.cross_entropy(logits, targets, reduction="sum")
    expected = torch.autograd.grad(plain, (hidden, weight))
    pairs = zip(("loss", "hidden", "weight"), (ours, *gradients), (plain, *expected), strict=True)
    return {name: _relative_error(a, b) for name, a, b in pairs}


def _peak(ctx: WorkerContext) -> dict[str, Any]:
    """FLOP/s of matrix products in bfloat16."""
    peak = matmul_peak(ctx, "bfloat16")
    return {"measured": peak.measured, "nominal": peak.nominal}


def _block(ctx: WorkerContext, scale: Scale, seq_len: int) -> dict[str, Any]:
    """Forward and backward of a model of one block without its loss."""
    one = scale.pipeline(Path("nowhere"), model=scale.model.derive(num_layers=1).model_dump())
    model = ProfiledModel.under(Setting("sdpa", scale.compiled, "bfloat16"), one, (seq_len,))
    release_models()
    network = model.at_once(scale.tokens).trainee().model.network
    inputs = torch.zeros(
        (max(1, scale.tokens // seq_len), seq_len), dtype=torch.int64, device=ctx.device
    )

    def work() -> None:
        with computing_in("bfloat16", network, ctx.device):
            hidden = network.base_model(inputs, use_cache=False).last_hidden_state
        hidden.sum().backward()
        network.zero_grad()

    return {"tokens": scale.tokens} | _timed(ctx, work)


def _kernels(scale: Scale) -> dict[str, Any]:
    """Where the time of a step at the first length goes: the kernels, or operators on a CPU, that
    take most of it, in milliseconds."""
    seq_len = scale.seq_lens[0]
    trainee = _trainee(scale, scale.tokens, (seq_len,))
    batch = trainee.random_batch(seq_len)
    for _ in range(3):
        trainee.step_seconds(batch)
    on_gpu = trainee.ctx.device.type == "cuda"
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CUDA if on_gpu else activity.CPU]) as profiler:
        seconds = trainee.step_seconds(batch)
    spent = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    milliseconds = {each.key: getattr(each, spent) / 1000 for each in profiler.key_averages()}
    most = sorted(milliseconds.items(), key=lambda item: -item[1])[:30]
    return {"seconds": seconds, "all": sum(milliseconds.values()), "kernels": dict(most)}


def _documents_apart_error(ctx: WorkerContext) -> dict[str, Any]:
    """Flex attention, which keeps documents apart, against a mask in memory: relative errors."""
    shape, generator = (2, 4, 256, 64), torch.Generator(ctx.device).manual_seed(0)
    heads = [
        torch.randn(shape, device=ctx.device, generator=generator).requires_grad_()
        for _ in range(3)
    ]
    tokens = torch.randint(20, (2, 256), device=ctx.device, generator=generator)
    places = DocumentPlaces(tokens, separator=0)
    module, found = torch.nn.Module(), []
    query, key, value = heads
    for mask in (places.block_mask(), places.mask()):
        out, _ = causal_attention(module, query, key, value, mask)
        found.append((out, *torch.autograd.grad(out.square().sum(), heads)))
    names = ("out", "query", "key", "value")
    return {name: _relative_error(a, b) for name, a, b in zip(names, *found, strict=True)}


def _relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def _timed(ctx: WorkerContext, work: Callable[[], None], times: int = 10) -> dict[str, Any]:
    """Seconds of ``work`` once it has been done twice: the median, and the fastest; on a GPU also
    the memory allocated at its peak beyond what was before."""
    for _ in range(2):
        work()
    before = _allocated_bytes(ctx, reset=True)
    seconds = []
    for _ in range(times):
        start = device_clock(ctx.device)
        work()
        seconds.append(device_clock(ctx.device) - start)
    found = {"seconds": statistics.median(seconds), "fastest": min(seconds)}
    peak = _allocated_bytes(ctx)
    return found if before is None or peak is None else found | {"bytes": peak - before}


def _allocated_bytes(ctx: WorkerContext, *, reset: bool = False) -> int | None:
    """At the peak since the last reset; None on a CPU."""
    if ctx.device.type != "cuda":
        return None
    if reset:
        torch.cuda.reset_peak_memory_stats(ctx.device)
    return torch.cuda.max_memory_allocated(ctx.device)


# ---- steps


def steps_part(measures: Measures, scale: Scale, work: Path) -> None:
    """Whole steps by batch and length, then what flushing metrics costs the loop."""
    peak = measures.take("matrix products", partial(_peak, measures.ctx))
    for tokens in scale.batches:
        for seq_len in scale.seq_lens:
            step = partial(_step, scale, tokens, seq_len, peak)
            measures.take(f"{tokens} tokens at {seq_len}", step)
    for every in (10, 100):
        name = f"loop, flushed every {every} steps"
        measures.take(name, partial(_loop, measures.ctx, scale, work / str(every), every))


def _trainee(scale: Scale, tokens: int, seq_lens: tuple[int, ...]) -> Trainee:
    """A model that trains ``tokens`` tokens at once; the memory of those before it is free."""
    release_models()
    return scale.profiled(seq_lens, compiled=scale.compiled).at_once(tokens).trainee()


def _step(scale: Scale, tokens: int, seq_len: int, peak: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a step among others that nothing waits between, its MFU, and memory."""
    trainee = _trainee(scale, tokens, (seq_len,))
    ctx, batch = trainee.ctx, trainee.random_batch(seq_len)
    start = device_clock(ctx.device)
    trainee.warm_up([batch])
    warm_up_seconds = device_clock(ctx.device) - start
    for _ in range(3):
        trainee.step(batch, trainee.spec.optimizer.lr)
    _allocated_bytes(ctx, reset=True)
    start = device_clock(ctx.device)
    for _ in range(scale.steps):
        trainee.step(batch, trainee.spec.optimizer.lr)
    seconds = (device_clock(ctx.device) - start) / scale.steps
    flops = tokens * training_flops_per_token(trainee.model.network.config, seq_len) / seconds
    most = {of: peak.get(of) for of in ("measured", "nominal")}
    return {
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        **{f"mfu_of_{of}": flops / value if value else None for of, value in most.items()},
        "bytes": _allocated_bytes(ctx),
        "warm_up_seconds": warm_up_seconds,
    }


def _loop(ctx: WorkerContext, scale: Scale, work: Path, every: int) -> dict[str, Any]:
    """The loop on token blocks of noise, with all that a run does but Ray."""
    noise, ids = np.random.default_rng(0), (1, 290)  # the tokenizer has a few more
    heldout = [noise.integers(*ids, size=4 * scale.seq_lens[0]) for _ in range(4)]
    work.mkdir(parents=True)
    blocks = write_tokens(work, noise.integers(*ids, size=2**20 + 1), heldout)
    corpus = PreparedCorpus((PreparedSource("stdlib", 1, blocks),))
    declared = scale.pipeline(work / "runs")
    spec = declared.derive(
        tokenizer={"vocab_size": 300},
        budget={"tokens": scale.loop_steps * scale.tokens},
        compute={
            "micro_batch_tokens": scale.tokens,
            "checkpoint_every_tokens": 10**12,
            "log_every_steps": every,
        },
    )
    release_models()
    train_all(spec, corpus, ctx)
    (run,) = planned(spec, corpus)
    log = run.log
    first = min(every, len(log.step) // 2)  # its steps warm the card
    seconds = log.measured_seconds[-1] - log.measured_seconds[first - 1]
    return {
        "seconds_per_step": float(seconds / (len(log.step) - first)),
        "steps": len(log.step) - first,
        "data_wait_seconds_per_step": float(log.data_wait_seconds[first:].mean()),
    }


# ---- run


def run_part(measures: Measures, scale: Scale, work: Path) -> None:
    """``glray run`` undisturbed, then killed after its first checkpoint and given again."""
    measures.take("undisturbed", partial(_undisturbed, measures, scale, work))
    measures.take("killed and resumed", partial(_killed_and_resumed, measures, scale, work))


def _undisturbed(measures: Measures, scale: Scale, work: Path) -> dict[str, Any]:
    run = _run(measures, scale, work, "undisturbed")
    return {"measured_seconds": run.measured_seconds, "losses": run.log.loss.tolist()}


def _killed_and_resumed(measures: Measures, scale: Scale, work: Path) -> dict[str, Any]:
    """On a GPU bits are not promised: how far the losses are from the undisturbed run's."""
    undisturbed = measures.taken["undisturbed"].get("losses")
    if undisturbed is None:
        raise RuntimeError("there is no undisturbed run to compare with")
    run = _run(measures, scale, work, "resumed", kill=True)
    events = (run.directory.parent / "events.log").read_text(encoding="utf-8")
    apart = abs(run.log.loss - undisturbed)
    return {
        "resumed": "resumed at step" in events,
        "execution_changed": "bit-identity ends" in events,
        "losses_apart_at_most": float(apart.max()),
        "last_losses_apart": float(apart[-1]),
    }


def _run(measures: Measures, scale: Scale, work: Path, name: str, *, kill: bool = False) -> Run:
    """The run that ``glray run`` leaves; its log is kept beside the measures. Raises RuntimeError
    unless the command ends well, in time."""
    spec = scale.pipeline(work / "runs", name=name)
    path, log_path = work / f"{name}.yaml", measures.folder / f"{measures.name}-{name}.log"
    path.write_text(to_yaml(spec))
    directory = work / "runs" / name / f"{spec.arms[0].name}-seed0"
    try:
        with log_path.open("w", encoding="utf-8") as log:
            if kill:
                _until_a_checkpoint(measures, path, directory, work, log)
                log.write("--- SIGKILL\n")
                log.flush()  # what runs next writes to the same file
            process = start_glray_run(path, work, log)
            try:
                status = process.wait(_seconds_left(measures))
            except subprocess.TimeoutExpired:
                raise RuntimeError("glray run has not ended within the time of this part") from None
            finally:
                kill_processes_of(work, process)
        if status:
            raise RuntimeError(f"glray run ended with status {status}: see {log_path.name}")
        return Run.open(directory)
    finally:  # the log's paths are of the machine that it ran on
        log_path.write_text(log_path.read_text(encoding="utf-8").replace(str(work), "WORK"))


def _until_a_checkpoint(
    measures: Measures, path: Path, directory: Path, work: Path, log: Any
) -> None:
    """``glray run``, killed once it has committed a checkpoint. Raises RuntimeError if there is
    none in time, or the command ends before."""
    process = start_glray_run(path, work, log)
    try:
        while not any(directory.glob("checkpoints/*/COMMITTED")):
            try:
                status = process.wait(min(0.05, _seconds_left(measures)))
            except subprocess.TimeoutExpired:
                if _seconds_left(measures):
                    continue
                raise RuntimeError("no checkpoint within the time of this part") from None
            raise RuntimeError(f"glray run ended with status {status} before its first checkpoint")
    finally:
        kill_processes_of(work, process)


def _seconds_left(measures: Measures) -> float:
    return max(0.0, measures.seconds_left - ENDING_SECONDS)


# ---- largest


def largest_part(measures: Measures, scale: Scale, work: Path) -> None:
    """The largest batch at each length: searched without compiling, which would take longer than
    all the rest; at the shortest and the longest it is then tried compiled."""
    ctx, found = measures.ctx, {}
    for seq_len in scale.largest_of:
        found[seq_len] = measures.take(f"at {seq_len}", partial(_largest, ctx, scale, seq_len))
        if len(found) == 2:
            measures.take("longest over shortest", partial(_ratio, *found.values()))
    for seq_len in scale.largest_of[:2] if scale.compiled else ():
        tokens = found[seq_len].get("tokens")
        if tokens:
            step = partial(_step, scale, tokens, seq_len, {})
            measures.take(f"compiled, {tokens} tokens at {seq_len}", step)


def _largest(ctx: WorkerContext, scale: Scale, seq_len: int) -> dict[str, Any]:
    """Tokens of the largest batch within 92% of a GPU's memory, 512 MiB of a CPU's."""
    budget = gpu_budget_bytes(ctx.device) if ctx.device.type == "cuda" else 2**29
    model = scale.profiled((seq_len,), compiled=False)
    tokens = model.largest_batch_tokens(seq_len, budget)
    release_models()
    return {"tokens": tokens, "budget_bytes": budget}


def _ratio(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    if not first.get("tokens") or not second.get("tokens"):
        raise RuntimeError("a largest batch is missing")
    return {"ratio": second["tokens"] / first["tokens"]}


PARTS: dict[str, Callable[[Measures, Scale, Path], None]] = {
    "loss": loss_part,
    "steps": steps_part,
    "run": run_part,
    "largest": largest_part,
}
