"""Where the text comes from and how it becomes tokens."""

from typing import Annotated, Literal

from pydantic import Field

from glray.spec.base import Spec


class _Corpus(Spec):
    heldout_fraction: float = Field(default=0.05, gt=0, lt=1)
    """Share of the documents held out for evaluation, chosen by a hash of their content. Of those
    drawn, a document that is more than 20% of the held-out bytes goes back to training."""


class StdlibCorpus(_Corpus):
    """The running Python's own standard library: real text that needs no download."""

    kind: Literal["stdlib"] = "stdlib"


class TextCorpus(_Corpus):
    """Plain UTF-8 text files, one document each."""

    kind: Literal["text"] = "text"
    paths: tuple[str, ...] = Field(min_length=1)
    """Files, folders (searched for ``*.txt``) or globs."""


class JsonlCorpus(_Corpus):
    """JSON Lines files, one document a line."""

    kind: Literal["jsonl"] = "jsonl"
    paths: tuple[str, ...] = Field(min_length=1)
    """Files, folders (searched for ``*.jsonl``) or globs."""
    column: str = "text"
    """The key that holds a document's text."""


class ParquetCorpus(_Corpus):
    """Parquet files, one document a row."""

    kind: Literal["parquet"] = "parquet"
    paths: tuple[str, ...] = Field(min_length=1)
    """Files, folders (searched for ``*.parquet``) or globs."""
    column: str = "text"
    """The column that holds a document's text."""


CorpusSpec = Annotated[
    StdlibCorpus | TextCorpus | JsonlCorpus | ParquetCorpus, Field(discriminator="kind")
]


class BpeTokenizer(Spec):
    """A byte-level BPE trained on the corpus itself."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: int = Field(ge=257, le=1_000_000)
    """Entries of the vocabulary, the end-of-document token included (257 is bytes alone)."""
    train_megabytes: int = Field(default=64, ge=1)
    """The tokenizer learns from the first this many megabytes (10^6 bytes) of training text."""


class TokenizerFile(Spec):
    """A ``tokenizer.json`` of the ``tokenizers`` library."""

    kind: Literal["file"] = "file"
    path: str
    """The ``tokenizer.json``."""
    eos_token: str = "<|endoftext|>"
    """The token of its vocabulary that ends each document."""


TokenizerSpec = Annotated[BpeTokenizer | TokenizerFile, Field(discriminator="kind")]
