"""What the seeds of a part of the study say: losses, contrasts, worths."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.contrasts import BudgetCurve, Contrast, Costs, Worth, contrasts
from benchmarks.study_records import Work, own_losses
from pipelines import study as studies


@dataclass(frozen=True)
class Results:
    """What the finished seeds of a part say."""

    study: studies.Study
    records: dict[int, dict[str, Any]]

    @classmethod
    def of(cls, work: Work) -> "Results | None":
        """Those of the core; None before its last seed."""
        records = work.records("core")
        return cls(work.study, records) if len(records) == len(work.seeds("core")) else None

    @property
    def labels(self) -> list[str]:
        """The arms."""
        return list(next(iter(self.records.values()))["arms"])

    @property
    def document_tokens(self) -> np.ndarray:
        """int64[documents]."""
        return np.array(next(iter(self.records.values()))["document_tokens"])

    @property
    def diverged(self) -> list[str]:
        """The runs that count as they are: none of their contrasts can be tested."""
        return [
            f"{label} under seed {seed} ({arm['diverged']})"
            for seed, record in self.records.items()
            for label, arm in record["arms"].items()
            if arm["diverged"]
        ]

    def losses(self, label: str) -> np.ndarray | None:
        """float64[seeds, documents] at the arm's own length; None if a seed diverged."""
        arms = [record["arms"][label] for record in self.records.values()]
        return (
            None if any(arm["diverged"] for arm in arms) else np.array(list(map(own_losses, arms)))
        )

    def by_seed(self, label: str) -> np.ndarray | None:
        """float64[seeds]: the primary endpoint."""
        losses, tokens = self.losses(label), self.document_tokens
        return None if losses is None else losses @ tokens / tokens.sum()

    def contrasts(self, margin: float) -> list[Contrast]:
        """The primary contrasts; without those of an arm that diverged."""
        known = {n: found for n in self.labels if (found := self.losses(n)) is not None}
        pairs = [(c.arm, c.against) for c in self.study.contrasts]
        pairs = [pair for pair in pairs if set(pair) <= known.keys()]
        return contrasts(known, self.document_tokens, pairs, margin) if pairs else []

    def curves(self, ends: Sequence[str]) -> list[BudgetCurve] | None:
        """A curve for each seed through the arms of these labels, ascending in tokens."""
        losses = [self.by_seed(label) for label in ends]
        if any(found is None for found in losses):
            return None
        tokens = [sum(self.tokens(label).values()) for label in ends]
        return [BudgetCurve(tokens, each) for each in np.array(losses).T.tolist()]

    def tokens(self, label: str) -> dict[int, float]:
        """Tokens of an arm by length, the same under all seeds."""
        found = next(iter(self.records.values()))["arms"][label]["tokens_by_seq_len"]
        return {int(seq_len): tokens for seq_len, tokens in found.items()}

    @property
    def full_curves(self) -> list[BudgetCurve] | None:
        """The full length's loss by budget, for each seed."""
        return self.curves(self._ends)

    @property
    def worths(self) -> list[Worth]:
        """What each arm is worth, where the full length's curve can be read."""
        longer, curves = f"{self.study.short}-longer", self.full_curves
        return [
            worth
            for label in self.labels
            if label not in self._ends and label != longer and (worth := self.worth(label, curves))
        ]

    def worth(self, label: str, curves: Sequence[BudgetCurve] | None) -> Worth | None:
        """What an arm is worth, by the full length's curves under the same seeds; None where these
        cannot be read."""
        losses = self.by_seed(label)
        if curves is None or losses is None:
            return None
        pairs = zip(curves, losses, strict=True)
        budgets = np.array([curve.tokens_to(loss) for curve, loss in pairs])
        if not np.isfinite(budgets).all():
            return None
        whole = sum(self.tokens(self.study.long).values())
        return Worth(label, self.tokens(label), whole, budgets)

    @property
    def _ends(self) -> list[str]:
        """The full length's runs, ascending in tokens."""
        long = self.study.long
        return [*(f"{long}-{100 * share:.0f}" for share in studies.CURVE), long]

    def against_short(self, ratio: float) -> np.ndarray | None:
        """float64[seeds]: growing less the shortest length on the tokens that take as long."""
        study = self.study
        curves = self.curves([study.short, f"{study.short}-longer"])
        growing = self.by_seed(study.growing)
        if curves is None or growing is None:
            return None
        costs = Costs(study.lengths[0], study.lengths[-1], ratio)
        tokens = costs.time(self.tokens(study.growing))
        return growing - np.array([curve.loss_at(tokens) for curve in curves])
