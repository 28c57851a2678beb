"""The fixed set of held-out target tokens that a pipeline's runs are scored on.

It is made of stretches of ``longest`` tokens from documents that are long enough, dealt round
after round (each document's first stretch, then each one's second …) until ``num_tokens`` are
reached. At a shorter length every stretch is cut into windows, each its own context: the targets
stay the same, and no window crosses a document.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from glray.data.corpus import PreparedCorpus
from glray.errors import UserError
from glray.spec.training import EvaluationSpec


@dataclass(frozen=True)
class HeldoutTargets:
    """Stretches of held-out text: inputs ``[:, :-1]``, targets ``[:, 1:]``."""

    tokens: np.ndarray
    """int64[stretches, longest + 1]."""
    documents: np.ndarray
    """int64[stretches]: which document each comes from, numbered from 0 without gaps."""
    num_bytes: int
    """UTF-8 bytes that the targets stand for."""

    @property
    def num_documents(self) -> int:
        """Documents that the stretches come from."""
        return int(self.documents.max()) + 1

    @property
    def document_tokens(self) -> list[int]:
        """Target tokens of each document."""
        longest = self.tokens.shape[1] - 1
        return [int(count) * longest for count in np.bincount(self.documents)]

    @property
    def sha256(self) -> str:
        """Names the set: losses of two runs compare only on the same one."""
        return hashlib.sha256(self.tokens.tobytes()).hexdigest()

    @property
    def num_targets(self) -> int:
        """Target tokens."""
        return self.tokens.shape[0] * (self.tokens.shape[1] - 1)


def heldout_targets(corpus: PreparedCorpus, evaluation: EvaluationSpec) -> HeldoutTargets:
    """The fixed set of targets. Raises UserError if no held-out document is long enough."""
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
    wanted = evaluation.num_tokens // longest
    stretches: list[np.ndarray] = []
    sources: list[int] = []
    start = 0
    while len(stretches) < wanted and any(len(tokens) > start + longest for tokens in usable):
        for index, tokens in enumerate(usable):
            if len(tokens) > start + longest and len(stretches) < wanted:
                stretches.append(tokens[start : start + longest + 1])
                sources.append(index)
        start += longest
    tokens = np.stack(stretches).astype(np.int64)
    num_bytes = int(corpus.token_num_bytes()[tokens[:, 1:]].sum())
    return HeldoutTargets(tokens, np.array(sources, dtype=np.int64), num_bytes)
