"""A comparison: arms of one or more pipelines side by side, and the claims that it tests."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field

from glray.spec.base import Count, Integer, Name, Spec, check_unique
from glray.spec.corpus import SourceCorpus
from glray.spec.pipeline import ComparedArm, PipelineSpec
from glray.spec.rates import RateGrid
from glray.spec.schedule import ArmSpec
from glray.spec.training import EvaluationSpec, check_scorable, rate_text

Measure = Literal["loss", "seconds", "jump", "long_loss"]
"""What a claim compares: held-out loss, measured training seconds, the highest jump of the held-out
loss at a stage boundary, or the loss on the context's documents in whole windows."""


def _sentence(claim: dict[str, Any]) -> str:
    """A claim in words: ``growlength has a lower held-out loss than llm1024 at 1,024 tokens``."""
    arm, against, measure, at, within = (
        claim[field] for field in ("arm", "against", "measure", "at", "within")
    )
    lower, than = ("a lower", "than") if within is None else ("the same", "as")
    less = lower.replace("a lower", "less")
    length = f"at {at:,} tokens" if at else "each at its own length"
    says = {
        "loss": f"{arm} has {lower} held-out loss {than} {against}{'' if at else ','} {length}",
        "long_loss": f"{arm} has {lower} loss {than} {against} on long documents {length}",
        "seconds": f"{arm} takes {less} training time {than} {against}",
        "jump": f"{arm} has {lower} jump in held-out loss {than} {against} at stage boundaries",
    }[measure]
    if within is None:
        return says
    margin = f"{within:.1%}" if measure == "seconds" else f"{within:g} nats per token"
    return f"{says}, within {margin}"


class ClaimSpec(Spec):
    """That one arm is lower than another, or differs by no more than a margin: tested on the runs'
    own numbers, paired by seed. ``lower``, ``same`` and ``faster`` make one."""

    arm: Name
    """Label of the arm that the claim is about."""
    against: Name
    """Label of the arm that it is compared with."""
    measure: Measure = "loss"
    """What is compared. A difference in seconds counts as a share of ``against``'s."""
    at: Count | None = None
    """Length in tokens of the whole windows of a loss. None: each arm is judged at the longest
    length that it is trained on, in sliding windows, on the held-out targets far from the start of
    their document, the same for all."""
    within: float | None = Field(default=None, gt=0)
    """Instead of lower: the two differ by no more than this (nats per token; of seconds, a
    share)."""
    primary: bool = True
    """Whether it gets a verdict; then the chance of a false one is held down for all primary claims
    of a page together, but for those about seconds, which are not tested. Otherwise its numbers
    only describe."""
    says: str = Field(default_factory=_sentence, min_length=1)
    """The claim in words, printed before its verdict. Default: written from the fields above."""


def lower(arm: str, against: str, **fields: Any) -> ClaimSpec:
    """The claim that ``arm`` has a lower loss than ``against``, each at its own length or both in
    windows of ``at`` tokens; or of another ``measure``. ``says`` replaces the sentence that it
    writes."""
    return ClaimSpec(arm=arm, against=against, **fields)


def same(arm: str, against: str, *, within: float, **fields: Any) -> ClaimSpec:
    """The claim that two losses, or what else is measured, differ by at most ``within``."""
    return ClaimSpec(arm=arm, against=against, within=within, **fields)


def faster(arm: str, against: str, **fields: Any) -> ClaimSpec:
    """The claim that ``arm`` takes less measured training time than ``against``."""
    return ClaimSpec(arm=arm, against=against, measure="seconds", **fields)


class ContextSpec(Spec):
    """Long documents on which every compared model is scored, in windows beyond its training."""

    seq_lens: tuple[Integer, ...] = Field(min_length=1)
    """Window lengths in tokens."""
    num_tokens: Count
    """Target tokens, the same at every length."""
    stride: Count
    """Tokens by which the sliding windows move; whole windows are scored as well."""
    documents: SourceCorpus | None = None
    """The documents to score. None: each run's own held-out documents."""

    def model_post_init(self, context: Any) -> None:
        check_scorable("context", self.seq_lens, self.num_tokens)
        longest = max(self.seq_lens)
        if self.stride > longest:
            raise ValueError(
                f"context.stride {self.stride} is more than the longest window, {longest}: tokens "
                "between two windows would not be scored; lower it"
            )


class ComparisonSpec(Spec):
    """Arms of one or more pipelines, under the same seeds, and the claims to test."""

    name: Name
    """Names the comparison's directory, ``<storage>/comparisons/<name>``."""
    title: str = Field(min_length=1)
    """What it compares, in a few words."""
    arms: tuple[ComparedArm, ...] = Field(min_length=1)
    """The arms in the order of tables and plots."""
    claims: tuple[ClaimSpec, ...] = ()
    """The claims to test; a verdict takes three seeds."""
    context: ContextSpec | None = None
    """Also score long documents."""
    rates: RateGrid | None = None
    """Compare each arm at its best of these peak rates. None: at its own."""

    @property
    def pipelines(self) -> tuple[PipelineSpec, ...]:
        """Each pipeline once, to train the compared arms alone."""
        arms: dict[str, list[str]] = {}
        for compared in self.arms:
            arms.setdefault(compared.pipeline.name, []).append(compared.arm)
        pipelines = {compared.pipeline.name: compared.pipeline for compared in self.arms}
        return tuple(
            pipeline.derive(only=list(dict.fromkeys(arms[name])))
            for name, pipeline in pipelines.items()
        )

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of every arm."""
        return self.arms[0].pipeline.seeds

    def pilot(self, lrs: Mapping[str, Sequence[float]]) -> "ComparisonSpec":
        """The runs that a rate is chosen by: the arms of these labels at each of their peak rates,
        in that order, under the seed of ``rates``. No guard stops them: a rate that is too high
        loses."""
        assert self.rates is not None, "without rates there is nothing to choose from"
        rated = [(label, lr) for label, its in lrs.items() for lr in its]
        changes = {"seeds": [self.rates.seed], "evaluation": {"max_rise": None}}
        arms = self._rated(rated, **changes)
        labels = [f"{label}-lr{rate_text(lr)}" for label, lr in rated]
        labelled = [arm.derive(label=label) for label, arm in zip(labels, arms, strict=True)]
        return self.derive(arms=labelled, rates=None, claims=(), context=None)

    def at_rates(self, lrs: Mapping[str, float]) -> "ComparisonSpec":
        """The same comparison with each arm at its peak rate, by label."""
        return self.derive(arms=self._rated(list(lrs.items())), rates=None)

    def _rated(self, rated: Sequence[tuple[str, float]], **changes: object) -> list[ComparedArm]:
        """Arms at peak rates, by label: further arms of ``<pipeline>-rates``, so that no run of the
        pipeline itself is taken for one of theirs and all have one calibration."""
        declared = {compared.label: compared for compared in self.arms}
        chosen = [
            (label, declared[label].pipeline, declared[label].spec.at_rate(lr))
            for label, lr in rated
        ]
        pipelines: dict[str, PipelineSpec] = {}
        for _, pipeline, _ in chosen:
            its = dict.fromkeys(arm for _, other, arm in chosen if other.name == pipeline.name)
            pipelines[pipeline.name] = pipeline.derive(
                name=f"{pipeline.name}-rates", arms=(*pipeline.arms, *its), **changes
            )
        return [
            ComparedArm(pipeline=pipelines[pipeline.name], arm=arm.name, label=label)
            for label, pipeline, arm in chosen
        ]

    def model_post_init(self, context: Any) -> None:
        labels = [compared.label for compared in self.arms]
        check_unique("arms", "label", labels, "their numbers would be mixed")
        runs = [f"{compared.pipeline.name}/{compared.arm}" for compared in self.arms]
        check_unique("arms", "run", runs, "an arm would be compared with itself")
        pipelines: dict[str, PipelineSpec] = {}
        for compared in self.arms:
            pipeline = compared.pipeline
            pipeline.arm(compared.arm)
            if pipelines.setdefault(pipeline.name, pipeline) != pipeline:
                raise ValueError(
                    f"arms: two different pipelines have the name {pipeline.name!r}; rename one"
                )
            self._check_agrees(pipeline, self.arms[0].pipeline)
        self._check_claims({compared.label: compared for compared in self.arms})
        if self.rates is not None:
            self._check_rates(self.rates)

    def _check_agrees(self, pipeline: PipelineSpec, first: PipelineSpec) -> None:
        storage, first_storage = pipeline.compute.storage, first.compute.storage
        for field, its, firsts, because in (
            ("seeds", pipeline.seeds, first.seeds, "differences are paired by seed"),
            ("compute.storage", storage, first_storage, "a comparison is kept in one storage"),
        ):
            if its != firsts:
                raise ValueError(
                    f"arms: pipeline {pipeline.name!r} has {field} {its!r} and pipeline "
                    f"{first.name!r} has {firsts!r}, but {because}; give both the same"
                )

    def _check_rates(self, rates: RateGrid) -> None:
        if rates.seed in self.seeds:
            raise ValueError(
                f"rates.seed {rates.seed} is one of the seeds {self.seeds} that are compared: "
                "rates must not be chosen and judged on the same runs; use another seed"
            )
        for compared in self.arms:
            longest = max(compared.spec.seq_lens)
            evaluated = compared.pipeline.evaluation.seq_lens
            if longest not in evaluated:
                raise ValueError(
                    f"rates: arm {compared.label!r} is trained up to {longest} tokens and not "
                    f"evaluated there (evaluated: {', '.join(map(str, evaluated))}), so its rates "
                    "would not be ranked; add it to evaluation.seq_lens"
                )
        tried = (*rates.lrs, *rates.outward)
        self.pilot({compared.label: tried for compared in self.arms})  # its names are valid

    def _check_claims(self, arms: dict[str, ComparedArm]) -> None:
        for claim in self.claims:
            if claim.arm == claim.against:
                raise ValueError(f"claims: {claim.arm!r} is compared with itself; name another arm")
            for label in (claim.arm, claim.against):
                if label not in arms:
                    known = ", ".join(arms)
                    raise ValueError(f"claims: no arm has the label {label!r}; known: {known}")
                self._check_measured(claim, arms[label])

    def _check_measured(self, claim: ClaimSpec, compared: ComparedArm) -> None:
        """Raises ValueError if the arm's runs will lack a number that the claim compares."""
        where = f"claim {claim.says!r}: arm {compared.label!r}"
        arm = compared.pipeline.arm(compared.arm)
        if claim.measure in ("seconds", "jump"):
            if claim.at is not None:
                raise ValueError(f"{where}: {claim.measure} has no length; remove at={claim.at}")
            if claim.measure == "jump":
                _check_jump(where, arm, compared.pipeline.evaluation)
            return
        longest, evaluated = max(arm.seq_lens), compared.pipeline.evaluation.seq_lens
        if claim.measure == "loss" and longest < (claim.at or 0):
            raise ValueError(
                f"{where} is trained only up to {longest} tokens, so its loss at {claim.at} would "
                "measure extrapolated positions, not training; leave at= out to judge each arm at "
                "its own length, or compare long_loss"
            )
        if claim.measure == "loss" and claim.at is None and longest > max(evaluated):
            raise ValueError(
                f"{where} is trained up to {longest} tokens and evaluated up to {max(evaluated)}, "
                "so it could not be judged at its own length; add it to evaluation.seq_lens"
            )
        field = "evaluation"
        if claim.measure == "long_loss":
            if claim.at is None:
                raise ValueError(f"{where} has a long_loss at each length; give at=, one of them")
            evaluated, field = self.context.seq_lens if self.context else (), "context"
        if claim.at is not None and claim.at not in evaluated:
            raise ValueError(
                f"{where} is not evaluated at {claim.at} tokens (evaluated: "
                f"{', '.join(map(str, evaluated)) or 'no length'}); add it to {field}.seq_lens"
            )


def _check_jump(where: str, arm: ArmSpec, evaluation: EvaluationSpec) -> None:
    """Raises ValueError if no boundary of the arm is scored on both sides."""
    grown = [
        (before, after) for before, after in pairwise(arm.stages) if before.seq_len < after.seq_len
    ]
    if not grown:
        raise ValueError(f"{where} never grows, so it has no jump; compare another arm")
    if not evaluation.stage_ends:
        raise ValueError(
            f"{where} has evaluation.stage_ends=false, so its stage boundaries are not "
            "scored and there would be no jump to compare; set it to true"
        )
    marked = [pair for pair in grown if pair[0].mark_end is not False]
    if not marked:
        raise ValueError(
            f"{where} has no marked end where it grows (mark_end=False), so its stage boundaries "
            "are not scored and there would be no jump to compare; compare another arm"
        )
    longest = max(evaluation.seq_lens)
    lengths = {stage.seq_len for pair in marked for stage in pair}
    if any(longest % seq_len for seq_len in lengths):
        raise ValueError(
            f"{where} grows over {', '.join(map(str, sorted(lengths)))} tokens, not all of which "
            f"divide the longest evaluated length {longest}, so a jump would be missing; evaluate "
            "at a multiple of all (evaluation.seq_lens)"
        )


def pooled(comparisons: Sequence[ComparisonSpec]) -> tuple[PipelineSpec, ...]:
    """Pipelines whose arms several comparisons train: each pipeline once, with all of those arms,
    so that runs share steps. Comparisons that try rates are left out: their arms are not known
    yet."""
    trained = [
        p for comparison in comparisons if not comparison.rates for p in comparison.pipelines
    ]
    pools: list[list[PipelineSpec]] = []
    for pipeline in trained:
        whole = pipeline.derive(only=None)
        pool = next((pool for pool in pools if pool[0].derive(only=None) == whole), None)
        pools.append([pipeline]) if pool is None else pool.append(pipeline)
    return tuple(
        pool[0].derive(only=list(dict.fromkeys(name for its in pool for name in its.only or ())))
        for pool in pools
        if len(pool) > 1
    )
