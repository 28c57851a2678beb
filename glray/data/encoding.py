"""How a pipeline's documents become tokens: its tokenizer, given or trained on its own sources."""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from glray.data.blocks import token_dtype
from glray.data.documents import read_documents
from glray.data.heldout import is_drawn
from glray.data.listing import Listing
from glray.data.tokenizer import EOS_TOKEN, load_tokenizer, train_bpe, vocab_size
from glray.errors import UserError
from glray.files import write_text
from glray.spec.corpus import BpeTokenizer
from glray.spec.pipeline import PipelineSpec

Say = Callable[[str], None]


@dataclass(frozen=True)
class Encoding:
    """How a document becomes tokens."""

    tokenizer_json: str
    vocab_size: int
    eos_id: int

    @property
    def dtype(self) -> str:
        """``uint16`` or ``uint32``."""
        return token_dtype(self.vocab_size)


@dataclass(frozen=True)
class NamedEncoding:
    """An encoding, and the hash of the ``tokenizer.json`` by which its tokens are known."""

    encoding: Encoding
    sha256: str


def content_sha256(content: str | np.ndarray) -> bytes:
    """The hash that stands for a document: of its UTF-8 text, or of its ids as little-endian
    uint32."""
    encoded = content.encode() if isinstance(content, str) else content.astype("<u4").tobytes()
    return hashlib.sha256(encoded).digest()


def settle_encoding(
    spec: PipelineSpec, listings: tuple[Listing, ...], directory: Path, say: Say
) -> NamedEncoding:
    """That of the declared tokenizer, or of a BPE trained once for these listings and kept in
    ``directory``. Raises UserError."""
    if not isinstance(spec.tokenizer, BpeTokenizer):
        loaded = load_tokenizer(spec.tokenizer)
        encoding = Encoding(loaded.tokenizer.to_str(), vocab_size(loaded.tokenizer), loaded.eos_id)
        return NamedEncoding(encoding, loaded.sha256)
    path = directory / f"{listings[0].tokenizer_key}.json"
    if not path.exists():
        write_text(path, _train(spec, listings, say).to_str())
    content = path.read_text(encoding="utf-8")
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # the library raises nothing narrower
        raise UserError(
            f"{path}: damaged, it is no tokenizer ({error}); delete it, and the same command "
            "trains it again"
        ) from None
    eos_id = tokenizer.token_to_id(EOS_TOKEN)
    assert eos_id is not None
    encoding = Encoding(content, vocab_size(tokenizer), eos_id)
    return NamedEncoding(encoding, hashlib.sha256(content.encode()).hexdigest())


def _train(spec: PipelineSpec, listings: tuple[Listing, ...], say: Say) -> Tokenizer:
    """A BPE trained on the first megabytes that are not drawn, in equal parts from each source."""
    assert isinstance(spec.tokenizer, BpeTokenizer)
    limit = spec.tokenizer.train_megabytes * 10**6 // len(listings)
    num_bytes = 0

    def texts() -> Iterator[str]:
        nonlocal num_bytes
        for listing in listings:
            for text, size in _undrawn(listing, spec.heldout_fraction, limit):
                num_bytes += size
                yield text

    start = time.monotonic()
    tokenizer = train_bpe(texts(), spec.tokenizer.vocab_size)
    say(
        f"prepare: trained a byte-level BPE of {vocab_size(tokenizer):,} entries on "
        f"{num_bytes / 1e6:.1f} MB in {time.monotonic() - start:.1f} s"
    )
    return tokenizer


def _undrawn(listing: Listing, fraction: float, limit: int) -> Iterator[tuple[str, int]]:
    """A source's first texts that are not drawn and their bytes, until they are ``limit``."""
    corpus = listing.source.corpus
    num_bytes = 0
    for item in read_documents(listing.files, corpus):
        if num_bytes >= limit:
            return
        if not isinstance(item.content, str):
            raise UserError(
                f"{item.name}: holds token ids, on which no tokenizer can be trained; declare the "
                "tokenizer.json that made them, TokenizerFile(path=…)"
            )
        sha256 = np.frombuffer(content_sha256(item.content), dtype=np.uint8).reshape(1, 32)
        if not is_drawn(sha256, fraction)[0]:
            size = len(item.content.encode())
            num_bytes += size
            yield item.content, size
