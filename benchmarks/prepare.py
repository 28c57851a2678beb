"""``glray prepare`` against the tokenizer alone, on the same cores and the same text.

    python benchmarks/prepare.py --work prepare

The text is the running Python's standard library, or that of ``--parquet`` files, repeated with new
numbers up to ``--megabytes``, and written once to WORK as JSON Lines. glray reads, encodes, checks,
splits and writes it. For comparison ``tokenizers`` alone encodes the same texts from memory, a
megabyte per call on all cores, and keeps nothing: ``encode_batch``, and ``encode_batch_fast``,
which glray uses and which omits offsets. Rounds alternate in order. Ray's start-up, and that of its
workers on a first small corpus, is reported separately.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq
from record import keep
from tokenizers import Tokenizer

from glray.data.blocks.tokenizer import train_bpe
from glray.data.read.documents import Document, FilePart, read_part
from glray.data.read.sources import list_source
from glray.machine import usable_cpus
from glray.ray.cluster import connect
from glray.ray.prepare import prepare
from glray.spec import (
    BudgetSpec,
    ComputeSpec,
    EvaluationSpec,
    GPTNeoXModel,
    JsonlCorpus,
    OptimizerSpec,
    PipelineSpec,
    StdlibCorpus,
    TokenizerFile,
    fixed,
)

CALL_BYTES = 10**6
"""Text that the tokenizer alone gets at once."""
TOKENIZER_MEGABYTES = 10


def texts(parquet: list[Path]) -> Iterator[str]:
    """The documents that the benchmark repeats."""
    if parquet:
        for path in parquet:
            yield from pq.read_table(path, columns=["text"]).column("text").to_pylist()
        return
    corpus = StdlibCorpus()
    for file in list_source(corpus):
        for item in read_part(FilePart(file), corpus):
            if isinstance(item, Document):
                yield str(item.content)


def write_corpus(path: Path, parquet: list[Path], num_bytes: int) -> None:
    """JSON Lines of at least ``num_bytes`` of text: whole documents, none like another."""
    written = 0
    with path.with_suffix(".partial").open("w") as file:
        for turn in count():
            for text in texts(parquet):
                content = f"{turn}\n{text}"
                file.write(json.dumps({"text": content}, ensure_ascii=False) + "\n")
                written += len(content.encode())
                if written >= num_bytes:
                    path.with_suffix(".partial").rename(path)
                    return


def pipeline(work: Path, corpus: Path, storage: str) -> PipelineSpec:
    """A pipeline of which only the corpus matters."""
    return PipelineSpec(
        name="prepare",
        corpus=JsonlCorpus(paths=(str(corpus),)),
        tokenizer=TokenizerFile(path=str(work / "tokenizer.json"), eos_token="<|endoftext|>"),
        model=GPTNeoXModel(num_layers=1, hidden_size=8, num_heads=1, intermediate_size=8),
        arms=(fixed(128, name="only"),),
        budget=BudgetSpec(tokens=128),
        tokens_per_batch=128,
        optimizer=OptimizerSpec(lr=1e-3),
        evaluation=EvaluationSpec(seq_lens=(128,), num_tokens=128),
        compute=ComputeSpec(storage=str(work / storage)),
    )


def glray(work: Path, corpus: Path) -> dict[str, float]:
    """Everything that ``prepare`` does; Ray is connected and its workers are warm."""
    storage = work / "storage"
    shutil.rmtree(storage, ignore_errors=True)
    start = time.perf_counter()
    prepared = prepare(pipeline(work, corpus, "storage"), print)
    seconds = time.perf_counter() - start
    blocks = [source.blocks for source in prepared.sources]
    tokens = sum(each.num_tokens + each.heldout_tokens for each in blocks)
    return {"tokens": tokens, "seconds": seconds}


def tokenizer_alone(work: Path, corpus: Path, method: str) -> dict[str, float]:
    """Seconds in one of the tokenizer's methods alone, all texts in memory, on all cores."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    calls: list[list[str]] = [[]]
    size = 0
    with corpus.open() as file:
        for line in file:
            calls[-1].append(json.loads(line)["text"])
            size += len(calls[-1][-1])
            if size >= CALL_BYTES:
                calls.append([])
                size = 0
    encode = getattr(tokenizer, method)
    encode(calls[0], add_special_tokens=False)
    start = time.perf_counter()
    tokens = sum(
        len(encoding) for call in calls for encoding in encode(call, add_special_tokens=False)
    )
    return {"tokens": tokens, "seconds": time.perf_counter() - start}


def in_a_process(*arguments: Any) -> dict[str, float]:
    """``tokenizer_alone`` in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(tokenizer_alone, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for text and tokens")
    parser.add_argument("--parquet", type=Path, nargs="*", default=[], help="text column instead")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json instead of a small BPE")
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default="prepare", help="of the file in results/")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    corpus, small = work / "corpus.jsonl", work / "small.jsonl"
    if not corpus.exists():
        write_corpus(corpus, arguments.parquet, arguments.megabytes * 10**6)
    write_corpus(small, arguments.parquet, TOKENIZER_MEGABYTES * 10**6)
    if arguments.tokenizer:
        shutil.copy(arguments.tokenizer, work / "tokenizer.json")
    else:
        with small.open() as file:
            learned = train_bpe((json.loads(line)["text"] for line in file), vocab_size=4096)
        learned.save(str(work / "tokenizer.json"))

    start = time.perf_counter()
    shutil.rmtree(work / "first", ignore_errors=True)
    spec = pipeline(work, small, "first")
    connect(spec.compute, print)
    connected = time.perf_counter()
    prepare(spec, print)
    start_up = {
        "connect_seconds": connected - start,
        "first_small_prepare_seconds": time.perf_counter() - connected,
        "first_small_prepare_megabytes": TOKENIZER_MEGABYTES,
    }

    contenders = {
        "glray": lambda: glray(work, corpus),
        "encode_batch": lambda: in_a_process(work, corpus, "encode_batch"),
        "encode_batch_fast": lambda: in_a_process(work, corpus, "encode_batch_fast"),
    }
    rounds: list[dict[str, Any]] = []
    for number in range(arguments.rounds):
        order = list(contenders) if number % 2 == 0 else list(contenders)[::-1]
        measured = {name: contenders[name]() for name in order}
        rates = {name: m["tokens"] / m["seconds"] for name, m in measured.items()}
        rounds.append(
            {
                "mtok_per_second": {name: rates[name] / 1e6 for name in contenders},
                "of_encode_batch": rates["glray"] / rates["encode_batch"],
                "of_encode_batch_fast": rates["glray"] / rates["encode_batch_fast"],
            }
        )
        print(rounds[-1], flush=True)
    keep(
        arguments.name,
        {
            "text_megabytes": arguments.megabytes,
            "text": "Parquet files" if arguments.parquet else "the standard library",
            "vocab_size": Tokenizer.from_file(str(work / "tokenizer.json")).get_vocab_size(),
            "processors": usable_cpus(),
            "glray_over_encode_batch": median(r["of_encode_batch"] for r in rounds),
            "glray_over_encode_batch_fast": median(r["of_encode_batch_fast"] for r in rounds),
            "rounds": rounds,
            "start_up": start_up,
        },
    )


if __name__ == "__main__":
    main()
