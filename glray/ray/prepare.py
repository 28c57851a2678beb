"""From a corpus to token blocks, in Ray tasks: encode, scan, publish, check.

Each source is read once. Its shards are encoded in parallel, to committed files; the driver then
scans those in order, which names the tokens (so a source seen before under other names ends here)
and says which documents are held out; and files of blocks are cut in parallel under that name; a
manifest, written last, makes them count. At last the held-out documents of all sources are looked
up in the blocks, again in parallel: near-copies of training text are not scored. Nothing but small
records passes through Ray's object store, and the driver holds the hashes of held-out documents
and of their n-grams, never the corpus.

A call that is killed leaves committed files in ``tokens/work/<key of the source or check>``; the
next one goes on from them and ends with the same bytes, as a shard and a block are functions of the
source alone.
"""

import platform
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import ray
from ray.exceptions import RayTaskError

from glray.data.blocks.assembly import ShardScan, cut_file, scan_shards, write_heldout
from glray.data.blocks.encoding import Say, resolve_encoding
from glray.data.blocks.heldout import FEWEST_SPANS, SpanSplit
from glray.data.blocks.near_copies import (
    BlockRun,
    HeldoutCheck,
    check_heldout,
    find_ngrams,
    ngram_tokens,
    write_ngrams,
)
from glray.data.blocks.shards import encode_shard, plan_shards
from glray.data.blocks.snapshot import (
    SourceSnapshot,
    find_blocks,
    record_prepared,
    snapshot_sources,
    tokens_directory,
    wait_for_clock_tick,
)
from glray.data.blocks.token_blocks import (
    TokenBlocks,
    manifest_path,
    open_token_blocks,
    sizes_of_files,
    write_manifest,
)
from glray.data.blocks.tokenizer import Encoding
from glray.data.corpus import PreparedCorpus, corpus_of
from glray.data.read.documents import check_column
from glray.data.read.sources import list_source
from glray.errors import UserError
from glray.files import AnyPath, files_below, remove_tree, sole_writer, write_text
from glray.progress import advance, working
from glray.ray.cluster import free_cpus, require_cpu
from glray.report.formats import counted
from glray.spec.corpus import SourceCorpus, StdlibCorpus
from glray.spec.identity import fingerprint, tokens_identity
from glray.spec.pipeline import PipelineSpec
from glray.storage import storage_path

Item = TypeVar("Item")
Result = TypeVar("Result")

BLOCKS_PER_TASK = 16
"""That are searched for n-grams of held-out documents."""
MAX_WAITING_TASKS = 1024
"""Tasks that Ray holds at once, running or waiting for a CPU."""
PATIENCE_SECONDS = 5.0
"""How often a wait for a CPU says how many are free."""


def prepare(spec: PipelineSpec, say: Say) -> PreparedCorpus:
    """The token blocks of the pipeline's corpus: written, or found where the same exist.

    Ray must be initialised. ``say`` gets a few lines of progress. Raises UserError.
    """
    with working("prepare: listing the corpus"):
        snapshots = snapshot_sources(spec)
    wait_for_clock_tick(snapshots)
    for snapshot in snapshots:
        num_bytes = sum(file.num_bytes for file in snapshot.files)
        say(
            f"prepare: {snapshot.source.name}: {counted(len(snapshot.files), 'file')}, "
            f"{num_bytes / 1e6:.1f} MB from {_origin(snapshot.source.corpus)}{_left_out(snapshot)}"
        )
        check_column(snapshot.files, snapshot.source.corpus)
    require_cpu(spec.compute, say)
    encoding = resolve_encoding(spec, snapshots, tokens_directory(spec) / "tokenizers", say)
    corpus = corpus_of(
        spec, [_prepare_source(spec, snapshot, encoding, say) for snapshot in snapshots]
    )
    if not corpus.heldout():
        tokens = sum(source.blocks.num_tokens for source in corpus.sources)
        is_much = spec.heldout_fraction * (FEWEST_SPANS + 1) > FEWEST_SPANS  # no more spans fit
        raise UserError(
            f"corpus: no held-out documents: its {tokens:,} tokens do not have {FEWEST_SPANS} "
            "documents or spans to hold out that differ from each other and from the rest: nothing "
            f"could be evaluated; give more text{' or lower heldout_fraction' * is_much}"
        )
    check = _check(corpus, tokens_directory(spec) / "work", say)
    say(f"prepare: {check.sentence}")
    return corpus


def _prepare_source(
    spec: PipelineSpec, snapshot: SourceSnapshot, encoding: Encoding, say: Say
) -> TokenBlocks:
    """One source's token blocks. Only one process at a time works on a source."""

    def say_of(line: str) -> None:
        say(f"prepare: {snapshot.source.name}: {line}")

    def say_waiting() -> None:
        say_of("another glray process prepares the same, waiting for it")

    work = tokens_directory(spec) / "work" / snapshot.key
    with sole_writer(work.parent, lock=f"{work.name}.lock", say_waiting=say_waiting):
        found = find_blocks(spec, snapshot)
        if found is not None:
            remove_tree(work)  # of a call that was killed after it had recorded them
            say_of(f"token blocks {found.fingerprint} are there, nothing to do")
            return found
        shards = _encode(snapshot, encoding, work / "shards", say_of)
        what = f"prepare: {snapshot.source.name}"
        with working(f"{what}: listing the corpus again"):
            storage = str(storage_path(spec.compute))
            is_changed = list_source(snapshot.source.corpus, storage) != snapshot.files
        if is_changed:
            remove_tree(work)
            raise UserError(
                f"corpus: {_origin(snapshot.source.corpus)} changed while it was read; nothing was "
                "kept; run again when it no longer changes"
            )
        with working(f"{what}: scanning {len(shards):,} shards"):
            scan = scan_shards(shards, encoding, spec.heldout_fraction)
        _check_and_say(scan, say_of)
        with working(f"{what}: cutting token blocks", scan.num_blocks):
            blocks = _publish(spec, snapshot, encoding, scan, work, say_of)
        record_prepared(spec, snapshot, blocks.fingerprint)
        remove_tree(work)
    num_heldout = blocks.heldout_documents + blocks.heldout_duplicates_dropped
    say_of(
        f"{blocks.num_tokens:,} training tokens in {counted(blocks.num_blocks, 'block')}, "
        f"{num_heldout:,} {'spans' if blocks.heldout_span_tokens else 'documents'} held out, in "
        f"{blocks.directory}"
    )
    return blocks


def _encode(
    snapshot: SourceSnapshot, encoding: Encoding, directory: AnyPath, say: Say
) -> tuple[AnyPath, ...]:
    """Every shard of a source, committed: those that are there already and the others."""
    corpus = snapshot.source.corpus
    shards = plan_shards(snapshot.files, corpus)
    there = set(files_below(directory))
    missing = [shard for shard in shards if shard.path(directory).name not in there]
    if len(missing) < len(shards):
        say(f"{len(shards) - len(missing):,} of {len(shards):,} shards are there, going on")
    encode = partial(encode_shard, corpus=corpus, encoding=encoding, directory=directory)
    total = sum(shard.num_bytes for shard in missing)
    text_bytes = num_tokens = 0
    start = time.monotonic()
    with working(f"prepare: {snapshot.source.name}: encoding {total / 1e6:.1f} MB", total):
        for shard, (shard_bytes, shard_tokens) in _in_parallel(encode, missing):
            text_bytes += shard_bytes
            num_tokens += shard_tokens
            per_second = 1e-6 / (time.monotonic() - start)
            rates = f"{text_bytes * per_second:.1f} MB/s, {num_tokens * per_second:.2f} Mtok/s"
            # A long text is in the shard where it begins: those of its other parts are empty.
            advance(shard.num_bytes if shard_bytes else 0, note=rates if text_bytes else None)
    return tuple(shard.path(directory) for shard in shards)


def _publish(
    spec: PipelineSpec,
    snapshot: SourceSnapshot,
    encoding: Encoding,
    scan: ShardScan,
    work: AnyPath,
    say: Say,
) -> TokenBlocks:
    """The token blocks under the name that their content gives them."""
    identity = tokens_identity(
        documents_sha256=scan.documents_sha256,
        heldout_fraction=spec.heldout_fraction,
        tokenizer_sha256=encoding.sha256,
        eos_id=encoding.eos_id,
        heldout_spans=scan.split.identity if isinstance(scan.split, SpanSplit) else None,
    )
    target = tokens_directory(spec) / fingerprint(identity)

    def say_waiting() -> None:
        say("another glray process writes the same token blocks, waiting for it")

    # Another source may have the same documents, and so the same folder.
    with sole_writer(work.parent, lock=f"{target.name}.lock", say_waiting=say_waiting):
        if not manifest_path(target).exists():
            write_text(target / "tokenizer.json", encoding.tokenizer_json)
            write_heldout(scan, encoding, target / "heldout.arrow")
            index = _cut(scan, target, work / "index", encoding.dtype)
            blocks = TokenBlocks(
                **scan.stats.model_dump(),
                directory=target,
                fingerprint=target.name,
                dtype=encoding.dtype,
                num_tokens=scan.num_tokens,
                vocab_size=encoding.vocab_size,
                eos_id=encoding.eos_id,
                returned=tuple(sorted(sha256.hex() for sha256 in scan.split.returned)),
                identity=identity,
                source=_origin(snapshot.source.corpus),
                files=len(snapshot.files),
                versions={
                    "python": platform.python_version(),
                    **{name: version(name) for name in ("pyarrow", "ray", "tokenizers")},
                },
                file_bytes=sizes_of_files(target, scan.num_files),
            )
            if isinstance(target, Path):
                for leftover in target.rglob(".*"):  # of a killed call
                    leftover.unlink()
            write_manifest(blocks, index)
    return open_token_blocks(target)


def _check(corpus: PreparedCorpus, directory: AnyPath, say: Say) -> HeldoutCheck:
    """What of the held-out documents is in training text too. Only one process at a time looks."""

    def say_waiting() -> None:
        say("prepare: another glray process checks the held-out documents, waiting for it")

    work = directory / corpus.check_path.stem
    with sole_writer(directory, lock=f"{work.name}.lock", say_waiting=say_waiting):
        check = corpus.heldout_check()
        if check is None:
            what = "prepare: near-copies"
            runs = [
                BlockRun(source.blocks, first, BLOCKS_PER_TASK)
                for source in corpus.sources
                for first in range(0, source.blocks.num_blocks, BLOCKS_PER_TASK)
            ]
            there = set(files_below(work))
            missing = [run for run in runs if run.path(work).name not in there]
            with working(f"{what}: hashing n-grams"):
                documents = corpus.heldout()
                size, ngrams = ngram_tokens(documents), work / "ngrams.npy"
                if not ngrams.exists():
                    write_ngrams(documents, size, ngrams)
            find = partial(find_ngrams, ngrams=ngrams, size=size, directory=work)
            with working(f"{what}: looking into blocks", len(missing)):
                for _ in _in_parallel(find, missing):
                    advance(1)
            with working(f"{what}: comparing"):
                check = check_heldout(documents, size, ngrams, [run.path(work) for run in runs])
            check.write(corpus.check_path)
        remove_tree(work)  # it may be that of a killed call
    return check


def _cut(scan: ShardScan, directory: AnyPath, rows: AnyPath, dtype: str) -> pa.Table:
    """The index of a source's blocks, all of them committed in ``directory``."""
    work = partial(cut_file, scan=scan, directory=directory, rows=rows, dtype=dtype)
    cut = {}
    for number, index in _in_parallel(work, range(scan.num_files)):
        cut[number] = index
        advance(len(index))
    return pa.concat_tables([cut[number] for number in range(scan.num_files)])


# ---- tasks


def _in_parallel(
    work: Callable[[Item], Result], items: Collection[Item]
) -> Iterator[tuple[Item, Result]]:
    """Each item and its ``work``, on all CPUs of the cluster, as they finish.

    Raises UserError for a UserError or OSError of a task, after the others have ended.
    """
    if not items:
        return
    shared = ray.put(work)
    remaining = iter(items)
    waiting: dict[ray.ObjectRef, Item] = {}
    started: ray.ObjectRef | None = _started.remote()  # before the others, so it has the first CPU
    try:
        while True:
            for item in islice(remaining, MAX_WAITING_TASKS - len(waiting)):
                waiting[_task.remote(shared, item)] = item
            if not waiting:
                return
            if started is not None:
                _wait_for_a_cpu(started)
                started = None
            (done,), _ = ray.wait(list(waiting))
            yield waiting.pop(done), ray.get(done)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, OSError):
            raise UserError(
                f"{cause.filename or 'corpus'}: {cause.strerror or cause}; what is prepared so far "
                "is kept: fix that and run the same command again"
            ) from None
        raise (UserError(str(cause)) if isinstance(cause, UserError) else error) from None
    finally:
        for unfinished in waiting:
            ray.cancel(unfinished)
        if waiting:
            ray.wait(list(waiting), num_returns=len(waiting))


def _wait_for_a_cpu(started: ray.ObjectRef) -> None:
    """Return when the cluster has begun with the tasks."""
    with working("prepare: waiting for a free CPU"):
        while not ray.wait([started], timeout=PATIENCE_SECONDS)[0]:
            advance(note=free_cpus())


@ray.remote(num_cpus=1)
def _started() -> None:
    """Nothing: to be run is to have a CPU."""


@ray.remote(num_cpus=1)
def _task(work: Callable[[Item], Result], item: Item) -> Result:
    return work(item)


# ---- what is said


def _origin(corpus: SourceCorpus) -> str:
    if isinstance(corpus, StdlibCorpus):
        return f"the standard library of Python {platform.python_version()}"
    return ", ".join(corpus.paths)


def _left_out(snapshot: SourceSnapshot) -> str:
    return f" (left out: {', '.join(snapshot.left_out)})" if snapshot.left_out else ""


def _check_and_say(scan: ShardScan, say: Say) -> None:
    """Say what of a source is skipped or lost, and how text is held out. Raises UserError if
    nothing is trained."""
    stats, fraction = scan.stats, f"heldout_fraction {scan.split.fraction:g}"
    if stats.training_documents == 0:
        raise UserError(
            f"corpus: no training documents: {fraction} draws {scan.num_drawn:,} of "
            f"{stats.documents:,} documents (skipped: {stats.empty_skipped:,} empty, "
            f"{stats.not_utf8_skipped:,} not UTF-8, {stats.no_column_skipped:,} without the "
            f"column); {'lower it or ' if scan.num_drawn else ''}give more documents"
        )
    if stats.not_utf8_skipped:
        names = ", ".join(stats.not_utf8_names)
        more = " …" if stats.not_utf8_skipped > len(stats.not_utf8_names) else ""
        say(f"skipped {stats.not_utf8_skipped:,} texts that are not UTF-8: {names}{more}")
    if stats.empty_skipped:
        say(f"skipped {stats.empty_skipped:,} empty documents")
    if stats.no_column_skipped:
        say(f"skipped {stats.no_column_skipped:,} rows without the corpus's column")
    if stats.unknown_characters:
        most = ", ".join(f"{character!r} ({n:,})" for character, n in stats.most_unknown)
        say(
            f"the tokenizer has no token for {stats.unknown_characters:,} characters, which "
            f"neither training nor evaluation will see: {most}; give one that falls back to bytes"
        )
    if stats.heldout_span_tokens:
        share = 1 - scan.num_tokens / sum(scan.whole_tokens)
        over = ", each over 20% of their bytes" if scan.num_drawn else ""
        say(
            f"held out {stats.heldout_documents:,} spans of documents, of "
            f"{stats.heldout_span_tokens:,} tokens each ({share:.1%} of all tokens), as {fraction} "
            f"drew {scan.num_drawn:,} of {stats.documents:,} documents{over}: too few to hold out "
            "whole ones"
        )
    elif scan.num_drawn == len(scan.split.returned):
        say(
            "none of its documents is held out, so evaluation will not cover this source: too few "
            "of its spans differ from each other"
        )
