"""The token stream of one worker, through Ray Data.

Each segment of a stage becomes one small dataset: a plan of reads (where windows start) goes in,
a few tasks of ``num_cpus=0`` read those windows from the token blocks, and Arrow tables of
``offset`` and ``tokens`` (a fixed-shape tensor column) come out in order, which reach numpy
without a copy. The next segment is opened, and its first batch fetched, while this one drains, so
that a stage boundary is only a segment border.

``streaming_split`` is not used: it drops rows and has no order to resume. The position is ours: the
step. (``num_cpus=0``: a worker holds its CPUs, and a read that asked for one would wait forever.)
"""

import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from itertools import chain

import numpy as np
import pyarrow as pa
import ray.data
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from glray.data.corpus import BlockPlaces, PreparedCorpus
from glray.data.windows import Batch, StageReads, read_windows
from glray.errors import UserError

READ_TOKENS = 2**22
"""One read task's tokens; Ray's cost is per task (about 50 ms), not per window."""
FIRST_READ = 16
"""The first task of a segment reads this part of it."""
READ_TASKS = 2
"""Read tasks at once of one worker."""
STORE_BYTES = 256 * 2**20
"""Object store that one worker's segment may fill ahead of the loop."""
RAY_DATAS_THREAD = "iter_threaded"
END_SECONDS = 5.0
"""How long a thread of Ray Data is waited for, which ends within 0.1 s of being told."""


def ray_batches(
    corpus: PreparedCorpus, segments: Iterator[StageReads], *, whole: bool = True
) -> Generator[Batch]:
    """The batches of ``segments`` in order, read through Ray Data one segment ahead; from a store
    in ``whole`` blocks, or what is needed of them (see ``glray.data.blocks.reading``). Once it is
    closed, nothing of it uses Ray any more."""
    with (
        ExitStack() as opened,  # closed when the pool, which opens, has ended
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as pool,
    ):
        opened.callback(_await_ray_datas_threads)

        def open_next() -> Iterator[Batch] | None:
            reads = next(segments, None)  # its order is worked out here, beside the loop, too
            if reads is None:
                return None
            batches = opened.enter_context(closing(_segment_batches(corpus, reads, whole)))
            return chain([next(batches)], batches)  # the first is fetched here

        opening = pool.submit(open_next)
        while (batches := opening.result()) is not None:
            opening = pool.submit(open_next)
            yield from batches


def start_reader() -> None:
    """Have Ray start the process that will read first, and import there what reading takes.

    That lasts some 4 s of a core; meanwhile the caller goes on, to import the model's code.
    """
    here = NodeAffinitySchedulingStrategy(_node_id(), soft=True)
    ray.remote(num_cpus=0, scheduling_strategy=here)(_ready).remote()


def segment_dataset(
    corpus: PreparedCorpus, reads: StageReads, *, whole: bool = True
) -> ray.data.Dataset:
    """One segment as a dataset: ``offset`` int64 and ``tokens`` fixed_shape_tensor[seq_len + 1]."""
    plan = read_plan(reads)
    dataset = ray.data.from_blocks([pa.table({"offset": offsets}) for offsets in plan]).map_batches(
        partial(
            _read, places=corpus.block_places(reads.offsets), seq_len=reads.seq_len, whole=whole
        ),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=0,
        label_selector={"ray.io/node-id": _node_id()},
        fallback_strategy=[{"label_selector": {}}],
        compute=ray.data.TaskPoolStrategy(size=min(READ_TASKS, len(plan))),
    )
    context = dataset.context
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = context.execution_options.resource_limits.copy(
        object_store_memory=STORE_BYTES
    )
    return dataset


def read_plan(reads: StageReads) -> list[np.ndarray]:
    """The windows of each read task of a segment, int64[rows]. The first task is short: a batch is
    there when the whole task is, and from a store its windows may be a request each."""
    num_steps, rows = reads.offsets.shape
    steps_per_read = max(1, READ_TOKENS // (rows * (reads.seq_len + 1)))
    starts = [0, *range(max(1, steps_per_read // FIRST_READ), num_steps, steps_per_read)]
    return [
        reads.offsets[start:stop].ravel()
        for start, stop in zip(starts, [*starts[1:], num_steps], strict=True)
    ]


def _await_ray_datas_threads() -> None:
    """Return once the threads of closed iterators have ended. Ray Data does not wait for them, and
    one that drops its last block while Ray shuts down ends the process on the spot, with status 1.
    """
    for thread in threading.enumerate():
        if thread.name == RAY_DATAS_THREAD:
            thread.join(END_SECONDS)


def _segment_batches(corpus: PreparedCorpus, reads: StageReads, whole: bool) -> Generator[Batch]:
    rows = reads.offsets.shape[1]
    if rows == 0:
        nothing = np.empty((0, reads.seq_len + 1), dtype=corpus.vocabulary.dtype)
        for step, offsets in enumerate(reads.offsets, reads.first_step):
            yield Batch(step, reads.seq_len, reads.tokens_per_batch, offsets, nothing)
        return
    step = reads.first_step
    for table in _segment_tables(corpus, reads, whole):
        offsets = table.column("offset").to_numpy().reshape(-1, rows)
        tokens = table.column("tokens").combine_chunks()
        if isinstance(tokens, pa.ChunkedArray):
            tokens = tokens.chunk(0)
        windows = tokens.to_numpy_ndarray().reshape(-1, rows, reads.seq_len + 1)
        for index in range(len(windows)):
            size = (reads.seq_len, reads.tokens_per_batch)
            yield Batch(step, *size, offsets[index], windows[index])
            step += 1


def _segment_tables(corpus: PreparedCorpus, reads: StageReads, whole: bool) -> Iterator[pa.Table]:
    """Whole results of read tasks: Ray's own batches would cost 0.7 ms each.

    Raises UserError for a damaged block, and for one that the storage does not give.
    """
    tables = segment_dataset(corpus, reads, whole=whole).iter_batches(
        batch_size=None, batch_format="pyarrow", prefetch_batches=1
    )
    try:
        yield from tables
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause).partition("\n")[0]) from None  # Ray adds lines
        if isinstance(error.cause, OSError):
            what = error.cause.strerror or str(error.cause).partition("\n")[0]
            raise UserError(
                f"{error.cause.filename or 'token blocks'}: {what}; once that is fixed, the same "
                "command goes on from the latest checkpoint"
            ) from None
        raise


def _node_id() -> str:
    """Of the worker's own node, whose reader has imported what reading takes: Ray would spread read
    tasks over all nodes, the head too, and send the tokens back."""
    return ray.get_runtime_context().get_node_id()


def _ready() -> None:
    """Nothing: to be run is to have this module imported."""


def _read(table: pa.Table, places: BlockPlaces, seq_len: int, whole: bool) -> pa.Table:
    windows = read_windows(places, table.column("offset").to_numpy(), seq_len, whole=whole)
    tokens = pa.FixedShapeTensorArray.from_numpy_ndarray(windows)
    return pa.table({"offset": table.column("offset"), "tokens": tokens})
