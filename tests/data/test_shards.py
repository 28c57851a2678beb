import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glray.data.blocks import shards as shards_module
from glray.data.blocks.shards import encode_shard, plan_shards, read_shard
from glray.data.blocks.tokenizer import Encoding, encode, train_bpe, vocab_size
from glray.data.read.documents import EMPTY, NOT_UTF8
from glray.data.read.sources import list_source
from glray.errors import UserError
from glray.files import AnyPath
from glray.spec.corpus import JsonlCorpus, ParquetCorpus, SourceCorpus, TextCorpus


@pytest.fixture(scope="module")
def encoding() -> Encoding:
    """Bytes alone: 0 is EOS, then the 256 bytes."""
    tokenizer = train_bpe(["ab"], 257)
    return Encoding(tokenizer.to_str(), vocab_size(tokenizer), eos_id=0)


def encoded(corpus: SourceCorpus, encoding: Encoding, directory: Path) -> list[AnyPath]:
    shards = plan_shards(list_source(corpus), corpus)
    for shard in shards:
        encode_shard(shard, corpus, encoding, directory)
    return [shard.path(directory) for shard in shards]


def rows(paths: list[AnyPath]) -> list[tuple[str, bytes, int, list[int]]]:
    found = []
    for path in paths:
        for documents in read_shard(path):
            ends = np.cumsum(documents.num_tokens)
            for index, name in enumerate(documents.names.to_pylist()):
                start = ends[index] - documents.num_tokens[index]
                found.append(
                    (
                        name,
                        documents.sha256[index].tobytes(),
                        int(documents.num_bytes[index]),
                        documents.tokens[start : ends[index]].tolist(),
                    )
                )
    return found


def test_a_documents_row_is_its_tokens_and_an_eos(tmp_path: Path, encoding: Encoding) -> None:
    path = tmp_path / "a.txt"
    path.write_text("tö")
    (row,) = rows(encoded(TextCorpus(paths=(str(path),)), encoding, tmp_path / "shards"))
    (ids,) = encode(train_bpe(["ab"], 257), ["tö"])
    assert row == (str(path), hashlib.sha256("tö".encode()).digest(), 3, [*ids, 0])


def test_what_is_skipped_is_kept_apart(tmp_path: Path, encoding: Encoding) -> None:
    for name, content in [("a", b"one"), ("b", b""), ("c", b"\xff"), ("d", b"two")]:
        (tmp_path / f"{name}.txt").write_bytes(content)
    (path,) = encoded(TextCorpus(paths=(str(tmp_path),)), encoding, tmp_path / "shards")
    assert [(Path(name).stem, len(tokens)) for name, _, _, tokens in rows([path])] == [
        ("a", 4),
        ("d", 4),
    ]
    skipped = [(Path(s.name).stem, s.reason) for d in read_shard(path) for s in d.skipped]
    assert skipped == [("b", EMPTY), ("c", NOT_UTF8)]


@pytest.mark.parametrize("shard_bytes", [50, 500, 4000, 10**9])
def test_how_a_source_is_cut_does_not_matter(
    tmp_path: Path, encoding: Encoding, monkeypatch: pytest.MonkeyPatch, shard_bytes: int
) -> None:
    texts = [f"{number} " * (number % 40 + 1) for number in range(200)]
    lines = "".join(f'{{"text": "{text}"}}\n' for text in texts)
    (tmp_path / "a.jsonl").write_text(lines[: len(lines) // 2].rpartition("\n")[0] + "\n")
    (tmp_path / "b.jsonl").write_text(lines[len((tmp_path / "a.jsonl").read_text()) :])
    monkeypatch.setattr(shards_module, "MIN_SHARD_BYTES", shard_bytes)
    monkeypatch.setattr(shards_module, "MAX_SHARD_BYTES", shard_bytes)
    monkeypatch.setattr(shards_module, "BATCH_BYTES", 700)
    corpus = JsonlCorpus(paths=(str(tmp_path),))
    paths = encoded(corpus, encoding, tmp_path / "shards")
    assert (len(paths) == 1) == (shard_bytes == 10**9)
    expected = encode(train_bpe(["ab"], 257), texts)
    assert [row[3] for row in rows(paths)] == [[*ids, 0] for ids in expected]


def test_given_ids_are_taken_as_they_are(tmp_path: Path, encoding: Encoding) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"ids": [[5, 6], [7, 0], []]}), path)
    corpus = ParquetCorpus(paths=(str(path),), column="ids")
    first, second = rows(encoded(corpus, encoding, tmp_path / "shards"))
    assert (first[2], first[3]) == (2, [5, 6, 0])  # each id but EOS is a byte
    assert (second[2], second[3]) == (1, [7, 0])
    assert first[1] == hashlib.sha256(np.array([5, 6], dtype="<u4").tobytes()).digest()


def test_an_id_that_the_tokenizer_lacks_is_refused(tmp_path: Path, encoding: Encoding) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"ids": [[5], [257]]}), path)
    corpus = ParquetCorpus(paths=(str(path),), column="ids")
    with pytest.raises(UserError, match=f"{path}:1: token id 257, .* 257 ids"):
        encoded(corpus, encoding, tmp_path / "shards")
    assert list((tmp_path / "shards").iterdir()) == []


def test_a_failed_shard_leaves_no_file(
    tmp_path: Path, encoding: Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "a.txt").write_text("text")
    monkeypatch.setattr(shards_module, "_encoded", full)
    with pytest.raises(OSError, match="No space"):
        encoded(TextCorpus(paths=(str(tmp_path),)), encoding, tmp_path / "shards")
    assert list((tmp_path / "shards").iterdir()) == []
