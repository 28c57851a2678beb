"""``prepare`` in processes of its own: killed, two at once, with a small object store."""

import hashlib
import json
import os
import random
import re
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import ray
from ray._private import ray_constants

from glray.cli.watch import work_line
from glray.data.blocks import shards
from glray.data.blocks.heldout import is_drawn
from glray.data.blocks.reading import read_block
from glray.data.blocks.tokenizer import encode, train_bpe
from glray.progress import Work, heard_by
from glray.ray import prepare
from glray.ray.cluster import connect
from glray.spec import JsonlCorpus, PipelineSpec, TokenizerFile
from glray.spec.loading import validate
from glray.spec.pipeline import BLOCK_TOKENS
from tests.command import start, status_of
from tests.data.preparing import files_of, found, left_behind, pipeline, prepared

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]


def start_prepare(
    spec: PipelineSpec, log: Path, *, min_shard_bytes: int, store_bytes: int = 0
) -> BaseProcess:
    """On the tests' own Ray, or on a new one with an object store of ``store_bytes``; returns once
    it is connected."""
    environment = {
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on loopback, see glray.ray.cluster
    }
    declared = json.dumps(spec.model_dump(mode="json"))
    arguments = (declared, min_shard_bytes, store_bytes)
    process = start(prepare_anew, log.parent, log, os.environ | environment, *arguments)
    while process.exitcode is None and not (log.exists() and "ready\n" in log.read_text()):
        time.sleep(0.02)
    return process


def prepare_anew(declared: str, min_shard_bytes: int, store_bytes: int) -> None:
    """What a started process does."""
    spec = validate(json.loads(declared), "test")
    shards.MIN_SHARD_BYTES = min_shard_bytes
    if store_bytes:
        ray_constants.OBJECT_STORE_MINIMUM_MEMORY_BYTES = store_bytes  # else no less than 75 MiB
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=store_bytes,
            logging_level="error",
        )
    connect(spec.compute, lambda line: None)
    print("ready", flush=True)
    with heard_by(print_work):
        prepare.prepare(spec, lambda line: print(line, flush=True))


def print_work(work: Work | None) -> None:
    """Each time that something of it is done."""
    if work:
        said = work_line(work.what, work.share, work.note, work.seconds_left, work.seconds)
        print(said, flush=True)


def write_words(path: Path, num_documents: int, words_each: int) -> None:
    rng = random.Random(0)
    words = [f"word{number}" for number in range(5000)]
    with path.open("w") as file:
        for _ in range(num_documents):
            content = " ".join(rng.choices(words, k=rng.randrange(1, words_each)))
            file.write(json.dumps({"text": content}) + "\n")


@pytest.mark.parametrize("num_kills", [1, pytest.param(20, marks=pytest.mark.soak)])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    tmp_path: Path, num_kills: int
) -> None:
    write_words(tmp_path / "a.jsonl", 1000, 800)  # 2.5 MB: 27 shards
    source = JsonlCorpus(paths=(str(tmp_path / "a.jsonl"),))
    declared = {"corpus": source, "heldout_fraction": 0.01}
    whole = files_of(prepared(pipeline(tmp_path / "whole", **declared)))
    spec = pipeline(tmp_path / "killed", **declared)
    work = tmp_path / "killed" / "tokens" / "work"
    seed = random.SystemRandom().randrange(10**6)
    print(f"kill times from seed {seed}")
    rng = random.Random(seed)
    for number in range(num_kills):
        process = start_prepare(spec, tmp_path / f"log{number}", min_shard_bytes=100_000)
        committed = set(work.glob("*/*/**/*.arrow"))
        # From start-up alone to long after the first new file: the first kill comes early.
        while number and process.is_alive() and committed >= set(work.glob("*/*/**/*.arrow")):
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1.5 if number else 4))
        process.kill()
        process.join()
    log = tmp_path / "last"
    assert status_of(start_prepare(spec, log, min_shard_bytes=100_000), log, 120) == 0
    print(log.read_text())
    blocks = found(spec)
    assert blocks is not None
    assert files_of(blocks) == whole
    assert left_behind(tmp_path / "killed") == [blocks.fingerprint]


def test_two_at_once_do_no_harm(tmp_path: Path) -> None:
    write_words(tmp_path / "a.jsonl", 600, 800)
    source = JsonlCorpus(paths=(str(tmp_path / "a.jsonl"),))
    spec = pipeline(tmp_path / "runs", corpus=source, heldout_fraction=0.02)
    logs = [tmp_path / "one", tmp_path / "two"]
    both = [start_prepare(spec, log, min_shard_bytes=100_000) for log in logs]
    assert [status_of(*each, 120) for each in zip(both, logs, strict=True)] == [0, 0]
    outputs = [log.read_text() for log in logs]
    assert sum("prepares the same, waiting for it" in output for output in outputs) <= 1
    assert sum("held out, in" in output for output in outputs) == 1  # one did it
    blocks = found(spec)
    assert blocks is not None
    assert left_behind(tmp_path / "runs") == [blocks.fingerprint]


@pytest.mark.soak
def test_a_corpus_larger_than_the_object_store(tmp_path: Path) -> None:
    write_words(tmp_path / "a.jsonl", 1000, 2400)  # 11 MB
    tokenizer = train_bpe([" ".join(f"word{number}" for number in range(5000))], 6000)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    source = JsonlCorpus(paths=(str(tmp_path / "a.jsonl"),))
    spec = pipeline(
        tmp_path / "runs",
        corpus=source,
        tokenizer=TokenizerFile(path=str(tmp_path / "tokenizer.json")),
        heldout_fraction=0.01,
    )
    log = tmp_path / "log"
    process = start_prepare(spec, log, min_shard_bytes=2**20, store_bytes=8 * 2**20)
    assert status_of(process, log, 240) == 0
    assert re.search(
        r"encoding 10\.\d MB: \d+%, .* MB/s, .* Mtok/s, about .* left", log.read_text()
    )
    blocks = found(spec)
    assert blocks is not None

    # Every document's tokens are there once, in order: against a direct encoding.
    direct = hashlib.sha256()
    total = 0
    with (tmp_path / "a.jsonl").open() as file:
        for line in file:
            content = json.loads(line)["text"]
            sha256 = np.frombuffer(hashlib.sha256(content.encode()).digest(), dtype=np.uint8)
            if not is_drawn(sha256.reshape(1, 32), 0.01)[0]:
                ids = [*encode(tokenizer, [content])[0], blocks.eos_id]
                direct.update(np.array(ids, dtype=np.uint16).tobytes())
                total += sum(ids)
    prepared_hash = hashlib.sha256()
    prepared_total = 0
    for number in range(blocks.num_blocks):
        tokens = read_block(blocks.place(number))[:BLOCK_TOKENS]
        prepared_hash.update(tokens.tobytes())
        prepared_total += int(tokens.sum(dtype=np.int64))
    assert (prepared_total, prepared_hash.hexdigest()) == (total, direct.hexdigest())
