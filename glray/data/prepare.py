"""From a corpus to token blocks, through Ray Data.

The corpus is streamed twice. The first pass hashes each document: their sequence names the tokens
(so a corpus seen before under other names ends here), and says which documents are held out. The
second reads again, encodes, and writes blocks in the corpus's order. The driver holds one block
and the hashes of held-out documents, never the corpus; the tokenizer learns from a stream too.

Ray's cost is per task (about 50 ms), so a task reads files of a few megabytes together.
"""

import hashlib
import logging
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray.data
from tokenizers import Tokenizer

from glray.data.blocks import (
    BlockFile,
    BlockWriter,
    TokenBlocks,
    open_token_blocks,
    write_manifest,
)
from glray.data.corpora import EMPTY, Document, list_files, read_documents
from glray.data.heldout import HeldoutWriter, Split, is_heldout, return_oversized
from glray.data.listing import (
    find_prepared,
    listing_key,
    record_prepared,
    tokens_directory,
    wait_for_clock_tick,
)
from glray.data.rows import TABLE_BYTES, Encoding, encode_rows, read_rows
from glray.data.tokenizer import EOS_TOKEN, load_tokenizer, train_bpe, vocab_size
from glray.errors import UserError
from glray.spec.corpus import BpeTokenizer, CorpusSpec, StdlibCorpus, TokenizerSpec
from glray.spec.identity import fingerprint, tokens_identity
from glray.spec.pipeline import PipelineSpec

__all__ = ["find_prepared", "prepare"]

Say = Callable[[str], None]

READ_BYTES = 2 * 2**20
"""One task reads files until they are this many bytes together."""
READ_CPUS = 0.5
"""A reading task's share of a core. Were it an encoding task's 1, Ray would fuse the two, and one
core would encode a corpus of one large file."""
NAMES_SHOWN = 10
"""Skipped texts that the manifest names."""


@dataclass(frozen=True)
class Survey:
    """What the first pass learns of a corpus."""

    split: Split
    documents_sha256: str
    num_documents: int
    num_bytes: int
    num_empty: int
    not_utf8: list[str]
    """Names, in order."""


@dataclass(frozen=True)
class Written:
    """What the second pass wrote."""

    blocks: tuple[BlockFile, ...]
    num_heldout: int
    num_heldout_tokens: int
    num_duplicates: int
    """Held-out documents left out because an equal one is there."""

    @property
    def num_tokens(self) -> int:
        """Of the training stream."""
        return sum(block.num_tokens for block in self.blocks)


def prepare(spec: PipelineSpec, say: Say) -> TokenBlocks:
    """The token blocks of the pipeline's corpus: written, or found where the same exist.

    Ray must be initialised. ``say`` gets a few lines of progress. Raises UserError; upon any
    failure nothing half-written stays behind.
    """
    files = list_files(spec.corpus)
    wait_for_clock_tick(files)
    key = listing_key(spec)
    num_bytes = sum(path.stat().st_size for path in files)
    say(f"prepare: {len(files):,} files, {num_bytes / 1e6:.1f} MB from {_source(spec.corpus)}")
    loaded = None if isinstance(spec.tokenizer, BpeTokenizer) else load_tokenizer(spec.tokenizer)
    with _quiet_ray_data():
        survey = _survey(files, spec.corpus)
        _say_skipped(survey, say)
        identity = tokens_identity(
            spec.tokenizer,
            heldout_fraction=spec.corpus.heldout_fraction,
            documents_sha256=survey.documents_sha256,
            tokenizer_sha256=_file_sha256(spec.tokenizer),
        )
        target = tokens_directory(spec) / fingerprint(identity)
        if not target.exists():
            tokenizer, eos_id = loaded or _train(files, spec, survey.split, say)
            encoding = Encoding(tokenizer.to_str(), vocab_size(tokenizer), eos_id, survey.split)
            with _new_directory(target) as directory:
                written = _write(directory, files, spec.corpus, survey, encoding)
                _write_manifest(directory, identity, encoding, spec.corpus, survey, written)
            say(
                f"prepare: {written.num_tokens:,} training tokens in {len(written.blocks):,} "
                f"blocks, {written.num_heldout:,} held-out documents "
                f"({written.num_heldout_tokens:,} tokens) in {target}"
            )
    record_prepared(spec, key, target.name)
    return open_token_blocks(target)


def _survey(files: list[Path], corpus: CorpusSpec) -> Survey:
    """The first pass. Raises UserError if either side of the split has no documents."""
    digest = hashlib.sha256()
    drawn: dict[str, int] = {}  # bytes of each content
    not_utf8: list[str] = []
    num_documents = num_bytes = num_empty = num_training = 0
    for rows in _tables(_documents(files, corpus).drop_columns(["text"])):
        for row in rows.to_pylist():
            if row["skipped"] == EMPTY:
                num_empty += 1
            elif row["skipped"]:
                not_utf8.append(row["name"])
            else:
                digest.update(bytes.fromhex(row["sha256"]))
                num_documents += 1
                num_bytes += row["num_bytes"]
                if is_heldout(row["sha256"], corpus.heldout_fraction):
                    drawn[row["sha256"]] = row["num_bytes"]
                else:
                    num_training += 1
    split = Split(corpus.heldout_fraction, return_oversized(drawn))
    survey = Survey(split, digest.hexdigest(), num_documents, num_bytes, num_empty, not_utf8)
    _check_sides(survey, num_training, len(drawn))
    return survey


def _check_sides(survey: Survey, num_training: int, num_drawn: int) -> None:
    split = survey.split
    counts = (
        f"heldout_fraction {split.fraction:g} draws {num_drawn:,} of {survey.num_documents:,} "
        f"documents ({survey.num_empty:,} empty and {len(survey.not_utf8):,} not UTF-8 are skipped)"
    )
    if num_training + len(split.returned) == 0:
        raise UserError(f"corpus: no training documents: {counts}; lower it or give more documents")
    if num_drawn == len(split.returned):
        returned = ", too few for each to be at most 20% of their bytes" if num_drawn else ""
        raise UserError(
            f"corpus: no held-out documents: {counts}{returned}: nothing could be evaluated; raise "
            "heldout_fraction or split the corpus into more documents"
        )


def _train(files: list[Path], spec: PipelineSpec, split: Split, say: Say) -> tuple[Tokenizer, int]:
    """A BPE trained on the first megabytes of training documents, and its EOS id."""
    assert isinstance(spec.tokenizer, BpeTokenizer)
    limit = spec.tokenizer.train_megabytes * 10**6
    num_bytes = 0

    def texts() -> Iterator[str]:
        nonlocal num_bytes
        for item in (item for path in files for item in read_documents(path, spec.corpus)):
            if num_bytes >= limit:
                return
            if not isinstance(item, Document):
                continue
            content = item.text.encode()
            if not split.is_heldout(hashlib.sha256(content).hexdigest()):
                num_bytes += len(content)
                yield item.text

    start = time.monotonic()
    tokenizer = train_bpe(texts(), spec.tokenizer.vocab_size)
    say(
        f"prepare: trained a byte-level BPE of {vocab_size(tokenizer):,} entries on "
        f"{num_bytes / 1e6:.1f} MB in {time.monotonic() - start:.1f} s"
    )
    eos_id = tokenizer.token_to_id(EOS_TOKEN)
    assert eos_id is not None
    return tokenizer, eos_id


def _write(
    directory: Path, files: list[Path], corpus: CorpusSpec, survey: Survey, encoding: Encoding
) -> Written:
    """The second pass: tokenizer, blocks and held-out documents. Raises UserError if the corpus is
    not what the first pass read."""
    (directory / "tokenizer.json").write_text(encoding.tokenizer_json, encoding="utf-8")
    digest = hashlib.sha256()
    seen: set[str] = set()  # held-out contents
    num_heldout_tokens = num_duplicates = 0
    blocks = BlockWriter(directory / "blocks", encoding.dtype)
    with HeldoutWriter(directory / "heldout.arrow", encoding.dtype) as heldout_file:
        for rows in _tables(_encoded(files, corpus, encoding)):
            hashes = rows.column("sha256").to_pylist()
            digest.update(bytes.fromhex("".join(hashes)))
            training, heldout = [], []
            for row, sha256 in enumerate(hashes):
                if not encoding.split.is_heldout(sha256):
                    training.append(row)
                elif sha256 in seen:
                    num_duplicates += 1
                else:
                    seen.add(sha256)
                    heldout.append(row)
            blocks.append(_flat_tokens(_take(rows, training)))
            num_heldout_tokens += len(_flat_tokens(_take(rows, heldout)))
            heldout_file.append(_take(rows, heldout))
    if digest.hexdigest() != survey.documents_sha256:
        raise UserError(
            f"corpus: {_source(corpus)} changed while it was read, or another machine of the "
            "cluster sees other files; nothing was written; run again when it is at rest"
        )
    return Written(blocks.finish(), len(seen), num_heldout_tokens, num_duplicates)


def _take(rows: pa.Table, which: list[int]) -> pa.Table:
    return rows.take(pa.array(which, pa.int64()))


def _flat_tokens(rows: pa.Table) -> np.ndarray:
    return rows.column("tokens").combine_chunks().flatten().to_numpy()


def _write_manifest(
    directory: Path,
    identity: dict[str, object],
    encoding: Encoding,
    corpus: CorpusSpec,
    survey: Survey,
    written: Written,
) -> None:
    blocks = TokenBlocks(
        directory=directory,
        fingerprint=fingerprint(identity),
        dtype=encoding.dtype,
        num_tokens=written.num_tokens,
        vocab_size=encoding.vocab_size,
        eos_id=encoding.eos_id,
        blocks=written.blocks,
    )
    provenance = {
        "identity": identity,
        "source": _source(corpus),
        "source_bytes": survey.num_bytes,
        "documents": survey.num_documents,
        "heldout_documents": written.num_heldout,
        "heldout_tokens": written.num_heldout_tokens,
        "heldout_duplicates_dropped": written.num_duplicates,
        "empty_skipped": survey.num_empty,
        "not_utf8_skipped": len(survey.not_utf8),
        "not_utf8_names": survey.not_utf8[:NAMES_SHOWN],
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("pyarrow", "ray", "tokenizers")},
        },
    }
    write_manifest(blocks, provenance)


def _documents(files: list[Path], corpus: CorpusSpec) -> ray.data.Dataset:
    """The corpus as rows (``glray.data.rows.ROWS``) in order, streamed."""
    plan = [pa.table({"path": [str(path) for path in group]}) for group in _groups(files)]
    dataset = ray.data.from_blocks(plan).map_batches(
        partial(read_rows, corpus=corpus),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=READ_CPUS,
    )
    context = dataset.context
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.target_max_block_size = TABLE_BYTES
    return dataset


def _encoded(files: list[Path], corpus: CorpusSpec, encoding: Encoding) -> ray.data.Dataset:
    return _documents(files, corpus).map_batches(
        partial(encode_rows, encoding=encoding),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=1,
    )


def _groups(files: list[Path]) -> Iterator[list[Path]]:
    """Runs of files that are ``READ_BYTES`` together, or one larger file."""
    group: list[Path] = []
    num_bytes = 0
    for path in files:
        size = path.stat().st_size
        if group and num_bytes + size > READ_BYTES:
            yield group
            group, num_bytes = [], 0
        group.append(path)
        num_bytes += size
    yield group


def _tables(dataset: ray.data.Dataset) -> Iterator[pa.Table]:
    """The dataset's tables in order. Raises UserError for a row that is an error."""
    for rows in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for error in rows.column("error").drop_null().to_pylist():
            raise UserError(error)
        yield rows


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


@contextmanager
def _new_directory(target: Path) -> Iterator[Path]:
    """A directory that becomes ``target`` when the block ends without an error, if another run has
    not made the same in between."""
    directory = target.with_name(f".partial-{uuid.uuid4().hex[:8]}")
    directory.mkdir(parents=True)
    try:
        yield directory
        try:
            directory.rename(target)
        except OSError:
            if not target.exists():
                raise
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _file_sha256(tokenizer: TokenizerSpec) -> str | None:
    if isinstance(tokenizer, BpeTokenizer):
        return None
    return hashlib.sha256(Path(tokenizer.path).expanduser().read_bytes()).hexdigest()


def _source(corpus: CorpusSpec) -> str:
    if isinstance(corpus, StdlibCorpus):
        return f"the standard library of Python {platform.python_version()}"
    return ", ".join(corpus.paths)


def _say_skipped(survey: Survey, say: Say) -> None:
    if survey.not_utf8:
        names = ", ".join(survey.not_utf8[:NAMES_SHOWN])
        more = " …" if len(survey.not_utf8) > NAMES_SHOWN else ""
        say(f"prepare: skipped {len(survey.not_utf8):,} texts that are not UTF-8: {names}{more}")
    if survey.num_empty:
        say(f"prepare: skipped {survey.num_empty:,} empty documents")
