import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from glray.data.blocks.token_blocks import (
    TokenBlocks,
    describe_block,
    open_token_blocks,
    read_block,
    write_block,
    write_manifest,
)
from glray.data.blocks.tokenizer import Encoding, train_bpe
from glray.errors import UserError
from glray.spec.pipeline import BLOCK_TOKENS


@pytest.fixture
def prepared(tmp_path: Path) -> TokenBlocks:
    directory = tmp_path / "0123456789abcdef"
    files = (write_block(directory / "blocks" / "00000.arrow", np.arange(20, dtype=np.uint16)),)
    train_bpe(["ab"], 257).save(str(directory / "tokenizer.json"))
    (directory / "heldout.arrow").write_bytes(b"")
    return write_manifest(
        TokenBlocks(
            directory=directory,
            fingerprint="0123456789abcdef",
            dtype="uint16",
            num_tokens=20,
            vocab_size=257,
            eos_id=0,
            returned=("ab",),
            source="a test",
            blocks=files,
        )
    )


def test_a_block_is_one_flat_column_that_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "00000.arrow"
    block = write_block(path, np.array([1, 2, 3], dtype=np.uint16))
    with pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        assert file.num_record_batches == 1
        assert file.schema == pa.schema({"tokens": pa.uint16()})
    assert block.num_bytes == path.stat().st_size
    assert block.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    before = pa.total_allocated_bytes()
    tokens = read_block(path, block.sha256)
    assert pa.total_allocated_bytes() == before
    assert not tokens.flags.writeable
    assert tokens.tolist() == [1, 2, 3]


def test_ids_that_outgrow_two_bytes_take_four() -> None:
    assert [Encoding("", size, 0).dtype for size in (2**16, 2**16 + 1)] == ["uint16", "uint32"]


def test_a_manifest_is_read_as_it_was_written(prepared: TokenBlocks) -> None:
    blocks = open_token_blocks(prepared.directory)
    assert blocks == prepared
    assert read_block(blocks.block_path(0), blocks.blocks[0].sha256).tolist() == list(range(20))
    assert blocks.token_num_bytes().tolist() == [0] + [1] * 256


def test_a_directory_can_be_moved(prepared: TokenBlocks, tmp_path: Path) -> None:
    prepared.directory.rename(tmp_path / "elsewhere")
    assert open_token_blocks(tmp_path / "elsewhere").blocks == prepared.blocks


def test_a_whole_block_borrows_a_token(tmp_path: Path) -> None:
    tokens = np.zeros(BLOCK_TOKENS + 1, dtype=np.uint16)
    borrowing = write_block(tmp_path / "00000.arrow", tokens)
    last = write_block(tmp_path / "00001.arrow", tokens[:-1])
    assert (borrowing.num_tokens, last.num_tokens) == (BLOCK_TOKENS, BLOCK_TOKENS)
    assert len(read_block(tmp_path / "00000.arrow", borrowing.sha256)) == BLOCK_TOKENS + 1
    assert describe_block(tmp_path / "00000.arrow") == borrowing


def test_a_flipped_bit_is_refused_with_both_checksums(prepared: TokenBlocks) -> None:
    path, block = prepared.block_path(0), prepared.blocks[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()[:16]
    assert open_token_blocks(prepared.directory) == prepared  # its size is right
    expected = rf"{path}: block 0 .* {found}….* {block.sha256[:16]}….* delete {prepared.directory} "
    with pytest.raises(UserError, match=expected):
        read_block(path, block.sha256)


def test_a_truncated_block_is_refused(prepared: TokenBlocks) -> None:
    path = prepared.block_path(0)
    content = path.read_bytes()
    path.write_bytes(content[:100])
    with pytest.raises(UserError, match=rf"{path}: 100 bytes.* {len(content)}.*glray prepare"):
        open_token_blocks(prepared.directory)


def test_a_missing_file_is_refused(prepared: TokenBlocks) -> None:
    prepared.tokenizer_path.unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json: does not exist; delete"):
        open_token_blocks(prepared.directory)


@pytest.mark.parametrize("name", ["tokenizer.json", "heldout.arrow"])
def test_a_damaged_tokenizer_or_held_out_file_is_refused(prepared: TokenBlocks, name: str) -> None:
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
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(UserError, match=r"format 99.* format 2.*glray prepare"):
        open_token_blocks(prepared.directory)


def test_a_directory_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json"):
        open_token_blocks(tmp_path)
