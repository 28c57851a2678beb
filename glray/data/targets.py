"""The fixed set of held-out target tokens that a pipeline's runs are scored on.

It is made of sequences of ``longest`` tokens from documents that are long enough, dealt round
after round (each document's first sequence, then each one's second …) until ``num_tokens`` are
reached. A document is cut into equal parts, one for each of its sequences, and a sequence starts
anywhere in its part, drawn by the document's hash: the heads of documents (licences, imports) are
not what their losses are about. At a shorter length every sequence is cut into windows, each its
own context: the targets stay the same, and no window crosses a document.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from tokenizers import Tokenizer

from glray.data.blocks.tokenizer import encode, token_num_bytes
from glray.data.corpus import PreparedCorpus
from glray.data.read.documents import Document, Skipped, check_column, read_source
from glray.data.read.sources import list_source
from glray.errors import UserError
from glray.spec.corpus import SourceCorpus
from glray.spec.training import EvaluationSpec

HELDOUT_SEQUENCES = 2
"""Sequences of a held-out document at most, so that a few long ones do not decide the losses."""

Tokens = tuple[bytes, np.ndarray]
"""A document's SHA-256 and its token ids."""


@dataclass(frozen=True)
class HeldoutTargets:
    """Sequences of held-out text: inputs ``[:, :-1]``, targets ``[:, 1:]``."""

    tokens: np.ndarray
    """int64[sequences, longest + 1]."""
    documents: np.ndarray
    """int64[sequences]: which document each comes from, numbered from 0 without gaps."""
    num_bytes: int
    """UTF-8 bytes that the targets stand for."""
    num_skipped: int = 0
    """Documents left out as they are empty, not UTF-8 or without the column."""

    @property
    def longest(self) -> int:
        """Target tokens of a sequence: the longest window that it can be scored in."""
        return self.tokens.shape[1] - 1

    @property
    def num_documents(self) -> int:
        """Documents that the sequences come from."""
        return int(self.documents.max()) + 1

    @property
    def document_tokens(self) -> list[int]:
        """Target tokens of each document."""
        return [int(count) * self.longest for count in np.bincount(self.documents)]

    @property
    def sha256(self) -> str:
        """Names the set: losses of two runs compare only on the same one."""
        return hashlib.sha256(self.tokens.tobytes()).hexdigest()

    @property
    def num_targets(self) -> int:
        """Target tokens."""
        return len(self.tokens) * self.longest


def heldout_targets(corpus: PreparedCorpus, evaluation: EvaluationSpec) -> HeldoutTargets:
    """The fixed set of a pipeline's evaluations: less than its ``num_tokens`` if the documents have
    no more. Raises UserError if none is long enough."""
    longest = max(evaluation.seq_lens)
    documents = (
        (bytes.fromhex(document.sha256), document.tokens) for document in corpus.scored_documents()
    )
    num_bytes = corpus.vocabulary.token_num_bytes()
    needs = f"evaluation.seq_lens: {longest} needs a held-out document of {longest + 1:,} tokens"
    at_least = 1 << (longest + 1).bit_length() - 1  # the power of two below
    trained = [source.blocks.at_least(at_least)[0] for source in corpus.sources]
    are_spans = any(source.blocks.heldout_span_tokens for source in corpus.sources)
    remedy = "lower the longest length"
    if sum(trained) or are_spans:  # else no training document is that long either
        remedy += " or raise heldout_fraction"
    wanted = max(1, evaluation.num_tokens // longest)
    return _dealt(documents, longest, wanted, HELDOUT_SEQUENCES, num_bytes, needs, remedy)


def document_targets(
    source: SourceCorpus, tokenizer: Tokenizer, longest: int, num_tokens: int
) -> HeldoutTargets:
    """A set out of other documents in their order, in the tokens of ``tokenizer``: someone chose
    them, so one may give all sequences. Raises UserError."""
    num_bytes = token_num_bytes(tokenizer)
    files = list_source(source)
    check_column(files, source)
    items = read_source(files, source)
    documents = (_token_ids(item, tokenizer, len(num_bytes)) for item in items)
    needs = f"documents: a window of {longest:,} tokens needs a document of {longest + 1:,}"
    remedy = "score shorter windows or longer documents"
    wanted = max(1, num_tokens // longest)
    return _dealt(documents, longest, wanted, wanted, num_bytes, needs, remedy)


def _token_ids(item: Document | Skipped, tokenizer: Tokenizer, num_ids: int) -> Tokens | None:
    if isinstance(item, Skipped):
        return None
    if isinstance(item.content, str):
        return item.sha256, np.array(encode(tokenizer, [item.content])[0])
    return item.sha256, item.given_ids(num_ids)


def sequence_starts(sha256: bytes, num_tokens: int, longest: int, most: int) -> list[int]:
    """Where the sequences of a document begin, in the order in which they are dealt.

    There are ``most``, or as many as have room for their ``longest + 1`` tokens each: one in each
    of as many equal parts of the document's ``num_tokens``.
    """
    num_parts = min(most, num_tokens // (longest + 1))
    starts = []
    for part in range(num_parts):
        first, end = (num_tokens * edge // num_parts for edge in (part, part + 1))
        starts.append(first + _drawn(sha256, part, end - first - longest))
    rotation = _drawn(sha256, num_parts, num_parts) if starts else 0  # else heads come first
    return starts[rotation:] + starts[:rotation]


def _drawn(sha256: bytes, number: int, count: int) -> int:
    """A number below ``count`` that depends on a document's hash and on ``number``."""
    digest = hashlib.sha256(sha256 + number.to_bytes(8, "big")).digest()
    return int.from_bytes(digest[:8], "big") * count >> 64


def _dealt(
    documents: Iterable[Tokens | None],
    longest: int,
    wanted: int,
    most: int,
    token_num_bytes: np.ndarray,
    needs: str,
    remedy: str,
) -> HeldoutTargets:
    """Up to ``wanted`` sequences of ``longest`` targets, round after round, ``most`` of a document.
    None is a document that was skipped; ``token_num_bytes`` is int64[vocabulary].

    In memory are one document and no more than three times the set. Raises UserError, which says
    what a set ``needs``.
    """
    dealt: list[tuple[int, int, np.ndarray]] = []  # by round, then by document
    num_read = num_skipped = num_usable = most_tokens = 0
    for document in documents:
        if document is None:
            num_skipped += 1
            continue
        sha256, ids = document
        num_read += 1
        most_tokens = max(most_tokens, len(ids))
        for round_, start in enumerate(sequence_starts(sha256, len(ids), longest, most)):
            dealt.append((round_, num_usable, ids[start : start + longest + 1].astype(np.int64)))
        num_usable += len(ids) > longest
        if len(dealt) > 2 * wanted:
            dealt = sorted(dealt, key=itemgetter(0, 1))[:wanted]
        if num_usable == wanted:
            break
    if not dealt:
        skipped = f" ({num_skipped:,} more are empty or not UTF-8)" if num_skipped else ""
        raise UserError(
            f"{needs}, the longest of {num_read:,} has {most_tokens:,}{skipped}: nothing could be "
            f"scored at that length; {remedy}"
        )
    dealt = sorted(dealt, key=itemgetter(0, 1))[:wanted]
    tokens = np.stack([sequence for _, _, sequence in dealt])
    return HeldoutTargets(
        tokens,
        np.array([document for _, document, _ in dealt], dtype=np.int64),
        int(token_num_bytes[tokens[:, 1:]].sum()),
        num_skipped,
    )
