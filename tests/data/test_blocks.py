import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glray.data.blocks import (
    BlockFile,
    BlockWriter,
    TokenBlocks,
    open_token_blocks,
    read_block,
    token_dtype,
    write_manifest,
)
from glray.data.tokenizer import train_bpe
from glray.errors import UserError


def write(directory: Path, pieces: list[list[int]]) -> tuple[BlockFile, ...]:
    writer = BlockWriter(directory / "blocks", "uint16", block_tokens=8)
    for piece in pieces:
        writer.append(np.array(piece, dtype=np.uint16))
    return writer.finish()


def tokens_of(directory: Path, blocks: tuple[BlockFile, ...]) -> list[list[int]]:
    return [read_block(directory / "blocks" / block.name).tolist() for block in blocks]


@pytest.fixture
def prepared(tmp_path: Path) -> TokenBlocks:
    directory = tmp_path / "0123456789abcdef"
    files = write(directory, [list(range(20))])
    train_bpe(["ab"], 257).save(str(directory / "tokenizer.json"))
    (directory / "heldout.arrow").write_bytes(b"")
    blocks = TokenBlocks(directory, "0123456789abcdef", "uint16", 20, 257, 0, files)
    write_manifest(blocks, {"source": "a test"})
    return blocks


def test_each_block_but_the_last_borrows_a_token(tmp_path: Path) -> None:
    blocks = write(tmp_path, [[0, 1, 2], [3, 4, 5, 6, 7, 8, 9, 10], [11], [12, 13, 14, 15, 16, 17]])
    assert tokens_of(tmp_path, blocks) == [
        [0, 1, 2, 3, 4, 5, 6, 7, 8],
        [8, 9, 10, 11, 12, 13, 14, 15, 16],
        [16, 17],
    ]
    assert [block.num_tokens for block in blocks] == [8, 8, 2]
    assert [block.name for block in blocks] == ["00000.arrow", "00001.arrow", "00002.arrow"]


def test_a_stream_of_whole_blocks_ends_with_a_whole_block(tmp_path: Path) -> None:
    blocks = write(tmp_path, [list(range(16))])
    assert tokens_of(tmp_path, blocks) == [list(range(9)), list(range(8, 16))]


def test_an_empty_stream_has_no_blocks(tmp_path: Path) -> None:
    assert write(tmp_path, [[]]) == ()


@given(st.lists(st.lists(st.integers(0, 65535), max_size=30), max_size=8))
def test_how_the_stream_comes_in_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[list[int]]
) -> None:
    directory = tmp_path_factory.mktemp("blocks")
    stream = [token for piece in pieces for token in piece]
    blocks = write(directory, pieces)
    expected = [stream[start : start + 9] for start in range(0, len(stream), 8)]
    assert tokens_of(directory, blocks) == expected
    assert sum(block.num_tokens for block in blocks) == len(stream)


def test_a_block_is_one_flat_column_that_is_mapped(tmp_path: Path) -> None:
    (block,) = write(tmp_path, [[1, 2, 3]])
    path = tmp_path / "blocks" / block.name
    with pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        assert file.num_record_batches == 1
        assert file.schema == pa.schema({"tokens": pa.uint16()})
    assert block.num_bytes == path.stat().st_size
    assert block.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    before = pa.total_allocated_bytes()
    tokens = read_block(path)
    assert pa.total_allocated_bytes() == before
    assert not tokens.flags.writeable
    assert tokens.tolist() == [1, 2, 3]


def test_ids_that_outgrow_two_bytes_take_four() -> None:
    assert [token_dtype(size) for size in (2**16, 2**16 + 1)] == ["uint16", "uint32"]


def test_a_manifest_is_read_as_it_was_written(prepared: TokenBlocks) -> None:
    blocks = open_token_blocks(prepared.directory)
    assert blocks == prepared
    assert read_block(blocks.block_path(2)).tolist() == [16, 17, 18, 19]
    assert blocks.token_num_bytes().tolist() == [0] + [1] * 256


def test_a_directory_can_be_moved(prepared: TokenBlocks, tmp_path: Path) -> None:
    prepared.directory.rename(tmp_path / "elsewhere")
    assert open_token_blocks(tmp_path / "elsewhere").blocks == prepared.blocks


def test_a_truncated_block_is_refused(prepared: TokenBlocks) -> None:
    path = prepared.block_path(1)
    content = path.read_bytes()
    path.write_bytes(content[:100])
    with pytest.raises(UserError, match=rf"{path}: 100 bytes.* {len(content)}.*glray prepare"):
        open_token_blocks(prepared.directory)


def test_a_missing_file_is_refused(prepared: TokenBlocks) -> None:
    prepared.tokenizer_path.unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json: 0 bytes, the manifest says"):
        open_token_blocks(prepared.directory)


def test_another_format_is_refused(prepared: TokenBlocks) -> None:
    path = prepared.directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(UserError, match=r"format 99.* format 1"):
        open_token_blocks(prepared.directory)


def test_a_directory_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json"):
        open_token_blocks(tmp_path)
