"""What 10^12 tokens and 1,024 ranks ask of a process and of a store: one rank after another.

    python benchmarks/scale.py --work scale

The corpus is simulated. Its 7,451 files of blocks have the sizes, the index and the checksums that
a trillion tokens have, but all whole ones are names of one file of random tokens (hard links), so
that 2 TB take 0.4 GB. It is opened in its folder and from a bucket on loopback
(``benchmarks/object_server.py``), each time in a new process that has imported what a worker
imports, with an empty cache. Then every rank in turn reads its own windows of some steps from the
bucket, each as if it were a node of its own.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from object_server import BUCKET, FolderServer, served
from record import keep
from stream import CHUNK_LEN, VOCAB_SIZE, complete

from glray.data.blocks.block_files import BLOCKS_PER_FILE, blocks_file, cut, write_blocks
from glray.data.blocks.reading import reads_whole_blocks
from glray.data.blocks.token_blocks import (
    num_blocks_of,
    open_token_blocks,
)
from glray.data.corpus import PreparedCorpus, PreparedSource
from glray.data.windows import StageReads, read_windows
from glray.files import as_path
from glray.ray.stream import read_plan
from glray.spec.pipeline import BLOCK_TOKENS

BATCH_TOKENS = 2**22
SEQ_LEN = CHUNK_LEN
FIRST_STEP = 100_000
"""Where a run is resumed; an epoch has 238,418 steps."""
STEPS = 8
"""That every rank reads: half a group of the order."""
MTOK_PER_SECOND = 10
"""At which requests are stated: 1,024 devices at some 10,000 tokens a second."""


def written_tokens(directory: Path, num_tokens: int) -> None:
    """The simulated corpus, if it is not there yet."""
    if (directory / "manifest.json").exists():
        return
    file_tokens = BLOCKS_PER_FILE * BLOCK_TOKENS
    rng = np.random.default_rng(0)
    tokens = rng.integers(VOCAB_SIZE, size=file_tokens + 1, dtype=np.uint16)
    num_whole, rest = divmod(num_tokens, file_tokens)
    whole = write_blocks(blocks_file(directory, 0), cut([tokens], BLOCKS_PER_FILE), "uint16")
    for index in range(1, num_whole):
        path = directory / "blocks" / f"{index:05d}.arrow"
        path.unlink(missing_ok=True)
        os.link(directory / "blocks" / "00000.arrow", path)
    last = write_blocks(
        blocks_file(directory, num_whole), cut([tokens[:rest]], num_blocks_of(rest)), "uint16"
    )
    index = pa.concat_tables([*[whole] * num_whole, last])
    complete(directory, num_tokens, index, heldout=tokens[: 4 * CHUNK_LEN])


def opened(place: str) -> PreparedCorpus:
    """The corpus in a folder or a bucket."""
    return PreparedCorpus((PreparedSource("simulated", 1, open_token_blocks(as_path(place))),))


def reads_of(corpus: PreparedCorpus, rank: int, world_size: int, num_steps: int) -> StageReads:
    """A segment of a rank, as the loop asks for it."""
    offsets = corpus.order(CHUNK_LEN, seed=0).window_offsets(
        first_token=FIRST_STEP * BATCH_TOKENS,
        num_steps=num_steps,
        tokens_per_batch=BATCH_TOKENS,
        seq_len=SEQ_LEN,
        rank=rank,
        world_size=world_size,
    )
    return StageReads(FIRST_STEP, SEQ_LEN, BATCH_TOKENS, offsets)


def start(place: str, rank: int, world_size: int) -> dict[str, float]:
    """Seconds and memory of one rank from nothing to its first batch, but for what Ray costs."""
    from glray.train.session import SEGMENT_TOKENS  # what a worker imports

    imported = memory_mib()
    begin, cpu = time.perf_counter(), time.process_time()
    corpus = opened(place)
    is_open = time.perf_counter()
    reads = reads_of(corpus, rank, world_size, SEGMENT_TOKENS * world_size // BATCH_TOKENS)
    is_ordered = time.perf_counter()
    places = corpus.block_places(reads.offsets)
    whole = reads_whole_blocks(1 / world_size)
    read_windows(places, read_plan(reads)[0], SEQ_LEN, whole=whole)
    has_batch = time.perf_counter()
    return {
        "open_seconds": is_open - begin,
        "order_seconds": is_ordered - is_open,
        "read_seconds": has_batch - is_ordered,
        "first_batch_seconds": has_batch - is_open,
        "cpu_seconds": time.process_time() - cpu,
        "segment_tokens_of_the_rank": int(reads.offsets.size) * SEQ_LEN,
        "imported_mib": imported["now"],
        "imported_own_mib": imported["own"],
        "peak_mib": memory_mib()["peak"],
        "own_mib": memory_mib()["own"],
    }


def in_new_process(work: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """What ``work`` returns, in a process that has imported nothing yet."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def memory_mib() -> dict[str, float]:
    """All that this process has in memory, mapped files included, now and at most; and what of
    that is its own."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {
        name: int(fields[field].split()[0]) / 1024
        for name, field in (("now", "VmRSS"), ("peak", "VmHWM"), ("own", "RssAnon"))
    }


def all_ranks(
    corpus: PreparedCorpus, server: FolderServer, world_size: int, num_steps: int
) -> dict[str, float]:
    """What every rank in turn asks of the store for its windows of some steps."""
    before, begin, cpu = server.counts(), time.perf_counter(), time.process_time()
    for rank in range(world_size):
        reads = reads_of(corpus, rank, world_size, num_steps)
        offsets = reads.offsets.ravel()
        if len(offsets):
            whole = reads_whole_blocks(1 / world_size)
            read_windows(corpus.block_places(offsets), offsets, SEQ_LEN, whole=whole)
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
    after = server.counts()
    num_requests, num_bytes = (after[name] - before[name] for name in ("requests", "bytes"))
    num_tokens = num_steps * BATCH_TOKENS
    return {
        "steps": num_steps,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "requests": num_requests,
        "requests_per_step": num_requests / num_steps,
        f"requests_per_second_at_{MTOK_PER_SECOND}_mtok_per_second": num_requests
        / num_tokens
        * MTOK_PER_SECOND
        * 1e6,
        "bytes_read_per_byte_trained": num_bytes / (2 * num_tokens),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the simulated tokens")
    parser.add_argument("--tokens", type=int, default=10**12)
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    work, world_size = arguments.work.resolve(), arguments.ranks
    written_tokens(work / "tokens", arguments.tokens)
    figures: dict[str, Any] = {
        "load_at_the_start": os.getloadavg()[0],
        "tokens": arguments.tokens,
        "ranks": world_size,
        "blocks": num_blocks_of(arguments.tokens),
        "batch_tokens": BATCH_TOKENS,
        "chunk_len": CHUNK_LEN,
    }
    with tempfile.TemporaryDirectory(dir=work) as cache, served(work) as server:
        os.environ["TMPDIR"], tempfile.tempdir = cache, None  # an empty cache
        stored = f"s3://{BUCKET}/tokens"
        middle = world_size // 2
        for name, place in (("folder", str(work / "tokens")), ("bucket", stored)):
            before = server.counts()
            figures[name] = in_new_process(start, place, middle, world_size)
            after = server.counts()
            if name == "bucket":
                figures[name] |= {each: after[each] - before[each] for each in after}
            print(name, figures[name], flush=True)
        figures["again_on_the_node"] = in_new_process(start, stored, middle + 1, world_size)
        print("again_on_the_node", figures["again_on_the_node"], flush=True)
        figures["all_ranks"] = all_ranks(opened(stored), server, world_size, arguments.steps)
    keep("scale", figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
