"""The paper's figures, each a comparison, at two scales: ``mini`` and ``full``.

``mini`` is for two CPU cores and the running Python's standard library; ``make paper-mini`` runs
all of it. ``full`` is the paper's own: Pythia's sizes in bfloat16 on one 80 GB GPU, on any corpus:

    glray compare pipelines/paper.py:full.figure1 \\
        --set corpus.paths=[corpus.parquet] --set tokenizer.path=tokenizer.json

GrowLength, https://arxiv.org/abs/2310.00576: section 4.1 (Figure 2), 4.2 (Figure 1), 4.3 (Figure
3), 4.4 (Figure 4), 4.5 (Figure 5), and the abstract's 128 → … → 4096. The paper says neither its
batch nor its learning rate; what stands here is ours.
"""

from dataclasses import dataclass, replace

from glray.spec import (
    PYTHIA_70M,
    PYTHIA_160M,
    PYTHIA_410M,
    ArmSpec,
    BpeTokenizer,
    BudgetSpec,
    ClaimSpec,
    ComparedArm,
    ComparisonSpec,
    ComputeSpec,
    ContextSpec,
    EvaluationSpec,
    GPTNeoXModel,
    OptimizerSpec,
    ParquetCorpus,
    PipelineSpec,
    StdlibCorpus,
    TokenizerFile,
)
from glray.spec.corpus import SourceCorpus, TokenizerSpec


@dataclass(frozen=True)
class Size:
    """A model of Figure 3."""

    label: str
    model: GPTNeoXModel
    lr: float


@dataclass(frozen=True)
class Paper:
    """Every pipeline and comparison at one scale."""

    scale: str
    corpus: SourceCorpus
    tokenizer: TokenizerSpec
    sizes: tuple[Size, Size, Size]
    """Ascending; the middle one is the model of all figures but the third."""
    seconds: float
    """Calibrated training time where that is what is equal."""
    tokens: int
    """Training tokens where those are."""
    tokens_per_batch: int
    evaluation_tokens: int
    tables_batch: int
    """Tokens of a batch in Tables 1 to 3, and the longest length there."""
    every_tokens: int
    """Scored so often where time is equal, for how much sooner a loss is reached."""
    precision: str
    compute: ComputeSpec
    alone: ComputeSpec
    """Where the time of a run is what counts: one at once, or they would slow each other."""
    long_documents: SourceCorpus | None
    """Of Figure 4; None: the held-out documents."""
    long_tokens: int
    """Targets that Figure 4 scores of them."""
    long_stride: int
    """Tokens by which its sliding windows move."""
    seeds: tuple[int, ...] = (0,)

    # ---- pipelines: what is trained

    def equal_time(self) -> PipelineSpec:
        """Fixed 128, fixed 1024 and three ways to grow from the one to the other."""
        arms = (
            _arm("llm128", 128),
            _arm("llm1024", 1024),
            _arm("growlength", 128, 256, 512, 1024),
            _arm("128-512-1024", 128, 512, 1024),
            _arm("128-1024", 128, 1024),
        )
        return self._pipeline("equal-time", self._base, arms)

    def equal_tokens(self) -> PipelineSpec:
        """Fixed 128, fixed 1024 and growing on as many tokens."""
        arms = (
            _arm("llm128", 128),
            _arm("llm1024", 1024),
            _arm("growlength", 128, 256, 512, 1024),
        )
        spec = self._pipeline("equal-tokens", self._base, arms)
        return spec.derive(
            budget=BudgetSpec(tokens=self.tokens), ratios_in="tokens", compute=self.alone
        )

    def size(self, size: Size) -> PipelineSpec:
        """Fixed 1024 and growing, for a model of another size."""
        arms = (_arm("llm1024", 1024), _arm("growlength", 128, 256, 512, 1024))
        return self._pipeline(size.label, size, arms)

    def long(self, longest: int) -> PipelineSpec:
        """128 → … → ``longest`` against that length from the start, at equal time."""
        lengths = [128 * 2**power for power in range((longest // 128).bit_length())]
        arms = (_arm(f"llm{longest}", longest), _arm(f"growlength{longest}", *lengths))
        spec = self._pipeline(f"long{longest}", self._base, arms)
        return spec.derive(tokens_per_batch=max(self.tokens_per_batch, longest))

    def tables(self) -> PipelineSpec:
        """For ``glray profile``: Tables 1 to 3."""
        spec = self._pipeline("tables", self._base, (_arm("growlength", 128, 256, 512, 1024),))
        return spec.derive(tokens_per_batch=self.tables_batch)

    # ---- comparisons: what is made of it

    def figure1(self) -> ComparisonSpec:
        """Equal training time."""
        time = replace(self, seeds=_at_least(3, self.seeds)).equal_time()
        says = "Figure 1: in the same training time GrowLength attains a lower loss than"
        return ComparisonSpec(
            name=f"{self.scale}-figure1",
            title="Equal training time",
            arms=_all_of(time, "llm128", "llm1024", "growlength"),
            claims=(
                ClaimSpec(says=f"{says} LLM1024", arm="growlength", against="llm1024"),
                *_against_llm128(says),
            ),
        )

    def figure2(self) -> ComparisonSpec:
        """Equal tokens: the time to finish."""
        return ComparisonSpec(
            name=f"{self.scale}-figure2",
            title="Equal tokens",
            arms=_all_of(self.equal_tokens(), "llm128", "llm1024", "growlength"),
            claims=(
                ClaimSpec(
                    says="Figure 2: on the same tokens GrowLength takes less time than LLM1024",
                    arm="growlength",
                    against="llm1024",
                    measure="seconds",
                ),
                *_against_llm128("Figure 2: on the same tokens GrowLength has a lower loss than"),
                ClaimSpec(
                    says="Not claimed: on the same tokens GrowLength has LLM1024's loss (± 0.02)",
                    arm="growlength",
                    against="llm1024",
                    within=0.02,
                ),
            ),
        )

    def figure3(self) -> ComparisonSpec:
        """Three sizes with and without growing, at equal time."""
        small, middle, _ = self.sizes
        arms, claims = [], []
        for size in self.sizes:
            pipeline = self.equal_time() if size is self._base else self.size(size)
            grown, fixed = f"{size.label}-growlength", f"{size.label}-llm1024"
            arms += [
                ComparedArm(pipeline=pipeline, arm="llm1024", label=fixed),
                ComparedArm(pipeline=pipeline, arm="growlength", label=grown),
            ]
            says = f"Figure 3: growing lowers the loss of {size.label} in the same time"
            claims.append(ClaimSpec(says=says, arm=grown, against=fixed))
        claims.append(
            ClaimSpec(
                says=f"Figure 3: {small.label} grown is lower than {middle.label} at fixed 1024 "
                "(the paper: the same or slightly lower)",
                arm=f"{small.label}-growlength",
                against=f"{middle.label}-llm1024",
            )
        )
        return ComparisonSpec(
            name=f"{self.scale}-figure3",
            title="Model sizes with and without growing",
            arms=tuple(arms),
            claims=tuple(claims),
        )

    def figure4(self) -> ComparisonSpec:
        """Windows up to four times the trained length, on long documents."""
        tokens, time = self.equal_tokens(), self.equal_time()
        lengths = (1024, 2048, 4096)
        claims = [
            ClaimSpec(
                says=f"Figure 4: GrowLength-1 is better than {name.upper()} in windows of "
                f"{seq_len:,}",
                arm="growlength-1",
                against=name,
                measure="long_loss",
                at=seq_len,
            )
            for name in ("llm1024", "llm128")
            for seq_len in lengths
        ]
        return ComparisonSpec(
            name=f"{self.scale}-figure4",
            title="Context windows beyond the trained length",
            arms=(
                ComparedArm(pipeline=tokens, arm="llm128", label="llm128"),
                ComparedArm(pipeline=tokens, arm="llm1024", label="llm1024"),
                ComparedArm(pipeline=tokens, arm="growlength", label="growlength-1"),
                ComparedArm(pipeline=time, arm="growlength", label="growlength-2"),
            ),
            claims=tuple(claims),
            context=ContextSpec(
                seq_lens=(128, 256, 512, *lengths),
                num_tokens=self.long_tokens,
                stride=self.long_stride,
                documents=self.long_documents,
            ),
        )

    def figure5(self) -> ComparisonSpec:
        """Ratios: in how many stages the length grows."""
        names = ("growlength", "128-512-1024", "128-1024")
        return ComparisonSpec(
            name=f"{self.scale}-figure5",
            title="Ratios of the lengths",
            arms=_all_of(self.equal_time(), *names),
            claims=(
                ClaimSpec(
                    says="Figure 5: with or without the stage of 256 the loss is the same (± 0.02)",
                    arm="128-512-1024",
                    against="growlength",
                    within=0.02,
                ),
                ClaimSpec(
                    says="Figure 5: a leap from 128 to 1024 ends with a higher loss",
                    arm="growlength",
                    against="128-1024",
                ),
                ClaimSpec(
                    says="Figure 5: a leap from 128 to 1024 makes the loss jump higher",
                    arm="growlength",
                    against="128-1024",
                    measure="jump",
                ),
            ),
        )

    def long4096(self) -> ComparisonSpec:
        """The abstract's example: 128 → … → 4096."""
        return self._long_comparison(4096)

    def long8192(self) -> ComparisonSpec:
        """The same to 8192."""
        return self._long_comparison(8192)

    def _long_comparison(self, longest: int) -> ComparisonSpec:
        grown, fixed = f"growlength{longest}", f"llm{longest}"
        return ComparisonSpec(
            name=f"{self.scale}-long{longest}",
            title=f"128 → … → {longest:,} in the same time as fixed {longest:,}",
            arms=_all_of(self.long(longest), fixed, grown),
            claims=(
                ClaimSpec(
                    says=f"Beyond the figures: growing from 128 to {longest:,} gives a lower loss "
                    f"than {longest:,} throughout, in the same time",
                    arm=grown,
                    against=fixed,
                ),
            ),
        )

    @property
    def _base(self) -> Size:
        return self.sizes[1]

    def _pipeline(self, name: str, size: Size, arms: tuple[ArmSpec, ...]) -> PipelineSpec:
        """At equal time. Scored at every doubling up to the longest length, so that each stage
        boundary can be."""
        longest = max(seq_len for arm in arms for seq_len in arm.seq_lens)
        lengths = tuple(128 * 2**power for power in range((longest // 128).bit_length()))
        return PipelineSpec(
            name=f"{self.scale}-{name}",
            corpus=self.corpus,
            tokenizer=self.tokenizer,
            model=size.model,
            arms=arms,
            budget=BudgetSpec(seconds=self.seconds),
            ratios_in="seconds",
            tokens_per_batch=max(self.tokens_per_batch, longest),
            optimizer=OptimizerSpec(lr=size.lr),
            precision=self.precision,
            seeds=self.seeds,
            evaluation=EvaluationSpec(
                seq_lens=lengths,
                num_tokens=self.evaluation_tokens,
                every_tokens=self.every_tokens,
            ),
            compute=self.compute,
        )


def _arm(name: str, *seq_lens: int) -> ArmSpec:
    return ArmSpec(name=name, stages=seq_lens)


def _all_of(pipeline: PipelineSpec, *arms: str) -> tuple[ComparedArm, ...]:
    """Arms of one pipeline under their own names."""
    return tuple(ComparedArm(pipeline=pipeline, arm=name, label=name) for name in arms)


def _against_llm128(says: str) -> tuple[ClaimSpec, ClaimSpec]:
    """The paper's training losses are each at the length in training; held-out ones can be told at
    both: where LLM128 was trained, and where it was not."""
    return (
        ClaimSpec(
            says=f"{says} LLM128, in windows of 1,024",
            arm="growlength",
            against="llm128",
        ),
        ClaimSpec(
            says=f"{says} LLM128, in windows of 128, which are LLM128's own",
            arm="growlength",
            against="llm128",
            at=128,
        ),
    )


def _at_least(number: int, seeds: tuple[int, ...]) -> tuple[int, ...]:
    return seeds if len(seeds) >= number else tuple(range(number))


def _mini_size(width: int, lr: float) -> Size:
    """Two layers, the fewest that copy from context: in three minutes a core teaches them to use
    1,024 tokens."""
    return Size(
        label=f"width{width}",
        model=GPTNeoXModel(
            num_layers=2, hidden_size=width, num_heads=4, intermediate_size=4 * width
        ),
        lr=lr,
    )


_on_one_core = ComputeSpec(micro_batch_tokens=2048, checkpoint_every_tokens=2_000_000)

mini = Paper(
    scale="mini",
    corpus=StdlibCorpus(),
    tokenizer=BpeTokenizer(vocab_size=1024),
    sizes=(_mini_size(64, 4e-3), _mini_size(128, 3e-3), _mini_size(192, 2e-3)),
    seconds=180,
    tokens=2_000_000,
    tokens_per_batch=4096,
    evaluation_tokens=24_576,
    tables_batch=8192,
    every_tokens=500_000,
    precision="float32",
    compute=_on_one_core,
    alone=_on_one_core.derive(groups=1, cpus_per_worker=2),
    long_documents=None,
    long_tokens=32_768,
    long_stride=1024,
)


_on_one_gpu = ComputeSpec(
    cpus_per_worker=8, use_gpu=True, compile=True, checkpoint_every_tokens=50_000_000
)

full = Paper(
    scale="full",
    corpus=ParquetCorpus(paths=("corpus.parquet",)),
    tokenizer=TokenizerFile(path="tokenizer.json"),
    sizes=(
        Size("pythia70m", PYTHIA_70M, 1e-3),
        Size("pythia160m", PYTHIA_160M, 6e-4),
        Size("pythia410m", PYTHIA_410M, 3e-4),
    ),
    seconds=1200,
    tokens=360_000_000,  # the paper's 0.36B, section 4.1
    tokens_per_batch=65_536,
    evaluation_tokens=262_144,
    tables_batch=16_384,  # the paper's, section 3.2, footnote 2
    every_tokens=30_000_000,
    precision="bfloat16",
    compute=_on_one_gpu,
    alone=_on_one_gpu.derive(groups=1),
    long_documents=ParquetCorpus(paths=("long-documents.parquet",)),
    long_tokens=524_288,
    long_stride=256,
)
