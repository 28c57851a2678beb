"""A pipeline's prepared corpus: the token blocks of its sources, one after another.

A token's offset counts from the first source's first token; each source begins on a block, so that
a block's number, and with it the source, is ``offset // BLOCK_TOKENS``.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from operator import attrgetter

import numpy as np

from glray.data.blocks.block_files import BlockPlace
from glray.data.blocks.heldout import HeldoutDocument, read_heldout
from glray.data.blocks.near_copies import CHECKED_TOKENS, RULE, HeldoutCheck
from glray.data.blocks.token_blocks import TokenBlocks, open_token_blocks
from glray.data.order import ChunkOrder, Mix, SourceStream
from glray.errors import UserError
from glray.files import AnyPath, as_path
from glray.plan import Plan
from glray.run.run import Run
from glray.spec.identity import fingerprint
from glray.spec.pipeline import BLOCK_TOKENS, PipelineSpec

BlockPlaces = dict[int, BlockPlace]
"""Where some of a corpus's blocks lie, by their number in the corpus."""


@dataclass(frozen=True)
class PreparedSource:
    """One source, prepared."""

    name: str
    weight: int
    blocks: TokenBlocks


@dataclass(frozen=True)
class PreparedCorpus:
    """All sources of a pipeline, prepared with one tokenizer."""

    sources: tuple[PreparedSource, ...]

    @property
    def identity(self) -> list[dict[str, object]]:
        """What of the corpus decides a run's weights."""
        return [
            {"fingerprint": source.blocks.fingerprint, "weight": source.weight}
            for source in self.sources
        ]

    @property
    def directories(self) -> list[str]:
        """Where each source's token blocks lie, for ``open_corpus``."""
        return [str(source.blocks.directory) for source in self.sources]

    @property
    def vocabulary(self) -> TokenBlocks:
        """Token blocks whose tokenizer, ids and dtype are those of every source."""
        return self.sources[0].blocks

    def order(self, chunk_len: int, seed: int) -> ChunkOrder:
        """The order of the corpus's chunks under the sources' own weights."""
        streams = tuple(
            SourceStream(source.blocks.num_tokens, source.weight) for source in self.sources
        )
        return ChunkOrder(streams, chunk_len, seed)

    def num_chunks(self, chunk_len: int) -> int:
        """Chunks of an epoch of all sources. Raises UserError if one has none."""
        order = self.order(chunk_len, seed=0)
        counts = [order.num_chunks(index) for index in range(len(self.sources))]
        for source, count in zip(self.sources, counts, strict=True):
            if count == 0:
                raise UserError(
                    f"corpus: {source.name}: {source.blocks.num_tokens:,} training tokens are "
                    f"fewer than a chunk of {chunk_len:,} plus one: none would be read; give more "
                    "text, or lower tokens_per_batch or chunk_len"
                )
        return sum(counts)

    def order_of(self, plan: Plan, seed: int) -> ChunkOrder:
        """The order of a plan's chunks: each stage whose weights differ from the stage before
        begins a new cycle under its own."""
        own = tuple(source.weight for source in self.sources)
        weights = [own, *(stage.weights or own for stage in plan.stages)]
        mixes = tuple(
            Mix(plan.tokens_after(stage.first_step) // plan.chunk_len, after)
            for stage, (before, after) in zip(plan.stages, pairwise(weights), strict=True)
            if before != after
        )
        return replace(self.order(plan.chunk_len, seed), mixes=mixes)

    def block_places(self, offsets: np.ndarray) -> BlockPlaces:
        """The blocks in which windows at ``offsets`` lie."""
        numbers = np.unique(offsets // BLOCK_TOKENS)
        sources = np.searchsorted(self._first_blocks, numbers, side="right") - 1
        inside = numbers - np.array(self._first_blocks)[sources]
        found: BlockPlaces = {}
        for source in np.unique(sources).tolist():
            mine = sources == source
            places = self.sources[source].blocks.places(inside[mine].tolist())
            found |= zip(numbers[mine].tolist(), places, strict=True)
        return found

    def heldout(self) -> list[HeldoutDocument]:
        """The held-out documents of all sources by their hash, so in no order that means anything;
        equal ones once, none that is trained, the first ``CHECKED_TOKENS`` of them."""
        trained = {sha256 for source in self.sources for sha256 in source.blocks.returned}
        distinct: dict[str, HeldoutDocument] = {}
        for source in self.sources:
            for document in read_heldout(source.blocks.heldout_path):
                distinct.setdefault(document.sha256, document)
        documents = [document for sha256, document in distinct.items() if sha256 not in trained]
        documents.sort(key=attrgetter("sha256"))
        starts = accumulate((len(document.tokens) for document in documents), initial=0)
        return [
            document
            for document, start in zip(documents, starts, strict=False)
            if start < CHECKED_TOKENS
        ]

    @property
    def check_path(self) -> AnyPath:
        """The record of the held-out documents' check, beside the token blocks: it depends on the
        sources' tokens and on what counts as a near-copy."""
        sources = sorted({source.blocks.fingerprint for source in self.sources})
        name = fingerprint({"sources": sources, **RULE})
        return self.vocabulary.directory.parent / "heldout" / f"{name}.json"

    def heldout_check(self) -> HeldoutCheck | None:
        """What the check found; None if there was none yet. Raises UserError for a damaged
        record."""
        return HeldoutCheck.read(self.check_path)

    def scored_documents(self) -> list[HeldoutDocument]:
        """The held-out documents without those that the check leaves out; all of them if there was
        no check, as for blocks that were moved. Raises UserError for a damaged record."""
        check = self.heldout_check()
        left_out = check.left_out if check else ()
        return [document for document in self.heldout() if document.sha256 not in left_out]

    @cached_property
    def _first_blocks(self) -> list[int]:
        """Number of each source's first block in the corpus."""
        sizes = [source.blocks.num_blocks for source in self.sources[:-1]]
        return list(accumulate(sizes, initial=0))


def corpus_of(spec: PipelineSpec, blocks: Iterable[TokenBlocks]) -> PreparedCorpus:
    """The spec's corpus, prepared as ``blocks``, one a source."""
    return PreparedCorpus(
        tuple(
            PreparedSource(source.name, source.weight, prepared)
            for source, prepared in zip(spec.sources, blocks, strict=True)
        )
    )


def open_corpus(spec: PipelineSpec, directories: list[str]) -> PreparedCorpus:
    """The spec's corpus, prepared in ``directories``, one a source. Raises UserError."""
    return corpus_of(spec, (open_token_blocks(as_path(directory)) for directory in directories))


def run_corpus(run: Run) -> PreparedCorpus:
    """The token blocks that the run was started with. Raises UserError."""
    directories = run.tokens_directories
    if len(directories) != len(run.spec.sources):
        raise UserError(
            f"{run.directory / 'run.json'}: damaged, it names {len(directories)} folders of token "
            f"blocks for {len(run.spec.sources)} sources; restore it"
        )
    return open_corpus(run.spec, list(map(str, directories)))
