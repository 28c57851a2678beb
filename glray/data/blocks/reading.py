"""Reading token blocks: mapped where files are of this machine, by range requests from a store.

A chunk is read once an epoch, and a group of the order has all chunks of its blocks. So a node that
reads (nearly) all of a group reads whole blocks, a request each, into its cache, where the blocks
of a group stay until the group is through. A node that reads a share of each block asks for the
pieces that it needs alone, and keeps nothing: that many nodes together read each byte once, too.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import obstore

from glray.data.blocks.block_files import (
    PIECE_TOKENS,
    Block,
    BlockPlace,
    damaged,
    parsed_block,
    runs_of,
)
from glray.errors import UserError
from glray.files import StorePath, read_range
from glray.files.cache import node_cache
from glray.files.paths import naming_store

MAPPED_BLOCKS = 128
"""Blocks that a process maps at once: two groups of a source's order."""
MOST_READ = 1.2
"""Bytes read for each byte of a block that is needed."""
REQUESTS = 16
"""That a process has open at once."""
JOINED_BYTES = 512
"""Ranges that are no farther apart are one request, as are a block's checksums and its start."""


def reads_whole_blocks(share: float) -> bool:
    """Whether who needs this share of each block's chunks reads whole blocks."""
    return share * MOST_READ >= 1


def open_blocks(wanted: Sequence[tuple[BlockPlace, np.ndarray]], *, whole: bool) -> Iterator[Block]:
    """Blocks in order, each with at least the pieces (int64[n]) that are wanted of it; several at
    once are on their way. From a store these alone are read, or else ``whole`` blocks.

    Raises UserError for a damaged block, and an OSError for one that the store does not give.
    """
    if all(isinstance(place.path, Path) for place, _ in wanted):
        yield from (mapped_block(place) for place, _ in wanted)
        return
    with ThreadPoolExecutor(REQUESTS, thread_name_prefix="read-blocks") as pool:
        yield from pool.map(lambda each: _cached(each[0]) if whole else _requested(*each), wanted)


def read_blocks(places: Sequence[BlockPlace]) -> Iterator[np.ndarray]:
    """The tokens of whole blocks in order, the borrowed ones included, all of them checked."""
    pieces = [np.arange(place.num_pieces) for place in places]
    for block in open_blocks(list(zip(places, pieces, strict=True)), whole=False):
        block.check(np.arange(block.place.num_pieces))
        yield block.tokens


def read_block(place: BlockPlace) -> np.ndarray:
    """A block's tokens and the borrowed one, all of it checked: uint[num_tokens], read-only.

    Raises as ``open_blocks``.
    """
    (tokens,) = read_blocks([place])
    return tokens


@lru_cache(maxsize=MAPPED_BLOCKS)
def mapped_block(place: BlockPlace) -> Block:
    """A block of a local file, mapped. Raises UserError for a damaged one."""
    assert isinstance(place.path, Path)
    try:
        shape = (place.end - place.checksums_offset,)
        mapped = np.memmap(place.path, np.uint8, "r", place.checksums_offset, shape)
    except (OSError, ValueError) as error:
        raise damaged(place, f"it cannot be mapped ({error})") from None
    return parsed_block(place, mapped.view(np.ndarray))


@lru_cache(maxsize=MAPPED_BLOCKS)
def _cached(place: BlockPlace) -> Block:
    """A whole block of a store, mapped from this node's cache, all of it checked."""
    start, name = place.checksums_offset, cached_name(place)
    fetch = partial(read_range, place.path, start, place.end - start)
    try:
        return _checked(place, node_cache().mapped(name, fetch))
    except UserError:  # damaged in the cache, as when the machine failed, or on the way
        node_cache().discard(name)
        return _checked(place, node_cache().mapped(name, fetch))


def cached_name(place: BlockPlace) -> str:
    """Of a block in a node's cache, by its content."""
    return f"{place.sha256.hex()}.block"


def _checked(place: BlockPlace, content: np.ndarray) -> Block:
    block = parsed_block(place, content)
    block.check(np.arange(place.num_pieces))
    return block


def _requested(place: BlockPlace, pieces: np.ndarray) -> Block:
    """A block of a store with these pieces alone; its other tokens are anything."""
    size = np.dtype(place.dtype).itemsize
    tokens = np.empty(place.num_tokens, dtype=place.dtype)
    runs = [
        (first * PIECE_TOKENS, min(last * PIECE_TOKENS + 1, place.num_tokens))
        for first, last in runs_of(pieces)
    ]
    starts, ends = ([place.tokens_offset + run[side] * size for run in runs] for side in (0, 1))
    checksums_end = place.checksums_offset + 4 * place.num_pieces
    path = place.path
    assert isinstance(path, StorePath)
    with naming_store(path):
        checksums, *parts = obstore.get_ranges(
            path.store,
            path.key,
            starts=[place.checksums_offset, *starts],
            ends=[checksums_end, *ends],
            coalesce=JOINED_BYTES,
        )
    for (first, last), part in zip(runs, parts, strict=True):
        found = np.frombuffer(part.to_bytes(), dtype=np.uint8)
        if len(found) != (last - first) * size:
            raise damaged(place, f"it ends after {len(found):,} bytes of {(last - first) * size:,}")
        tokens[first:last] = found.view(place.dtype)
    return Block.of(place, np.frombuffer(checksums.to_bytes(), dtype=np.uint32), tokens)
