import gzip
import hashlib
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from tokenizers import Tokenizer, models, pre_tokenizers

from glray.data.blocks import shards as shards_module
from glray.data.blocks.heldout import read_heldout
from glray.data.blocks.shards import Shard, encode_shard
from glray.data.blocks.snapshot import find_prepared
from glray.data.blocks.tokenizer import encode, train_bpe
from glray.data.targets import heldout_targets
from glray.errors import UserError
from glray.files import AnyPath
from glray.ray import prepare as prepare_module
from glray.ray.prepare import prepare
from glray.report.corpus_sheets import sources
from glray.spec import (
    BpeTokenizer,
    ComputeSpec,
    EvaluationSpec,
    JsonlCorpus,
    ParquetCorpus,
    TextCorpus,
    TokenizerFile,
)
from glray.spec.corpus import SourceCorpus
from tests.data.preparing import (
    drawn,
    files_of,
    found,
    left_behind,
    manifest,
    pipeline,
    prepared,
    stream,
    text,
    texts_pipeline,
    write_texts,
)

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder of 60 texts."""
    return write_texts(tmp_path / "corpus")


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
    assert [tokenizer.decode(document.tokens.tolist()) for document in heldout] == [
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
    encode_whole = encode_shard

    def slow_first(shard: Shard, **fields: Any) -> tuple[int, int]:
        time.sleep(1 if shard.index == 0 else 0)
        return encode_whole(shard, **fields)

    whole = prepared(texts_pipeline(corpus))
    monkeypatch.setattr(shards_module, "MIN_SHARD_BYTES", 3000)  # about ten files a shard
    monkeypatch.setattr(prepare_module, "encode_shard", slow_first)
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

    def change(*arguments: Any) -> tuple[AnyPath, ...]:
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


# ---- near-copies


def planted(corpus: Path) -> tuple[str, str]:
    """A held-out text that shares most of its words with a training text, beside it."""
    original = next(text(n) for n in range(100, 999) if not drawn(text(n)))
    copy = next(each for n in range(999) if drawn(each := f"{original} revision {n}"))
    (corpus / "original.txt").write_text(original)
    (corpus / "revision.txt").write_text(copy)
    return original, copy


def test_a_near_copy_of_training_text_is_named_and_not_scored(corpus: Path) -> None:
    _, copy = planted(corpus)
    lines: list[str] = []
    found_corpus = prepare(texts_pipeline(corpus), lines.append)
    check = found_corpus.heldout_check()
    assert check is not None
    assert [Path(found.name).name for found in check.near_copies] == ["revision.txt"]
    assert check.near_copies[0].share > 0.8
    assert "1 of " in lines[-1]
    assert "revision.txt" in lines[-1]
    hashes = {document.sha256 for document in found_corpus.heldout()}
    scored = {document.sha256 for document in found_corpus.scored_documents()}
    assert hashes - scored == {hashlib.sha256(copy.encode()).hexdigest()}
    assert "revision.txt" in " ".join(sources(found_corpus).notes)


def test_near_copies_change_no_token(corpus: Path) -> None:
    planted(corpus)
    blocks = prepared(texts_pipeline(corpus))
    names = [Path(document.name).name for document in read_heldout(blocks.heldout_path)]
    assert "revision.txt" in names
    assert blocks.heldout_documents == len(names)


def test_tokens_that_were_never_checked_are_checked_by_the_next_call(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(corpus)
    spec = texts_pipeline(corpus)
    first = prepare(spec, lambda line: None)
    record = first.check_path.read_bytes()
    first.check_path.unlink()  # as prepared by an older version
    assert find_prepared(spec) is None
    assert len(first.scored_documents()) == len(first.heldout())
    monkeypatch.setattr(prepare_module, "encode_shard", None)  # would fail if it were used
    lines: list[str] = []
    assert prepare(spec, lines.append) == first
    assert any("are there, nothing to do" in line for line in lines)
    assert first.check_path.read_bytes() == record
    assert find_prepared(spec) == first


def test_a_check_goes_on_from_what_is_committed(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(corpus)
    spec = texts_pipeline(corpus)
    whole = prepare(spec, lambda line: None)
    record = whole.check_path.read_bytes()
    whole.check_path.unlink()

    def killed(*arguments: object, **fields: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "check_heldout", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(spec, lambda line: None)
    monkeypatch.setattr(prepare_module, "find_ngrams", killed)
    prepare(spec, lambda line: None)
    assert whole.check_path.read_bytes() == record
    assert left_behind(corpus.parent / "runs") == [whole.vocabulary.fingerprint]


def test_a_damaged_record_of_the_check_is_refused(corpus: Path) -> None:
    spec = texts_pipeline(corpus)
    path = prepare(spec, lambda line: None).check_path
    path.write_text("{}")
    with pytest.raises(UserError, match=rf"^{path}: damaged.*; delete it and run `glray prepare`"):
        find_prepared(spec)


# ---- interrupted, at once, too large


def test_what_is_committed_before_a_failure_is_kept(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "MIN_SHARD_BYTES", 3000)
    whole = files_of(
        prepared(texts_pipeline(corpus, compute=ComputeSpec(storage=str(corpus.parent / "whole"))))
    )
    encode_whole = encode_shard

    def disk_full(shard: Shard, **fields: Any) -> tuple[int, int]:
        if shard.index == 4:
            raise OSError(28, "No space left on device", "/disk/00004.arrow")
        return encode_whole(shard, **fields)

    lines: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "encode_shard", disk_full)
        with pytest.raises(UserError, match=r"/disk/00004.arrow: No space left .* run the same"):
            prepared(texts_pipeline(corpus), lines.append)
    kept = list((corpus.parent / "runs" / "tokens" / "work").glob("*/shards/*.arrow"))
    lines.clear()
    blocks = prepared(texts_pipeline(corpus), lines.append)
    assert any(f"{len(kept)} of" in line and "going on" in line for line in lines)
    assert files_of(blocks) == whole
    assert left_behind(corpus.parent / "runs") == [blocks.fingerprint]


# ---- fingerprints, and corpora of few documents


def write_byte_tokenizer(path: Path) -> TokenizerFile:
    """A ``tokenizer.json`` of EOS and the 256 bytes, spelt out: no library decides its content."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    vocab = {token: number for number, token in enumerate(["<|endoftext|>", *alphabet])}
    declared = {
        "version": "1.0",
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
        "added_tokens": [],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
    }
    path.write_text(json.dumps(declared))
    return TokenizerFile(path=str(path))


def test_a_corpus_of_enough_documents_has_the_tokens_of_every_version(corpus: Path) -> None:
    tokenizer = write_byte_tokenizer(corpus.parent / "tokenizer.json")
    blocks = prepared(texts_pipeline(corpus, tokenizer=tokenizer))
    assert blocks.fingerprint == "c76dc2a9ee6a36b9"
    flat = pa.record_batch({"tokens": pa.array(stream(blocks), pa.uint16())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, flat.schema) as writer:
        writer.write_batch(flat)  # as a block was a file of its own
    assert hashlib.sha256(sink.getvalue()).hexdigest()[:16] == "11506dc496f55684"
    assert (blocks.num_tokens, blocks.heldout_documents) == (14_897, 14)
    assert blocks.heldout_span_tokens == 0


def write_novel(path: Path, num_bytes: int, seed: int = 0) -> None:
    """Lines of words that nothing repeats."""
    rng = random.Random(seed)
    words = [f"{rng.randrange(16**5):x}" for _ in range(3000)]
    text = "\n".join(" ".join(rng.choices(words, k=12)) for _ in range(num_bytes // 60))
    path.write_text(text[:num_bytes])


def one_file(folder: Path) -> SourceCorpus:
    write_novel(folder / "input.txt", 10**6)
    return TextCorpus(paths=(str(folder / "input.txt"),))


def ten_files(folder: Path) -> SourceCorpus:
    for number in range(10):
        write_novel(folder / f"{number}.txt", 100_000, seed=number)
    return TextCorpus(paths=(str(folder),))


def sixty_rows(folder: Path) -> SourceCorpus:
    rows = [" ".join(f"w{(d * 31 + i) % 97}" for i in range(300)) for d in range(60)]
    lines = [json.dumps({"text": row}) for row in rows]
    (folder / "sixty.jsonl").write_text("\n".join(lines))
    return JsonlCorpus(paths=(str(folder / "sixty.jsonl"),))


@pytest.mark.parametrize(
    ("write", "longest"), [(one_file, 2048), (ten_files, 2048), (sixty_rows, 1024)]
)
def test_a_small_corpus_is_scored_on_spans_of_its_documents(
    tmp_path: Path, write: Callable[[Path], SourceCorpus], longest: int
) -> None:
    (tmp_path / "corpus").mkdir()
    evaluation = EvaluationSpec(seq_lens=(128, longest), num_tokens=65_536)
    spec = pipeline(
        tmp_path / "runs",
        corpus=write(tmp_path / "corpus"),
        tokenizer=BpeTokenizer(vocab_size=2048),
        heldout_fraction=0.05,
        evaluation=evaluation,
    )
    lines: list[str] = []
    corpus = prepare(spec, lines.append)
    (said,) = [line for line in lines if "spans of documents" in line]
    fewer = any("(2,048 need more text)" in line for line in lines)
    assert fewer == (write is sixty_rows)
    blocks = corpus.sources[0].blocks
    assert f"held out {blocks.heldout_documents} spans of documents, of " in said
    assert blocks.heldout_documents >= 5
    assert blocks.identity["heldout_spans"] == {
        "spans": blocks.heldout_documents,
        "tokens": blocks.heldout_span_tokens,
    }
    targets = heldout_targets(corpus, evaluation)
    assert (targets.longest, targets.num_documents) == (longest, len(targets.tokens))
    assert targets.num_documents == len(corpus.scored_documents()) > 3
    assert find_prepared(spec) == corpus
    trained = np.array(stream(blocks))
    for span in read_heldout(blocks.heldout_path):
        assert span.tokens.tobytes() not in trained.astype(np.uint16).tobytes()


def test_the_tokenizer_learns_from_the_only_document_even_if_it_is_drawn(tmp_path: Path) -> None:
    text = next(each for n in range(99) if drawn(each := f"{n} " + " ".join(map(str, range(3000)))))
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "input.txt").write_text(text)
    blocks = prepared(texts_pipeline(tmp_path / "corpus"))
    assert blocks.tokenizer_path.read_text() == train_bpe([text], 300).to_str()
    assert blocks.heldout_span_tokens > 0


def test_spans_are_resumed_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(*arguments: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "corpus").mkdir()
    given = {"corpus": ten_files(tmp_path / "corpus"), "tokenizer": BpeTokenizer(vocab_size=300)}
    whole = files_of(prepared(pipeline(tmp_path / "whole", **given)))
    monkeypatch.setattr(shards_module, "MIN_SHARD_BYTES", 150_000)
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "write_heldout", disk_full)
        with pytest.raises(KeyboardInterrupt):
            prepared(pipeline(tmp_path / "runs", **given))
    lines: list[str] = []
    assert files_of(prepared(pipeline(tmp_path / "runs", **given), lines.append)) == whole
    assert any("10 of 10 shards are there" in line for line in lines)


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "input.txt").write_text("a" * 900)
    with pytest.raises(UserError, match=r"^corpus: no held-out documents: .*give more text$"):
        prepared(texts_pipeline(tmp_path / "corpus"))


# ---- corpora as people have them


def test_what_a_folder_holds_beside_the_corpus_is_said(corpus: Path) -> None:
    (corpus / "._01.txt").write_bytes(b"\x00\x05\x16\x07")
    (corpus / ".ipynb_checkpoints").mkdir()
    (corpus / ".ipynb_checkpoints" / "01-checkpoint.txt").write_text(text(1))
    (corpus / "notes.md").write_text("notes")
    lines: list[str] = []
    assert prepared(texts_pipeline(corpus), lines.append).documents == 60
    assert lines[0].endswith(f"from {corpus} (left out: 2 hidden, 1 of other kinds)")


TEXTS = [text(number) for number in range(60)]


def write_separated(folder: Path) -> SourceCorpus:
    (folder / "separated.txt").write_text("\n<|endoftext|>\n".join(TEXTS))
    return TextCorpus(paths=(str(folder),))


def write_c4(folder: Path) -> SourceCorpus:
    lines = "".join(json.dumps({"text": each}) + "\n" for each in TEXTS).encode()
    (folder / "c4-train.00000-of-00001.json.gz").write_bytes(gzip.compress(lines))
    return JsonlCorpus(paths=(str(folder),))


def write_bom(folder: Path) -> SourceCorpus:
    lines = "".join(json.dumps({"text": each}) + "\n" for each in TEXTS).encode()
    (folder / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + lines)
    return JsonlCorpus(paths=(str(folder),))


def write_missing_key(folder: Path) -> SourceCorpus:
    lines = "".join(json.dumps({"text": each}) + "\n" for each in TEXTS)
    (folder / "missing_key.jsonl").write_text('{"id": 3}\n' + lines)
    return JsonlCorpus(paths=(str(folder),))


def write_dictionary(folder: Path) -> SourceCorpus:
    pq.write_table(pa.table({"text": pa.array(TEXTS).dictionary_encode()}), folder / "a.parquet")
    return ParquetCorpus(paths=(str(folder),))


def write_null_shard(folder: Path) -> SourceCorpus:
    pq.write_table(pa.table({"text": TEXTS}), folder / "a.parquet")
    pq.write_table(pa.table({"text": pa.nulls(2)}), folder / "b.parquet")
    return ParquetCorpus(paths=(str(folder),))


@pytest.mark.parametrize(
    ("write", "skipped"),
    [
        (write_separated, (0, 0)),
        (write_c4, (0, 0)),
        (write_bom, (0, 0)),
        (write_missing_key, (0, 1)),
        (write_dictionary, (0, 0)),
        (write_null_shard, (2, 0)),
    ],
)
def test_the_same_documents_in_any_form_are_the_same_tokens(
    tmp_path: Path, write: Callable[[Path], SourceCorpus], skipped: tuple[int, int]
) -> None:
    (tmp_path / "corpus").mkdir()
    lines: list[str] = []
    spec = texts_pipeline(
        tmp_path / "corpus",
        corpus=write(tmp_path / "corpus"),
        tokenizer=write_byte_tokenizer(tmp_path / "tokenizer.json"),
    )
    blocks = prepared(spec, lines.append)
    assert blocks.fingerprint == "c76dc2a9ee6a36b9"
    assert (blocks.empty_skipped, blocks.no_column_skipped) == skipped
    assert any("skipped" in line for line in lines) == any(skipped)


def test_characters_that_the_tokenizer_lacks_are_counted_and_said(corpus: Path) -> None:
    vocab = {"<|endoftext|>": 0, **{c: n for n, c in enumerate(sorted(set("".join(TEXTS))), 1)}}
    del vocab["ü"]
    path = corpus.parent / "tokenizer.json"
    Tokenizer(models.BPE(vocab=vocab, merges=[])).save(str(path))
    lines: list[str] = []
    blocks = prepared(texts_pipeline(corpus, tokenizer=TokenizerFile(path=str(path))), lines.append)
    count = "".join(TEXTS).count("ü")
    assert (blocks.unknown_characters, blocks.most_unknown) == (count, (("ü", count),))
    assert any(f"no token for {count:,} characters" in line for line in lines)


# ---- what a person can mend


def test_a_column_that_no_line_has_is_one_user_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "body": "one"}\n{"body": "two"}\n')
    (tmp_path / "tokenizer.json").write_text(train_bpe(["ab"], 257).to_str())
    spec = pipeline(
        tmp_path / "runs",
        corpus=JsonlCorpus(paths=(str(path),)),
        tokenizer=TokenizerFile(path=str(tmp_path / "tokenizer.json")),
    )
    with pytest.raises(UserError, match=f"^{path}@0: no column 'text', there are 'id', 'body'"):
        prepared(spec)


def test_no_training_text_is_refused(corpus: Path) -> None:
    with pytest.raises(UserError, match=r"no training documents.* heldout_fraction 0\.9999"):
        prepared(texts_pipeline(corpus, heldout_fraction=0.9999))


def test_a_fraction_that_draws_nothing_holds_out_spans(corpus: Path) -> None:
    blocks = prepared(texts_pipeline(corpus, heldout_fraction=0.0001))
    assert blocks.heldout_documents == 5


def test_ray_data_stays_as_it_was(corpus: Path) -> None:
    context = ray.data.DataContext.get_current()
    before = (context.enable_progress_bars, context.execution_options.preserve_order)
    prepared(texts_pipeline(corpus))
    assert (context.enable_progress_bars, context.execution_options.preserve_order) == before
    assert not before[1]
