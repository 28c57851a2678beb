"""What a search tries: candidates, and the space that they are chosen from. Pure."""

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import gcd
from typing import Any, Protocol, TypeVar

from glray.errors import UserError
from glray.search.simplex import Simplex
from glray.spec.base import MAX_NAME
from glray.spec.pipeline import PipelineSpec
from glray.spec.positions import BaseFrequencies, PositionsSpec, stage_scaling
from glray.spec.schedule import ArmSpec
from glray.spec.search import SearchSpec, lengths_text
from glray.spec.training import rate_text

T = TypeVar("T")


class SuggestingTrial(Protocol):
    """What is used of an ``optuna.Trial``."""

    def suggest_categorical(self, name: str, choices: Sequence[str], /) -> Any: ...
    def suggest_float(self, name: str, low: float, high: float, /) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, /) -> int: ...


@dataclass(frozen=True)
class Candidate:
    """A schedule to try; what is None is the searched arm's own."""

    seq_lens: tuple[int, ...]
    """Length of each stage in tokens."""
    units: tuple[int, ...]
    """Share of each stage, as whole numbers. However they are given, they are kept as percents, or
    in lowest terms where a share is not a whole percent. They are the stages' ratios, so the same
    schedule has the same name and the same identity on every grid."""
    lr: float | None = None
    rewarm_steps: int | None = None
    positions: PositionsSpec | None = None

    def __post_init__(self) -> None:
        assert len(self.seq_lens) == len(self.units)
        whole, common = sum(self.units), gcd(*self.units)
        percents = [divmod(100 * part, whole) for part in self.units]
        exact = not any(rest for _, rest in percents)
        kept = [percent for percent, _ in percents] if exact else [n // common for n in self.units]
        object.__setattr__(self, "units", tuple(kept))  # frozen: the value that it always has

    @property
    def name(self) -> str:
        """``128x15-256x25-1024x60-lr3e-3``: unique, and the name of an arm."""
        parts = [f"{seq_len}x{n}" for seq_len, n in zip(self.seq_lens, self.units, strict=True)]
        if self.lr is not None:
            parts.append(f"lr{rate_text(self.lr)}")
        if self.rewarm_steps is not None:
            parts.append(f"rewarm{self.rewarm_steps}")
        if self.positions is not None:
            parts.append(positions_text(self.positions))
        name = "-".join(parts)
        if len(name) <= MAX_NAME:
            return name
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        return f"{name[: MAX_NAME - len(digest) - 1]}-{digest}"

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of each stage, 0 to 1."""
        return tuple(part / sum(self.units) for part in self.units)

    def arm(self, searched: ArmSpec) -> ArmSpec:
        """The arm that trains it. A single length has the last of a list of base frequencies."""
        stages = zip(self.seq_lens, self.units, strict=True)
        own = {"lr": self.lr, "rewarm_steps": self.rewarm_steps}
        return searched.derive(
            name=self.name,
            stages=[{"seq_len": seq_len, "ratio": ratio} for seq_len, ratio in stages],
            positions=_fitting(self.positions or searched.positions, self.seq_lens),
            **{field: value for field, value in own.items() if value is not None},
        )


@dataclass(frozen=True)
class Family:
    """All candidates of one list of lengths."""

    seq_lens: tuple[int, ...]
    schedules: Simplex
    """Shares of the stages, in units of the grid."""
    lrs: tuple[float | None, ...]
    rewarm_steps: tuple[int | None, ...]
    """Only None where there is no stage boundary: of a single length without a parent."""
    positions: tuple[PositionsSpec | None, ...]
    """Choices that differ at these lengths."""

    @classmethod
    def of(cls, spec: PipelineSpec, seq_lens: tuple[int, ...]) -> "Family":
        """The family of one of the search's lists of lengths, or of any other list."""
        search, goes_on = _searched(spec), spec.start is not None
        has_boundary = len(seq_lens) > 1 or goes_on
        return cls(
            seq_lens,
            Simplex(search.grid, search.bounds(seq_lens)),
            search.lrs or (None,),
            (search.rewarm_steps if has_boundary else ()) or (None,),
            tuple(dict.fromkeys(_alike(search.positions, seq_lens, goes_on).values())) or (None,),
        )

    @property
    def num_candidates(self) -> int:
        """How many there are."""
        return self.schedules.num_points * len(self._options)

    def __getitem__(self, index: int) -> Candidate:
        """The candidate of that index. Raises IndexError."""
        option, point = divmod(index, self.schedules.num_points)
        return Candidate(self.seq_lens, self.schedules[point], *self._options[option])

    def __iter__(self) -> Iterator[Candidate]:
        """All."""
        return (self[index] for index in range(self.num_candidates))

    def designed(self, most: int) -> list[Candidate]:
        """At most ``most``: a few schedules, each with every rate, re-warming and scaling; of
        those that are too many, some at equal distances."""
        schedules = self.schedules.designed(max(1, most // len(self._options)))
        crossed = [
            Candidate(self.seq_lens, units, *option)
            for option, units in product(self._options, schedules)
        ]
        num = min(most, len(crossed))
        return [crossed[(2 * n + 1) * len(crossed) // (2 * num)] for n in range(num)]

    @property
    def _options(
        self,
    ) -> list[tuple[float | None, int | None, PositionsSpec | None]]:
        return list(product(self.lrs, self.rewarm_steps, self.positions))


@dataclass(frozen=True)
class Space:
    """All candidates of a search."""

    search: SearchSpec
    families: tuple[Family, ...]
    """One for each list of lengths, as declared."""
    goes_on: bool = False
    """Whether the trials go on from a parent, whose stages come before theirs."""

    @classmethod
    def of(cls, spec: PipelineSpec) -> "Space":
        """The space of a pipeline that declares a search."""
        search = _searched(spec)
        lists = search.lists(spec.arm(search.arm))
        families = tuple(Family.of(spec, seq_lens) for seq_lens in lists)
        return cls(search, families, spec.start is not None)

    @property
    def num_candidates(self) -> int:
        """How many there are."""
        return sum(family.num_candidates for family in self.families)

    @property
    def num_schedules(self) -> int:
        """How many lists of lengths with shares there are."""
        return sum(family.schedules.num_points for family in self.families)

    def all(self) -> list[Candidate]:
        """Every candidate."""
        return [candidate for family in self.families for candidate in family]

    def draw(self, rng: random.Random) -> Candidate:
        """A list of lengths, each as likely as the others, then one of its candidates, each as
        likely as the others. (In proportion to their candidates, lists of few lengths would hardly
        be drawn: on a grid of 1/20 there are 969 schedules of four lengths, and 19 of two.)"""
        family = rng.choice(self.families)
        return family[rng.randrange(family.num_candidates)]

    def sample(self, num: int, rng: random.Random) -> list[Candidate]:
        """``num`` different candidates, or all, as they are drawn: a larger sample begins with the
        same ones."""
        drawn: dict[Candidate, None] = {}
        while len(drawn) < min(num, self.num_candidates):
            drawn[self.draw(rng)] = None
        return list(drawn)

    def designed(self, most: int) -> list[Candidate]:
        """At most ``most``, the design of the ``tree`` method: all, or equally many of each list of
        lengths, each spread as ``Simplex.designed`` says. A list that has fewer leaves the rest of
        its share to the others."""
        designs: dict[int, list[Candidate]] = {}
        smallest_first = sorted(
            range(len(self.families)), key=lambda n: self.families[n].num_candidates
        )
        left = most
        for done, index in enumerate(smallest_first):
            quota = left // (len(self.families) - done)
            designs[index] = self.families[index].designed(quota)
            left -= len(designs[index])
        return [candidate for index in sorted(designs) for candidate in designs[index]]

    def suggest(self, trial: SuggestingTrial) -> Candidate:
        """The candidate that an ``optuna.Trial`` suggests (define by run). The range
        of a parameter depends on no other parameter, so any sampler will do; boundaries are
        suggested as quantiles, see ``Simplex.at``."""
        families = {lengths_text(family.seq_lens): family for family in self.families}
        text = next(iter(families))
        if len(families) > 1:
            text = trial.suggest_categorical("lengths", list(families))
        family = families[text]
        boundaries = range(1, len(family.seq_lens))
        quantiles = [trial.suggest_float(f"{text} boundary {n}", 0, 1) for n in boundaries]
        lr = _suggested(trial, "lr_index", family.lrs)
        rewarm_steps = _suggested(trial, "rewarm_index", family.rewarm_steps)
        positions = {positions_text(one): one for one in self.search.positions}
        chosen = None
        if len(positions) > 1:
            chosen = positions[trial.suggest_categorical("positions", list(positions))]
        elif positions:
            (chosen,) = positions.values()
        if chosen is not None:
            chosen = _alike(self.search.positions, family.seq_lens, self.goes_on)[chosen]
        shares = family.schedules.at(quantiles)
        return Candidate(family.seq_lens, shares, lr, rewarm_steps, chosen)


def positions_text(positions: PositionsSpec) -> str:
    """``yarn``, ``yarn-previous``, ``theta1e4-1e5``: a RoPE scaling, as a part of a name."""
    if isinstance(positions, BaseFrequencies):
        return "theta" + "-".join(map(rate_text, positions.thetas))
    reference = getattr(positions, "relative_to", "first")
    return positions.kind if reference == "first" else f"{positions.kind}-{reference}"


def baselines(spec: PipelineSpec) -> list[Candidate]:
    """What every search trains, so that its winner has a fair rival: the longest length of all
    throughout, and the paper's equal shares of the searched arm's own lengths, each at every
    learning rate of the search, and the longest length under each of its RoPE scalings as well.
    """
    search = _searched(spec)
    own = spec.arm(search.arm).seq_lens
    fixed = Family.of(spec, (longest_seq_len(spec),))
    equal = (Candidate(own, (1,) * len(own), lr) for lr in search.lrs or (None,))
    return _unique([*fixed, *equal])


def candidates(spec: PipelineSpec) -> list[Candidate]:
    """The baselines and the candidates of the search's method; the baselines alone if Optuna
    chooses the others during the search."""
    search, space = _searched(spec), Space.of(spec)
    tried: list[Candidate] = []
    if search.method == "tree":
        tried = space.designed(search.num_trials)
    elif search.method == "random":
        tried = space.sample(search.num_trials, random.Random(f"glray search {search.seed}"))
    return _unique([*baselines(spec), *tried])


def search_pipeline(spec: PipelineSpec, tried: Iterable[Candidate]) -> PipelineSpec:
    """One pipeline of all candidates as arms, named by ``search_name``, under the first seed, so
    that they share steps. Shares divide the budget in its own unit. Stage boundaries are scored
    only where that may stop a trial: ranking needs the end alone."""
    search = _searched(spec)
    searched = spec.arm(search.arm)
    return spec.derive(
        name=search_name(spec.name),
        arms=[candidate.arm(searched) for candidate in tried],
        only=None,
        seeds=spec.seeds[:1],
        chunk_len=spec.chunk_tokens,
        ratios_in="tokens" if spec.budget.seconds is None else "seconds",
        evaluation={"stage_ends": search.max_behind is not None},
        search=None,
    )


def open_pipeline(spec: PipelineSpec, tried: Iterable[Candidate]) -> PipelineSpec:
    """``search_pipeline`` where more candidates may come, in this call or a later one: it declares
    the search as well, as one of its equal shares, so that a calibration and a probe of the memory
    cover all lengths of the search. ``tried`` has the baselines."""
    pipeline, own = search_pipeline(spec, tried), spec.arm(_searched(spec).arm)
    equal = next(arm.name for arm in pipeline.arms if arm.seq_lens == own.seq_lens)
    return pipeline.derive(search=_searched(spec).derive(arm=equal))


def search_name(pipeline: str) -> str:
    """Name of the pipeline that trains the trials of a pipeline's search."""
    return f"{pipeline}-search"


def fresh_seeds(spec: PipelineSpec) -> tuple[int, ...]:
    """Seeds under which the best are confirmed: the lowest from 0 on except the search's."""
    num = _searched(spec).confirm_seeds
    return tuple(seed for seed in range(num + 1) if seed != spec.seeds[0])[:num]


def check_search(spec: PipelineSpec) -> None:
    """Raises UserError if the spec declares no search, or one whose trials cannot be compared."""
    if spec.search is None:
        raise UserError(f"{spec.name}: declares no search; add search=SearchSpec(arm=…)")
    if spec.evaluation.max_rise is not None:
        raise UserError(
            f"{spec.name}: evaluation.max_rise {spec.evaluation.max_rise:g} would stop trials, "
            "which then have no loss to compare; --set evaluation.max_rise=null"
        )
    most = MAX_NAME - len("-confirm")
    if len(spec.name) > most:
        raise UserError(
            f"name {spec.name!r} has {len(spec.name)} characters, but a search trains pipelines "
            "that are named after it, <name>-search and <name>-confirm, and a name has at most "
            f"{MAX_NAME}; use one of at most {most}"
        )
    ranking_seq_len(spec)
    own, scored = spec.arm(spec.search.arm).seq_lens, max(spec.evaluation.seq_lens)
    longest = max(longest_seq_len(spec), *own)
    if spec.search.confirm and scored < longest:
        raise UserError(
            f"{spec.name}: evaluation.seq_lens ends at {scored}, the search trains up to {longest} "
            "tokens: the best could not be confirmed at the length that they are trained at; add "
            f"{longest} to evaluation.seq_lens, or --set search.confirm=0"
        )


def longest_seq_len(spec: PipelineSpec) -> int:
    """The longest length that the search trains."""
    search = _searched(spec)
    return max(seq_len for listed in search.lists(spec.arm(search.arm)) for seq_len in listed)


def ranking_seq_len(spec: PipelineSpec) -> int:
    """The length whose held-out loss ranks trials: the longest evaluated one up to the longest that
    the search trains. Raises UserError if there is none."""
    longest = longest_seq_len(spec)
    within = [length for length in spec.evaluation.seq_lens if length <= longest]
    if not within:
        raise UserError(
            f"evaluation.seq_lens {spec.evaluation.seq_lens} are all longer than {longest}, the "
            "longest length of the search: trials could not be ranked at a length they train; "
            f"add a length of at most {longest}"
        )
    return max(within)


def _searched(spec: PipelineSpec) -> SearchSpec:
    assert spec.search is not None, "check_search comes first"
    return spec.search


def _unique(tried: Iterable[Candidate]) -> list[Candidate]:
    return list(dict.fromkeys(tried))


def _suggested(trial: SuggestingTrial, name: str, choices: Sequence[T]) -> T:
    """One of ``choices``, which ascend: a sampler sees their order."""
    return choices[trial.suggest_int(name, 0, len(choices) - 1) if len(choices) > 1 else 0]


def _fitting(positions: PositionsSpec, seq_lens: Sequence[int]) -> PositionsSpec:
    """The scaling for stages of these lengths: base frequencies are those of the last stages."""
    if isinstance(positions, BaseFrequencies):
        return BaseFrequencies(thetas=positions.thetas[-len(seq_lens) :])
    return positions


def _alike(
    choices: Sequence[PositionsSpec], seq_lens: Sequence[int], goes_on: bool
) -> dict[PositionsSpec, PositionsSpec]:
    """Each choice with the first one that does the same at all of these lengths; with itself after
    a parent, to whose lengths positions may be scaled."""
    if goes_on:
        return {choice: choice for choice in choices}
    first: dict[object, PositionsSpec] = {}
    alike = {}
    for choice in choices:
        fitting = _fitting(choice, seq_lens)
        scalings = tuple(stage_scaling(fitting, seq_lens, n) for n in range(len(seq_lens)))
        alike[choice] = first.setdefault(scalings, choice)
    return alike
