"""How many tokens go through the model at once, at each length: declared, or found by probing.

On a GPU a micro-batch fits or it does not: from a worker's whole batch downwards, the first that
leaves a margin is taken. On a CPU the operating system would end the process that asks for too
much, so one small micro-batch is measured and the rest is proportion.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedConfig

from glray.data.corpus import PreparedCorpus
from glray.errors import UserError
from glray.files import AnyPath
from glray.machine import free_memory_bytes
from glray.model.config import longest_config
from glray.progress import advance
from glray.run.records import MicroBatches, ProbedMicroBatches
from glray.spec.pipeline import PipelineSpec
from glray.train.context import WorkerContext, as_rank_zero_sees, least_over_ranks
from glray.train.execution import CPU_MOST_TOKENS, declared_micro_batches, execution
from glray.train.parallel import release_models
from glray.train.probe.memory import (
    gpu_budget_bytes,
    gpu_peak_bytes,
    halved_until_it_fits,
    peak_bytes,
)
from glray.train.trainee import Trainee

CPU_SHARE = 0.5
"""Of a machine's free memory that its workers' micro-batches may take."""
SMALL_TOKENS = 2_048
"""About what the CPU's one measured micro-batch has."""


def micro_batches(
    spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext, path: AnyPath
) -> dict[str, int]:
    """Tokens of a micro-batch by length: declared, or what ``path`` records of an earlier probe
    under the same conditions, or probed now and added there. The same on every rank.

    Raises UserError if not even one window of a length fits.
    """
    if spec.compute.micro_batch_tokens != "auto":
        return declared_micro_batches(spec)
    ids = corpus.vocabulary
    config = longest_config(spec, vocab_size=ids.vocab_size, eos_id=ids.eos_id)
    conditions = _conditions(spec, config, ctx)
    known: dict[str, int] | None = as_rank_zero_sees(ctx, lambda: _recorded(path).under(conditions))
    if known is not None:
        return known
    most_rows = {n: -(-(spec.tokens_per_batch // n) // ctx.world_size) for n in spec.all_seq_lens}
    probe = _rows_on_gpu if ctx.device.type == "cuda" else _rows_on_cpu
    rows = probe(partial(_two_micro_batches, config, spec, ctx), most_rows, ctx)
    release_models()  # of the last try
    found = {str(n): rows[n] * n for n in rows}
    if ctx.rank == 0:
        probed = ProbedMicroBatches(conditions=conditions, micro_batch_tokens=found)
        MicroBatches(probed=(*_recorded(path).probed, probed)).write(path)
    return found


def _recorded(path: AnyPath) -> MicroBatches:
    """What earlier probes have found."""
    return MicroBatches.read(path) or MicroBatches()


def _conditions(spec: PipelineSpec, config: PreTrainedConfig, ctx: WorkerContext) -> dict[str, Any]:
    gpu = ctx.device.type == "cuda"
    return spec.model_dump(include={"precision", "attention", "tokens_per_batch"}) | {
        "execution": execution(spec, ctx).model_dump(),
        "model_config": config.to_json_string(),
        "seq_lens": list(spec.all_seq_lens),
        "device_bytes": gpu_budget_bytes(ctx.device) if gpu else None,
        "worker_groups": ctx.group.count,
    }


def _two_micro_batches(
    config: PreTrainedConfig, spec: PipelineSpec, ctx: WorkerContext, seq_len: int, rows: int
) -> None:
    """Two micro-batches of a scratch model with what training holds beside them: moments, gradients
    (under FSDP2 whole until the step's last micro-batch) and DDP's buffers. Nothing is summed over
    ranks, as one may run out of memory where others do not.

    Under FSDP2 the blocks are still gathered, and DDP compares and broadcasts the weights when it
    is made. There all ranks have to fail alike, or those that do not would wait for the others in a
    collective until its time-out. That is why they have the same limit (``_rows_on_gpu``); what it
    cannot see is memory that another process takes on one rank's GPU."""
    trainee = Trainee.scratch(config, spec, ctx, execution(spec, ctx))
    tokens = torch.zeros((rows, seq_len), dtype=torch.int64, device=ctx.device)
    for _ in range(2):
        trainee.micro_batch(tokens, tokens, weight=1.0, is_last=False)


def _rows_on_gpu(
    work: Callable[[int, int], None], most_rows: dict[int, int], ctx: WorkerContext
) -> dict[int, int]:
    """Rows at once by length: from a worker's whole batch downwards, the first that fits within the
    smallest budget of all ranks. ``work`` takes a length and a number of rows."""
    budget = least_over_ranks(ctx, gpu_budget_bytes(ctx.device))
    found = {}
    for seq_len, most in sorted(most_rows.items(), reverse=True):

        def peak(rows: int, seq_len: int = seq_len) -> int | None:
            taken = gpu_peak_bytes(partial(work, seq_len, rows), ctx.device, budget)
            return taken if least_over_ranks(ctx, int(taken is not None)) else None

        found[seq_len], taken = halved_until_it_fits(most, peak)
        advance(1)
        if taken is None:
            total = torch.cuda.get_device_properties(ctx.device).total_memory
            raise UserError(
                f"compute.micro_batch_tokens: not one window of seq_len {seq_len} fits in the "
                f"{total / 2**30:.0f} GiB of this GPU: the length cannot be trained there; set "
                "compute.activation_checkpointing=true or compute.parallelism=fsdp"
            )
    return found


def _rows_on_cpu(
    work: Callable[[int, int], None], most_rows: dict[int, int], ctx: WorkerContext
) -> dict[int, int]:
    """Rows at once by length, from what a small micro-batch of the longest takes for each token."""
    longest = max(most_rows)
    rows = min(most_rows[longest], max(1, SMALL_TOKENS // longest))
    taken = peak_bytes(partial(work, longest, rows))
    tokens = CPU_MOST_TOKENS
    if taken is not None:
        token_bytes = max(1, taken // (rows * longest))
        workers = ctx.world_size * ctx.group.count
        tokens = min(tokens, int(CPU_SHARE * free_memory_bytes() / workers / token_bytes))
    tokens = least_over_ranks(ctx, tokens)
    return {seq_len: min(most, max(1, tokens // seq_len)) for seq_len, most in most_rows.items()}
