"""The fixed set of held-out target tokens that a pipeline's runs are scored on.

It is made of sequences of ``longest`` tokens from documents that are long enough, dealt round
after round (each document's first sequence, then each one's second …) until ``num_tokens`` are
reached. At a shorter length every sequence is cut into windows, each its own context: the targets
stay the same, and no window crosses a document.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from tokenizers import Tokenizer

from glray.data.blocks.tokenizer import encode, token_num_bytes
from glray.data.corpus import PreparedCorpus
from glray.data.read.documents import Document, Skipped, read_source
from glray.data.read.sources import list_source
from glray.errors import UserError
from glray.spec.corpus import SourceCorpus
from glray.spec.training import EvaluationSpec


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
    """Documents left out as they are empty or not UTF-8."""

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
    """The fixed set of a pipeline's evaluations. Raises UserError if no held-out document is long
    enough."""
    longest = max(evaluation.seq_lens)
    documents = (document.tokens for document in corpus.heldout())
    num_bytes = corpus.vocabulary.token_num_bytes()
    needs = f"evaluation.seq_lens: {longest} needs a held-out document of {longest + 1:,} tokens"
    remedy = "lower the longest length or raise heldout_fraction"
    return _dealt(documents, longest, evaluation.num_tokens, num_bytes, needs, remedy)


def document_targets(
    source: SourceCorpus, tokenizer: Tokenizer, longest: int, num_tokens: int
) -> HeldoutTargets:
    """A set out of other documents, in the tokens of ``tokenizer``. Raises UserError."""
    num_bytes = token_num_bytes(tokenizer)
    items = read_source(list_source(source), source)
    documents = (_token_ids(item, tokenizer, len(num_bytes)) for item in items)
    needs = f"documents: a window of {longest:,} tokens needs a document of {longest + 1:,}"
    remedy = "score shorter windows or longer documents"
    return _dealt(documents, longest, num_tokens, num_bytes, needs, remedy)


def _token_ids(item: Document | Skipped, tokenizer: Tokenizer, num_ids: int) -> np.ndarray | None:
    if isinstance(item, Skipped):
        return None
    if isinstance(item.content, str):
        return np.array(encode(tokenizer, [item.content])[0])
    return item.given_ids(num_ids)


def _dealt(
    documents: Iterable[np.ndarray | None],
    longest: int,
    num_tokens: int,
    token_num_bytes: np.ndarray,
    needs: str,
    remedy: str,
) -> HeldoutTargets:
    """Sequences of ``longest`` targets, round after round, up to ``num_tokens``. None is a document
    that was skipped; ``token_num_bytes`` is int64[vocabulary].

    In memory are one document and no more than three times the set. Raises UserError, which says
    what a set ``needs``.
    """
    wanted = max(1, num_tokens // longest)
    dealt: list[tuple[int, int, np.ndarray]] = []  # by where it starts, then by document
    num_read = num_skipped = num_usable = most = 0
    for ids in documents:
        if ids is None:
            num_skipped += 1
            continue
        num_read += 1
        most = max(most, len(ids))
        for start in range(0, len(ids) - longest, longest)[:wanted]:
            dealt.append((start, num_usable, ids[start : start + longest + 1].astype(np.int64)))
        num_usable += len(ids) > longest
        if len(dealt) > 2 * wanted:
            dealt = sorted(dealt, key=itemgetter(0, 1))[:wanted]
        if num_usable == wanted:
            break
    if not dealt:
        skipped = f" ({num_skipped:,} more are empty or not UTF-8)" if num_skipped else ""
        raise UserError(
            f"{needs}, the longest of {num_read:,} has {most:,}{skipped}: nothing could be scored "
            f"at that length; {remedy}"
        )
    dealt = sorted(dealt, key=itemgetter(0, 1))[:wanted]
    tokens = np.stack([sequence for _, _, sequence in dealt])
    return HeldoutTargets(
        tokens,
        np.array([document for _, document, _ in dealt], dtype=np.int64),
        int(token_num_bytes[tokens[:, 1:]].sum()),
        num_skipped,
    )
