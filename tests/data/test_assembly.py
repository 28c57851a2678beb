import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from glray.data.blocks import assembly, block_files, token_blocks
from glray.data.blocks.assembly import ShardScan, cut_file, scan_shards, write_heldout
from glray.data.blocks.block_files import BlockPlace
from glray.data.blocks.heldout import SpanSplit, is_drawn, read_heldout
from glray.data.blocks.reading import read_block
from glray.data.blocks.shards import Shard, encode_shard
from glray.data.blocks.tokenizer import Encoding, encode, train_bpe, vocab_size
from glray.data.read.documents import FilePart
from glray.data.read.sources import list_source
from glray.files import AnyPath
from glray.spec.corpus import TextCorpus
from glray.spec.pipeline import BLOCK_TOKENS

TEXTS = [f"{number}" * (number % 7 + 1) for number in range(40)]
FRACTION = 0.25
TOKENIZER = train_bpe(["ab"], 257)
ENCODING = Encoding(TOKENIZER.to_str(), vocab_size(TOKENIZER), eos_id=0)
"""Bytes alone: 0 is EOS, then the 256 bytes."""


def encoded(texts: list[str], folder: Path, num_shards: int) -> tuple[AnyPath, ...]:
    """The shards of these documents, each with as many of them."""
    for number, text in enumerate(texts):
        (folder / f"{number:02d}.txt").write_text(text)
    corpus = TextCorpus(paths=(str(folder / "*.txt"),))
    files = list_source(corpus)
    paths: list[AnyPath] = []
    for index in range(num_shards):
        mine = files[len(files) * index // num_shards : len(files) * (index + 1) // num_shards]
        shard = Shard(index, tuple(FilePart(file) for file in mine), 0)
        encode_shard(shard, corpus, ENCODING, folder / f"shards-{num_shards}")
        paths.append(shard.path(folder / f"shards-{num_shards}"))
    return tuple(paths)


@pytest.fixture
def shards(tmp_path: Path) -> tuple[AnyPath, ...]:
    """40 documents of 1 to 14 bytes, each byte a token, in four shards."""
    return encoded(TEXTS, tmp_path, num_shards=4)


def drawn(text: str) -> bool:
    sha256 = np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype=np.uint8)
    return bool(is_drawn(sha256.reshape(1, 32), FRACTION)[0])


def stream() -> list[int]:
    return [
        token for text in TEXTS if not drawn(text) for token in [*encode(TOKENIZER, [text])[0], 0]
    ]


def test_a_survey_counts_every_document_once(shards: tuple[AnyPath, ...]) -> None:
    found = scan_shards(shards, ENCODING, FRACTION)
    training = [text for text in TEXTS if not drawn(text)]
    hashes = [hashlib.sha256(text.encode()).digest() for text in TEXTS]
    stats = found.stats
    assert (stats.documents, stats.training_documents) == (40, len(training))
    assert stats.bytes == sum(len(text) for text in TEXTS)
    assert found.documents_sha256 == hashlib.sha256(b"".join(hashes)).hexdigest()
    assert found.num_tokens == sum(found.shard_tokens) == len(stream())
    # A document of n bytes has n + 1 tokens; of 2 and 3 are those of 1 and 2 bytes, and so on.
    for power, (low, high) in enumerate([(1, 1), (2, 3), (4, 7), (8, 15)]):
        lengths = [len(text) + 1 for text in training if low <= len(text) + 1 <= high]
        assert stats.length_documents[power] == len(lengths)
        assert stats.length_tokens[power] == sum(lengths)
    assert len(stats.length_tokens) == 4


def small_blocks(monkeypatch: pytest.MonkeyPatch, tokens: int, per_file: int = 3) -> None:
    for module in (assembly, block_files, token_blocks):
        monkeypatch.setattr(module, "BLOCK_TOKENS", tokens, raising=False)
        monkeypatch.setattr(module, "BLOCKS_PER_FILE", per_file, raising=False)


def cut_all(found: ShardScan, folder: Path, block_tokens: int = BLOCK_TOKENS) -> list[np.ndarray]:
    """Every block that is cut, with the token that it borrows."""
    blocks: list[np.ndarray] = []
    for index in range(found.num_files):
        for row in cut_file(index, found, folder, folder / "index", "uint16").to_pylist():
            first = len(blocks) * block_tokens
            num_tokens = min(block_tokens + 1, found.num_tokens - first)
            place = BlockPlace(
                directory=folder, number=len(blocks), num_tokens=num_tokens, dtype="uint16", **row
            )
            blocks.append(read_block(place))
    return blocks


@pytest.mark.parametrize("block_tokens", [1, 8, 20, 1000])
@pytest.mark.parametrize("blocks_per_file", [1, 3])
def test_blocks_cut_into_any_files_are_the_stream(
    shards: tuple[AnyPath, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    block_tokens: int,
    blocks_per_file: int,
) -> None:
    small_blocks(monkeypatch, block_tokens, blocks_per_file)
    found = scan_shards(shards, ENCODING, FRACTION)
    expected = stream()
    blocks = cut_all(found, tmp_path, block_tokens)
    num_files = -(-len(blocks) // blocks_per_file)
    names = sorted(path.name for path in (tmp_path / "blocks").iterdir())
    assert names == [f"{i:05d}.arrow" for i in range(num_files)]
    assert len(blocks) == found.num_blocks
    for start, tokens in zip(range(0, len(expected), block_tokens), blocks, strict=True):
        # Each but the last borrows the next one's first token.
        assert tokens.tolist() == expected[start : start + block_tokens + 1]


def test_a_file_counts_with_its_rows_of_the_index(
    shards: tuple[AnyPath, ...], tmp_path: Path
) -> None:
    found = scan_shards(shards, ENCODING, FRACTION)
    first = cut_file(0, found, tmp_path, tmp_path / "index", "uint16")
    path = tmp_path / "blocks" / "00000.arrow"
    changed = path.stat().st_mtime_ns
    assert cut_file(0, found, tmp_path, tmp_path / "index", "uint16") == first
    assert path.stat().st_mtime_ns == changed
    (tmp_path / "index" / "00000.arrow").unlink()
    assert cut_file(0, found, tmp_path, tmp_path / "index", "uint16") == first
    assert path.stat().st_mtime_ns != changed


def test_held_out_documents_are_whole_and_without_eos(
    shards: tuple[AnyPath, ...], tmp_path: Path
) -> None:
    found = scan_shards((*shards, shards[0]), ENCODING, FRACTION)  # the first ten come twice
    write_heldout(found, ENCODING, tmp_path / "heldout.arrow")
    texts = [text for text in TEXTS if drawn(text)]
    read = read_heldout(tmp_path / "heldout.arrow")
    assert [TOKENIZER.decode(document.tokens.tolist()) for document in read] == texts
    assert [document.num_bytes for document in read] == [len(text) for text in texts]
    assert found.stats.heldout_documents == len(texts)
    assert found.stats.heldout_tokens == sum(len(text) for text in texts)
    assert found.stats.heldout_duplicates_dropped == sum(drawn(text) for text in TEXTS[:10])


def test_a_source_without_documents_has_no_tokens(tmp_path: Path) -> None:
    found: ShardScan = scan_shards((), ENCODING, FRACTION)
    assert (found.stats.documents, found.num_tokens, found.num_blocks) == (0, 0, 0)
    write_heldout(found, ENCODING, tmp_path / "heldout.arrow")
    assert pa.ipc.open_file(str(tmp_path / "heldout.arrow")).num_record_batches == 0


# ---- spans


def spans_and_blocks(
    paths: tuple[AnyPath, ...], folder: Path, block_tokens: int = BLOCK_TOKENS
) -> tuple[ShardScan, list[str], str]:
    """The scan; the spans' texts and, with a | for each EOS, the training stream."""
    found = scan_shards(paths, ENCODING, 0.001)
    assert isinstance(found.split, SpanSplit)
    write_heldout(found, ENCODING, folder / "heldout.arrow")
    spans = read_heldout(folder / "heldout.arrow")
    blocks = cut_all(found, folder, block_tokens)
    tokens = [token for block in blocks for token in block[:block_tokens]]
    stream = "".join("|" if token == 0 else TOKENIZER.decode([token]) for token in tokens)
    return found, [TOKENIZER.decode(span.tokens.tolist()) for span in spans], stream


LONG = ["".join(f"{number:03d}" for number in range(start, start + 100)) for start in (0, 100, 200)]
"""Three documents of 300 digits, no stretch of which comes twice."""


def test_spans_are_taken_out_of_documents_whose_parts_are_ended(tmp_path: Path) -> None:
    found, spans, stream = spans_and_blocks(encoded(LONG, tmp_path, 3), tmp_path)
    # 903 tokens, of which five spans may be a third: 60 each, five equal parts a document.
    assert found.stats.heldout_span_tokens == 60
    assert found.stats.heldout_documents == len(spans) == 5
    parts = [text[first : first + 60] for text in LONG for first in range(0, 300, 60)]
    assert set(spans) <= set(parts)
    expected = ""
    for text in LONG:
        kept = "".join(
            "|" if text[i : i + 60] in spans else text[i : i + 60] for i in range(0, 300, 60)
        )
        expected += "".join(f"{part}|" for part in kept.split("|") if part)
    assert stream == expected
    lengths = [len(part) + 1 for part in stream.split("|")[:-1]]
    assert found.stats.training_documents == len(lengths)
    assert sum(found.stats.length_tokens) == found.num_tokens == sum(lengths)
    heldout = read_heldout(tmp_path / "heldout.arrow")
    assert [span.num_bytes for span in heldout] == [60] * 5
    place = LONG[0].find(spans[0]) if spans[0] in LONG[0] else None
    if place is not None:
        assert heldout[0].name == f"{tmp_path}/00.txt, tokens {place} to {place + 60}"


def test_short_documents_are_joined_to_spans(tmp_path: Path) -> None:
    texts = [LONG[0][first : first + 20] for first in range(0, 300, 20)]  # 15 of 21 tokens each
    found, spans, stream = spans_and_blocks(encoded(texts, tmp_path, 2), tmp_path)
    assert found.stats.heldout_span_tokens == 21  # a third of 315 tokens in five
    assert len(spans) == 5
    assert sorted([*spans, *stream.split("|")[:-1]]) == sorted(texts)


def test_the_cut_into_shards_does_not_matter_to_spans(tmp_path: Path) -> None:
    texts = [LONG[0], *(LONG[1][first : first + 9] for first in range(0, 297, 9)), LONG[2]]
    results = []
    for num_shards in (1, 2, 7):
        folder = tmp_path / str(num_shards)
        results.append(spans_and_blocks(encoded(texts, tmp_path, num_shards), folder)[1:])
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("block_tokens", [1, 8, 1000])
def test_blocks_of_a_stream_with_spans_are_cut_in_any_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_tokens: int
) -> None:
    paths = encoded(LONG, tmp_path, 2)
    expected = spans_and_blocks(paths, tmp_path / "whole")[2]
    small_blocks(monkeypatch, block_tokens)
    assert spans_and_blocks(paths, tmp_path / "cut", block_tokens)[2] == expected


def test_equal_spans_are_all_held_out_and_scored_once(tmp_path: Path) -> None:
    found, spans, stream = spans_and_blocks(encoded([LONG[0], LONG[1]] * 2, tmp_path, 1), tmp_path)
    assert found.stats.heldout_duplicates_dropped == len(spans) == len(set(spans))
    assert not any(span in stream for span in spans)


def test_a_text_that_repeats_itself_has_no_spans(tmp_path: Path) -> None:
    found = scan_shards(encoded(["a" * 900], tmp_path, 1), ENCODING, 0.001)
    assert not isinstance(found.split, SpanSplit)
    assert found.stats.heldout_documents == 0
    assert found.num_tokens == 901
