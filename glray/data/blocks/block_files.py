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

import numpy as np
import pyarrow as pa

from glray.errors import UserError
from glray.files import AnyPath, committed
from glray.spec.pipeline import BLOCK_TOKENS

BLOCKS_PER_FILE = 128
"""2^27 tokens: files of 256 MiB where an id takes two bytes."""
BLOCKS_FOLDER = "blocks"
"""Where they lie in a source's folder."""
PIECE_TOKENS = 4096
"""A longer piece would be read for a shorter chunk; of a shorter one, checksums would be more than
an eighth of what a reader of single chunks reads."""

INDEX_SCHEMA = pa.schema(
    {"checksums_offset": pa.int64(), "tokens_offset": pa.int64(), "sha256": pa.binary(32)}
)
"""A row of the index: where in its file a block's two lists begin, and the SHA-256 of the first."""


@dataclass(frozen=True)
class BlockPlace:
    """Where a block lies, and what it holds."""

    directory: AnyPath
    """Its source's folder."""
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
    def path(self) -> AnyPath:
        """Its file."""
        return blocks_file(self.directory, self.number // BLOCKS_PER_FILE)

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


def blocks_file(directory: AnyPath, index: int) -> AnyPath:
    """File ``index`` of the blocks in a source's folder."""
    return directory / f"{BLOCKS_FOLDER}/{file_name(index)}"


def file_name(index: int) -> str:
    """Of file ``index`` of the blocks."""
    return f"{index:05d}.arrow"


def num_pieces(num_tokens: int) -> int:
    """Pieces of a block that stores so many tokens, the borrowed one included."""
    return max(1, -(-(num_tokens - 1) // PIECE_TOKENS))


def pieces_of(starts: np.ndarray, width: int) -> np.ndarray:
    """The pieces that hold the windows of ``width`` tokens at ``starts``, ascending, each once."""
    first, last = starts // PIECE_TOKENS, (starts + max(width - 2, 0)) // PIECE_TOKENS
    most = int((last - first).max(initial=0)) + 1
    return np.unique(np.minimum(first[:, None] + np.arange(most), last[:, None]))


def runs_of(numbers: np.ndarray) -> list[tuple[int, int]]:
    """First and past-the-last of each run of consecutive numbers among some (int64[n], ascending,
    each once)."""
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    runs = [run for run in np.split(numbers, breaks) if len(run)]
    return [(int(run[0]), int(run[-1]) + 1) for run in runs]


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


def write_blocks(path: AnyPath, blocks: Iterable[np.ndarray], dtype: str) -> pa.Table:
    """Commit a file of blocks (see ``cut``); returns its rows of the index (``INDEX_SCHEMA``)."""
    kinds = {"checksums": pa.uint32(), "tokens": pa.type_for_alias(dtype)}
    schema = pa.schema({name: pa.list_(kind) for name, kind in kinds.items()})
    rows = []
    with committed(path) as file, pa.ipc.new_file(file, schema) as writer:
        for block in blocks:
            tokens = block.astype(dtype, copy=False)
            checksums = np.array(
                [_checksum(tokens, piece) for piece in range(num_pieces(len(tokens)))],
                dtype=np.uint32,
            )
            columns = [
                pa.ListArray.from_arrays([0, len(each)], each) for each in (checksums, tokens)
            ]
            end = file.tell()
            writer.write_batch(pa.record_batch(columns, schema=schema))
            of_checksums, of_tokens, size = _offsets(len(tokens), dtype)
            start = file.tell() - size
            assert end in (0, start), "Arrow has written another block than it reads"
            rows.append(
                {
                    "checksums_offset": start + of_checksums,
                    "tokens_offset": start + of_tokens,
                    "sha256": hashlib.sha256(checksums.tobytes()).digest(),
                }
            )
    return pa.Table.from_pylist(rows, INDEX_SCHEMA)


@lru_cache(maxsize=4)
def _offsets(num_tokens: int, dtype: str) -> tuple[int, int, int]:
    """Where Arrow puts a block's two lists in what it writes of it, and how long that is, bytes."""
    empty = (np.zeros(num_pieces(num_tokens), np.uint32), np.zeros(num_tokens, dtype))
    columns = [pa.ListArray.from_arrays([0, len(each)], each) for each in empty]
    batch = pa.record_batch(columns, names=["checksums", "tokens"])
    message = batch.serialize()
    found = pa.ipc.read_record_batch(message, batch.schema)
    first, second = (column.values.to_numpy().ctypes.data for column in found.columns)
    return first - message.address, second - message.address, message.size


def parsed_block(place: BlockPlace, content: np.ndarray) -> Block:
    """A block from its bytes, uint8[n]: its checksums and what follows up to its end. Raises
    UserError if they end early."""
    size = place.end - place.checksums_offset
    if len(content) != size:
        raise damaged(place, f"it ends after {len(content):,} bytes of {size:,}")
    checksums = content[: place.num_pieces * 4].view(np.uint32)
    tokens = content[place.tokens_offset - place.checksums_offset :].view(place.dtype)
    return Block.of(place, checksums, tokens)


def damaged(place: BlockPlace, problem: str) -> UserError:
    """The error for a block that is not what was written."""
    return UserError(
        f"{place.path}: block {place.number} is damaged, {problem}: its tokens would not be the "
        f"corpus's; {remedy(place.directory)}"
    )


def remedy(folder: AnyPath) -> str:
    """What to do about token blocks that cannot be used."""
    return f"delete {folder} and run `glray prepare` again to remake it"


def _checksum(tokens: np.ndarray, piece: int) -> int:
    first = piece * PIECE_TOKENS
    return zlib.crc32(tokens[first : first + PIECE_TOKENS + 1].data)
