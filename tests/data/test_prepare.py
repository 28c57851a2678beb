import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from tokenizers import Tokenizer

from glray.data import prepare as prepare_module
from glray.data import shards as shards_module
from glray.data.blocks import TokenBlocks, read_block
from glray.data.heldout import is_drawn, read_heldout
from glray.data.inspection import source_ledgers
from glray.data.listing import find_prepared
from glray.data.prepare import prepare
from glray.data.shards import Shard
from glray.data.tokenizer import encode, train_bpe
from glray.errors import UserError
from glray.spec import (
    ArmSpec,
    BpeTokenizer,
    BudgetSpec,
    ComputeSpec,
    EvaluationSpec,
    JsonlCorpus,
    MixtureCorpus,
    ModelSpec,
    OptimizerSpec,
    ParquetCorpus,
    PipelineSpec,
    SourceSpec,
    StageSpec,
    TextCorpus,
    TokenizerFile,
)

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]

HELDOUT = 0.25


def text(number: int) -> str:
    """A text of about 300 bytes, its own for each number."""
    words = random.Random(number).choices(["grow", "length", "train", "short", "müde", "\n"], k=60)
    return f"{number} " + " ".join(words)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder of 60 texts."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number:02d}.txt").write_text(text(number))
    return folder


def pipeline(storage: Path, **fields: object) -> PipelineSpec:
    declared = {
        "name": "tiny",
        "heldout_fraction": HELDOUT,
        "tokenizer": BpeTokenizer(vocab_size=300),
        "model": ModelSpec(num_layers=1, hidden_size=8, num_heads=1, intermediate_size=8),
        "arms": (ArmSpec(name="only", stages=(StageSpec(seq_len=8),)),),
        "budget": BudgetSpec(tokens=64),
        "tokens_per_batch": 8,
        "optimizer": OptimizerSpec(lr=1e-3),
        "evaluation": EvaluationSpec(seq_lens=(8,), num_tokens=8),
        "compute": ComputeSpec(storage=str(storage)),
    }
    return PipelineSpec.model_validate(declared | fields)


def texts_pipeline(folder: Path, **fields: object) -> PipelineSpec:
    declared = {"corpus": TextCorpus(paths=(str(folder),))}
    return pipeline(folder.parent / "runs", **(declared | fields))


def prepared(spec: PipelineSpec, say=lambda line: None) -> TokenBlocks:
    """The token blocks of a pipeline's only source."""
    (source,) = prepare(spec, say).sources
    return source.blocks


def found(spec: PipelineSpec) -> TokenBlocks | None:
    corpus = find_prepared(spec)
    return None if corpus is None else corpus.sources[0].blocks


def manifest(blocks: TokenBlocks) -> dict[str, object]:
    return json.loads((blocks.directory / "manifest.json").read_text())


def stream(blocks: TokenBlocks) -> list[int]:
    return [
        int(token)
        for index, block in enumerate(blocks.blocks)
        for token in read_block(blocks.block_path(index), block.sha256)[: block.num_tokens]
    ]


def files_of(blocks: TokenBlocks) -> dict[str, bytes]:
    """Every file's content, the manifest without its versions."""
    return {
        str(path.relative_to(blocks.directory)): path.read_bytes()
        for path in sorted(blocks.directory.rglob("*"))
        if path.is_file()
    }


def drawn(content: str) -> bool:
    sha256 = hashlib.sha256(content.encode()).digest()
    return bool(is_drawn(np.frombuffer(sha256, dtype=np.uint8).reshape(1, 32), HELDOUT)[0])


def left_behind(storage: Path) -> list[str]:
    """What lies in the folder of token blocks, locks and records apart."""
    tokens = storage / "tokens"
    paths = [*tokens.glob("*"), *tokens.glob("work/*")] if tokens.exists() else []
    kept = ("listings", "tokenizers", "work")
    return sorted(p.name for p in paths if p.suffix != ".lock" and p.name not in kept)


def test_blocks_hold_each_training_document_in_order(corpus: Path) -> None:
    lines: list[str] = []
    blocks = prepared(texts_pipeline(corpus), lines.append)
    tokenizer = Tokenizer.from_file(str(blocks.tokenizer_path))
    contents = [text(number) for number in range(60)]
    expected = [
        token
        for content in contents
        if not drawn(content)
        for token in [*encode(tokenizer, [content])[0], blocks.eos_id]
    ]
    assert stream(blocks) == expected
    assert blocks.num_tokens == len(expected)
    heldout = read_heldout(blocks.heldout_path)
    assert [tokenizer.decode(document.tokens) for document in heldout] == [
        content for content in contents if drawn(content)
    ]
    num_bytes = blocks.token_num_bytes()
    for document in heldout:
        assert num_bytes[document.tokens].sum() == document.num_bytes
    assert blocks.vocab_size == 300
    assert all(line.startswith("prepare: ") for line in lines)
    assert left_behind(corpus.parent / "runs") == [blocks.fingerprint]


def test_the_tokenizer_never_sees_held_out_text(corpus: Path) -> None:
    blocks = prepared(texts_pipeline(corpus))
    training = [text(number) for number in range(60) if not drawn(text(number))]
    assert blocks.tokenizer_path.read_text() == train_bpe(training, 300).to_str()


def test_a_slow_first_task_does_not_change_the_order(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_one = prepare_module._encode_one

    def slow_first(shard: Shard, **fields: object) -> dict[str, object]:
        time.sleep(2 if shard.index == 0 else 0)
        return encode_one(shard, **fields)

    whole = prepared(texts_pipeline(corpus))
    monkeypatch.setattr(shards_module, "MIN_SHARD_BYTES", 3000)  # about ten files a shard
    monkeypatch.setattr(prepare_module, "_encode_one", slow_first)
    elsewhere = ComputeSpec(storage=str(corpus.parent / "elsewhere"))
    cut = prepared(texts_pipeline(corpus, compute=elsewhere))
    assert files_of(cut) == files_of(whole)


def test_prepared_tokens_are_found_again(corpus: Path) -> None:
    spec = texts_pipeline(corpus)
    assert find_prepared(spec) is None
    corpus_of_spec = prepare(spec, lambda line: None)
    assert find_prepared(spec) == corpus_of_spec
    assert find_prepared(texts_pipeline(corpus, heldout_fraction=0.2)) is None
    assert find_prepared(texts_pipeline(corpus, tokenizer=BpeTokenizer(vocab_size=299))) is None


def test_new_content_gives_new_tokens(corpus: Path) -> None:
    spec = texts_pipeline(corpus)
    before = prepared(spec)
    path = corpus / "07.txt"
    stat = path.stat()
    path.write_bytes(path.read_bytes().swapcase())  # of the same size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # and with the same time
    assert find_prepared(spec) is None
    after = prepared(spec)
    assert after.fingerprint != before.fingerprint
    assert found(spec) == after


def test_the_same_documents_elsewhere_are_the_same_tokens(corpus: Path) -> None:
    before = prepared(texts_pipeline(corpus))
    path = corpus.parent / "corpus.parquet"
    pq.write_table(pa.table({"text": [text(number) for number in range(60)]}), path)
    spec = texts_pipeline(corpus, corpus=ParquetCorpus(paths=(str(path),)))
    assert find_prepared(spec) is None
    assert prepared(spec) == before
    assert found(spec) == before


def test_a_corpus_that_changes_meanwhile_is_refused(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = texts_pipeline(corpus)
    survey = prepare_module._encode

    def change(*arguments: object) -> tuple[Path, ...]:
        (corpus / "07.txt").write_text("other")
        return survey(*arguments)

    monkeypatch.setattr(prepare_module, "_encode", change)
    with pytest.raises(UserError, match="changed while it was read"):
        prepared(spec)
    assert left_behind(corpus.parent / "runs") == []
    assert find_prepared(spec) is None


def test_texts_that_are_not_utf8_or_empty_are_counted(corpus: Path) -> None:
    (corpus / "latin.txt").write_bytes(b"caf\xe9")
    (corpus / "none.txt").write_bytes(b"")
    lines: list[str] = []
    blocks = prepared(texts_pipeline(corpus), lines.append)
    written = manifest(blocks)
    assert written["not_utf8_names"] == [str(corpus / "latin.txt")]
    assert (written["not_utf8_skipped"], written["empty_skipped"]) == (1, 1)
    assert written["documents"] == 60
    assert any("latin.txt" in line for line in lines)


def test_equal_documents_lie_on_one_side(corpus: Path) -> None:
    for number in range(60):
        (corpus / f"{number:02d}-copy.txt").write_text(text(number))
    blocks = prepared(texts_pipeline(corpus))
    names = [document.name for document in read_heldout(blocks.heldout_path)]
    num_drawn = sum(drawn(text(number)) for number in range(60))
    assert len(names) == num_drawn
    assert manifest(blocks)["heldout_duplicates_dropped"] == num_drawn
    assert stream(blocks).count(blocks.eos_id) == 2 * (60 - num_drawn)


def test_a_large_document_is_returned_to_training(corpus: Path) -> None:
    large = next(content for n in range(99) if drawn(content := str(n) + " large" * 2000))
    (corpus / "large.txt").write_text(large)
    blocks = prepared(texts_pipeline(corpus))
    assert str(corpus / "large.txt") not in [d.name for d in read_heldout(blocks.heldout_path)]
    assert blocks.returned == (hashlib.sha256(large.encode()).hexdigest(),)
    num_drawn = sum(drawn(text(number)) for number in range(60))
    assert stream(blocks).count(blocks.eos_id) == 60 - num_drawn + 1


def test_a_tokenizer_file_is_used_and_named_by_its_content(corpus: Path) -> None:
    path = corpus.parent / "tokenizer.json"
    train_bpe([text(0)], 280).save(str(path))
    spec = texts_pipeline(corpus, tokenizer=TokenizerFile(path=str(path)))
    blocks = prepared(spec)
    assert (blocks.vocab_size, blocks.dtype) == (280, "uint16")
    train_bpe([text(1)], 270).save(str(path))
    assert find_prepared(spec) is None
    assert prepared(spec).fingerprint != blocks.fingerprint


def test_tokenized_data_gives_the_tokens_of_its_text(corpus: Path) -> None:
    path = corpus.parent / "tokenizer.json"
    tokenizer = train_bpe([text(0)], 280)
    tokenizer.save(str(path))
    ids = encode(tokenizer, [text(number) for number in range(60)])
    pq.write_table(pa.table({"ids": ids}), corpus.parent / "ids.parquet")
    given = ParquetCorpus(paths=(str(corpus.parent / "ids.parquet"),), column="ids")
    tokenized = {"corpus": given, "heldout_fraction": 0.2}
    with pytest.raises(UserError, match=r"holds token ids, .* TokenizerFile"):
        prepared(texts_pipeline(corpus, **tokenized))
    blocks = prepared(texts_pipeline(corpus, tokenizer=TokenizerFile(path=str(path)), **tokenized))
    heldout = [document.tokens.tolist() for document in read_heldout(blocks.heldout_path)]
    expected = [token for document in ids if document not in heldout for token in [*document, 0]]
    assert stream(blocks) == expected
    assert 0 < len(heldout) < 60
    assert sum(d.num_bytes for d in read_heldout(blocks.heldout_path)) == sum(
        len(tokenizer.decode(tokens).encode()) for tokens in heldout
    )


# ---- several sources


@pytest.fixture
def mixture(corpus: Path) -> PipelineSpec:
    """The folder of 60 texts, three chunks of it to one of 20 others of which five are the same."""
    path = corpus.parent / "more.jsonl"
    lines = [json.dumps({"text": text(number)}) for number in [*range(5), *range(100, 115)]]
    path.write_text("\n".join(lines))
    tokenizer = corpus.parent / "tokenizer.json"
    train_bpe([text(0)], 280).save(str(tokenizer))
    sources = (
        SourceSpec(name="texts", weight=3, corpus=TextCorpus(paths=(str(corpus),))),
        SourceSpec(name="more", weight=1, corpus=JsonlCorpus(paths=(str(path),))),
    )
    return texts_pipeline(
        corpus,
        corpus=MixtureCorpus(sources=sources),
        tokenizer=TokenizerFile(path=str(tokenizer)),
    )


def weighted(spec: PipelineSpec, *weights: int) -> PipelineSpec:
    declared = spec.model_dump()
    for source, weight in zip(declared["corpus"]["sources"], weights, strict=True):
        source["weight"] = weight
    return PipelineSpec.model_validate(declared)


def test_each_source_has_its_own_blocks_and_ledger(mixture: PipelineSpec) -> None:
    corpus = prepare(mixture, lambda line: None)
    texts, more = source_ledgers(corpus)
    assert [(s.name, s.weight, s.num_documents) for s in (texts, more)] == [
        ("texts", 3, 60),
        ("more", 1, 20),
    ]
    assert more.num_bytes == sum(
        len(text(number).encode()) for number in [*range(5), *range(100, 115)]
    )
    assert [ledger.num_tokens for ledger in (texts, more)] == [
        len(stream(source.blocks)) for source in corpus.sources
    ]
    assert more.at_least(1) == (more.num_training_documents, more.num_tokens)


def test_a_document_of_two_sources_is_held_out_once(mixture: PipelineSpec) -> None:
    corpus = prepare(mixture, lambda line: None)
    hashes = [document.sha256 for document in corpus.heldout()]
    contents = [text(number) for number in [*range(60), *range(100, 115)]]
    returned = {sha256 for source in corpus.sources for sha256 in source.blocks.returned}
    expected = {hashlib.sha256(c.encode()).hexdigest() for c in contents if drawn(c)} - returned
    assert len(hashes) == len(set(hashes))
    assert set(hashes) == expected


def test_a_new_weight_tokenizes_nothing(
    mixture: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prepare(mixture, lambda line: None)
    monkeypatch.setattr(prepare_module, "_in_parallel", None)  # would raise if it were called
    after = find_prepared(weighted(mixture, 1, 2))
    assert after is not None
    assert after.directories == before.directories
    assert after.identity != before.identity
    order = after.order(chunk_len=8, seed=0)
    assert order.chunks(0, 6).source.tolist() == [1, 0, 1, 1, 0, 1]


def test_a_new_source_tokenizes_itself_alone(mixture: PipelineSpec) -> None:
    alone = mixture.with_fields(corpus=mixture.sources[0].corpus)
    blocks = prepared(alone)
    changed = blocks.block_path(0).stat().st_mtime_ns
    corpus = prepare(mixture, lambda line: None)
    assert corpus.sources[0].blocks == blocks
    assert blocks.block_path(0).stat().st_mtime_ns == changed


def test_a_trained_tokenizer_learns_equally_from_each_source(mixture: PipelineSpec) -> None:
    spec = mixture.with_fields(tokenizer={"kind": "bpe", "vocab_size": 300})
    lines: list[str] = []
    corpus = prepare(spec, lines.append)
    both = [text(n) for n in [*range(60), *range(5), *range(100, 115)] if not drawn(text(n))]
    assert corpus.tokenizer_path.read_text() == train_bpe(both, 300).to_str()
    assert sum("trained a byte-level BPE" in line for line in lines) == 1


# ---- interrupted, at once, too large


def test_what_is_committed_before_a_failure_is_kept(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "MIN_SHARD_BYTES", 3000)
    whole = files_of(
        prepared(texts_pipeline(corpus, compute=ComputeSpec(storage=str(corpus.parent / "whole"))))
    )
    encode_one = prepare_module._encode_one

    def disk_full(shard: Shard, **fields: object) -> dict[str, object]:
        if shard.index == 4:
            raise OSError(28, "No space left on device", "/disk/00004.arrow")
        return encode_one(shard, **fields)

    lines: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_encode_one", disk_full)
        with pytest.raises(UserError, match=r"/disk/00004.arrow: No space left .* run the same"):
            prepared(texts_pipeline(corpus), lines.append)
    kept = list((corpus.parent / "runs" / "tokens" / "work").glob("*/shards/*.arrow"))
    lines.clear()
    blocks = prepared(texts_pipeline(corpus), lines.append)
    assert any(f"{len(kept)} of" in line and "going on" in line for line in lines)
    assert files_of(blocks) == whole
    assert left_behind(corpus.parent / "runs") == [blocks.fingerprint]


PREPARE = """
import json, sys, ray
from glray.data import shards
from glray.data.prepare import prepare
from glray.data.shards import Shard
from glray.cluster import on_loopback
from glray.spec.loading import validate
shards.MIN_SHARD_BYTES = int(sys.argv[2])
with on_loopback():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
             object_store_memory=80 * 2**20, logging_level="error")
print("ready", flush=True)
prepare(validate(json.loads(sys.argv[1]), "test"), lambda line: print(line, flush=True))
"""


def start_prepare(spec: PipelineSpec, min_shard_bytes: int) -> subprocess.Popen:
    declared = json.dumps(spec.model_dump(mode="json"))
    process = subprocess.Popen(
        [sys.executable, "-c", PREPARE, declared, str(min_shard_bytes)],
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


@pytest.mark.parametrize("num_kills", [2, pytest.param(20, marks=pytest.mark.soak)])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    tmp_path: Path, num_kills: int
) -> None:
    write_words(tmp_path / "a.jsonl", 3000, 800)  # 8 MB: 40 shards
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
    write_words(tmp_path / "a.jsonl", 1100, 24_000)  # 110 MB, the store has 80
    tokenizer = train_bpe([" ".join(f"word{number}" for number in range(5000))], 6000)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    source = JsonlCorpus(paths=(str(tmp_path / "a.jsonl"),))
    spec = pipeline(
        tmp_path / "runs",
        corpus=source,
        tokenizer=TokenizerFile(path=str(tmp_path / "tokenizer.json")),
        heldout_fraction=0.01,
    )
    process = start_prepare(spec, min_shard_bytes=shards_module.MIN_SHARD_BYTES)
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


# ---- what a person can mend


def test_a_wrong_line_is_one_user_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"body": "two"}\n')
    (tmp_path / "tokenizer.json").write_text(train_bpe(["ab"], 257).to_str())
    spec = pipeline(
        tmp_path / "runs",
        corpus=JsonlCorpus(paths=(str(path),)),
        tokenizer=TokenizerFile(path=str(tmp_path / "tokenizer.json")),
    )
    with pytest.raises(UserError, match=f"^{path}:2: no column 'text'.* 'body'"):
        prepared(spec)


@pytest.mark.parametrize(("fraction", "side"), [(0.0001, "held-out"), (0.9999, "training")])
def test_an_empty_side_is_refused(corpus: Path, fraction: float, side: str) -> None:
    with pytest.raises(UserError, match=rf"no {side} documents.* heldout_fraction {fraction}"):
        prepared(texts_pipeline(corpus, heldout_fraction=fraction))


def test_ray_data_stays_as_it_was(corpus: Path) -> None:
    context = ray.data.DataContext.get_current()
    before = (context.enable_progress_bars, context.execution_options.preserve_order)
    prepared(texts_pipeline(corpus))
    assert (context.enable_progress_bars, context.execution_options.preserve_order) == before
    assert not before[1]
