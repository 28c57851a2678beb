import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from glray.data.blocks import assembly, token_blocks
from glray.data.blocks.assembly import ShardScan, cut_blocks, scan_shards, write_heldout
from glray.data.blocks.heldout import is_drawn, read_heldout
from glray.data.blocks.shards import Shard, encode_shard
from glray.data.blocks.token_blocks import read_block
from glray.data.blocks.tokenizer import Encoding, encode, train_bpe, vocab_size
from glray.data.read.documents import FilePart
from glray.data.read.sources import list_source
from glray.spec.corpus import TextCorpus

TEXTS = [f"{number}" * (number % 7 + 1) for number in range(40)]
FRACTION = 0.25


@pytest.fixture
def shards(tmp_path: Path) -> tuple[Path, ...]:
    """40 documents of 1 to 14 bytes, each byte a token, in four shards."""
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number:02d}.txt").write_text(text)
    corpus = TextCorpus(paths=(str(tmp_path / "*.txt"),))
    tokenizer = train_bpe(["ab"], 257)
    encoding = Encoding(tokenizer.to_str(), vocab_size(tokenizer), eos_id=0)
    files = list_source(corpus)
    paths = []
    for index in range(4):
        shard = Shard(index, tuple(FilePart(f) for f in files[index * 10 : index * 10 + 10]), 0)
        encode_shard(shard, corpus, encoding, tmp_path / "shards")
        paths.append(shard.path(tmp_path / "shards"))
    return tuple(paths)


def drawn(text: str) -> bool:
    sha256 = np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype=np.uint8)
    return bool(is_drawn(sha256.reshape(1, 32), FRACTION)[0])


def stream() -> list[int]:
    tokenizer = train_bpe(["ab"], 257)
    return [
        token for text in TEXTS if not drawn(text) for token in [*encode(tokenizer, [text])[0], 0]
    ]


def test_a_survey_counts_every_document_once(shards: tuple[Path, ...]) -> None:
    found = scan_shards(shards, "uint16", FRACTION)
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


@pytest.mark.parametrize("block_tokens", [1, 8, 20, 1000])
@pytest.mark.parametrize("blocks_per_task", [1, 3])
def test_blocks_cut_in_any_runs_are_the_stream(
    shards: tuple[Path, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    block_tokens: int,
    blocks_per_task: int,
) -> None:
    monkeypatch.setattr(assembly, "BLOCK_TOKENS", block_tokens)
    monkeypatch.setattr(token_blocks, "BLOCK_TOKENS", block_tokens)
    found = scan_shards(shards, "uint16", FRACTION)
    files = []
    for first in range(0, found.num_blocks, blocks_per_task):
        last = min(first + blocks_per_task, found.num_blocks)
        files += cut_blocks(range(first, last), found, tmp_path / "blocks")
    expected = stream()
    assert [file.name for file in files] == [f"{i:05d}.arrow" for i in range(len(files))]
    assert sum(file.num_tokens for file in files) == len(expected)
    for start, file in zip(range(0, len(expected), block_tokens), files, strict=True):
        tokens = read_block(tmp_path / "blocks" / file.name, file.sha256)
        # Each but the last borrows the next one's first token.
        assert tokens.tolist() == expected[start : start + block_tokens + 1]


def test_committed_blocks_are_kept(shards: tuple[Path, ...], tmp_path: Path) -> None:
    found = scan_shards(shards, "uint16", FRACTION)
    first = cut_blocks(range(1), found, tmp_path / "blocks")
    changed = (tmp_path / "blocks" / "00000.arrow").stat().st_mtime_ns
    assert cut_blocks(range(1), found, tmp_path / "blocks") == first
    assert (tmp_path / "blocks" / "00000.arrow").stat().st_mtime_ns == changed


def test_held_out_documents_are_whole_and_without_eos(
    shards: tuple[Path, ...], tmp_path: Path
) -> None:
    found = scan_shards((*shards, shards[0]), "uint16", FRACTION)  # the first ten come twice
    write_heldout(found, tmp_path / "heldout.arrow")
    texts = [text for text in TEXTS if drawn(text)]
    read = read_heldout(tmp_path / "heldout.arrow")
    tokenizer = train_bpe(["ab"], 257)
    assert [tokenizer.decode(document.tokens.tolist()) for document in read] == texts
    assert [document.num_bytes for document in read] == [len(text) for text in texts]
    assert found.stats.heldout_documents == len(texts)
    assert found.stats.heldout_tokens == sum(len(text) for text in texts)
    assert found.stats.heldout_duplicates_dropped == sum(drawn(text) for text in TEXTS[:10])


def test_a_source_without_documents_has_no_tokens(tmp_path: Path) -> None:
    found: ShardScan = scan_shards((), "uint16", FRACTION)
    assert (found.stats.documents, found.num_tokens, found.num_blocks) == (0, 0, 0)
    write_heldout(found, tmp_path / "heldout.arrow")
    assert pa.ipc.open_file(str(tmp_path / "heldout.arrow")).num_record_batches == 0
