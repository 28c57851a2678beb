"""Finding prepared token blocks again without reading the corpus.

A snapshot's key stands for all that a source's tokens depend on, with each file's size and version
(times, or what the store tells) in place of its content; a record under that key says which token
blocks those gave. Locally the version holds change times too, so a file that is replaced by one of
the same size and modification time is still seen. No Ray here.
"""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from glray.data.blocks.token_blocks import TokenBlocks, manifest_path, open_token_blocks
from glray.data.blocks.tokenizer import read_tokenizer_json
from glray.data.corpus import PreparedCorpus, corpus_of, run_corpus
from glray.data.read.documents import SEPARATOR
from glray.data.read.sources import SourceFile, is_uri, search_source
from glray.errors import MissingError
from glray.files import AnyPath, matching
from glray.record import Record
from glray.run.run import Run, pipeline_directory
from glray.spec.corpus import BpeTokenizer, SourceSpec
from glray.spec.identity import TOKENS_VERSION, fingerprint
from glray.spec.pipeline import PipelineSpec
from glray.storage import storage_path

OF_TOKENS = {"corpus", "tokenizer", "heldout_fraction"}
"""What of a spec its tokens depend on."""

CLOCK_TICK_SECONDS = 0.1
"""File times are coarser than this nowhere that glray runs; most tick every few milliseconds."""


@dataclass(frozen=True)
class SourceSnapshot:
    """One source's files as they are now, and the keys of what is made from them."""

    source: SourceSpec
    files: tuple[SourceFile, ...]
    left_out: tuple[str, ...]
    """Of the folders that were searched."""
    tokenizer_key: str
    """Of the tokenizer: of its file's content, or of all that one is trained on."""
    key: str
    """Of the token blocks."""


class _Prepared(Record):
    """Which token blocks a source gave."""

    fingerprint: str = Field(pattern="^[0-9a-f]{16}$")


def snapshot_sources(spec: PipelineSpec) -> tuple[SourceSnapshot, ...]:
    """Every source of the pipeline as it is now. Raises UserError."""
    storage = str(storage_path(spec.compute))
    listed = [(source, search_source(source.corpus, storage)) for source in spec.sources]
    states = [
        {
            "format": TOKENS_VERSION,
            "kind": source.corpus.kind,
            "column": getattr(source.corpus, "column", None),
            "files": [[file.uri, file.num_bytes, file.version] for file in listing.files],
        }
        | ({"separator": SEPARATOR.decode()} if source.corpus.kind == "text" else {})
        for source, listing in listed
    ]
    fraction = {"heldout_fraction": spec.heldout_fraction}
    if isinstance(spec.tokenizer, BpeTokenizer):  # never trained on documents that are drawn
        declared = spec.tokenizer.model_dump(mode="json")
        tokenizer = fingerprint({"declared": declared, "sources": states, **fraction})
    else:
        sha256 = hashlib.sha256(read_tokenizer_json(spec.tokenizer)).hexdigest()
        tokenizer = fingerprint({"sha256": sha256, "eos_token": spec.tokenizer.eos_token})
    encoded = [fingerprint({"tokenizer": tokenizer, "source": state}) for state in states]
    return tuple(
        SourceSnapshot(
            source,
            listing.files,
            listing.left_out,
            tokenizer,
            fingerprint({"key": key, **fraction}),
        )
        for (source, listing), key in zip(listed, encoded, strict=True)
    )


def tokens_directory(spec: PipelineSpec) -> AnyPath:
    """Where the storage keeps token blocks: an absolute path."""
    return storage_path(spec.compute) / "tokens"


def find_prepared(spec: PipelineSpec) -> PreparedCorpus | None:
    """The pipeline's prepared corpus, if all of it is there, its check for near-copies included.

    Runs that were started need no sources to go on: where these are gone, the token blocks are
    those of a run of the pipeline with the same corpus and tokenizer. Raises UserError for a corpus
    or tokenizer that is not there otherwise, and for damaged token blocks.
    """
    try:
        snapshots = snapshot_sources(spec)
    except MissingError:
        if (run := _started_run(spec)) is None:
            raise
        return run_corpus(run)
    found = [find_blocks(spec, snapshot) for snapshot in snapshots]
    blocks = [each for each in found if each is not None]
    if len(blocks) < len(found):
        return None
    corpus = corpus_of(spec, blocks)
    return corpus if corpus.heldout_check() else None


def _started_run(spec: PipelineSpec) -> Run | None:
    """A run of the pipeline's directory that declares the same tokens."""
    declared = spec.model_dump(include=OF_TOKENS)
    records = matching(pipeline_directory(spec), "*/run.json")
    runs = (Run.open(record.parent) for record in records)
    return next((run for run in runs if run.spec.model_dump(include=OF_TOKENS) == declared), None)


def find_blocks(spec: PipelineSpec, snapshot: SourceSnapshot) -> TokenBlocks | None:
    """The token blocks that a source gave when it was as in the snapshot, if there are any."""
    prepared = _Prepared.read(_path(spec, snapshot))
    if prepared is None:
        return None
    directory = tokens_directory(spec) / prepared.fingerprint
    return open_token_blocks(directory) if manifest_path(directory).exists() else None


def record_prepared(spec: PipelineSpec, snapshot: SourceSnapshot, fingerprint: str) -> None:
    """Remember which token blocks the source, as in the snapshot, gave."""
    _Prepared(fingerprint=fingerprint).write(_path(spec, snapshot))


def wait_for_clock_tick(snapshots: tuple[SourceSnapshot, ...]) -> None:
    """Return when whatever is written to local files from now on must change their times."""
    paths = [file.uri for snapshot in snapshots for file in snapshot.files if not is_uri(file.uri)]
    newest = max((Path(path).stat().st_ctime for path in paths), default=0)
    time.sleep(min(max(0.0, newest + CLOCK_TICK_SECONDS - time.time()), CLOCK_TICK_SECONDS))


def _path(spec: PipelineSpec, snapshot: SourceSnapshot) -> AnyPath:
    return tokens_directory(spec) / "listings" / f"{snapshot.key}.json"
