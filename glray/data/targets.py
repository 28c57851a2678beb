"""The fixed set of held-out target tokens that a pipeline's runs are scored on.

It is made of sequences of ``longest`` tokens from documents that are long enough, dealt round
after round (each document's first sequence, then each one's second …) until ``num_tokens`` are
reached. At a shorter length every sequence is cut into windows, each its own context: the targets
stay the same, and no window crosses a document.
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from tokenizers import Tokenizer

from glray.data.blocks.tokenizer import encode, token_dtype, token_num_bytes, vocab_size
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
    documents = [document.tokens for document in corpus.heldout()]
    usable = [tokens for tokens in documents if len(tokens) > longest]
    if not usable:
        most = max((len(tokens) for tokens in documents), default=0)
        raise UserError(
            f"evaluation.seq_lens: {longest} needs a held-out document of {longest + 1:,} tokens, "
            f"the longest of {len(documents)} has {most:,}: nothing could be scored at that "
            "length; lower the longest length or raise heldout_fraction"
        )
    num_bytes = corpus.sources[0].blocks.token_num_bytes()
    return _dealt(usable, longest, evaluation.num_tokens, num_bytes)


def document_targets(
    source: SourceCorpus, tokenizer: Tokenizer, longest: int, num_tokens: int
) -> HeldoutTargets:
    """A set out of other documents, in the tokens of ``tokenizer``. Raises UserError.

    In memory are one document and what is kept of those before: no more than three times the set.
    """
    num_ids = vocab_size(tokenizer)
    wanted = max(1, num_tokens // longest)
    kept: list[np.ndarray] = []
    num_kept = most = num_read = num_skipped = 0
    for item in read_source(list_source(source), source):
        if isinstance(item, Skipped):
            num_skipped += 1
            continue
        num_read += 1
        ids = _token_ids(item, tokenizer, num_ids)
        most = max(most, len(ids))
        if len(ids) <= longest:
            continue
        kept.append(ids[: wanted * longest + 1].astype(token_dtype(num_ids)))
        num_kept += (len(kept[-1]) - 1) // longest
        if num_kept > 3 * wanted:
            rounds = _rounds([(len(tokens) - 1) // longest for tokens in kept], wanted)
            kept = [tokens[: rounds * longest + 1].copy() for tokens in kept]
            num_kept = sum((len(tokens) - 1) // longest for tokens in kept)
        if len(kept) == wanted:
            break
    if not kept:
        skipped = f" ({num_skipped:,} more are empty or not UTF-8)" if num_skipped else ""
        raise UserError(
            f"documents: a window of {longest:,} tokens needs a document of {longest + 1:,}, the "
            f"longest of {num_read:,} has {most:,}{skipped}: nothing could be scored at that "
            "length; score shorter windows or longer documents"
        )
    dealt = _dealt(kept, longest, num_tokens, token_num_bytes(tokenizer))
    return replace(dealt, num_skipped=num_skipped)


def _rounds(sequences: list[int], wanted: int) -> int:
    """Rounds after which ``wanted`` sequences are dealt to documents that have so many, or all."""
    rounds = 1
    while rounds < max(sequences) and sum(min(n, rounds) for n in sequences) < wanted:
        rounds += 1
    return rounds


def _token_ids(document: Document, tokenizer: Tokenizer, num_ids: int) -> np.ndarray:
    if isinstance(document.content, str):
        return np.array(encode(tokenizer, [document.content])[0])
    highest = int(document.content.max())
    if highest >= num_ids:
        raise UserError(
            f"documents: {document.name} has token id {highest:,}, the model's tokenizer "
            f"{num_ids:,} ids: another one made these tokens; give text"
        )
    return document.content


def _dealt(
    usable: list[np.ndarray], longest: int, num_tokens: int, token_num_bytes: np.ndarray
) -> HeldoutTargets:
    """Sequences of ``longest`` targets of documents that are long enough, round after round, up to
    ``num_tokens``; ``token_num_bytes`` is int64[vocabulary]."""
    dealt = sorted(
        (start, index)
        for index, tokens in enumerate(usable)
        for start in range(0, len(tokens) - longest, longest)
    )[: num_tokens // longest]
    sequences = [usable[index][start : start + longest + 1] for start, index in dealt]
    tokens = np.stack(sequences).astype(np.int64)
    num_bytes = int(token_num_bytes[tokens[:, 1:]].sum())
    return HeldoutTargets(
        tokens, np.array([index for _, index in dealt], dtype=np.int64), num_bytes
    )
