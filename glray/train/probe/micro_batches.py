"""How many tokens go through the model at once, at each length: declared, or found by probing.

On a GPU a micro-batch fits or it does not: from a worker's whole batch downwards, the first that
leaves a margin is taken. On a CPU the operating system would end the process that asks for too
much, so one small micro-batch is measured and the rest is proportion.
"""

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from glray.data.corpus import PreparedCorpus
from glray.errors import UserError
from glray.files import read_record, write_json
from glray.model.config import longest_config
from glray.spec.pipeline import PipelineSpec
from glray.train.context import WorkerContext, from_rank_zero, least_over_ranks
from glray.train.execution import execution
from glray.train.parallel import release_models
from glray.train.trainee import Trainee

GPU_SHARE = 0.92
"""Of a GPU's memory that a micro-batch may reserve: the rest is for what varies."""
CPU_SHARE = 0.5
"""Of a machine's free memory that its workers' micro-batches may take."""
CPU_MOST_TOKENS = 16_384
"""On a CPU more tokens at once make nothing faster."""
SMALL_TOKENS = 2_048
"""About what the CPU's one measured micro-batch has."""


def declared_micro_batches(spec: PipelineSpec) -> dict[str, int]:
    """Tokens of a micro-batch by length, as declared."""
    most = declared_tokens_at_once(spec)
    return {str(seq_len): max(seq_len, most) for seq_len in spec.all_seq_lens}


def declared_tokens_at_once(spec: PipelineSpec) -> int:
    """``compute.micro_batch_tokens``; ``auto`` counts as 16,384."""
    tokens = spec.compute.micro_batch_tokens
    return CPU_MOST_TOKENS if tokens == "auto" else tokens


def micro_batches(
    spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext, path: Path
) -> dict[str, int]:
    """Tokens of a micro-batch by length: declared, or what ``path`` records of an earlier probe
    under the same conditions, or probed now and left there. The same on every rank.

    Raises UserError if not even one window of a length fits.
    """
    if spec.compute.micro_batch_tokens != "auto":
        return declared_micro_batches(spec)
    config = longest_config(spec, vocab_size=corpus.vocab_size, eos_id=corpus.eos_id)
    conditions = _conditions(spec, config, ctx)
    recorded = read_record(path, "conditions", "micro_batch_tokens")
    known = recorded is not None and recorded["conditions"] == conditions
    if from_rank_zero(ctx, int(known)):
        assert recorded is not None, "every node sees the storage"
        return recorded["micro_batch_tokens"]
    probe = _probe_gpu if ctx.device.type == "cuda" else _probe_cpu
    found = {str(n): rows * n for n, rows in probe(spec, config, ctx).items()}
    if ctx.rank == 0:
        write_json(path, {"conditions": conditions, "micro_batch_tokens": found})
    return found


def _conditions(spec: PipelineSpec, config: PreTrainedConfig, ctx: WorkerContext) -> dict[str, Any]:
    gpu = ctx.device.type == "cuda"
    memory = torch.cuda.get_device_properties(ctx.device).total_memory if gpu else None
    return {
        "execution": asdict(execution(spec, ctx, {})),
        "model_config": config.to_json_string(),
        "precision": spec.precision,
        "attention": spec.attention,
        "tokens_per_batch": spec.tokens_per_batch,
        "seq_lens": list(spec.all_seq_lens),
        "device_bytes": memory,
        "worker_groups": ctx.group.count,
    }


def _most_rows(seq_len: int, spec: PipelineSpec, ctx: WorkerContext) -> int:
    return -(-(spec.tokens_per_batch // seq_len) // ctx.world_size)


def _probe_gpu(spec: PipelineSpec, config: PreTrainedConfig, ctx: WorkerContext) -> dict[int, int]:
    """Rows at once by length: from a worker's whole batch downwards, the first that fits."""
    total = torch.cuda.get_device_properties(ctx.device).total_memory
    found = {}
    for seq_len in reversed(spec.all_seq_lens):
        rows = _most_rows(seq_len, spec, ctx)
        while not _fits_gpu(seq_len, rows, spec, config, ctx):
            if rows == 1:
                raise UserError(
                    f"compute.micro_batch_tokens: not one window of seq_len {seq_len} fits in the "
                    f"{total / 2**30:.0f} GiB of this GPU: the length cannot be trained there; set "
                    "compute.activation_checkpointing=true or compute.parallelism=fsdp"
                )
            rows = -(-rows // 2)
        found[seq_len] = rows
    return found


def _fits_gpu(
    seq_len: int, rows: int, spec: PipelineSpec, config: PreTrainedConfig, ctx: WorkerContext
) -> bool:
    release_models()  # of the try before
    torch.cuda.reset_peak_memory_stats(ctx.device)
    try:
        _forward_and_backward(seq_len, rows, spec, config, ctx)
        reserved = torch.cuda.max_memory_reserved(ctx.device)
        total = torch.cuda.get_device_properties(ctx.device).total_memory
        fits = reserved <= GPU_SHARE * total
    except torch.OutOfMemoryError:
        fits = False
    return bool(least_over_ranks(ctx, int(fits)))


def _probe_cpu(spec: PipelineSpec, config: PreTrainedConfig, ctx: WorkerContext) -> dict[int, int]:
    """Rows at once by length, from what a small micro-batch of the longest takes for each token."""
    longest = max(spec.all_seq_lens)
    rows = min(_most_rows(longest, spec, ctx), max(1, SMALL_TOKENS // longest))
    taken = peak_bytes(lambda: _forward_and_backward(longest, rows, spec, config, ctx))
    free = free_bytes()
    tokens = CPU_MOST_TOKENS
    if taken is not None and free is not None:
        token_bytes = max(1, taken // (rows * longest))
        workers = ctx.world_size * ctx.group.count
        tokens = min(tokens, int(CPU_SHARE * free / workers / token_bytes))
    tokens = least_over_ranks(ctx, tokens)
    return {n: min(_most_rows(n, spec, ctx), max(1, tokens // n)) for n in spec.all_seq_lens}


def _forward_and_backward(
    seq_len: int, rows: int, spec: PipelineSpec, config: PreTrainedConfig, ctx: WorkerContext
) -> None:
    """Two micro-batches of a scratch model with what training holds beside them: moments, gradients
    (under FSDP2 whole until the step's last micro-batch) and DDP's buffers. Nothing is summed over
    ranks, as one may run out of memory where others do not."""
    trainee = Trainee.scratch(config, spec, ctx, execution(spec, ctx, {}))
    tokens = torch.zeros((rows, seq_len), dtype=torch.int64, device=ctx.device)
    for _ in range(2):
        trainee.micro_batch(tokens, tokens, weight=1.0, is_last=False)


def peak_bytes(work: Callable[[], None]) -> int | None:
    """How far this process's memory rises above what it has now while ``work`` is done; None where
    the system (other than Linux) does not count that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now on
    except OSError:
        return None
    before = _resident("VmRSS")
    work()
    peak = _resident("VmHWM")
    return None if before is None or peak is None else max(0, peak - before)


def free_bytes() -> int | None:
    """What is left of the machine's memory, or of what a container may take of it."""
    free = _resident("MemAvailable", "/proc/meminfo")
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if free is None or not limit.exists() or limit.read_text().strip() == "max":
        return free
    return min(free, int(limit.read_text()) - int(used.read_text()))


def _resident(name: str, file: str = "/proc/self/status") -> int | None:
    """Bytes of one of the system's counts."""
    path = Path(file)
    found = path.exists() and re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None
