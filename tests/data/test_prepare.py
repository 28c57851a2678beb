import hashlib
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from tokenizers import Tokenizer

from glray.data import prepare as prepare_module
from glray.data.blocks import TokenBlocks, read_block
from glray.data.heldout import is_heldout, read_heldout
from glray.data.prepare import find_prepared, prepare
from glray.data.rows import read_rows
from glray.data.tokenizer import encode, train_bpe
from glray.errors import UserError
from glray.spec import (
    ArmSpec,
    BpeTokenizer,
    BudgetSpec,
    ComputeSpec,
    EvaluationSpec,
    JsonlCorpus,
    ModelSpec,
    OptimizerSpec,
    ParquetCorpus,
    PipelineSpec,
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
    declared = {"corpus": TextCorpus(paths=(str(folder),), heldout_fraction=HELDOUT)}
    return pipeline(folder.parent / "runs", **(declared | fields))


def quietly(_: str) -> None:
    """Say nothing."""


def manifest(blocks: TokenBlocks) -> dict[str, object]:
    return json.loads((blocks.directory / "manifest.json").read_text())


def stream(blocks: TokenBlocks) -> list[int]:
    return [
        int(token)
        for index, block in enumerate(blocks.blocks)
        for token in read_block(blocks.block_path(index))[: block.num_tokens]
    ]


def drawn(content: str) -> bool:
    return is_heldout(hashlib.sha256(content.encode()).hexdigest(), HELDOUT)


def left_behind(storage: Path) -> list[str]:
    tokens = storage / "tokens"
    return sorted(path.name for path in tokens.iterdir()) if tokens.exists() else []


def test_blocks_hold_each_training_document_in_order(corpus: Path) -> None:
    lines: list[str] = []
    blocks = prepare(texts_pipeline(corpus), lines.append)
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


def test_the_tokenizer_never_sees_held_out_text(corpus: Path) -> None:
    blocks = prepare(texts_pipeline(corpus), quietly)
    training = [text(number) for number in range(60) if not drawn(text(number))]
    assert blocks.tokenizer_path.read_text() == train_bpe(training, 300).to_str()


def test_a_slow_first_task_does_not_change_the_order(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow_first(plan: pa.Table, corpus: TextCorpus) -> Iterator[pa.Table]:
        if plan.column("path")[0].as_py().endswith("/00.txt"):
            time.sleep(2)
        yield from read_rows(plan, corpus)

    whole = prepare(texts_pipeline(corpus), quietly)
    monkeypatch.setattr(prepare_module, "READ_BYTES", 3000)  # about ten files a task
    monkeypatch.setattr(prepare_module, "read_rows", slow_first)
    elsewhere = ComputeSpec(storage=str(corpus.parent / "elsewhere"))
    cut = prepare(texts_pipeline(corpus, compute=elsewhere), quietly)
    assert (cut.fingerprint, cut.blocks) == (whole.fingerprint, whole.blocks)


def test_prepared_tokens_are_found_again(corpus: Path) -> None:
    spec = texts_pipeline(corpus)
    assert find_prepared(spec) is None
    blocks = prepare(spec, quietly)
    assert find_prepared(spec) == blocks
    fewer = TextCorpus(paths=(str(corpus),), heldout_fraction=0.2)
    assert find_prepared(texts_pipeline(corpus, corpus=fewer)) is None
    assert find_prepared(texts_pipeline(corpus, tokenizer=BpeTokenizer(vocab_size=299))) is None


def test_new_content_gives_new_tokens(corpus: Path) -> None:
    spec = texts_pipeline(corpus)
    before = prepare(spec, quietly)
    path = corpus / "07.txt"
    stat = path.stat()
    path.write_bytes(path.read_bytes().swapcase())  # of the same size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # and with the same time
    assert find_prepared(spec) is None
    after = prepare(spec, quietly)
    assert after.fingerprint != before.fingerprint
    assert find_prepared(spec) == after


def test_the_same_documents_elsewhere_are_the_same_tokens(corpus: Path) -> None:
    before = prepare(texts_pipeline(corpus), quietly)
    path = corpus.parent / "corpus.parquet"
    pq.write_table(pa.table({"text": [text(number) for number in range(60)]}), path)
    spec = texts_pipeline(
        corpus, corpus=ParquetCorpus(paths=(str(path),), heldout_fraction=HELDOUT)
    )
    assert find_prepared(spec) is None
    assert prepare(spec, quietly) == before
    assert find_prepared(spec) == before


def test_a_corpus_that_changes_meanwhile_is_not_remembered(corpus: Path) -> None:
    spec = texts_pipeline(corpus)
    changed = False

    def change(line: str) -> None:
        nonlocal changed
        if "training tokens" in line:  # the last thing said
            (corpus / "07.txt").write_text("other")
            changed = True

    prepare(spec, change)
    assert changed
    assert find_prepared(spec) is None


def test_a_corpus_that_changes_between_the_passes_is_refused(corpus: Path) -> None:
    spec = texts_pipeline(corpus)

    def change(line: str) -> None:
        if "trained" in line:
            (corpus / "07.txt").write_text("other")

    with pytest.raises(UserError, match="changed while it was read"):
        prepare(spec, change)
    assert left_behind(corpus.parent / "runs") == []


def test_texts_that_are_not_utf8_or_empty_are_counted(corpus: Path) -> None:
    (corpus / "latin.txt").write_bytes(b"caf\xe9")
    (corpus / "none.txt").write_bytes(b"")
    lines: list[str] = []
    blocks = prepare(texts_pipeline(corpus), lines.append)
    written = manifest(blocks)
    assert written["not_utf8_names"] == [str(corpus / "latin.txt")]
    assert (written["not_utf8_skipped"], written["empty_skipped"]) == (1, 1)
    assert written["documents"] == 60
    assert any("latin.txt" in line for line in lines)


def test_equal_documents_lie_on_one_side(corpus: Path) -> None:
    for number in range(60):
        (corpus / f"{number:02d}-copy.txt").write_text(text(number))
    blocks = prepare(texts_pipeline(corpus), quietly)
    names = [document.name for document in read_heldout(blocks.heldout_path)]
    num_drawn = sum(drawn(text(number)) for number in range(60))
    assert len(names) == num_drawn
    assert manifest(blocks)["heldout_duplicates_dropped"] == num_drawn
    assert stream(blocks).count(blocks.eos_id) == 2 * (60 - num_drawn)


def test_a_large_document_is_returned_to_training(corpus: Path) -> None:
    large = next(content for n in range(99) if drawn(content := str(n) + " large" * 2000))
    (corpus / "large.txt").write_text(large)
    blocks = prepare(texts_pipeline(corpus), quietly)
    assert str(corpus / "large.txt") not in [d.name for d in read_heldout(blocks.heldout_path)]
    num_drawn = sum(drawn(text(number)) for number in range(60))
    assert stream(blocks).count(blocks.eos_id) == 60 - num_drawn + 1


def test_a_tokenizer_file_is_used_and_named_by_its_content(corpus: Path) -> None:
    path = corpus.parent / "tokenizer.json"
    train_bpe([text(0)], 280).save(str(path))
    spec = texts_pipeline(corpus, tokenizer=TokenizerFile(path=str(path)))
    blocks = prepare(spec, quietly)
    assert (blocks.vocab_size, blocks.dtype) == (280, "uint16")
    train_bpe([text(1)], 270).save(str(path))
    assert find_prepared(spec) is None
    assert prepare(spec, quietly).fingerprint != blocks.fingerprint


def test_two_runs_at_once_leave_one_result(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = texts_pipeline(corpus)
    write_manifest = prepare_module.write_manifest

    def after_another_run(blocks: TokenBlocks, provenance: dict[str, object]) -> None:
        monkeypatch.setattr(prepare_module, "write_manifest", write_manifest)
        first.append(prepare(spec, quietly))
        (first[0].directory / "first").touch()
        write_manifest(blocks, provenance)

    first: list[TokenBlocks] = []
    monkeypatch.setattr(prepare_module, "write_manifest", after_another_run)
    assert prepare(spec, quietly) == first[0]
    assert (first[0].directory / "first").exists()
    assert left_behind(corpus.parent / "runs") == [first[0].fingerprint, "listings"]


def test_a_failure_leaves_nothing_behind(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(prepare_module, "write_manifest", full)
    with pytest.raises(OSError, match="no space"):
        prepare(texts_pipeline(corpus), quietly)
    assert left_behind(corpus.parent / "runs") == []


def test_a_wrong_line_is_one_user_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"body": "two"}\n')
    spec = pipeline(tmp_path / "runs", corpus=JsonlCorpus(paths=(str(path),)))
    with pytest.raises(UserError, match=f"^{path}:2: no column 'text'.* 'body'"):
        prepare(spec, quietly)
    assert left_behind(tmp_path / "runs") == []


@pytest.mark.parametrize(("fraction", "side"), [(0.0001, "held-out"), (0.9999, "training")])
def test_an_empty_side_is_refused(corpus: Path, fraction: float, side: str) -> None:
    declared = TextCorpus(paths=(str(corpus),), heldout_fraction=fraction)
    with pytest.raises(UserError, match=rf"no {side} documents.* of 60\b"):
        prepare(texts_pipeline(corpus, corpus=declared), quietly)


def test_ray_data_stays_as_it_was(corpus: Path) -> None:
    context = ray.data.DataContext.get_current()
    before = (context.enable_progress_bars, context.execution_options.preserve_order)
    prepare(texts_pipeline(corpus), quietly)
    assert (context.enable_progress_bars, context.execution_options.preserve_order) == before
    assert not before[1]
