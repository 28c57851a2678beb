"""What the study registers in words, where its records are, and the losses in them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import RESULTS
from glray.files import read_json
from glray.run.statistics import Estimate, crossed
from glray.spec import ComparisonSpec, load_comparison
from glray.train.evaluation import far_windows
from pipelines import study as studies

PIPELINES = Path(__file__).parents[1] / "pipelines" / "study.py"
STUDIES = {"small": studies.small, "toy": studies.toy}
MARGIN = 0.02
"""Nats per token within which two arms count as the same."""
COST_RATIOS = (1.0, 1.22, 1.43)
"""A token's cost at full length over that at the shortest: equal, as the paper measured on an A100
(its Table 1), and the highest of four starts of one CPU in float32."""
PARTS = {
    "core": 8,
    "full-shares": 3,
    "starts": 3,
    "leaps": 3,
    "rewarming": 3,
    "documents-apart": 3,
    "double-budget": 3,
    "half-width": 3,
    "llama": 3,
    "one-more-stage": 3,
    "code": 3,
}
"""Comparisons of the study, in the order of training, and their seeds."""


def plan_text(study: studies.Study) -> dict[str, Any]:
    """What is registered in words."""
    short, full = study.lengths[0], study.lengths[-1]
    return {
        "question": f"Does growing the training length from {short:,} to {full:,} tokens lower the "
        "loss at full length against training at full length throughout, on equal training tokens, "
        "and is it the growing that does it?",
        "endpoint": "Mean held-out loss in nats per token, of the trained weights, on targets with "
        f"at least {far_windows(full, full)[0]:,} tokens of their own document before them. Each "
        "arm is scored at the longest length that it is trained on, in windows that slide by half "
        "of it. The targets are the same for all arms and seeds.",
        "analysis": "Each contrast is tested two-sided by a paired t test over seeds, of the mean "
        "over documents, documents weighted by their targets. The four p values are adjusted by "
        "Holm at 5%. Sensitivity: an exact sign-flip test, and the 95% interval in which documents "
        f"are a sample too. Two arms are the same if two one-sided tests at 5% place the "
        f"difference within ± {MARGIN:g} nats. The worth of an arm is the budget at which training "
        "at full length throughout reaches its loss, read from the curve of the same seed "
        "(straight over the logarithm of tokens, and beyond its ends as between the nearest two "
        "points), over the time that the arm takes. A token's cost rises in a straight line with "
        "the length, to the cost ratio at full length. Intervals of the worth and of the "
        "break-even ratio are over seeds. Everything else only describes.",
        "rules": "No arm, length, document or seed is left out. A run that diverges is not "
        "repeated, and its contrasts are inconclusive. Runs are repeated only after a failure of "
        "the machine. The number of seeds is fixed. Rates are those with the lowest primary "
        "endpoint of a pilot under a seed of its own, scored on the same documents.",
        "outcomes": [
            "growing − fixed full length < 0: growing is better on equal tokens. If also growing "
            "− fixed shortest length < 0, the paper's claim is supported: training long was worth "
            "it.",
            "growing − shuffled < 0 as well: the order matters, so it is the growing. If the two "
            "are the same, it is short windows, in whatever order.",
            "growing − two phases < 0: the lengths between matter. If the two are the same, two "
            "phases are enough.",
            "growing the same as the fixed full length: what is saved is time alone, as the cost "
            "ratio says.",
        ],
        "prediction": "growing − fixed full length: −0.07; − shuffled: −0.02; − two phases: −0.01; "
        "− fixed shortest length: −0.04.",
    }


@dataclass(frozen=True)
class Work:
    """A study, where its runs are and where its records are kept."""

    name: str
    storage: Path
    results: Path
    overrides: tuple[str, ...] = ()

    @property
    def study(self) -> studies.Study:
        """Its pipelines and comparisons."""
        return STUDIES[self.name]

    @property
    def settings(self) -> list[str]:
        """What applies to every pipeline."""
        return [f"compute.storage={self.storage}", *self.overrides]

    @property
    def registration(self) -> Path:
        """The plan of the study."""
        return self.results / "registration.json"

    def record(self, part: str, seed: int) -> Path:
        """What is kept of one finished seed."""
        return self.results / f"{part}-seed{seed}.json"

    def records(self, part: str) -> dict[int, dict[str, Any]]:
        """By seed, ascending: those that are finished."""
        seeds = self.study.base.seeds
        return {n: read_json(path) for n in seeds if (path := self.record(part, n)).exists()}

    def reference(self, part: str) -> str:
        """The comparison, as ``glray compare`` takes it."""
        return f"{PIPELINES}:{self.name}.{part.replace('-', '_')}"

    def comparison(self, part: str, seed: int) -> ComparisonSpec:
        """The comparison under one seed."""
        return load_comparison(self.reference(part), [*self.settings, f"seeds=[{seed}]"])

    def seeds(self, part: str) -> tuple[int, ...]:
        """The seeds that are declared for a part."""
        return self.study.base.seeds[: PARTS[part]]


KEPT = Work("small", Path("runs"), RESULTS / "study")
"""The study whose records are committed."""


def endpoint(arm: dict[str, Any]) -> float:
    """The primary endpoint of one run: loss on the far targets at its own length."""
    tokens = np.array(arm["far"]["document_tokens"])
    return float(own_losses(arm) @ tokens / tokens.sum())


def own_losses(arm: dict[str, Any]) -> np.ndarray:
    """float64[documents]: in windows of the arm's longest length."""
    lengths = [int(name) for name in arm["far"] if name != "document_tokens"]
    return np.array(arm["far"][str(max(lengths))])


def gain_of(arm: dict[str, Any]) -> Estimate | None:
    """Far-context gain of one run, over documents; None where it was not trained beyond the short
    context."""
    lengths = sorted(int(name) for name in arm["far"] if name != "document_tokens")
    if len(lengths) == 1:
        return None
    short, own = (np.array(arm["far"][str(lengths[n])]) for n in (0, -1))
    return crossed((short - own)[None], np.array(arm["far"]["document_tokens"]))
