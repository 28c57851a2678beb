"""``prepare`` in processes of its own: killed, two at once, with a small object store."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ray

from glray.data.blocks.heldout import is_drawn
from glray.data.blocks.token_blocks import read_block
from glray.data.blocks.tokenizer import encode, train_bpe
from glray.spec import (
    JsonlCorpus,
    PipelineSpec,
    TokenizerFile,
)
from tests.data.preparing import files_of, found, left_behind, pipeline, prepared

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]


PREPARE = """
import json, sys, ray
from ray._private import ray_constants
from glray.ray.cluster import connect
from glray.data.blocks import shards
from glray.ray import prepare
from glray.spec.loading import validate
spec = validate(json.loads(sys.argv[1]), "test")
shards.MIN_SHARD_BYTES, store_bytes = map(int, sys.argv[2:])
prepare.SAY_SECONDS = 0
if store_bytes:
    ray_constants.OBJECT_STORE_MINIMUM_MEMORY_BYTES = store_bytes  # else no less than 75 MiB
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
             object_store_memory=store_bytes, logging_level="error")
connect(spec.compute, lambda line: None)
print("ready", flush=True)
prepare.prepare(spec, lambda line: print(line, flush=True))
"""


def start_prepare(
    spec: PipelineSpec, *, min_shard_bytes: int, store_bytes: int = 0
) -> subprocess.Popen:
    """On the tests' own Ray, or on a new one with an object store of ``store_bytes``."""
    declared = json.dumps(spec.model_dump(mode="json"))
    environment = {
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on loopback, see glray.ray.cluster
    }
    process = subprocess.Popen(
        [sys.executable, "-c", PREPARE, declared, str(min_shard_bytes), str(store_bytes)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


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
    write_words(tmp_path / "a.jsonl", 2000, 800)  # 5 MB: 27 shards
    source = JsonlCorpus(paths=(str(tmp_path / "a.jsonl"),))
    declared = {"corpus": source, "heldout_fraction": 0.01}
    whole = files_of(prepared(pipeline(tmp_path / "whole", **declared)))
    spec = pipeline(tmp_path / "killed", **declared)
    work = tmp_path / "killed" / "tokens" / "work"
    seed = random.SystemRandom().randrange(10**6)
    print(f"kill times from seed {seed}")
    rng = random.Random(seed)
    for number in range(num_kills):
        process = start_prepare(spec, min_shard_bytes=200_000)
        committed = set(work.glob("*/*/**/*.arrow"))
        # From start-up alone to long after the first new file: the first kill comes early.
        while number and process.poll() is None and committed >= set(work.glob("*/*/**/*.arrow")):
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1.5 if number else 4))
        process.kill()
        process.wait()
    last = start_prepare(spec, min_shard_bytes=200_000)
    output, _ = last.communicate(timeout=120)
    assert last.returncode == 0
    print(output)
    blocks = found(spec)
    assert blocks is not None
    assert files_of(blocks) == whole
    assert left_behind(tmp_path / "killed") == [blocks.fingerprint]


def test_two_at_once_do_no_harm(tmp_path: Path) -> None:
    write_words(tmp_path / "a.jsonl", 600, 800)
    source = JsonlCorpus(paths=(str(tmp_path / "a.jsonl"),))
    spec = pipeline(tmp_path / "runs", corpus=source, heldout_fraction=0.02)
    both = [start_prepare(spec, min_shard_bytes=100_000) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("waiting for it" in output for output in outputs) <= 1
    assert sum("held out, in" in output for output in outputs) == 1  # one did it
    blocks = found(spec)
    assert blocks is not None
    assert left_behind(tmp_path / "runs") == [blocks.fingerprint]


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
    process = start_prepare(spec, min_shard_bytes=2**20, store_bytes=8 * 2**20)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    assert "MB/s" in output
    assert "s left" in output
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
    for index, block in enumerate(blocks.blocks):
        tokens = read_block(blocks.block_path(index), block.sha256)[: block.num_tokens]
        prepared_hash.update(tokens.tobytes())
        prepared_total += int(tokens.sum(dtype=np.int64))
    assert (prepared_total, prepared_hash.hexdigest()) == (total, direct.hexdigest())
