"""A comparison: arms of one or more pipelines side by side, and what they are to show."""

from typing import Literal, Self

from pydantic import Field, model_validator

from glray.spec.base import Integer, Name, Spec
from glray.spec.corpus import SourceCorpus
from glray.spec.pipeline import PipelineSpec
from glray.spec.training import check_scorable

Measure = Literal["loss", "seconds", "jump", "long_loss"]
"""What a claim compares: held-out loss, measured training seconds, the highest jump of the held-out
loss at a stage boundary, or the loss on the context's documents in whole windows."""


class ComparedArm(Spec):
    """One arm of a comparison: which of a pipeline's, and what it is called here."""

    pipeline: PipelineSpec
    """Whose runs it needs. They lie in the pipeline's own directory: what another comparison has
    trained of it is not trained again."""
    arm: Name
    """The arm's name in the pipeline."""
    label: Name
    """Its name in this comparison's tables, plots and claims."""


class ClaimSpec(Spec):
    """That one arm lies below another, or no further from it than a margin: judged from the runs'
    own figures, paired by seed."""

    says: str = Field(min_length=1)
    """The claim in words, as it is printed before its verdict."""
    arm: Name
    """Label of the arm that the claim is for."""
    against: Name
    """Label of the arm that it is measured against."""
    measure: Measure = "loss"
    """What is lower. A seconds' difference counts as a share of ``against``'s."""
    at: Integer | None = Field(default=None, ge=1)
    """Window length of a loss in tokens. None: the longest that any compared arm is trained on."""
    within: float | None = Field(default=None, gt=0)
    """Instead of lower: the two differ by no more than this (nats per token)."""


class ContextSpec(Spec):
    """Every compared model scored on long documents, in windows beyond its training."""

    seq_lens: tuple[Integer, ...] = Field(min_length=1)
    """Window lengths in tokens."""
    num_tokens: Integer = Field(ge=1)
    """Target tokens, the same at every length."""
    stride: Integer = Field(ge=1)
    """Tokens by which the sliding windows move; whole windows are scored as well."""
    documents: SourceCorpus | None = None
    """What is scored. None: each run's own held-out documents."""

    @model_validator(mode="after")
    def _lengths_divide_the_longest(self) -> Self:
        check_scorable("context", self.seq_lens, self.num_tokens)
        longest = max(self.seq_lens)
        if self.stride > longest:
            raise ValueError(
                f"context.stride {self.stride} is more than the longest window, {longest}: tokens "
                "between two would not be scored; lower it"
            )
        return self


class ComparisonSpec(Spec):
    """Arms of one or more pipelines, under the same seeds, and the claims they are to bear out."""

    name: Name
    """Names the comparison's directory, ``<storage>/comparisons/<name>``."""
    title: str = Field(min_length=1)
    """What it compares, in a few words."""
    arms: tuple[ComparedArm, ...] = Field(min_length=1)
    """The arms in the order of tables and plots."""
    claims: tuple[ClaimSpec, ...] = ()
    """What is judged. A verdict takes three seeds."""
    context: ContextSpec | None = None
    """Also score long documents."""

    @property
    def pipelines(self) -> tuple[PipelineSpec, ...]:
        """Each pipeline once, to train the compared arms alone."""
        wanted: dict[str, PipelineSpec] = {}
        for compared in self.arms:
            wanted.setdefault(compared.pipeline.name, compared.pipeline)
        return tuple(
            pipeline.derive(only=self._arms_of(pipeline.name)) for pipeline in wanted.values()
        )

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of every arm."""
        return self.arms[0].pipeline.seeds

    def _arms_of(self, pipeline: str) -> list[str]:
        """Names of its compared arms, each once."""
        names = [compared.arm for compared in self.arms if compared.pipeline.name == pipeline]
        return list(dict.fromkeys(names))

    @model_validator(mode="after")
    def _arms_are_known_and_told_apart(self) -> Self:
        labels = [compared.label for compared in self.arms]
        for compared in self.arms:
            if labels.count(compared.label) > 1:
                raise ValueError(
                    f"arms: {labels.count(compared.label)} are labelled {compared.label!r}, their "
                    "figures would be mixed; rename one"
                )
            names = [arm.name for arm in compared.pipeline.arms]
            if compared.arm not in names:
                raise ValueError(
                    f"arms: {compared.label!r} is arm {compared.arm!r} of pipeline "
                    f"{compared.pipeline.name!r}, whose arms are {', '.join(names)}; name one of "
                    "those"
                )
        return self

    @model_validator(mode="after")
    def _pipelines_agree(self) -> Self:
        first: dict[str, PipelineSpec] = {}
        for compared in self.arms:
            pipeline = compared.pipeline
            if first.setdefault(pipeline.name, pipeline) != pipeline:
                raise ValueError(
                    f"arms: two different pipelines are named {pipeline.name!r}, their runs would "
                    "share directories; rename one"
                )
            if pipeline.seeds != self.seeds:
                raise ValueError(
                    f"arms: pipeline {pipeline.name!r} has seeds {pipeline.seeds}, "
                    f"{self.arms[0].pipeline.name!r} {self.seeds}: differences are paired by seed; "
                    "give both the same"
                )
            if pipeline.compute.storage != self.arms[0].pipeline.compute.storage:
                raise ValueError(
                    f"arms: pipeline {pipeline.name!r} has another compute.storage than "
                    f"{self.arms[0].pipeline.name!r}: the comparison would lie in neither; give "
                    "both the same"
                )
        return self

    @model_validator(mode="after")
    def _claims_are_of_its_arms(self) -> Self:
        labels = [compared.label for compared in self.arms]
        for claim in self.claims:
            for label in (claim.arm, claim.against):
                if label not in labels:
                    raise ValueError(
                        f"claims: {label!r} is none of the arms {', '.join(labels)}; use a label"
                    )
            if claim.arm == claim.against:
                raise ValueError(f"claims: {claim.arm!r} is measured against itself; name another")
            for compared in self.arms:
                if compared.label in (claim.arm, claim.against):
                    self._check_measured(claim, compared)
        return self

    def _check_measured(self, claim: ClaimSpec, compared: ComparedArm) -> None:
        """Raises ValueError if the arm will have no such figure."""
        where = f"claims: {claim.says!r} is of {compared.label!r}"
        arm = compared.pipeline.arm(compared.arm)
        if claim.measure in ("seconds", "jump") and claim.at is not None:
            raise ValueError(
                f"{where}'s {claim.measure}, which has no length; remove at={claim.at}"
            )
        if claim.measure == "jump" and list(arm.seq_lens) == sorted(arm.seq_lens, reverse=True):
            raise ValueError(f"{where}'s jump, but its length never grows; compare another arm")
        if claim.measure in ("loss", "long_loss") and claim.at is not None:
            of_context = claim.measure == "long_loss"
            lengths = self.context.seq_lens if of_context and self.context else ()
            scored = lengths if of_context else compared.pipeline.evaluation.seq_lens
            if claim.at not in scored:
                field = "context" if of_context else "evaluation"
                raise ValueError(
                    f"{where} at {claim.at} tokens, scored are "
                    f"{', '.join(map(str, scored)) or 'none'}; add it to {field}.seq_lens"
                )
        if claim.measure == "long_loss" and claim.at is None:
            raise ValueError(f"{where} on long documents at no length; give at=, a window length")
