"""The memory of one optimizer step, and the largest batch that fits.

On a GPU both are tried in this process. On a CPU a process that asks for too much would be ended by
the system, perhaps after others; so each try is a process of its own that may not have more than a
given budget, and a larger batch is proportion: from the memory of two small ones.
"""

import multiprocessing
import os
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from glray.run.profile import Setting
from glray.spec.pipeline import PipelineSpec
from glray.train.context import LocalContext
from glray.train.parallel import release_models
from glray.train.probe.micro_batches import GPU_SHARE, free_bytes, peak_bytes
from glray.train.probe.scratch import ScratchModel

MOST_TOKENS = 2**21
"""The largest batch that is tried."""
SMALL_TOKENS = 4_096
"""Of the smaller of a CPU's two small batches; the other has twice as many."""
CPU_SHARE = 0.8
"""Of a machine's free memory that is the budget where none is given."""


def budget_bytes(ctx: LocalContext, given_gib: float | None) -> int:
    """Memory that a step may take: what was given, else the GPU's, else most of what is free."""
    if given_gib is not None:
        return int(given_gib * 2**30)
    if ctx.device.type == "cuda":
        return int(torch.cuda.get_device_properties(ctx.device).total_memory * GPU_SHARE)
    free = free_bytes()
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(CPU_SHARE * (physical if free is None else free))


def counts_memory(ctx: LocalContext) -> bool:
    """Whether the memory of a step can be told: on a GPU; on a CPU if the system counts it."""
    return ctx.device.type == "cuda" or peak_bytes(lambda: None) is not None


class MemoryOfSteps:
    """What steps of a pipeline's model take, under one setting."""

    def __init__(
        self,
        spec: PipelineSpec,
        setting: Setting,
        config: PreTrainedConfig,
        ctx: LocalContext,
        budget: int,
    ) -> None:
        self._spec, self._setting, self._config, self._ctx = spec, setting, config, ctx
        self._budget = budget
        self._on_gpu = ctx.device.type == "cuda"

    def peak(self, seq_len: int, tokens: int | None = None) -> int | None:
        """Bytes at the peak of one optimizer step of the pipeline's batch, or of one of ``tokens``
        tokens that goes through the model at once, weights and moments included; None if it does
        not fit."""
        if self._on_gpu:
            return self._peak_on_gpu(seq_len, tokens)
        peak = in_a_process(
            _peak_in_this_process,
            self._spec,
            self._setting,
            self._config,
            seq_len,
            tokens,
            self._budget,
        )
        return peak if peak is None or peak <= self._budget else None

    def largest_batch(self, seq_len: int) -> int | None:
        """Tokens of the largest batch that goes through the model at once; 0 if not one window
        fits. Counted on a GPU to an eighth of it."""
        tokens = self._largest_on_gpu(seq_len) if self._on_gpu else self._largest_on_cpu(seq_len)
        return None if tokens is None else tokens // seq_len * seq_len

    def _largest_on_cpu(self, seq_len: int) -> int | None:
        small = max(1, SMALL_TOKENS // seq_len) * seq_len
        less = self.peak(seq_len, small)
        while less is None and small > seq_len:
            small = small // 2
            less = self.peak(seq_len, small)
        if less is None:
            return 0
        more = self.peak(seq_len, 2 * small)
        if more is None:
            return small
        if more <= less:  # nothing that the system counts has grown
            return None
        return min(MOST_TOKENS, small + (self._budget - less) * small // (more - less))

    def _largest_on_gpu(self, seq_len: int) -> int:
        tokens = max(seq_len, MOST_TOKENS)  # lengths are powers of two
        while tokens > seq_len and self.peak(seq_len, tokens) is None:
            tokens //= 2
        if tokens == seq_len and self.peak(seq_len, tokens) is None:
            return 0
        for eighth in range(7, 0, -1):
            more = (tokens + tokens * eighth // 8) // seq_len * seq_len
            if MOST_TOKENS > more > tokens and self.peak(seq_len, more) is not None:
                return more
        return tokens

    def _peak_on_gpu(self, seq_len: int, tokens: int | None) -> int | None:
        release_models()
        torch.cuda.reset_peak_memory_stats(self._ctx.device)
        try:
            _take_steps(self._spec, self._setting, self._config, self._ctx, seq_len, tokens)
        except torch.OutOfMemoryError:
            return None
        fits = torch.cuda.max_memory_reserved(self._ctx.device) <= self._budget
        return torch.cuda.max_memory_allocated(self._ctx.device) if fits else None


def _take_steps(
    spec: PipelineSpec,
    setting: Setting,
    config: PreTrainedConfig,
    ctx: LocalContext,
    seq_len: int,
    tokens: int | None,
) -> None:
    """Two: in the second the gradients' memory is there again."""
    model = ScratchModel(spec, setting, config, ctx)
    for _ in range(2):
        model.step(seq_len, tokens)


def _peak_in_this_process(
    spec: PipelineSpec,
    setting: Setting,
    config: PreTrainedConfig,
    seq_len: int,
    tokens: int | None,
    budget: int,
) -> int | None:
    torch.set_num_threads(spec.compute.cpus_per_worker)
    _may_take(budget)
    return peak_bytes(lambda: _take_steps(spec, setting, config, LocalContext(), seq_len, tokens))


def _may_take(num_bytes: int) -> None:
    """From here on this process gets no more than so many bytes beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + num_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def in_a_process(work: Callable[..., int | None], *arguments: object) -> int | None:
    """What ``work`` returns in a process of its own; None if that asks for too much memory, or the
    system ends it. What else it raises, this raises."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, work, arguments))
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:  # ended by the system
        answer = None
    process.join()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _answer(to: Connection, work: Callable[..., int | None], arguments: tuple[object, ...]) -> None:
    try:
        to.send(work(*arguments))
    except MemoryError:
        to.send(None)
    except Exception as error:
        to.send(None if "can't allocate memory" in str(error) else error)
