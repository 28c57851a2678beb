"""The pipeline: one value that declares everything that is trained, and how."""

from pydantic import Field, model_validator

from glray.spec.base import Count, Integer, Name, Spec, check_unique
from glray.spec.compute import ComputeSpec
from glray.spec.corpus import CorpusSpec, MixtureCorpus, SourceSpec, TokenizerSpec
from glray.spec.model import Attention, ModelSpec, Precision
from glray.spec.positions import BaseFrequencies
from glray.spec.schedule import ArmSpec, BudgetSpec, CalibrationSpec, Unit
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
    that makes up more than 20% of its source's held-out bytes goes back to training."""
    tokenizer: TokenizerSpec
    """How text becomes tokens."""
    model: ModelSpec | None = None
    """The model's dimensions; each seed draws its weights."""
    init: str | None = None
    """Instead of ``model``: a ``transformers`` folder whose architecture and weights every run
    starts from; on a cluster, one that every node sees under this path."""
    attention: Attention = "window"
    """What a token attends to in training: all earlier tokens of its window, across documents (as
    in the paper), or with ``"document"`` those of its own document, whose positions start at 0."""
    arms: tuple[ArmSpec, ...] = Field(min_length=1)
    """The runs to compare; they differ only in stages and positions."""
    only: tuple[Name, ...] | None = None
    """Names of the arms to train now; the others still count for ``chunk_len`` and calibration, so
    that they can join later. None: all."""
    budget: BudgetSpec
    """How much each arm trains."""
    ratios_in: Unit = "tokens"
    """What the stages' ratios divide: the budget's tokens or its calibrated training seconds."""
    tokens_per_batch: Count
    """Tokens of one optimizer step, the same at every stage; a multiple of ``chunk_len``."""
    chunk_len: Count | None = None
    """Tokens of a chunk, the unit that is shuffled: a power of two up to 2^20. None: the longest
    ``seq_len`` of any arm or search ladder."""
    optimizer: OptimizerSpec
    """Optimizer and learning rate."""
    precision: Precision = "float32"
    """Precision of the forward and backward pass; weights and optimizer stay in float32."""
    seeds: tuple[Integer, ...] = Field(default=(0,), min_length=1)
    """Every arm runs once for each seed, which draws the order of the tokens and, of a declared
    model, the initial weights."""
    evaluation: EvaluationSpec
    """What is scored on held-out text."""
    compute: ComputeSpec = ComputeSpec()
    """Where and how it runs."""
    search: SearchSpec | None = None
    """What ``glray tune`` varies."""
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
        """``chunk_len``, or its default: the longest length of any arm or search ladder."""
        return self.chunk_len if self.chunk_len is not None else max(self.all_seq_lens)

    @property
    def all_seq_lens(self) -> tuple[int, ...]:
        """Every training length of any arm or search ladder, ascending."""
        lengths = {seq_len for arm in self.arms for seq_len in arm.seq_lens}
        if self.search:
            lengths |= {seq_len for ladder in self.search.ladders for seq_len in ladder}
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
        """The arm of that name. Raises KeyError."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KeyError(name)

    def __getitem__(self, arms: str | tuple[str, ...]) -> tuple["ComparedArm", ...]:
        """Its arms of these names, to compare: ``pipeline["llm128", "growlength"]``."""
        names = (arms,) if isinstance(arms, str) else arms
        return tuple(ComparedArm(pipeline=self, arm=name) for name in names)

    def resolved(self) -> "PipelineSpec":
        """The same pipeline with ``chunk_len`` written out."""
        return self.derive(chunk_len=self.chunk_tokens)

    @model_validator(mode="after")
    def _starts_from_one_model(self) -> "PipelineSpec":
        if (self.model is None) == (self.init is None):
            given = "neither model nor init is" if self.model is None else "model and init are both"
            raise ValueError(
                f"{given} set: a run starts from weights drawn for a declared model, or from a "
                "folder's; set exactly one (null unsets the other)"
            )
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> "PipelineSpec":
        names = [arm.name for arm in self.arms]
        check_unique("arms", "name", names, "their runs would share a directory")
        for name in self.only or ():
            if name not in names:
                raise ValueError(f"only: no arm is named {name!r}; the arms are {', '.join(names)}")
        if self.only == ():
            raise ValueError("only: is empty, so nothing would be trained; null trains all arms")
        if self.name in ("tokens", "profiles", "comparisons"):
            raise ValueError(
                f"name {self.name!r} is reserved for a folder of the storage; use another"
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {self.seeds} has a seed twice; remove one")
        if any(not 0 <= seed < 2**63 for seed in self.seeds):
            raise ValueError(f"seeds {self.seeds} must lie in [0, 2^63)")
        return self

    @model_validator(mode="after")
    def _lengths_divide(self) -> "PipelineSpec":
        chunk_len = self.chunk_tokens
        if BLOCK_TOKENS % chunk_len:
            raise ValueError(
                f"chunk_len {chunk_len} does not divide a token block of {BLOCK_TOKENS:,} tokens; "
                "use a power of two up to 2^20"
            )
        for seq_len in self.all_seq_lens:
            if chunk_len % seq_len:
                raise ValueError(
                    f"seq_len {seq_len} does not divide chunk_len {chunk_len}: "
                    f"{chunk_len % seq_len} tokens of each chunk would never be trained; "
                    "use a power of two"
                )
        if self.tokens_per_batch % chunk_len:
            lower = self.tokens_per_batch // chunk_len * chunk_len
            choices = " or ".join(
                f"{choice:,}" for choice in (lower, lower + chunk_len) if choice > 0
            )
            raise ValueError(
                f"tokens_per_batch {self.tokens_per_batch:,} is not a multiple of chunk_len "
                f"{chunk_len:,}: a batch would end inside a chunk; use {choices}"
            )
        return self

    @model_validator(mode="after")
    def _guard_can_score(self) -> "PipelineSpec":
        longest = max(self.evaluation.seq_lens)
        for arm in self.arms if self.evaluation.max_rise is not None else ():
            for seq_len in arm.seq_lens[:-1]:
                if longest % seq_len:
                    raise ValueError(
                        f"evaluation.max_rise watches the loss at {seq_len} across a boundary of "
                        f"{arm.name!r}, but {seq_len} does not divide the longest of "
                        f"evaluation.seq_lens, {longest}, so it cannot be scored; add a length "
                        "that every stage's length divides"
                    )
        return self

    @model_validator(mode="after")
    def _search_fits(self) -> "PipelineSpec":
        if self.search is None:
            return self
        names = [arm.name for arm in self.arms]
        if self.search.arm not in names:
            raise ValueError(
                f"search.arm: no arm is named {self.search.arm!r}; the arms are {', '.join(names)}"
            )
        arm = self.arm(self.search.arm)
        if isinstance(arm.positions, BaseFrequencies) and any(
            len(ladder) != len(arm.stages) for ladder in self.search.ladders
        ):
            raise ValueError(
                f"search.ladders has a ladder that does not have {len(arm.stages)} lengths, one "
                f"for each of positions.thetas of {arm.name!r}; use another kind of positions"
            )
        low, high = self.search.ratio_range
        if not 0.001 <= low <= high:
            raise ValueError(
                f"search.ratio_range {low} to {high} must rise and start at 0.001 or more: drawn "
                "ratios have three digits"
            )
        return self


class ComparedArm(Spec):
    """One arm of a comparison: the pipeline that trains it, and its label there."""

    pipeline: PipelineSpec
    """The pipeline that trains it. Its runs lie in the pipeline's own directory: those that
    another comparison has trained are not trained again."""
    arm: Name
    """The arm's name in the pipeline."""
    label: Name = Field(default_factory=lambda fields: fields["arm"])
    """The arm's name in this comparison's tables, plots and claims. Default: ``arm``."""
