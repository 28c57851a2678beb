"""Documents as Arrow rows: what a task of ``prepare`` does, without Ray.

A row is a document, or says why there is none: ``skipped``, or an ``error`` that a person can
mend. An error travels as a row because an exception would leave a task wrapped in Ray's traceback.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from glray.data.blocks import token_dtype
from glray.data.corpora import Document, Skipped, read_documents
from glray.data.heldout import Split
from glray.data.tokenizer import encode
from glray.errors import UserError
from glray.spec.corpus import CorpusSpec

TABLE_BYTES = 4 * 2**20
"""Documents travel and are encoded in tables of about this many bytes of text."""

ROWS = pa.schema(
    {
        "name": pa.string(),
        "text": pa.large_string(),
        "sha256": pa.string(),
        "num_bytes": pa.int64(),
        "skipped": pa.string(),
        "error": pa.string(),
    }
)


@dataclass(frozen=True)
class Encoding:
    """How documents become tokens."""

    tokenizer_json: str
    vocab_size: int
    eos_id: int
    split: Split

    @property
    def dtype(self) -> str:
        """``uint16`` or ``uint32``."""
        return token_dtype(self.vocab_size)


def read_rows(plan: pa.Table, corpus: CorpusSpec) -> Iterator[pa.Table]:
    """Tables of ``ROWS`` for the files in the column ``path`` of ``plan``, in order.

    An error ends them: its row is the last.
    """
    rows: list[dict[str, Any]] = []
    num_bytes = 0
    path = ""
    try:
        for path in plan.column("path").to_pylist():
            for item in read_documents(Path(path), corpus):
                rows.append(_row(item))
                num_bytes += rows[-1].get("num_bytes", 0)
                if num_bytes >= TABLE_BYTES:
                    yield pa.Table.from_pylist(rows, schema=ROWS)
                    rows, num_bytes = [], 0
    except UserError as error:
        rows.append({"name": path, "error": str(error)})
    except OSError as error:
        rows.append({"name": path, "error": f"{path}: cannot be read: {error.strerror}"})
    yield pa.Table.from_pylist(rows, schema=ROWS)


def encode_rows(rows: pa.Table, encoding: Encoding) -> pa.Table:
    """The documents among ``rows``, with ``tokens`` in place of ``text``; and the errors.

    EOS ends the tokens of a training document, not those of a held-out one.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a task has one core
    rows = rows.filter(pc.is_null(rows.column("skipped")))
    texts = [text or "" for text in rows.column("text").to_pylist()]  # an error has none
    tokens = encode(_tokenizer(encoding.tokenizer_json), texts)
    for ids, sha256 in zip(tokens, rows.column("sha256").to_pylist(), strict=True):
        if sha256 and not encoding.split.is_heldout(sha256):
            ids.append(encoding.eos_id)
    kind = pa.list_(pa.type_for_alias(encoding.dtype))
    return rows.drop_columns(["text", "skipped"]).append_column("tokens", pa.array(tokens, kind))


def _row(item: Document | Skipped) -> dict[str, Any]:
    if isinstance(item, Skipped):
        return {"name": item.name, "skipped": item.reason}
    content = item.text.encode()
    return {
        "name": item.name,
        "text": item.text,
        "sha256": hashlib.sha256(content).hexdigest(),
        "num_bytes": len(content),
    }


@lru_cache(maxsize=1)
def _tokenizer(tokenizer_json: str) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json)
