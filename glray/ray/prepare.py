"""From a corpus to token blocks, through Ray Data.

Each source is read once. Its shards are encoded in parallel, to committed files; the driver then
reads those in order, which names the tokens (so a source seen before under other names ends here)
and says which documents are held out; and runs of blocks are cut in parallel. Nothing but small
records passes through Ray's object store, and the driver holds the hashes of held-out documents,
never the corpus.

A call that is killed leaves committed files in ``tokens/work/<listing>``; the next one goes on from
them and ends with the same bytes, as a shard and a block are functions of the source alone.
"""

import fcntl
import json
import logging
import pickle
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import ray.data

from glray.data.assembly import Survey, cut_blocks, survey, write_heldout
from glray.data.blocks import BlockFile, TokenBlocks, open_token_blocks, write_manifest
from glray.data.corpus import PreparedCorpus, PreparedSource
from glray.data.documents import EMPTY, NOT_UTF8
from glray.data.encoding import Encoding, NamedEncoding, Say, settle_encoding
from glray.data.listing import (
    Listing,
    find_blocks,
    list_sources,
    record_prepared,
    tokens_directory,
    wait_for_clock_tick,
)
from glray.data.shards import Shard, encode_shard, plan_shards
from glray.data.sources import list_source
from glray.errors import UserError
from glray.files import write_text
from glray.spec.corpus import SourceCorpus, StdlibCorpus
from glray.spec.identity import fingerprint, tokens_identity
from glray.spec.pipeline import PipelineSpec

Item = TypeVar("Item")

BLOCKS_PER_TASK = 16
SAY_SECONDS = 5.0
"""Between two lines of progress."""


def prepare(spec: PipelineSpec, say: Say) -> PreparedCorpus:
    """The token blocks of the pipeline's corpus: written, or found where the same exist.

    Ray must be initialised. ``say`` gets a few lines of progress. Raises UserError.
    """
    listings = list_sources(spec)
    wait_for_clock_tick(listings)
    for listing in listings:
        say(
            f"prepare: {listing.source.name}: {len(listing.files):,} files, "
            f"{listing.num_bytes / 1e6:.1f} MB from {_place(listing.source.corpus)}"
        )
    tokenizer = settle_encoding(spec, listings, tokens_directory(spec) / "tokenizers", say)
    with _quiet_ray_data():
        corpus = PreparedCorpus(
            tuple(
                PreparedSource(
                    listing.source.name,
                    listing.source.weight,
                    _prepare_source(spec, listing, tokenizer, say),
                )
                for listing in listings
            )
        )
    if not corpus.heldout():
        raise UserError(
            f"corpus: no held-out documents: heldout_fraction {spec.heldout_fraction:g} draws none "
            "that is at most 20% of them: nothing could be evaluated; raise it, or split the "
            "corpus into more documents"
        )
    return corpus


def _prepare_source(
    spec: PipelineSpec, listing: Listing, tokenizer: NamedEncoding, say: Say
) -> TokenBlocks:
    """One source's token blocks. Only one process at a time works at a listing."""
    name = listing.source.name
    work = tokens_directory(spec) / "work" / listing.key
    with _alone(work.with_suffix(".lock"), f"prepare: {name}", say):
        found = find_blocks(spec, listing)
        if found is not None:
            say(f"prepare: {name}: token blocks {found.fingerprint} are there, nothing to do")
            return found
        shards = _encode(listing, tokenizer.encoding, work / "shards", say)
        if list_source(listing.source.corpus) != listing.files:
            shutil.rmtree(work)
            raise UserError(
                f"corpus: {_place(listing.source.corpus)} changed while it was read; nothing was "
                "kept; run again when it is at rest"
            )
        surveyed = survey(shards, tokenizer.encoding.dtype, spec.heldout_fraction)
        _check_training_documents(surveyed, spec.heldout_fraction)
        _say_skipped(surveyed, name, say)
        identity = tokens_identity(
            documents_sha256=surveyed.documents_sha256,
            heldout_fraction=spec.heldout_fraction,
            tokenizer_sha256=tokenizer.sha256,
            eos_id=tokenizer.encoding.eos_id,
        )
        target = tokens_directory(spec) / fingerprint(identity)
        if not target.exists():
            new = work / target.name
            _assemble(new, identity, tokenizer.encoding, listing, surveyed)
            for leftover in new.rglob(".*"):  # of a killed call
                leftover.unlink()
            try:
                new.rename(target)
            except OSError:
                if not target.exists():  # else another listing of the same documents was faster
                    raise
        shutil.rmtree(work)
        record_prepared(spec, listing, target.name)
    blocks = open_token_blocks(target)
    if surveyed.num_drawn == len(surveyed.split.returned):
        say(
            f"prepare: {name}: none of its documents is held out, so no held-out loss will tell "
            f"of it: heldout_fraction {spec.heldout_fraction:g} drew {surveyed.num_drawn:,}, each "
            "more than 20% of them"
        )
    say(
        f"prepare: {name}: {blocks.num_tokens:,} training tokens in {len(blocks.blocks):,} "
        f"blocks, {surveyed.num_documents - surveyed.num_training:,} documents held out, in "
        f"{target}"
    )
    return blocks


def _encode(listing: Listing, encoding: Encoding, directory: Path, say: Say) -> tuple[Path, ...]:
    """Every shard of a source, committed: those that are there already and the others."""
    shards = plan_shards(listing.files, listing.source.corpus)
    missing = [shard for shard in shards if not shard.path(directory).exists()]
    if len(missing) < len(shards):
        say(
            f"prepare: {listing.source.name}: {len(shards) - len(missing):,} of {len(shards):,} "
            "shards are there, going on"
        )
    encode = partial(
        _encode_one, corpus=listing.source.corpus, encoding=encoding, directory=directory
    )
    total = sum(shard.num_bytes for shard in missing)
    done = text_bytes = num_tokens = 0
    start = said = time.monotonic()
    for shard, result in _in_parallel(encode, missing):
        done += shard.num_bytes
        text_bytes += result["num_bytes"]
        num_tokens += result["num_tokens"]
        now = time.monotonic()
        if now - said >= SAY_SECONDS:
            said, seconds = now, now - start
            left = seconds / done * (total - done) if done else 0
            say(
                f"prepare: {listing.source.name}: {done / 1e6:.0f} of {total / 1e6:.0f} MB, "
                f"{text_bytes / seconds / 1e6:.1f} MB/s, {num_tokens / seconds / 1e6:.2f} Mtok/s, "
                f"about {left:.0f} s left"
            )
    return tuple(shard.path(directory) for shard in shards)


def _assemble(
    directory: Path,
    identity: dict[str, object],
    encoding: Encoding,
    listing: Listing,
    surveyed: Survey,
) -> None:
    """Blocks, held-out documents, tokenizer and, last, the manifest in ``directory``."""
    write_text(directory / "tokenizer.json", encoding.tokenizer_json)
    starts = list(range(0, surveyed.num_blocks, BLOCKS_PER_TASK))
    cut = partial(_cut_some, surveyed=surveyed, directory=directory / "blocks")
    runs = {start: result["blocks"] for start, result in _in_parallel(cut, starts)}
    heldout = write_heldout(surveyed, directory / "heldout.arrow")
    blocks = TokenBlocks(
        directory=directory,
        fingerprint=fingerprint(identity),
        dtype=surveyed.dtype,
        num_tokens=surveyed.num_tokens,
        vocab_size=encoding.vocab_size,
        eos_id=encoding.eos_id,
        returned=tuple(sorted(sha256.hex() for sha256 in surveyed.split.returned)),
        blocks=tuple(BlockFile(**block) for start in starts for block in runs[start]),
    )
    write_manifest(
        blocks,
        {
            "identity": identity,
            "source": _place(listing.source.corpus),
            "files": len(listing.files),
            "documents": surveyed.num_documents,
            "bytes": surveyed.num_bytes,
            "training_documents": surveyed.num_training,
            "heldout_documents": heldout.num_documents,
            "heldout_tokens": heldout.num_tokens,
            "heldout_duplicates_dropped": heldout.num_duplicates,
            "empty_skipped": surveyed.skipped.get(EMPTY, 0),
            "not_utf8_skipped": surveyed.skipped.get(NOT_UTF8, 0),
            "not_utf8_names": surveyed.skipped_names,
            "length_documents": surveyed.length_documents,
            "length_tokens": surveyed.length_tokens,
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("pyarrow", "ray", "tokenizers")},
            },
        },
    )


# ---- tasks


def _encode_one(
    shard: Shard, corpus: SourceCorpus, encoding: Encoding, directory: Path
) -> dict[str, Any]:
    return asdict(encode_shard(shard, corpus, encoding, directory))


def _cut_some(first: int, surveyed: Survey, directory: Path) -> dict[str, Any]:
    last = min(first + BLOCKS_PER_TASK, surveyed.num_blocks)
    return {"blocks": [asdict(block) for block in cut_blocks(surveyed, first, last, directory)]}


def _in_parallel(
    work: Callable[[Item], dict[str, Any]], items: Sequence[Item]
) -> Iterator[tuple[Item, dict[str, Any]]]:
    """Each item and its ``work``, on all CPUs of the cluster, as they finish.

    Raises UserError for a UserError or OSError of a task.
    """
    if not items:
        return
    plan = [
        pa.table({"place": [place], "item": [pickle.dumps(item)]})
        for place, item in enumerate(items)
    ]
    dataset = ray.data.from_blocks(plan).map_batches(
        partial(_results, work=work), batch_format="pyarrow", batch_size=None, num_cpus=1
    )
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in table.to_pylist():
            if row["error"] is not None:
                raise UserError(row["error"])
            yield items[row["place"]], json.loads(row["result"])


def _results(table: pa.Table, work: Callable[[Any], dict[str, Any]]) -> pa.Table:
    """A task: an error travels as a row, as an exception would come wrapped in Ray's traceback."""
    rows = []
    for given in table.to_pylist():
        row = {"place": given["place"], "result": None, "error": None}
        try:
            row["result"] = json.dumps(work(pickle.loads(given["item"])))
        except UserError as error:
            row["error"] = str(error)
        except OSError as error:
            row["error"] = (
                f"{error.filename or 'corpus'}: {error.strerror or error}; what is prepared so far "
                "is kept: mend it and run the same command again"
            )
        rows.append(row)
    schema = pa.schema({"place": pa.int64(), "result": pa.string(), "error": pa.string()})
    return pa.Table.from_pylist(rows, schema=schema)


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Keep Ray Data's notes on each execution, but not its warnings, off the terminal."""
    levels = {
        "ray.data": logging.WARNING,
        "ray.data._internal.progress": logging.ERROR,  # warns that progress bars are off
    }
    before = {name: logging.getLogger(name).level for name in levels}
    try:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


# ---- around it


@contextmanager
def _alone(lock: Path, who: str, say: Say) -> Iterator[None]:
    """Wait until no other process holds ``lock``, and hold it; it goes with this process."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{who}: another glray prepares the same, waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_training_documents(surveyed: Survey, fraction: float) -> None:
    if surveyed.num_training == 0:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in surveyed.skipped.items())
        raise UserError(
            f"corpus: no training documents: heldout_fraction {fraction:g} draws "
            f"{surveyed.num_drawn:,} of {surveyed.num_documents:,} documents (skipped: "
            f"{counts or 'none'}); lower it or give more documents"
        )


def _place(corpus: SourceCorpus) -> str:
    if isinstance(corpus, StdlibCorpus):
        return f"the standard library of Python {platform.python_version()}"
    return ", ".join(corpus.paths)


def _say_skipped(surveyed: Survey, name: str, say: Say) -> None:
    not_utf8 = surveyed.skipped.get(NOT_UTF8, 0)
    if not_utf8:
        names = ", ".join(surveyed.skipped_names)
        more = " …" if not_utf8 > len(surveyed.skipped_names) else ""
        say(f"prepare: {name}: skipped {not_utf8:,} texts that are not UTF-8: {names}{more}")
    if surveyed.skipped.get(EMPTY):
        say(f"prepare: {name}: skipped {surveyed.skipped[EMPTY]:,} empty documents")
