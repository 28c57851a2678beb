"""Before the clock starts: every stage's shapes compiled, and the memory of each tried.

What a stage needs first at its boundary, hours into a run, is so found out before step 0: a kernel
that has to be compiled, or a device that is too small. All ranks do it together, so that none races
ahead of one that still compiles.
"""

import numpy as np
import torch

from glray.data.order import row_range
from glray.data.windows import Batch
from glray.errors import UserError
from glray.train.context import WorkerContext, synchronize
from glray.train.session import RunSession
from glray.train.step import accumulate_gradients


def warm_up(session: RunSession) -> None:
    """Forward and backward of one batch of each stage to come; no weight changes.

    On a CPU without compilation there is nothing to find out, and nothing is done. Raises UserError
    if the device's memory does not hold a stage.
    """
    run, ctx, plan = session.run, session.ctx, session.run.plan
    if ctx.device.type == "cpu" and not run.spec.compute.compile:
        return
    session.announcer.progress(run=run.name, phase="warming up every length")
    lengths = {stage.seq_len for stage in plan.stages if stage.end_step > session.state.step}
    for seq_len in sorted(lengths, reverse=True):  # what needs most memory first
        batch = random_batch(seq_len, plan.tokens_per_batch // seq_len, run.corpus.vocab_size, ctx)
        try:
            accumulate_gradients(session.replicas, batch, run.spec, ctx, session.execution)
        except torch.OutOfMemoryError as error:
            tokens = session.execution.rows_at_once(seq_len) * seq_len
            raise UserError(
                f"{run.name}: {tokens:,} tokens at seq_len {seq_len} do not fit in the memory of "
                f"{session.execution.device}: the run would end at that stage; set a lower "
                f"compute.micro_batch_tokens ({str(error).splitlines()[0]})"
            ) from None
        session.optimizer.zero_grad(set_to_none=True)
    synchronize(ctx.device)  # the clock starts when the device is done


def random_batch(seq_len: int, rows: int, vocab_size: int, ctx: WorkerContext) -> Batch:
    """This rank's share of a batch of ``rows`` windows of random tokens."""
    first, last = row_range(rows, ctx.rank, ctx.world_size)
    tokens = np.random.default_rng(0).integers(
        vocab_size, size=(last - first, seq_len + 1), dtype=np.int64
    )
    return Batch(step=0, seq_len=seq_len, offsets=np.arange(first, last), tokens=tokens)
