"""Files of token blocks: how blocks lie in them, and how they are read and checked.

A file is an Arrow IPC file of up to ``BLOCKS_PER_FILE`` record batches. Each is a block, one row of
two lists: ``tokens`` and ``checksums``. A block has ``BLOCK_TOKENS`` tokens and borrows the first
token of the next block, so that a window's last target lies in its own block; the stream's last
block is shorter and borrows none.

A block is checked in *pieces* of ``PIECE_TOKENS`` tokens, so that whoever needs a chunk reads a
chunk: ``checksums`` has a CRC-32 of each piece and of the token after it, and the index beside the
files has the SHA-256 of that list, which lies right before the tokens.
"""

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from glray.errors import UserError
from glray.files import committed
from glray.spec.pipeline import BLOCK_TOKENS

BLOCKS_PER_FILE = 128
"""2^27 tokens: files of 256 MiB where an id takes two bytes."""
PIECE_TOKENS = 4096
"""A longer piece would be read for a shorter chunk; of a shorter one, checksums would be more than
an eighth of what a reader of single chunks reads."""
MAPPED_BLOCKS = 128
"""Blocks that a process maps at once: two groups of a source's order."""

INDEX_SCHEMA = pa.schema(
    {"checksums_offset": pa.int64(), "tokens_offset": pa.int64(), "sha256": pa.binary(32)}
)
"""A row of the index: where in its file a block's two lists begin, and the SHA-256 of the first."""


@dataclass(frozen=True)
class BlockPlace:
    """Where a block lies, and what it holds."""

    path: Path
    """Of its file."""
    number: int
    """In its source."""
    checksums_offset: int
    """Of its list of checksums, in bytes; its tokens follow."""
    tokens_offset: int
    num_tokens: int
    """The borrowed one included."""
    dtype: str
    sha256: bytes
    """Of the list of checksums."""

    @property
    def end(self) -> int:
        """Past its last token, in bytes."""
        return self.tokens_offset + self.num_tokens * np.dtype(self.dtype).itemsize

    @property
    def num_pieces(self) -> int:
        """Pieces of the block; the last may be short."""
        return num_pieces(self.num_tokens)


@dataclass(frozen=True)
class Block:
    """A block's content, each piece of which is checked when it is first read."""

    place: BlockPlace
    tokens: np.ndarray
    """uint16 or uint32[num_tokens], read-only."""
    checksums: np.ndarray
    """uint32[pieces]."""
    is_checked: np.ndarray
    """bool[pieces]."""

    @classmethod
    def of(cls, place: BlockPlace, checksums: np.ndarray, tokens: np.ndarray) -> "Block":
        """Raises UserError if the checksums are not those that were written."""
        found = hashlib.sha256(checksums.tobytes()).digest()
        if found != place.sha256:
            what = f"the SHA-256 of its checksums is {found.hex()[:16]}…, but the index says"
            raise damaged(place, f"{what} {place.sha256.hex()[:16]}…")
        tokens.flags.writeable = False
        return cls(place, tokens, checksums, np.zeros(len(checksums), dtype=bool))

    def windows(self, starts: np.ndarray, width: int) -> np.ndarray:
        """The windows of ``width`` tokens at ``starts`` (int64[n]): uint[n, width], copied.

        Raises UserError for a damaged piece.
        """
        self.check(pieces_of(starts, width))
        return np.lib.stride_tricks.sliding_window_view(self.tokens, width)[starts]

    def check(self, pieces: np.ndarray) -> None:
        """Raises UserError if one of these pieces (int64[n]) is damaged."""
        for piece in pieces[~self.is_checked[pieces]].tolist():
            found, written = _checksum(self.tokens, piece), int(self.checksums[piece])
            if found != written:
                first = piece * PIECE_TOKENS
                last = min(first + PIECE_TOKENS, self.place.num_tokens)
                what = f"the checksum of its tokens {first:,} to {last:,} is {found:08x}, but"
                raise damaged(self.place, f"{what} {written:08x} was written")
            self.is_checked[piece] = True


def num_pieces(num_tokens: int) -> int:
    """Pieces of a block that stores so many tokens, the borrowed one included."""
    return max(1, -(-(num_tokens - 1) // PIECE_TOKENS))


def pieces_of(starts: np.ndarray, width: int) -> np.ndarray:
    """The pieces that hold the windows of ``width`` tokens at ``starts``, ascending, each once."""
    first, last = starts // PIECE_TOKENS, (starts + max(width - 2, 0)) // PIECE_TOKENS
    most = int((last - first).max(initial=0)) + 1
    return np.unique(np.minimum(first[:, None] + np.arange(most), last[:, None]))


def cut(stream: Iterable[np.ndarray], num_blocks: int) -> Iterator[np.ndarray]:
    """The first ``num_blocks`` blocks of a stream of tokens that comes in parts; each with the
    token that it borrows, if there is one. Holds a block and a part."""
    parts, waiting = iter(stream), np.empty(0)
    for _ in range(num_blocks):
        held = [waiting] if len(waiting) else []
        while sum(map(len, held)) <= BLOCK_TOKENS and (part := next(parts, None)) is not None:
            held.append(part)
        tokens = held[0] if len(held) == 1 else np.concatenate(held)
        yield tokens[: BLOCK_TOKENS + 1]
        waiting = tokens[BLOCK_TOKENS:]


def write_blocks(path: Path, blocks: Iterable[np.ndarray], dtype: str) -> pa.Table:
    """Commit a file of blocks (see ``cut``); returns its rows of the index (``INDEX_SCHEMA``)."""
    kinds = {"checksums": pa.uint32(), "tokens": pa.type_for_alias(dtype)}
    schema = pa.schema({name: pa.list_(kind) for name, kind in kinds.items()})
    with committed(path) as file:
        with pa.ipc.new_file(file, schema) as writer:
            for block in blocks:
                tokens = block.astype(dtype, copy=False)
                checksums = [_checksum(tokens, piece) for piece in range(num_pieces(len(tokens)))]
                lists = (np.array(checksums, dtype=np.uint32), tokens)
                columns = [pa.ListArray.from_arrays([0, len(each)], each) for each in lists]
                writer.write_batch(pa.record_batch(columns, schema=schema))
        file.flush()
        return _index_rows(Path(file.name))


def _index_rows(path: Path) -> pa.Table:
    rows = []
    with pa.memory_map(str(path)) as source:
        whole = source.read_buffer()
        file = pa.ipc.open_file(whole)
        for index in range(file.num_record_batches):
            lists = [column.values.to_numpy() for column in file.get_batch(index).columns]
            offsets = [each.ctypes.data - whole.address for each in lists]
            rows.append((*offsets, hashlib.sha256(lists[0].tobytes()).digest()))
    columns = map(list, zip(*rows, strict=True)) if rows else ([], [], [])
    return pa.table(list(columns), schema=INDEX_SCHEMA)


def read_block(place: BlockPlace) -> np.ndarray:
    """A block's tokens and the borrowed one, all of it checked: a read-only view.

    Raises UserError for a damaged block.
    """
    block = mapped_block(place)
    block.check(np.arange(place.num_pieces))
    return block.tokens


@lru_cache(maxsize=MAPPED_BLOCKS)
def mapped_block(place: BlockPlace) -> Block:
    """A block of a local file, mapped. Raises UserError for a damaged one."""
    try:
        size = place.end - place.checksums_offset
        mapped = np.memmap(place.path, np.uint8, "r", place.checksums_offset, (size,))
    except (OSError, ValueError) as error:
        raise damaged(place, f"it cannot be mapped ({error})") from None
    return parsed_block(place, mapped.view(np.ndarray))


def parsed_block(place: BlockPlace, content: np.ndarray) -> Block:
    """A block from its bytes, uint8[n]: what lies between its checksums and its end."""
    checksums = content[: place.num_pieces * 4].view(np.uint32)
    tokens = content[place.tokens_offset - place.checksums_offset :].view(place.dtype)
    return Block.of(place, checksums, tokens)


def damaged(place: BlockPlace, problem: str) -> UserError:
    """The error for a block that is not what was written."""
    folder = place.path.parent.parent
    return UserError(
        f"{place.path}: block {place.number} is damaged, {problem}: its tokens would not be the "
        f"corpus's; {remedy(folder)}"
    )


def remedy(folder: Path) -> str:
    """What to do about token blocks that cannot be used."""
    return f"delete {folder} and run `glray prepare` again to remake it"


def _checksum(tokens: np.ndarray, piece: int) -> int:
    first = piece * PIECE_TOKENS
    return zlib.crc32(tokens[first : first + PIECE_TOKENS + 1].data)
