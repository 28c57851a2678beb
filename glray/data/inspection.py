"""Looking into a prepared corpus: the windows of a step as text. No Ray."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from glray.data.corpus import PreparedCorpus
from glray.data.order import ChunkOrder
from glray.data.windows import read_windows
from glray.errors import UserError
from glray.plan import make_plan
from glray.run.parent import stages_before
from glray.spec.pipeline import PipelineSpec
from glray.spec.schedule import ArmSpec


@dataclass(frozen=True)
class ShownWindow:
    """One row of a step, decoded."""

    row: int
    source: str
    epoch: int
    """Of its source, from 0."""
    chunk: int
    """Of its source's stream."""
    first_token: int
    """Where it starts in its source's stream."""
    text: str
    """Of its inputs; special tokens are spelt out."""


def shown_windows(
    spec: PipelineSpec,
    corpus: PreparedCorpus,
    arm: ArmSpec,
    *,
    step: int,
    seq_len: int,
    num_rows: int,
) -> Iterator[ShownWindow]:
    """The first ``num_rows`` rows of ``step`` of an arm at ``seq_len``, under the first seed.

    Raises UserError for a length that does not divide the chunk, a source without a chunk, a
    damaged block, and a step that the arm's plan lacks, where the plan decides what a step reads:
    if stages have their own batch or weights, or there is a parent.
    """
    chunk_len = spec.chunk_tokens
    if seq_len < 1 or chunk_len % seq_len:
        raise UserError(
            f"seq_len {seq_len} does not divide chunk_len {chunk_len:,}: no stage could have it; "
            "use a power of two up to that"
        )
    if step < 0:
        raise UserError(f"step {step} is before the first step, which is 0; give 0 or more")
    corpus.num_chunks(chunk_len)  # it raises
    order, start, stop = _place(spec, corpus, arm, step)
    chunks = order.chunks(start // chunk_len, stop // chunk_len)
    rows = np.arange(min(num_rows, (stop - start) // seq_len))
    places, inside = np.divmod(rows * seq_len, chunk_len)
    offsets = chunks.offset[places] + inside
    if len(rows) == 0:
        return
    windows = read_windows(corpus.block_places(offsets), offsets, seq_len)
    tokenizer = corpus.vocabulary.tokenizer()
    for row, place in enumerate(places.tolist()):
        source = int(chunks.source[place])
        yield ShownWindow(
            row=row,
            source=corpus.sources[source].name,
            epoch=int(chunks.epoch[place]),
            chunk=int(chunks.chunk[place]),
            first_token=int(offsets[row]) - order.first_offset(source),
            text=tokenizer.decode(windows[row, :-1].tolist(), skip_special_tokens=False),
        )


def _place(
    spec: PipelineSpec, corpus: PreparedCorpus, arm: ArmSpec, step: int
) -> tuple[ChunkOrder, int, int]:
    """The order, and the tokens trained before a step of an arm and after it."""
    batches = {spec.tokens_per_batch_of(stage) for stage in arm.stages}
    weights = {spec.weights_of(stage) for stage in arm.stages}
    own = tuple(source.weight for source in spec.sources)
    if spec.start is None and batches == {spec.tokens_per_batch} and weights == {own}:
        order, tokens = corpus.order(spec.chunk_tokens, spec.seeds[0]), spec.tokens_per_batch
        return order, step * tokens, (step + 1) * tokens
    plan = make_plan(spec, arm, stages_before(spec))
    where = (
        f"arm {arm.name}: its plan decides what a step reads, as a stage has its own batch or "
        "weights, or there is a parent"
    )
    if plan is None:
        raise UserError(
            f"{where}; it has none before the calibration, so step {step:,} cannot be shown; start "
            "glray run first"
        )
    if step >= plan.num_steps:
        raise UserError(
            f"{where}; step {step:,} is not among its {plan.num_steps:,} steps; "
            f"give 0 to {plan.num_steps - 1:,}"
        )
    order = corpus.order_of(plan, spec.seeds[0])
    return order, plan.tokens_after(step), plan.tokens_after(step + 1)
