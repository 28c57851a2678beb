"""The pipeline: one value that declares everything that is trained, and how."""

from typing import Any

from pydantic import Field

from glray.spec.base import Count, Name, Seed, Spec, check_unique
from glray.spec.compute import ComputeSpec
from glray.spec.corpus import CorpusSpec, MixtureCorpus, SourceSpec, TokenizerSpec
from glray.spec.fork import Fork
from glray.spec.model import Attention, ModelSpec, Precision
from glray.spec.schedule import ArmSpec, BudgetSpec, CalibrationSpec, StageSpec, Unit
from glray.spec.search import SearchSpec
from glray.spec.training import EvaluationSpec, OptimizerSpec

BLOCK_TOKENS = 2**20
"""A token block holds this many tokens, so ``chunk_len`` must divide it."""


class PipelineSpec(Spec):
    """A corpus, a model and one or more arms that train on the same tokens in the same order."""

    name: Name
    """Names the pipeline's directory in the storage."""
    corpus: CorpusSpec
    """Where the text comes from."""
    heldout_fraction: float = Field(default=0.05, gt=0, lt=1)
    """Share of the documents held out for evaluation, chosen by a hash of their content. A document
    that makes up more than 20% of its source's held-out bytes goes back to training. Where that
    leaves none, spans of documents are held out: the same share of the tokens, but five at least.
    """
    tokenizer: TokenizerSpec
    """How text becomes tokens."""
    model: ModelSpec | None = None
    """The model's dimensions; each seed draws its weights."""
    init: str | None = None
    """Instead of ``model``: a ``transformers`` folder whose architecture and weights every run
    starts from; on a cluster, one that every node sees under this path."""
    start: Fork | None = None
    """Instead of ``model``: runs of another pipeline that these go on from, with their weights,
    moments and place in the tokens. Stages, budget and learning rate apply to what is
    added."""
    attention: Attention = "window"
    """What a token attends to in training: all earlier tokens of its window, across documents (as
    in the paper), or with ``"document"`` those of its own document, whose positions start at 0."""
    arms: tuple[ArmSpec, ...] = Field(min_length=1)
    """The runs to compare; they differ only in stages, positions, peak learning rate and
    re-warming."""
    only: tuple[Name, ...] | None = Field(default=None, min_length=1)
    """Names of the arms to train now; the others still count for ``chunk_len`` and calibration, so
    that they can join later. None: all."""
    budget: BudgetSpec
    """How much each arm trains."""
    ratios_in: Unit = "tokens"
    """What the stages' ratios divide: the budget's tokens or its calibrated training seconds."""
    tokens_per_batch: Count
    """Tokens of one optimizer step, at every stage unless it declares its own; a multiple of
    ``chunk_len``."""
    chunk_len: Count | None = None
    """Tokens of a chunk, the unit that is shuffled: a power of two up to 2^20. None: the longest
    ``seq_len`` of any arm or of the search."""
    optimizer: OptimizerSpec
    """Optimizer and learning rate."""
    precision: Precision = "float32"
    """Precision of the forward and backward pass; weights and optimizer stay in float32. On a GPU
    float32 is never TF32: its 11 significant bits do not hold positions beyond 2,048, and some
    versions of ``transformers`` compute rotary angles by a matrix product."""
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)
    """Every arm runs once for each seed, which draws the order of the tokens and, of a declared
    model, the initial weights."""
    evaluation: EvaluationSpec
    """What is scored on held-out text."""
    compute: ComputeSpec = ComputeSpec()
    """Where and how it runs."""
    search: SearchSpec | None = None
    """What ``glray tune`` searches."""
    calibration: CalibrationSpec | None = None
    """Cost of a step at each length, where seconds decide. None: measured before step 0."""

    @property
    def sources(self) -> tuple[SourceSpec, ...]:
        """The mixture's sources, or the one corpus under its kind's name."""
        if isinstance(self.corpus, MixtureCorpus):
            return self.corpus.sources
        return (SourceSpec(name=self.corpus.kind, weight=1, corpus=self.corpus),)

    @property
    def chunk_tokens(self) -> int:
        """``chunk_len``, or its default: the longest length of any arm or of the search."""
        return self.chunk_len if self.chunk_len is not None else max(self.all_seq_lens)

    @property
    def all_seq_lens(self) -> tuple[int, ...]:
        """Every training length of any arm or of the search, ascending."""
        lengths = {seq_len for arm in self.arms for seq_len in arm.seq_lens}
        if self.search:
            lengths |= {seq_len for listed in self.search.lengths for seq_len in listed}
        return tuple(sorted(lengths))

    @property
    def trained_arms(self) -> tuple[ArmSpec, ...]:
        """The arms to train now."""
        return tuple(arm for arm in self.arms if self.only is None or arm.name in self.only)

    @property
    def needs_calibration(self) -> bool:
        """Whether seconds decide anything: the budget's end or the stages' boundaries."""
        return self.budget.seconds is not None or self.ratios_in == "seconds"

    def arm(self, name: str) -> ArmSpec:
        """The arm of that name. Raises ValueError."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        names = ", ".join(arm.name for arm in self.arms)
        raise ValueError(f"pipeline {self.name!r} has no arm {name!r}; its arms are {names}")

    def optimizer_of(self, arm: ArmSpec) -> OptimizerSpec:
        """The arm's optimizer: the pipeline's, with the arm's own peak rate and re-warming if it
        has any."""
        own = {"lr": arm.lr, "rewarm_steps": arm.rewarm_steps}
        own = {name: value for name, value in own.items() if value is not None}
        return self.optimizer.derive(**own) if own else self.optimizer

    def tokens_per_batch_of(self, stage: StageSpec) -> int:
        """Tokens of one optimizer step in a stage."""
        return stage.tokens_per_batch or self.tokens_per_batch

    def weights_of(self, stage: StageSpec) -> tuple[int, ...]:
        """The sources' weights in a stage, in the order of the sources."""
        own = stage.weights or {}
        return tuple(own.get(source.name, source.weight) for source in self.sources)

    def __getitem__(self, arms: str | tuple[str, ...]) -> tuple["ComparedArm", ...]:
        """Its arms of these names, to compare: ``pipeline["llm128", "growlength"]``."""
        names = (arms,) if isinstance(arms, str) else arms
        return tuple(ComparedArm(pipeline=self, arm=name) for name in names)

    def resolved(self) -> "PipelineSpec":
        """The same pipeline with ``chunk_len`` written out."""
        return self.derive(chunk_len=self.chunk_tokens)

    def model_post_init(self, context: Any) -> None:
        starts = {"model": self.model, "init": self.init, "start": self.start}
        given = [name for name, value in starts.items() if value is not None]
        if len(given) != 1:
            both = "both" if len(given) == 2 else "all"
            found = (
                f"{' and '.join(given)} are {both}" if given else f"none of {', '.join(starts)} is"
            )
            raise ValueError(
                f"{found} set: a run starts from weights drawn for a declared model, from a "
                "folder's, or from another run's state; set exactly one (null unsets the other)"
            )
        self._check_names()
        self._check_lengths()
        self._check_stages()
        self._check_guard()
        self._check_workers()
        if self.search is not None:
            self.search.check_lists(self.arm(self.search.arm))

    def _check_names(self) -> None:
        names = [arm.name for arm in self.arms]
        check_unique("arms", "name", names, "their runs would share a directory")
        for name in self.only or ():
            self.arm(name)
        if self.name in ("tokens", "profiles", "comparisons"):
            raise ValueError(f"name {self.name!r} is a folder of the storage; use another")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {self.seeds} has a seed twice; remove one")

    def _check_lengths(self) -> None:
        chunk_len = self.chunk_tokens
        if BLOCK_TOKENS % chunk_len:
            raise ValueError(
                f"chunk_len {chunk_len} does not divide a token block of {BLOCK_TOKENS:,} tokens; "
                "use a power of two up to 2^20"
            )
        for seq_len in self.all_seq_lens:
            if chunk_len % seq_len:
                raise ValueError(
                    f"seq_len {seq_len} does not divide chunk_len {chunk_len}: tokens of each "
                    "chunk would never be trained; use a power of two"
                )
        _check_batch("", self.tokens_per_batch, chunk_len)

    def _check_stages(self) -> None:
        """Raises ValueError if what a stage declares for itself cannot be trained."""
        names = [source.name for source in self.sources]
        for arm in self.arms:
            for index, stage in enumerate(arm.stages):
                where = f"arm {arm.name}: stage {index} (seq_len {stage.seq_len}): "
                _check_batch(where, self.tokens_per_batch_of(stage), self.chunk_tokens)
                for name in stage.weights or ():
                    if name not in names:
                        raise ValueError(
                            f"{where}weights has {name!r}, which is no source of the corpus, so "
                            f"nothing would be weighted; its sources are {', '.join(names)}"
                        )
                if not any(self.weights_of(stage)):
                    raise ValueError(
                        f"{where}weights leaves all of {', '.join(names)} out: the stage would "
                        "have nothing to read; give one of them a weight of 1 or more"
                    )

    def _check_guard(self) -> None:
        longest = max(self.evaluation.seq_lens)
        for arm in self.arms if self.evaluation.max_rise is not None else ():
            for stage in arm.stages[:-1]:
                seq_len = stage.seq_len
                if stage.mark_end is not False and longest % seq_len:
                    raise ValueError(
                        f"evaluation.max_rise needs the loss at {seq_len}, of {arm.name!r}, "
                        f"which does not divide the longest of evaluation.seq_lens, {longest}: it "
                        "cannot be scored; add a length that every stage's length divides"
                    )

    def _check_workers(self) -> None:
        """Raises ValueError if seconds decide and the number of workers may change: each step is
        charged what it cost the number that calibrated."""
        fewest, most = self.compute.least_workers, self.compute.most_workers
        if self.needs_calibration and fewest != most:
            raise ValueError(
                f"compute.num_workers ({fewest}, {most}): seconds decide here, and a step is "
                "charged what it cost the number of workers that calibrated, though after a node "
                "has gone or come it takes longer or shorter: equal time would not be equal; set "
                f"one number (compute.num_workers={fewest}), or budget.tokens "
                "(budget.seconds=null) and ratios_in=tokens"
            )


def _check_batch(where: str, tokens_per_batch: int, chunk_len: int) -> None:
    """Raises ValueError if a batch is not of whole chunks."""
    if tokens_per_batch % chunk_len:
        lower = tokens_per_batch // chunk_len * chunk_len
        choices = f"{lower:,} or {lower + chunk_len:,}" if lower else f"{chunk_len:,}"
        raise ValueError(
            f"{where}tokens_per_batch {tokens_per_batch:,} is not a multiple of chunk_len "
            f"{chunk_len:,}: a batch would end inside a chunk; use {choices}"
        )


class ComparedArm(Spec):
    """One arm of a comparison: the pipeline that trains it, and its label there."""

    pipeline: PipelineSpec
    """The pipeline that trains it. Its runs lie in the pipeline's own directory: those that
    another comparison has trained are not trained again."""
    arm: Name
    """The arm's name in the pipeline."""
    label: Name = Field(default_factory=lambda fields: fields["arm"])
    """The arm's name in this comparison's tables, plots and claims. Default: ``arm``."""

    @property
    def spec(self) -> ArmSpec:
        """The arm itself. Raises ValueError."""
        return self.pipeline.arm(self.arm)
