"""Finding prepared token blocks again without reading the corpus.

A listing's key stands for all that a source's tokens depend on, with each file's size and version
(times, or what the store tells) in place of its content; its file says which token blocks those
gave. Locally the version holds change times too, so a file that is replaced by one of the same size
and modification time is still seen. No Ray here.
"""

import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

from glray.data.blocks import TokenBlocks, open_token_blocks
from glray.data.corpus import PreparedCorpus, PreparedSource
from glray.data.sources import SourceFile, is_uri, list_source
from glray.data.tokenizer import read_tokenizer_json
from glray.files import read_record, write_json
from glray.spec.corpus import BpeTokenizer, SourceCorpus, SourceSpec
from glray.spec.identity import FORMAT_VERSION, fingerprint
from glray.spec.pipeline import PipelineSpec
from glray.storage import storage_path

CLOCK_TICK_SECONDS = 0.1
"""File times are coarser than this nowhere that glray runs; most tick every few milliseconds."""


@dataclass(frozen=True)
class Listing:
    """One source's files as they are now, and the key of what its tokens depend on."""

    source: SourceSpec
    files: tuple[SourceFile, ...]
    key: str
    """Of the encoded documents."""
    tokenizer_key: str
    """Of the tokenizer: of its file's content, or of all that one is trained on."""
    tokens_key: str
    """Of the token blocks, which hang on the held-out split too."""

    @property
    def num_bytes(self) -> int:
        """Of the files."""
        return sum(file.num_bytes for file in self.files)


def list_sources(spec: PipelineSpec) -> tuple[Listing, ...]:
    """Every source of the pipeline, listed. Raises UserError."""
    listed = [(source, list_source(source.corpus)) for source in spec.sources]
    tokenizer = _tokenizer_key(spec, [_state(source.corpus, files) for source, files in listed])
    listings = []
    for source, files in listed:
        key = fingerprint({"tokenizer": tokenizer, "source": _state(source.corpus, files)})
        tokens = fingerprint({"key": key, "heldout_fraction": spec.heldout_fraction})
        listings.append(Listing(source, files, key, tokenizer, tokens))
    return tuple(listings)


def tokens_directory(spec: PipelineSpec) -> Path:
    """Where the storage keeps token blocks: an absolute path."""
    return storage_path(spec.compute) / "tokens"


def find_prepared(spec: PipelineSpec) -> PreparedCorpus | None:
    """What ``prepare`` would return, if all its sources were seen before, else None.

    Raises UserError for a source or tokenizer that is not there, and for damaged token blocks.
    """
    found = []
    for listing in list_sources(spec):
        blocks = find_blocks(spec, listing)
        if blocks is None:
            return None
        found.append(PreparedSource(listing.source.name, listing.source.weight, blocks))
    return PreparedCorpus(tuple(found))


def find_blocks(spec: PipelineSpec, listing: Listing) -> TokenBlocks | None:
    """The token blocks that a source listed like this gave, if there are any."""
    record = read_record(_path(spec, listing), "fingerprint")
    if record is None or not re.fullmatch("[0-9a-f]{16}", str(record["fingerprint"])):
        return None
    directory = tokens_directory(spec) / record["fingerprint"]
    return open_token_blocks(directory) if directory.exists() else None


def record_prepared(spec: PipelineSpec, listing: Listing, fingerprint: str) -> None:
    """Remember which token blocks the source, listed before it was read, gave."""
    write_json(_path(spec, listing), {"fingerprint": fingerprint})


def wait_for_clock_tick(listings: tuple[Listing, ...]) -> None:
    """Return when whatever is written to local files from now on must change their times."""
    paths = [file.uri for listing in listings for file in listing.files if not is_uri(file.uri)]
    newest = max((Path(path).stat().st_ctime for path in paths), default=0)
    time.sleep(min(max(0.0, newest + CLOCK_TICK_SECONDS - time.time()), CLOCK_TICK_SECONDS))


def _tokenizer_key(spec: PipelineSpec, sources: list[object]) -> str:
    if isinstance(spec.tokenizer, BpeTokenizer):
        declared = spec.tokenizer.model_dump(mode="json")
        fraction = spec.heldout_fraction  # it never sees what is drawn
        return fingerprint({"declared": declared, "sources": sources, "fraction": fraction})
    sha256 = hashlib.sha256(read_tokenizer_json(spec.tokenizer)).hexdigest()
    return fingerprint({"sha256": sha256, "eos_token": spec.tokenizer.eos_token})


def _state(corpus: SourceCorpus, files: tuple[SourceFile, ...]) -> object:
    return {
        "format": FORMAT_VERSION,
        "kind": corpus.kind,
        "column": getattr(corpus, "column", None),
        "files": [[file.uri, file.num_bytes, file.version] for file in files],
    }


def _path(spec: PipelineSpec, listing: Listing) -> Path:
    return tokens_directory(spec) / "listings" / f"{listing.tokens_key}.json"
