"""Finding prepared token blocks again without reading the corpus.

A listing's key stands for all that the tokens depend on, with each file's size and times in place
of its content; its file says which token blocks those gave. A key looks at change times too, so a
file that is replaced by one of the same size and modification time is still seen. No Ray here.
"""

import time
from pathlib import Path

from glray.data.blocks import TokenBlocks, open_token_blocks
from glray.data.corpora import list_files
from glray.errors import UserError
from glray.files import read_record, write_json
from glray.spec.corpus import TokenizerFile
from glray.spec.identity import FORMAT_VERSION, fingerprint
from glray.spec.pipeline import PipelineSpec
from glray.storage import storage_path

CLOCK_TICK_SECONDS = 0.1
"""File times are coarser than this nowhere that glray runs; most tick every few milliseconds."""


def tokens_directory(spec: PipelineSpec) -> Path:
    """Where the storage keeps token blocks: an absolute path."""
    return storage_path(spec.compute) / "tokens"


def find_prepared(spec: PipelineSpec) -> TokenBlocks | None:
    """The token blocks that ``prepare`` would return, if its corpus was seen before, else None.

    Raises UserError for a corpus or tokenizer that is not there, and for damaged token blocks.
    """
    listing = read_record(_path(spec, listing_key(spec)), "fingerprint")
    if listing is None:
        return None
    directory = tokens_directory(spec) / listing["fingerprint"]
    return open_token_blocks(directory) if directory.exists() else None


def record_prepared(spec: PipelineSpec, key: str, fingerprint: str) -> None:
    """Remember that the corpus, listed as ``key`` before it was read, gave these tokens.

    Nothing is remembered of a corpus that changed in between.
    """
    if listing_key(spec) == key:
        write_json(_path(spec, key), {"fingerprint": fingerprint})


def listing_key(spec: PipelineSpec) -> str:
    """The key of the corpus's files as they are now."""
    tokenizer = spec.tokenizer
    files = list_files(spec.corpus)
    if isinstance(tokenizer, TokenizerFile):
        files.append(Path(tokenizer.path).expanduser().absolute())
    return fingerprint(
        {
            "format": FORMAT_VERSION,
            "files": [[str(path), *_state(path)] for path in files],
            "kind": spec.corpus.kind,
            "column": getattr(spec.corpus, "column", None),
            "heldout_fraction": spec.corpus.heldout_fraction,
            "tokenizer": tokenizer.model_dump(mode="json"),
        }
    )


def wait_for_clock_tick(files: list[Path]) -> None:
    """Return when whatever is written to ``files`` from now on must change their times."""
    newest = max(path.stat().st_ctime for path in files)
    time.sleep(min(max(0.0, newest + CLOCK_TICK_SECONDS - time.time()), CLOCK_TICK_SECONDS))


def _state(path: Path) -> tuple[int, int, int]:
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist; give an existing file") from None
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _path(spec: PipelineSpec, key: str) -> Path:
    return tokens_directory(spec) / "listings" / f"{key}.json"
