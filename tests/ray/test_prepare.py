import hashlib
import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from tokenizers import Tokenizer

from glray.data.blocks import shards as shards_module
from glray.data.blocks.heldout import read_heldout
from glray.data.blocks.shards import Shard
from glray.data.blocks.snapshot import find_prepared
from glray.data.blocks.tokenizer import encode, train_bpe
from glray.errors import UserError
from glray.ray import prepare as prepare_module
from glray.ray.prepare import prepare
from glray.report.corpus_sheets import sources
from glray.spec import (
    BpeTokenizer,
    ComputeSpec,
    JsonlCorpus,
    ParquetCorpus,
    TokenizerFile,
)
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
    encode_whole = prepare_module.encode_shard

    def slow_first(shard: Shard, **fields: object) -> dict[str, object]:
        time.sleep(2 if shard.index == 0 else 0)
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
    encode_whole = prepare_module.encode_shard

    def disk_full(shard: Shard, **fields: object) -> dict[str, object]:
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
