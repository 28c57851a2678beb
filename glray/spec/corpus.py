"""Where the text comes from and how it becomes tokens."""

from typing import Annotated, Any, Literal

from pydantic import Field

from glray.spec.base import Count, Integer, Name, Spec, check_unique


class StdlibCorpus(Spec):
    """The running Python's own standard library: real text that needs no download."""

    kind: Literal["stdlib"] = "stdlib"


class _Files(Spec):
    paths: tuple[str, ...] = Field(min_length=1)
    """Files, folders (searched for files of the kind, except hidden ones) or globs; local, or
    URIs such as ``s3://bucket/folder``."""


class TextCorpus(_Files):
    """Plain UTF-8 text files (``*.txt``, ``*.txt.gz``, ``*.txt.zst``), one document each; lines
    that are ``<|endoftext|>`` part a file into several."""

    kind: Literal["text"] = "text"


class _Columns(_Files):
    column: str = "text"
    """The column with a document's text, or with its token ids, a list of integers that is used
    as it is (``tokenizer`` is then the ``tokenizer.json`` that made them)."""


class JsonlCorpus(_Columns):
    """JSON Lines files (``*.jsonl`` or ``*.json``, also with ``.gz`` or ``.zst``), one document a
    line; lines without the column are skipped."""

    kind: Literal["jsonl"] = "jsonl"


class ParquetCorpus(_Columns):
    """Parquet files (``*.parquet``), one document a row."""

    kind: Literal["parquet"] = "parquet"


class ArrowCorpus(_Columns):
    """Arrow IPC files or streams (``*.arrow``), one document a row: also what ``save_to_disk`` of
    Hugging Face ``datasets`` writes."""

    kind: Literal["arrow"] = "arrow"


SourceCorpus = Annotated[
    StdlibCorpus | TextCorpus | JsonlCorpus | ParquetCorpus | ArrowCorpus,
    Field(discriminator="kind"),
]


class SourceSpec(Spec):
    """One source of a mixture."""

    name: Name
    """The source's name in records and tables."""
    weight: Integer = Field(ge=1, le=1000)
    """Chunks of this source in a cycle of the order: weights 3 and 1 take three chunks of the one
    source for each of the other. Another weight is another order of the same token blocks."""
    corpus: SourceCorpus
    """Where its text comes from."""


class MixtureCorpus(Spec):
    """Several sources; each has its own token blocks and its own epochs."""

    kind: Literal["mixture"] = "mixture"
    sources: tuple[SourceSpec, ...] = Field(min_length=1)
    """The sources, in the order in which a cycle takes them."""

    def model_post_init(self, context: Any) -> None:
        names = [source.name for source in self.sources]
        check_unique("sources", "name", names, "their records could not be told apart")


CorpusSpec = Annotated[
    StdlibCorpus | TextCorpus | JsonlCorpus | ParquetCorpus | ArrowCorpus | MixtureCorpus,
    Field(discriminator="kind"),
]


class BpeTokenizer(Spec):
    """A byte-level BPE trained on the corpus itself."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: Integer = Field(ge=257, le=1_000_000)
    """Entries of the vocabulary, the end-of-document token included (257 is bytes alone)."""
    train_megabytes: Count = 64
    """Megabytes (10^6 bytes) of training text that the tokenizer learns from: the first of each
    source, in equal parts."""


class TokenizerFile(Spec):
    """A ``tokenizer.json`` of the ``tokenizers`` library."""

    kind: Literal["file"] = "file"
    path: str
    """Path of the ``tokenizer.json``."""
    eos_token: str = "<|endoftext|>"
    """The token of its vocabulary that ends each document."""


TokenizerSpec = Annotated[BpeTokenizer | TokenizerFile, Field(discriminator="kind")]
