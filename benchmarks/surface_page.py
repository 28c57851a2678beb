"""What the surface says of schedules, and its replays of search methods: sentences, a table and a
picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.contrasts import BudgetCurve, over_seeds
from benchmarks.study_records import KEPT
from benchmarks.surface_records import (
    FRESH,
    Losses,
    Surface,
    by_first_stage,
    first_stage,
    kept,
    space,
)
from glray.report.formats import counted
from glray.report.look import GREY, styled, styles_of
from glray.report.recommend import Findings, best, priced
from glray.report.sheets import Sheet
from glray.search.space import Candidate
from pipelines.study import CURVE


@dataclass(frozen=True)
class Answers:
    """The kept surface beside the study's arms under the same seeds, scored on the same text."""

    surface: Surface
    core: Mapping[int, dict[str, Any]]
    """The study's records by seed."""

    @cached_property
    def candidates(self) -> dict[str, Candidate]:
        """By name."""
        return {candidate.name: candidate for candidate in space().all()}

    @property
    def full(self) -> int:
        """The longest length."""
        return max(self.surface.seconds_per_unit)

    def loss(self, label: str, seed: int = 0) -> float:
        """Of an arm of the study, at the longest length."""
        return float(self.core[seed]["arms"][label]["heldout"][str(self.full)])

    # ---- in terms of time

    def share_of_full(self, loss: float, seconds: float) -> float:
        """A time over that of the longest length throughout to the same loss."""
        long = f"llm{self.full}"
        ends = [*(f"{long}-{100 * share:.0f}" for share in CURVE), long]
        tokens = [sum(self._tokens(label).values()) for label in ends]
        curve = BudgetCurve(tokens, [self.loss(label) for label in ends])
        return seconds / (curve.tokens_to(loss) * self._per_token(self.full))

    @cached_property
    def shares_of_full(self) -> dict[str, float]:
        """The same of every schedule, soonest first."""
        found = {
            name: self.share_of_full(loss, self.surface.seconds(self.candidates[name]))
            for name, loss in self.surface.losses.items()
        }
        return dict(sorted(found.items(), key=lambda each: each[1]))

    def share_of(self, label: str) -> float:
        """The same of an arm of the study."""
        seconds = sum(n * self._per_token(length) for length, n in self._tokens(label).items())
        return self.share_of_full(self.loss(label), seconds)

    @property
    def recommended(self) -> str:
        """What ``glray recommend`` names at these prices."""
        return best(priced(Findings.packaged(), self.full, self.surface.prices)).tried.name

    def _tokens(self, label: str) -> dict[int, float]:
        found = self.core[0]["arms"][label]["tokens_by_seq_len"]
        return {int(length): tokens for length, tokens in found.items()}

    def _per_token(self, length: int) -> float:
        return self.surface.seconds_per_unit[length] / self.surface.tokens_per_unit

    # ---- what is said

    def sentences(self, replayed: dict[str, Any]) -> list[str]:
        """For somebody who reads no table."""
        return [
            f"**Which is best?** {self._best()}",
            f"**How much of that is luck?** {self._luck()}",
            f"**What matters?** {self._matters()}",
            *([f"**On fresh seeds:** {self.fresh}"] if self.fresh else []),
            f"**In terms of time:** {self._time()}",
            f"**Which method finds it?** {self._methods(replayed)}",
        ]

    def _best(self) -> str:
        losses, name = self.surface.losses, self.surface.best
        lowest, worst = losses[name], max(losses.values())
        equal, long = (self.loss(label) - lowest for label in ("growlength", f"llm{self.full}"))
        return (
            f"Under seed 0 {name} has the lowest loss at {self.full:,} tokens, {lowest:.3f} nats. "
            f"The worst of the {len(losses)} is {worst - lowest:.3f} above it, the paper's equal "
            f"quarters are {_from(equal)}, {self.full:,} throughout is {_from(long)}."
        )

    def _luck(self) -> str:
        groups = by_first_stage(self.surface.apart)
        moved = ", ".join(f"{fmean(its):+.3f} after {start}" for start, its in groups.items())
        noise = self.surface.noise
        return (
            f"Under seed 1 the loss changes with the first boundary: {moved}. Among schedules that "
            f"have it in common a seed's standard deviation is {noise.within:.3f}; between first "
            f"boundaries it is about {noise.between:.3f}, a rough figure from {len(groups)} of them"
            " under two seeds, but as much as all schedules differ. Runs that share their first "
            "steps share the luck in them, so one seed does not tell where the first boundary "
            "should lie."
        )

    def _matters(self) -> str:
        least = min(candidate.units[-1] for candidate in self.candidates.values())
        by_seed = [self._short_end(kept(seed), least) for seed in (0, 1)]
        told = " and ".join(f"{mean:+.3f} under seed {seed}" for seed, mean in enumerate(by_seed))
        return (
            f"Of schedules with the same first boundary, those with {least}% of the tokens at "
            f"{self.full:,} have a mean loss above that of those with more: {told}."
        )

    def _short_end(self, losses: Losses, least: int) -> float:
        """Mean loss of the schedules with the least share at the end less that of the others, on
        average over first boundaries that have both."""
        groups: dict[str, tuple[list[float], list[float]]] = {}
        for name, loss in losses.items():
            if loss is not None:
                both = groups.setdefault(first_stage(name), ([], []))
                both[self.candidates[name].units[-1] > least].append(loss)
        return fmean(fmean(few) - fmean(more) for few, more in groups.values() if few and more)

    @property
    def fresh(self) -> str:
        """The best against equal quarters under other seeds; empty before it is trained there."""
        name = self.surface.best
        seeds = [seed for seed in FRESH if kept(seed).get(name) is not None]
        if len(seeds) < len(FRESH):
            return ""
        apart = np.array([kept(seed)[name] - self.loss("growlength", seed) for seed in seeds])
        found, searched = over_seeds(apart), self.surface.losses[name] - self.loss("growlength")
        return (
            f"{name} less equal quarters is {searched:+z.3f} under the seed that chose it, "
            f"{found.mean:+z.3f} ({found.low:+.3f} to {found.high:+.3f}) under "
            f"{counted(len(seeds), 'other seed')}."
        )

    def _time(self) -> str:
        soonest, named = next(iter(self.shares_of_full)), self.recommended
        equal = f"equal quarters take {self.share_of('growlength'):.2f}"
        recommended = f"{named}, takes {self.share_of(named):.2f}, {equal}"
        if named == "growlength":
            recommended = f"{named}, is equal quarters and takes {self.share_of(named):.2f}"
        return (
            "At what a step costs on the machine that trained them, "
            f"{soonest} takes the least time for its loss: {self.shares_of_full[soonest]:.2f} of "
            f"what {self.full:,} throughout would need for the same. What `glray recommend` names "
            f"there, {recommended}. All schedules end below {self.full:,} throughout, so its curve "
            "is extended in a straight line, under one seed: differences this small say nothing."
        )

    def _methods(self, replayed: dict[str, Any]) -> str:
        methods = replayed["methods"]
        shares = {
            method: share
            for method, its in methods.items()
            if method != "random" and (share := its["share_of_seconds_to_random_regret"])
        }
        final = methods["random"]["regret"][-1]
        text = (
            f"After {_minutes(replayed['random_seconds'])} of training, random draws choose a "
            f"schedule {final:.4f} above the best on average."
        )
        if not shares:
            return f"{text} No other method gets as low."
        told = ", ".join(f"{method} in {share:.0%}" for method, share in shares.items())
        in_half = [method for method, share in shares.items() if share <= 0.5]
        half = f" Only {', '.join(in_half)} does in half the time or less." if in_half else ""
        noise = replayed["noise"]["between"]
        luck = f" All of these differences are below a seed's own, {noise:.3f}." * (final < noise)
        return (
            f"{text} Others come as low in another share of that time: {told}.{half} The tree's "
            f"designs are the same in every replay, so chance has more to do with it than its "
            f"interval shows.{luck}"
        )


def methods_sheet(replayed: dict[str, Any]) -> Sheet:
    """The regret of each method."""
    shares = replayed["at_shares_of_random_seconds"]
    rows = []
    for method, its in replayed["methods"].items():
        cells = []
        for regret, (mean, low, high) in zip(its["regret"], its["less_random"], strict=True):
            less = f" ({mean:+z.4f}, {low:+.4f} to {high:+.4f})" if method != "random" else ""
            cells.append(f"{regret:.4f}{less}")
        reached = its["share_of_seconds_to_random_regret"]
        rows.append((method, *cells, "never" if reached is None else f"{reached:.0%}"))
    columns = ("method", *(f"after {share:.0%}" for share in shares), "random's last after")
    return Sheet("", columns, rows)


def _from(difference: float) -> str:
    return f"{abs(difference):.3f} {'above' if difference >= 0 else 'below'}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min"


@styled
def picture(answers: Answers, replayed: dict[str, Any]) -> Figure:
    """The lowest loss by the shares of the first and the last length, and how soon each method
    comes near it."""
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _map(left, answers)
    names = list(replayed["methods"])
    styles = styles_of(names)
    shares = 100 * np.array(replayed["curve_at_shares"])
    for name, its in replayed["methods"].items():
        styles[name].draw(right, shares, np.array(its["curve"]), label=name)
    right.set_xlabel(f"training time of {_minutes(replayed['random_seconds'])}, %")
    right.set_ylabel("regret, nats per token")
    right.set_ylim(bottom=0)
    right.set_title("How far a search's choice is from the best")
    right.legend()
    return figure


def _map(axes: Axes, answers: Answers) -> None:
    by_ends: dict[tuple[int, int], float] = {}
    for name, loss in answers.surface.losses.items():
        units = answers.candidates[name].units
        ends = (units[0], units[-1])
        by_ends[ends] = min(loss, by_ends.get(ends, loss))
    shares = sorted({first for first, _ in by_ends})
    grid = np.full((len(shares), len(shares)), np.nan)
    for (first, last), loss in by_ends.items():
        grid[shares.index(last), shares.index(first)] = loss
    image = axes.imshow(grid, origin="lower", cmap="viridis_r")
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    for (first, last), loss in by_ends.items():
        place = shares.index(first), shares.index(last)
        colour = "black" if loss < middle else "white"
        axes.text(*place, f"{loss:.3f}", ha="center", va="center", color=colour, fontsize="x-small")
    axes.set_xticks(range(len(shares)), [f"{share}" for share in shares])
    axes.set_yticks(range(len(shares)), [f"{share}" for share in shares])
    lengths = answers.candidates[answers.surface.best].seq_lens
    axes.set_xlabel(f"tokens at {lengths[0]:,}, %")
    axes.set_ylabel(f"tokens at {lengths[-1]:,}, %")
    axes.grid(visible=False)
    axes.set_title("Lowest loss under seed 0, whatever lies between")
    axes.figure.colorbar(image, ax=axes, label="nats per token").outline.set_edgecolor(GREY)


def kept_answers() -> Answers:
    """The kept surface's. Raises UserError if it is not whole."""
    records, further = KEPT.records("core"), KEPT.records("full-shares")
    for seed, record in further.items():
        records[seed] = {**records[seed], "arms": record["arms"] | records[seed]["arms"]}
    return Answers(Surface.kept(), records)
