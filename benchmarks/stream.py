"""The token stream through Ray Data: throughput, waits, stage boundaries, memory; and its peers.

    python benchmarks/stream.py --work stream --peers-python PEERS_VENV/bin/python

Random tokens are written once to WORK, as glray's token blocks and as one flat file for the peers
(``benchmarks/peers.py``, whose packages are in ``requirements-peers.txt``; without
``--peers-python`` only glray is measured). Every number is for batches of 16,384 tokens that arrive
as torch.int64 in one process on this machine, with files in the page cache. glray's process is a
worker of a Ray Train group. Rounds alternate in the order of contenders and lengths.

    python benchmarks/stream.py --work stream --bucket

measures glray alone on the same tokens in a bucket on loopback (``benchmarks/object_server.py``),
none of them in the node's cache at first: an epoch, what is read for it, and a training loop.
"""

import glray.ray  # noqa: F401, I001 (sets Ray's variables, before Ray is imported)

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.train.torch
import torch
from object_server import BUCKET, served
from record import keep
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models

from glray.data.blocks.block_files import BLOCKS_PER_FILE, blocks_file, cut, write_blocks
from glray.data.blocks.heldout import heldout_schema
from glray.data.blocks.reading import cached_name
from glray.data.blocks.token_blocks import (
    TokenBlocks,
    num_blocks_of,
    open_token_blocks,
    sizes_of_files,
    write_manifest,
)
from glray.data.corpus import PreparedCorpus, PreparedSource
from glray.data.windows import Batch, StageReads
from glray.files import as_path, read_json, write_json
from glray.files.cache import node_cache
from glray.machine import usable_cpus
from glray.ray.cluster import connect
from glray.ray.stream import ray_batches
from glray.ray.train import fit
from glray.spec import (
    BpeTokenizer,
    BudgetSpec,
    ComputeSpec,
    EvaluationSpec,
    GPTNeoXModel,
    OptimizerSpec,
    PipelineSpec,
    StdlibCorpus,
    grow,
)
from glray.spec.pipeline import BLOCK_TOKENS
from glray.train.session import SEGMENT_TOKENS

BATCH_TOKENS = 16_384
CHUNK_LEN = 4096
SEQ_LENS = (128, 1024, 4096)
VOCAB_SIZE = 512
PEERS = ("memmap", "datasets", "streaming", "litdata", "grain")


# ---- the tokens


def written_tokens(work: Path, num_blocks: int) -> PreparedCorpus:
    """Random tokens as token blocks in ``work/blocks`` and flat in ``work/stream.bin``."""
    directory = work / "blocks"
    if not (directory / "manifest.json").exists():
        work.mkdir(parents=True, exist_ok=True)
        tokens = np.random.default_rng(0).integers(
            VOCAB_SIZE, size=num_blocks * BLOCK_TOKENS, dtype=np.uint16
        )
        tokens.tofile(work / "stream.bin")
        index = pa.concat_tables(write_files(directory, tokens))
        complete(directory, len(tokens), index, heldout=tokens[: 4 * CHUNK_LEN])
    return PreparedCorpus((PreparedSource("stdlib", 1, open_token_blocks(directory)),))


def complete(directory: Path, num_tokens: int, index: pa.Table, *, heldout: np.ndarray) -> None:
    """Write what files of random blocks lack to be a corpus; the manifest last."""
    write_tokenizer(directory / "tokenizer.json")
    write_heldout(directory / "heldout.arrow", heldout)
    num_files = -(-num_blocks_of(num_tokens) // BLOCKS_PER_FILE)
    blocks = TokenBlocks(
        directory=directory,
        fingerprint="0" * 16,
        dtype="uint16",
        num_tokens=num_tokens,
        vocab_size=VOCAB_SIZE,
        eos_id=0,
        returned=(),
        file_bytes=sizes_of_files(directory, num_files),
    )
    write_manifest(blocks, index)


def write_files(directory: Path, tokens: np.ndarray) -> Iterator[pa.Table]:
    """Write the files of blocks of a stream; yields their rows of the index."""
    file_tokens = BLOCKS_PER_FILE * BLOCK_TOKENS
    for number, first in enumerate(range(0, len(tokens), file_tokens)):
        num_blocks = num_blocks_of(min(len(tokens) - first, file_tokens))
        stream = tokens[first : first + file_tokens + 1]
        yield write_blocks(blocks_file(directory, number), cut([stream], num_blocks), "uint16")


def write_tokenizer(path: Path) -> None:
    """One of ``VOCAB_SIZE`` words."""
    vocabulary = {f"<{token}>": token for token in range(VOCAB_SIZE)}
    Tokenizer(models.WordLevel(vocabulary)).save(str(path))


def write_heldout(path: Path, tokens: np.ndarray) -> None:
    """Held-out documents: one, of these tokens."""
    schema = heldout_schema("uint16")
    table = pa.table(
        {"name": ["random"], "sha256": [bytes(32)], "num_bytes": [1], "tokens": [tokens]}
    )
    with pa.ipc.new_file(str(path), schema) as writer:
        writer.write_table(table.cast(schema))


# ---- glray, in a Ray Train worker


def reads(corpus: PreparedCorpus, stages: list[tuple[int, int]]) -> Iterator[StageReads]:
    """Segments of one worker for stages of (seq_len, tokens), as the loop asks for them."""
    order = corpus.order(CHUNK_LEN, seed=0)
    step = 0
    for seq_len, num_tokens in stages:
        end = step + num_tokens // BATCH_TOKENS
        while step < end:
            num_steps = min(SEGMENT_TOKENS // BATCH_TOKENS, end - step)
            offsets = order.window_offsets(
                first_token=step * BATCH_TOKENS,
                num_steps=num_steps,
                tokens_per_batch=BATCH_TOKENS,
                seq_len=seq_len,
                rank=0,
                world_size=1,
            )
            yield StageReads(step, seq_len, BATCH_TOKENS, offsets)
            step += num_steps


def consumed(batches: Iterator[Batch]) -> Iterator[tuple[float, Batch]]:
    """Seconds waited for each batch, and the batch, made into what the step takes."""
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        waited = time.perf_counter() - start
        torch.from_numpy(batch.tokens.astype("int64"))
        yield waited, batch


def throughput(corpus: PreparedCorpus, seq_len: int, num_tokens: int) -> dict[str, float]:
    """Mtok/s of ``num_tokens`` after a warm-up of a quarter of them, and waits in ms."""
    warm_up = num_tokens // 4 // BATCH_TOKENS
    waits = []
    stage = (seq_len, num_tokens * 5 // 4)
    for waited, _ in consumed(ray_batches(corpus, reads(corpus, [stage]))):
        waits.append(waited)
        if len(waits) == warm_up:
            warm = time.perf_counter()
    seconds = time.perf_counter() - warm
    after = sorted(waits[warm_up:])
    return {
        "mtok_per_second": len(after) * BATCH_TOKENS / seconds / 1e6,
        "first_batch_seconds": waits[0],
        "p50_wait_ms": after[len(after) // 2] * 1e3,
        "p99_wait_ms": after[len(after) * 99 // 100] * 1e3,
    }


def switches(corpus: PreparedCorpus, num_switches: int, num_tokens: int) -> list[dict[str, Any]]:
    """A run of stages: the wait for each stage's first batch, and memory at its end."""
    lengths = [SEQ_LENS[index % len(SEQ_LENS)] for index in range(num_switches + 1)]
    share = num_tokens // len(lengths) // BATCH_TOKENS * BATCH_TOKENS
    stages: list[dict[str, Any]] = []
    for waited, batch in consumed(
        ray_batches(corpus, reads(corpus, [(n, share) for n in lengths]))
    ):
        if batch.step % (share // BATCH_TOKENS) == 0:
            stages.append({"seq_len": batch.seq_len, "first_wait_ms": waited * 1e3})
        stages[-1] |= memory_mib()
    return stages


def epoch(corpus: PreparedCorpus) -> dict[str, float]:
    """Mtok/s of an epoch, from its first batch on, and the wait for that one."""
    begin = time.perf_counter()
    batches = consumed(ray_batches(corpus, reads(corpus, [(SEQ_LENS[1], epoch_tokens(corpus))])))
    next(batches)
    first = time.perf_counter()
    num_batches = sum(1 for _ in batches)
    seconds = time.perf_counter() - first
    return {
        "first_batch_seconds": first - begin,
        "mtok_per_second": num_batches * BATCH_TOKENS / seconds / 1e6,
    }


def epoch_tokens(corpus: PreparedCorpus) -> int:
    """Of an epoch's whole batches."""
    num_chunks = corpus.order(CHUNK_LEN, seed=0).num_chunks(0)
    return num_chunks * CHUNK_LEN // BATCH_TOKENS * BATCH_TOKENS


def memory_mib() -> dict[str, float]:
    """This process's own memory, and what it has mapped of the object store."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {
        name: int(fields[field].split()[0]) / 1024
        for name, field in (("own_mib", "RssAnon"), ("shared_mib", "RssShmem"))
    }


def worker(config: dict[str, Any]) -> None:
    """Everything that is measured of glray alone; rank 0's numbers go to ``config["out"]``."""
    torch.set_num_threads(1)
    corpus = opened(config["directory"])
    if config["what"] == "throughput":
        throughput(corpus, CHUNK_LEN, config["num_tokens"] // 4)  # readers start, files are cached
        lengths = SEQ_LENS if config["round"] % 2 == 0 else SEQ_LENS[::-1]
        figures: Any = {n: throughput(corpus, n, config["num_tokens"]) for n in lengths}
    elif config["what"] == "epoch":
        figures = epoch(corpus)
    else:
        figures = switches(corpus, num_switches=10, num_tokens=config["num_tokens"])
    write_json(Path(config["out"]), figures)


def in_a_worker(what: str, corpus: PreparedCorpus, work: Path, **config: int) -> Any:
    """The numbers of ``worker`` in a Ray Train group of one."""
    out = work / "figures.json"
    ray.train.torch.TorchTrainer(
        worker,
        train_loop_config={
            "what": what,
            "directory": corpus.directories[0],
            "out": str(out),
            **config,
        },
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(name=f"{what}-{time.time_ns()}", storage_path=str(work)),
    ).fit()
    return read_json(out)


def attached(
    corpus: PreparedCorpus, work: Path, steps: int = 60, layers: int = 4
) -> dict[str, float]:
    """The share of a real training loop's time that it waits for batches, over two stage
    boundaries.

    The run's first step is left out: its wait is start-up, which the loop does not count either.
    """
    spec = PipelineSpec(
        name=f"attached-{time.time_ns()}",
        corpus=StdlibCorpus(),
        tokenizer=BpeTokenizer(vocab_size=512),
        model=GPTNeoXModel(num_layers=layers, hidden_size=64, num_heads=4, intermediate_size=256),
        arms=(grow(*SEQ_LENS[:2], *SEQ_LENS[:1], name="loop"),),
        budget=BudgetSpec(tokens=steps * BATCH_TOKENS),
        tokens_per_batch=BATCH_TOKENS,
        chunk_len=CHUNK_LEN,
        optimizer=OptimizerSpec(lr=1e-3),
        evaluation=EvaluationSpec(seq_lens=(128,), num_tokens=128),
        compute=ComputeSpec(storage=str(work), micro_batch_tokens=1024),
    )
    fit(spec, corpus)
    path = work / spec.name / "loop-seed0" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()][1:]
    boundaries = [b for a, b in pairwise(lines) if a["seq_len"] != b["seq_len"]]
    waited = sum(line["data_wait_seconds"] for line in lines)
    seconds = lines[-1]["measured_seconds"] - lines[0]["measured_seconds"]
    return {
        "steps": len(lines),
        "step_ms": seconds / (len(lines) - 1) * 1e3,
        "wait_share": waited / seconds,
        "first_wait_after_a_boundary_ms": max(line["data_wait_seconds"] for line in boundaries)
        * 1e3,
    }


# ---- from a bucket


def from_a_bucket(work: Path, num_blocks: int) -> None:
    """Measure and keep what a bucket on loopback gives to one worker."""
    written_tokens(work, num_blocks)
    with served(work) as server:
        connect(ComputeSpec(storage=str(work)), print)
        corpus = opened(f"s3://{BUCKET}/blocks")
        forget(corpus)
        before = server.counts()
        figures = in_a_worker("epoch", corpus, work)
        after = server.counts()
        read = {name: after[name] - before[name] for name in after}
        forget(corpus)
        loop = attached(corpus, work, steps=400, layers=1)
        ray.shutdown()
    kept = {
        "tokens": num_blocks * BLOCK_TOKENS,
        "batch_tokens": BATCH_TOKENS,
        "processors": usable_cpus(),
        "epoch": figures
        | {
            "requests": read["requests"],
            "bytes_read_per_byte_trained": read["bytes"] / (2 * epoch_tokens(corpus)),
        },
        "training_loop": loop,
    }
    keep("stream-bucket", kept)
    print(json.dumps(kept))


def opened(place: str) -> PreparedCorpus:
    """The tokens in a folder or a bucket."""
    return PreparedCorpus((PreparedSource("stdlib", 1, open_token_blocks(as_path(place))),))


def forget(corpus: PreparedCorpus) -> None:
    """Drop the corpus's blocks from this node's cache."""
    blocks = corpus.sources[0].blocks
    for place in blocks.places(range(blocks.num_blocks)):
        node_cache().discard(cached_name(place))


# ---- the peers


def peer(python: str, name: str, seq_len: int, work: Path, num_tokens: int) -> dict[str, Any]:
    """One peer's own numbers, from a process of its own."""
    batches = num_tokens // BATCH_TOKENS
    command = [python, str(Path(__file__).parent / "peers.py"), name]
    command += ["--stream", str(work / "stream.bin"), "--work", str(work / "peers")]
    command += ["--seq-len", str(seq_len), "--batches", str(batches), "--warmup", "100"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} at {seq_len}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(rates: dict[str, dict[int, list[float]]]) -> Table:
    """Median Mtok/s by contender and length, with the lowest and highest."""
    shown = Table(title="Mtok/s, median of rounds (lowest–highest)")
    for column in ("", *map(str, SEQ_LENS)):
        shown.add_column(column, justify="right")
    for name, by_length in rates.items():
        cells = [f"{median(v):.1f} ({min(v):.1f}–{max(v):.1f})" for v in by_length.values()]
        shown.add_row(name, *cells)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for tokens and runs")
    parser.add_argument("--peers-python", help="interpreter with requirements-peers.txt")
    parser.add_argument("--bucket", action="store_true", help="measure the stream from a bucket")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=128, help="of 2^20 tokens")
    parser.add_argument("--switch-tokens", type=int, default=10**9)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    if arguments.bucket:
        from_a_bucket(work, arguments.blocks)
        return
    corpus = written_tokens(work, arguments.blocks)
    connect(ComputeSpec(storage=str(work)), print)

    rates: dict[str, dict[int, list[float]]] = {}
    rounds: list[dict[str, Any]] = []
    names = ("glray", *(PEERS if arguments.peers_python else ()))
    for number in range(arguments.rounds):
        for name in names if number % 2 == 0 else names[::-1]:
            if name == "glray":
                figures = in_a_worker("throughput", corpus, work, round=number, num_tokens=2**29)
                by_length = {int(n): f["mtok_per_second"] for n, f in figures.items()}
            else:
                lengths = SEQ_LENS if number % 2 == 0 else SEQ_LENS[::-1]
                figures = {n: peer(arguments.peers_python, name, n, work, 2**25) for n in lengths}
                by_length = {n: f["tokens_per_second"] / 1e6 for n, f in figures.items()}
            rounds.append({"round": number, "contender": name, "figures": figures})
            for n in SEQ_LENS:
                rates.setdefault(name, {}).setdefault(n, []).append(by_length[n])
            print(name, {n: round(rate, 1) for n, rate in by_length.items()}, flush=True)

    stages = in_a_worker("switches", corpus, work, num_tokens=arguments.switch_tokens)
    loop = attached(corpus, work)
    ray.shutdown()
    Console().print(table(rates))
    for stage in stages:
        print({name: round(value, 1) for name, value in stage.items()})
    print(loop)
    keep(
        "stream",
        {
            "tokens": arguments.blocks * BLOCK_TOKENS,
            "batch_tokens": BATCH_TOKENS,
            "processors": usable_cpus(),
            "mtok_per_second": {
                name: {n: round(median(v), 2) for n, v in by_length.items()}
                for name, by_length in rates.items()
            },
            "rounds": rounds,
            "switch_tokens": arguments.switch_tokens,
            "switches": stages,
            "training_loop": loop,
        },
    )


if __name__ == "__main__":
    main()
