"""Token blocks in an object store: what is read of them, how often, and what is kept."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glray.data.blocks import reading, token_blocks
from glray.data.blocks.token_blocks import TokenBlocks, open_token_blocks
from glray.data.corpus import PreparedCorpus, PreparedSource
from glray.data.order import row_range
from glray.data.windows import read_windows
from glray.errors import UserError
from glray.files import StorePath, copy_tree, files_below, remove, write_bytes
from glray.files.cache import NodeCache
from glray.ray import prepare
from glray.spec.pipeline import BLOCK_TOKENS
from tests.data.preparing import files_of, found, prepared, stream, texts_pipeline, write_texts
from tests.stores import StoreServer
from tests.tokens import write_tokens

CHUNK = 2**16
STREAM = np.arange(2 * BLOCK_TOKENS + 70_000) % 300
"""33 chunks in two whole blocks and a short one."""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> TokenBlocks:
    """The blocks in a folder."""
    return write_tokens(tmp_path_factory.mktemp("tokens"), STREAM, [])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeCache:
    """This node's, empty, as is what this process has mapped."""
    cache = NodeCache(tmp_path / "cache", 2**30)
    for module in (reading, token_blocks):
        monkeypatch.setattr(module, "node_cache", lambda: cache)
    reading._cached.cache_clear()
    return cache


@pytest.fixture
def stored(here: TokenBlocks, bucket: StorePath, cache: NodeCache) -> TokenBlocks:
    """The blocks in the store."""
    copy_tree(here.directory, bucket / "tokens")
    return open_token_blocks(bucket / "tokens")


@pytest.fixture
def ranges(server: StoreServer, stored: TokenBlocks) -> list[str]:
    """Those that are asked for of the stored blocks."""
    stored.place(0)  # the index is read
    server.ranges.clear()
    return server.ranges


def num_bytes(ranges: list[str]) -> int:
    spans = (span.removeprefix("bytes=").split("-") for span in ranges)
    return sum(int(last) + 1 - int(first) for first, last in spans)


def epoch(blocks: TokenBlocks, *, nodes: int) -> Iterator[np.ndarray]:
    """The windows of an epoch, three chunks a step, as ``nodes`` of one rank each read them."""
    corpus = PreparedCorpus((PreparedSource("a", 1, blocks),))
    order, whole = corpus.order(CHUNK, seed=3), reading.reads_whole_blocks(1 / nodes)
    for step in range(11):
        offsets = order.chunks(3 * step, 3 * step + 3).offset
        for rank in range(nodes):
            mine = offsets[slice(*row_range(3, rank, nodes))]
            if len(mine):
                yield read_windows(corpus.block_places(mine), mine, CHUNK, whole=whole)


def test_stored_blocks_are_those_of_the_folder(
    here: TokenBlocks, stored: TokenBlocks, ranges: list[str]
) -> None:
    assert stored.model_copy(update={"directory": here.directory}) == here
    found = list(reading.read_blocks([stored.place(number) for number in range(3)]))
    for number in range(3):
        assert (found[number] == reading.read_block(here.place(number))).all()
    assert len(ranges) == 3


def test_one_node_reads_each_block_once_an_epoch(
    here: TokenBlocks, stored: TokenBlocks, ranges: list[str]
) -> None:
    windows = [w.tobytes() for w in epoch(stored, nodes=1)]
    assert windows == [w.tobytes() for w in epoch(here, nodes=1)]
    assert len(ranges) == 3
    assert num_bytes(ranges) <= 1.01 * 2 * len(STREAM)  # checksums are 1 in 2,000
    reading._cached.cache_clear()  # as in another process of the node
    assert windows == [w.tobytes() for w in epoch(stored, nodes=1)]
    assert len(ranges) == 3


def test_nodes_together_read_each_byte_once_an_epoch(
    here: TokenBlocks, stored: TokenBlocks, ranges: list[str]
) -> None:
    windows = [w.tobytes() for w in epoch(stored, nodes=2)]
    assert windows == [w.tobytes() for w in epoch(here, nodes=2)]
    assert 2 * 33 * CHUNK < num_bytes(ranges) <= 1.02 * 2 * 33 * CHUNK


def test_what_is_damaged_in_the_cache_is_read_again(
    stored: TokenBlocks, cache: NodeCache, ranges: list[str]
) -> None:
    windows = [w.tobytes() for w in epoch(stored, nodes=1)]
    for path in cache.folder.glob("*.block"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    reading._cached.cache_clear()
    assert [w.tobytes() for w in epoch(stored, nodes=1)] == windows
    assert len(ranges) == 6


@pytest.mark.parametrize("nodes", [1, 2])
def test_what_is_damaged_in_the_store_is_one_line(stored: TokenBlocks, nodes: int) -> None:
    place = stored.place(1)
    content = bytearray(place.path.read_bytes())
    content[place.tokens_offset : place.end] = bytes(place.end - place.tokens_offset)
    write_bytes(place.path, bytes(content))
    expected = (
        r"s3://storage/tokens/blocks/00000\.arrow: block 1 is damaged, the checksum of its tokens "
        r"[\d,]+ to [\d,]+ is \w{8}, but \w{8} was written: .* delete s3://storage/tokens and run "
    )
    with pytest.raises(UserError, match=expected):
        list(epoch(stored, nodes=nodes))


def test_a_file_that_is_gone_is_named(stored: TokenBlocks) -> None:
    place = stored.place(0)
    remove(place.path)
    with pytest.raises(FileNotFoundError) as error:
        reading.read_block(place)
    assert error.value.filename == "s3://storage/tokens/blocks/00000.arrow"
    with pytest.raises(UserError, match=r"^s3://.*: 0 bytes, .* something is missing"):
        open_token_blocks(stored.directory)


# ---- prepare


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray's tasks do, one after another: its workers may be older than the server."""

    def one_by_one(work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        for item in items:
            yield item, work(item)

    monkeypatch.setattr(prepare, "_in_parallel", one_by_one)
    monkeypatch.setattr(prepare, "require_cpu", lambda compute, say: None)


@pytest.mark.usefixtures("in_this_process", "cache")
def test_a_store_is_prepared_as_a_folder_and_goes_on_after_a_failure(
    tmp_path: Path, bucket: StorePath, server: StoreServer
) -> None:
    spec = texts_pipeline(write_texts(tmp_path / "corpus"))
    expected = prepared(spec)
    elsewhere = spec.derive(compute={"storage": "s3://storage/runs"})

    def puts_blocks(request: str, headers: object) -> bool:
        return request.startswith("PUT ") and "/blocks/" in request

    with (
        server.refusing("400 Bad Request", puts_blocks),
        pytest.raises(OSError, match="the store refuses the request"),
    ):
        prepared(elsewhere)
    shards = {name for name in files_below(bucket / "runs") if "/shards/" in name}
    server.requests.clear()
    blocks = prepared(elsewhere)
    assert shards
    assert not any("/shards/" in r for r in server.requests if r.startswith("PUT"))
    assert files_of(blocks) == files_of(expected)
    assert stream(blocks) == stream(expected)
    assert found(elsewhere) == blocks
    left = [name for name in files_below(bucket / "runs/tokens/work") if ".lock" not in name]
    assert left == []
