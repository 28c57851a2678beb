"""How a pipeline's documents become tokens: its tokenizer, given or trained on its own sources."""

import time
from collections.abc import Callable, Iterator

import numpy as np
from tokenizers import Tokenizer

from glray.data.blocks.heldout import is_drawn, return_oversized
from glray.data.blocks.snapshot import SourceSnapshot
from glray.data.blocks.tokenizer import (
    EOS_TOKEN,
    Encoding,
    encoding_of,
    load_tokenizer,
    train_bpe,
    vocab_size,
)
from glray.data.read.documents import Document, read_source
from glray.errors import UserError
from glray.files import AnyPath, write_text
from glray.progress import working
from glray.spec.corpus import BpeTokenizer
from glray.spec.pipeline import PipelineSpec

Say = Callable[[str], None]


def resolve_encoding(
    spec: PipelineSpec, snapshots: tuple[SourceSnapshot, ...], directory: AnyPath, say: Say
) -> Encoding:
    """The declared tokenizer's, or that of a BPE trained once for these snapshots and kept in
    ``directory``. Raises UserError."""
    if not isinstance(spec.tokenizer, BpeTokenizer):
        return load_tokenizer(spec.tokenizer)
    path = directory / f"{snapshots[0].tokenizer_key}.json"
    if not path.exists():
        write_text(path, _train(spec.tokenizer, spec.heldout_fraction, snapshots, say).to_str())
    where = f"{path}: damaged (delete it to train it again): it"
    return encoding_of(path.read_bytes(), EOS_TOKEN, where)


def _train(
    declared: BpeTokenizer, fraction: float, snapshots: tuple[SourceSnapshot, ...], say: Say
) -> Tokenizer:
    """A BPE trained on the first megabytes that are not drawn, in equal parts from each source."""
    limit = declared.train_megabytes * 10**6 // len(snapshots)
    num_bytes = 0

    def texts() -> Iterator[str]:
        nonlocal num_bytes
        for snapshot in snapshots:
            for text in _training_texts(snapshot, fraction, limit):
                num_bytes += len(text.encode())
                yield text

    start = time.monotonic()
    with working(f"prepare: training a byte-level BPE of {declared.vocab_size:,} entries"):
        tokenizer = train_bpe(texts(), declared.vocab_size)
    num_entries = vocab_size(tokenizer)
    fewer = f" ({declared.vocab_size:,} need more text)"
    say(
        f"prepare: trained a byte-level BPE of {num_entries:,} entries"
        f"{fewer if num_entries < declared.vocab_size else ''} on "
        f"{num_bytes / 1e6:.1f} MB in {time.monotonic() - start:.1f} s"
    )
    return tokenizer


def _training_texts(snapshot: SourceSnapshot, fraction: float, limit: int) -> Iterator[str]:
    """A source's first texts that are not drawn, until they are ``limit`` bytes; and then, if it
    has no more and none of those that are drawn is held out whole, these too."""
    drawn: dict[bytes, int] = {}
    num_bytes = 0
    for sha256, text in _texts(snapshot):
        if num_bytes >= limit:
            return
        size = len(text.encode())
        if is_drawn(np.frombuffer(sha256, dtype=np.uint8).reshape(1, 32), fraction)[0]:
            drawn[sha256] = size
        else:
            num_bytes += size
            yield text
    if drawn and len(return_oversized(drawn)) == len(drawn):
        for sha256, text in _texts(snapshot):
            if sha256 in drawn and num_bytes < limit:
                num_bytes += len(text.encode())
                yield text


def _texts(snapshot: SourceSnapshot) -> Iterator[tuple[bytes, str]]:
    """A source's texts after their SHA-256. Raises UserError if it holds token ids."""
    for item in read_source(snapshot.files, snapshot.source.corpus):
        if not isinstance(item, Document):
            continue
        if not isinstance(item.content, str):
            raise UserError(
                f"{item.name}: holds token ids, which train no tokenizer; declare the one that "
                "made them as a TokenizerFile"
            )
        yield item.sha256, item.content
