import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glray.data.blocks import block_files
from glray.data.blocks.block_files import blocks_file, cut, pieces_of, write_blocks
from glray.data.blocks.reading import mapped_block, read_block
from glray.data.blocks.token_blocks import (
    TokenBlocks,
    open_token_blocks,
    write_manifest,
)
from glray.data.blocks.tokenizer import Encoding, train_bpe
from glray.errors import UserError
from glray.files import AnyPath
from glray.spec.pipeline import BLOCK_TOKENS

STREAM = np.arange(BLOCK_TOKENS + 9000, dtype=np.uint16)
"""A whole block and one of three pieces; ids begin again after 65,536."""


@pytest.fixture
def prepared(tmp_path: Path) -> TokenBlocks:
    directory = tmp_path / "0123456789abcdef"
    path = blocks_file(directory, 0)
    index = write_blocks(path, cut([STREAM], 2), "uint16")
    train_bpe(["ab"], 257).save(str(directory / "tokenizer.json"))
    (directory / "heldout.arrow").write_bytes(b"")
    blocks = TokenBlocks(
        directory=directory,
        fingerprint="0123456789abcdef",
        dtype="uint16",
        num_tokens=len(STREAM),
        vocab_size=257,
        eos_id=0,
        returned=("ab",),
        source="a test",
        file_bytes=(path.stat().st_size,),
    )
    return write_manifest(blocks, index)


def flip(path: AnyPath, place: int) -> None:
    """Flip a bit of the byte at ``place``."""
    assert isinstance(path, Path)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    mapped_block.cache_clear()


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_a_block_is_a_row_of_two_lists_of_an_arrow_file(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_files, "PIECE_TOKENS", 2)
    monkeypatch.setattr(block_files, "BLOCK_TOKENS", 4)
    stream = np.array([1, 2, 3, 4, 5, 6, 7], dtype=dtype)
    path = tmp_path / "00000.arrow"
    rows = write_blocks(path, cut([stream[:2], stream[2:]], 2), dtype).to_pylist()
    with pa.memory_map(str(path)) as source:
        found = pa.ipc.open_file(source).read_all().to_pylist()

    def checksums(*pieces: list[int]) -> list[int]:
        return [zlib.crc32(np.array(piece, dtype=dtype).data) for piece in pieces]

    assert found == [
        {"checksums": checksums([1, 2, 3], [3, 4, 5]), "tokens": [1, 2, 3, 4, 5]},
        {"checksums": checksums([5, 6, 7]), "tokens": [5, 6, 7]},
    ]
    content = path.read_bytes()
    for row, block in zip(rows, found, strict=True):
        listed = np.array(block["checksums"], dtype=np.uint32).tobytes()
        assert content[row["checksums_offset"] :].startswith(listed)
        assert hashlib.sha256(listed).digest() == row["sha256"]
        tokens = np.array(block["tokens"], dtype=dtype).tobytes()
        assert content[row["tokens_offset"] :].startswith(tokens)
        assert row["checksums_offset"] < row["tokens_offset"]


@given(st.lists(st.integers(0, 99), min_size=1, max_size=30), st.integers(1, 9), st.integers(1, 30))
def test_blocks_are_cut_from_a_stream_in_any_parts(
    stream: list[int], block_tokens: int, part: int
) -> None:
    tokens = np.array(stream)
    parts = [tokens[first : first + part] for first in range(0, len(stream), part)]
    starts = range(0, len(stream), block_tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_files, "BLOCK_TOKENS", block_tokens)
        blocks = [block.tolist() for block in cut(parts, len(starts))]
    assert blocks == [stream[start : start + block_tokens + 1] for start in starts]


@given(st.lists(st.integers(0, 400), max_size=6), st.integers(2, 60), st.integers(1, 50))
def test_the_pieces_of_windows_are_those_that_hold_their_tokens(
    starts: list[int], width: int, piece_tokens: int
) -> None:
    # A piece is checked with the token after it, so a window's last one needs no other.
    expected = {place // piece_tokens for s in starts for place in range(s, s + width - 1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_files, "PIECE_TOKENS", piece_tokens)
        found = pieces_of(np.array(starts, dtype=np.int64), width)
    assert found.tolist() == sorted(expected)


def test_a_block_is_mapped(prepared: TokenBlocks) -> None:
    before = pa.total_allocated_bytes()
    tokens = read_block(prepared.place(0))
    assert pa.total_allocated_bytes() == before
    assert not tokens.flags.writeable
    assert len(tokens) == BLOCK_TOKENS + 1
    assert (tokens == STREAM[: BLOCK_TOKENS + 1]).all()
    assert (read_block(prepared.place(1)) == STREAM[BLOCK_TOKENS:]).all()


def test_ids_that_outgrow_two_bytes_take_four() -> None:
    assert [Encoding("", size, 0).dtype for size in (2**16, 2**16 + 1)] == ["uint16", "uint32"]


def test_a_manifest_is_read_as_it_was_written(prepared: TokenBlocks) -> None:
    blocks = open_token_blocks(prepared.directory)
    assert blocks == prepared
    assert blocks.num_blocks == 2
    assert blocks.token_num_bytes().tolist() == [0] + [1] * 256


def test_a_directory_can_be_moved(prepared: TokenBlocks, tmp_path: Path) -> None:
    prepared.directory.rename(tmp_path / "elsewhere")
    moved = open_token_blocks(tmp_path / "elsewhere")
    assert (read_block(moved.place(1)) == STREAM[BLOCK_TOKENS:]).all()


def test_a_flipped_bit_is_refused_where_it_is_read(prepared: TokenBlocks) -> None:
    place = prepared.place(1)
    written = zlib.crc32(STREAM[BLOCK_TOKENS + 4096 : BLOCK_TOKENS + 8193].data)
    flip(place.path, place.tokens_offset + 2 * 5000)
    assert open_token_blocks(prepared.directory) == prepared  # its size is right
    block = mapped_block(place)
    assert block.windows(np.array([0, 4088]), 9)[1].tolist() == list(range(4088, 4097))
    expected = (
        rf"^{place.path}: block 1 is damaged, the checksum of its tokens 4,096 to 8,192 is "
        rf"[0-9a-f]{{8}}, but {written:08x} was written: .* delete {prepared.directory} "
    )
    with pytest.raises(UserError, match=expected):
        block.windows(np.array([4089]), 9)
    with pytest.raises(UserError, match=expected):
        read_block(place)


def test_a_borrowed_token_is_checked(prepared: TokenBlocks) -> None:
    place = prepared.place(0)
    flip(place.path, place.end - 1)
    with pytest.raises(UserError, match=r"block 0 is damaged, .* tokens 1,044,480 to 1,048,576 "):
        mapped_block(place).windows(np.array([BLOCK_TOKENS - 8]), 9)


def test_checksums_are_checked_too(prepared: TokenBlocks) -> None:
    place = prepared.place(0)
    flip(place.path, place.checksums_offset + 1)
    expected = rf"block 0 is damaged, the SHA-256 of .* the index says {place.sha256.hex()[:16]}…"
    with pytest.raises(UserError, match=expected):
        mapped_block(place)


def test_a_truncated_block_is_refused(prepared: TokenBlocks) -> None:
    path = prepared.file_path(0)
    content = path.read_bytes()
    path.write_bytes(content[:100])
    with pytest.raises(UserError, match=rf"{path}: 100 bytes.* {len(content):,}.*glray prepare"):
        open_token_blocks(prepared.directory)


def test_a_missing_file_is_refused(prepared: TokenBlocks) -> None:
    prepared.tokenizer_path.unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json: does not exist; delete"):
        open_token_blocks(prepared.directory)


@pytest.mark.parametrize("name", ["tokenizer.json", "heldout.arrow", "blocks.arrow"])
def test_a_damaged_file_is_refused(prepared: TokenBlocks, name: str) -> None:
    path = prepared.directory / name
    expected = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    path.write_bytes(path.read_bytes() + b" ")
    found = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    with pytest.raises(UserError, match=rf"^{path}: damaged, .* {found}….* {expected}….* delete"):
        open_token_blocks(prepared.directory)


def test_a_manifest_that_lacks_a_field_is_refused(prepared: TokenBlocks) -> None:
    path = prepared.directory / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["dtype"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json: damaged, dtype: Field required; delete"):
        open_token_blocks(prepared.directory)


def test_another_format_is_refused(prepared: TokenBlocks) -> None:
    path = prepared.directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    remedy = f"delete {prepared.directory} and run `glray prepare` again"
    with pytest.raises(UserError, match=rf"format 2.* format 3; {remedy}"):
        open_token_blocks(prepared.directory)


def test_a_directory_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json"):
        open_token_blocks(tmp_path)
