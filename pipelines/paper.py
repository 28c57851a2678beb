"""The paper's figures, each a comparison, at two scales; ``paper_tiny.py`` has one smaller.

``mini`` is for two CPU cores and the ``docs.parquet`` of ``benchmarks/docs_corpus.py``; ``full`` is
the paper's own: Pythia in bfloat16 on one 80 GB GPU, on any corpus (``--set corpus.paths=[…] …``).

GrowLength, https://arxiv.org/abs/2310.00576: section 4.1 (Figure 2), 4.2 (Figure 1), 4.3 (Figure
3), 4.4 (Figure 4), 4.5 (Figure 5). The paper gives neither its batch nor its learning rate.
"""

from collections.abc import Sequence

from glray import spec
from glray.spec import ComparisonSpec, PipelineSpec, Spec, faster, fixed, grow, lower, same

LENGTHS = (128, 256, 512, 1024)
_, LLM1024, GROWLENGTH = ARMS = (fixed(128), fixed(1024), grow(*LENGTHS))
OTHER_RATIOS = (grow(128, 512, 1024, name="128-512-1024"), grow(128, 1024, name="128-1024"))
LONG_DOCUMENTS = spec.ParquetCorpus(paths=("long-documents.parquet",))
FOUR_LAYERS = spec.GPTNeoXModel(num_layers=4, hidden_size=128, num_heads=4, intermediate_size=512)
NAMES = tuple(arm.name for arm in ARMS)
# Each arm is judged at its own length, as in the paper; in whole windows of 128 only to describe.
BELOW_LLM128 = [lower("growlength", "llm128"), lower("growlength", "llm128", at=128, primary=False)]


class Paper(Spec):
    """Every pipeline and comparison at one scale."""

    base: PipelineSpec  # what all pipelines share; its name is the scale
    sizes: dict[str, tuple[spec.GPTNeoXModel, float]]  # Figure 3's, with lr; the second is base's
    tokens: int  # of each arm, where the tokens are equal
    alone: dict[str, int]  # compute where seconds are compared: one run at once, or they slow down
    tables_batch: int  # tokens of a batch in Tables 1 to 3, and the longest length there
    context: spec.ContextSpec  # Figure 4's long documents

    def equal_time(self) -> PipelineSpec:
        """Fixed 128, fixed 1024 and three ways to grow from one to the other."""
        return self._pipeline("equal-time", arms=ARMS + OTHER_RATIOS)

    def equal_tokens(self) -> PipelineSpec:
        """Fixed 128, fixed 1024 and growing, on as many tokens."""
        budget = {"tokens": self.tokens, "seconds": None}
        compute = {"calibrate": True, **self.alone}
        return self._pipeline("equal-tokens", budget=budget, ratios_in="tokens", compute=compute)

    def size(self, name: str) -> PipelineSpec:
        """Fixed 1024 and growing, with a model of another size."""
        model, lr = self.sizes[name]
        return self._pipeline(name, arms=(LLM1024, GROWLENGTH), model=model, optimizer={"lr": lr})

    def tables(self) -> PipelineSpec:
        """For ``glray profile``: Tables 1 to 3."""
        return self._pipeline("tables", arms=(GROWLENGTH,), tokens_per_batch=self.tables_batch)

    def figure1(self) -> ComparisonSpec:
        """Equal training time."""
        arms = self.equal_time().derive(seeds=(0, 1, 2))[NAMES]
        claims = (lower("growlength", "llm1024"), *BELOW_LLM128)
        return self._comparison("figure1", "Equal training time", arms, claims)

    def figure2(self) -> ComparisonSpec:
        """Equal tokens: the time to finish. The paper does not claim that the loss is the same."""
        same_loss = same("growlength", "llm1024", within=0.02)
        claims = (faster("growlength", "llm1024"), *BELOW_LLM128, same_loss)
        return self._comparison("figure2", "Equal tokens", self.equal_tokens()[NAMES], claims)

    def figure3(self) -> ComparisonSpec:
        """Three sizes at equal time. The paper: small grown is as good as middle at fixed 1024."""
        small, middle, large = self.sizes
        pipelines = {small: self.size(small), middle: self.equal_time(), large: self.size(large)}
        both = [(size, arm) for size, p in pipelines.items() for arm in p["llm1024", "growlength"]]
        arms = [arm.derive(label=f"{size}-{arm.arm}") for size, arm in both]
        pairs = [(small, small), (middle, middle), (large, large), (small, middle)]
        claims = [lower(f"{grown}-growlength", f"{other}-llm1024") for grown, other in pairs]
        return self._comparison("figure3", "Model sizes with and without growing", arms, claims)

    def figure4(self) -> ComparisonSpec:
        """Windows up to four times the trained length, on long documents."""
        llm128, llm1024, by_tokens = self.equal_tokens()[NAMES]
        (by_time,) = self.equal_time()["growlength"]
        grown = (by_tokens.derive(label="growlength-1"), by_time.derive(label="growlength-2"))
        fields = {"at": max(self.context.seq_lens), "measure": "long_loss"}
        claims = [lower("growlength-1", other, **fields) for other in ("llm1024", "llm128")]
        title, arms = "Context windows beyond the trained length", (llm128, llm1024, *grown)
        return self._comparison("figure4", title, arms, claims, context=self.context)

    def figure5(self) -> ComparisonSpec:
        """Ratios: in how many stages the length grows."""
        arms = self.equal_time()["growlength", "128-512-1024", "128-1024"]
        claims = [same("128-512-1024", "growlength", within=0.02), lower("growlength", "128-1024")]
        claims += [lower("growlength", "128-1024", measure="jump", primary=False)]
        return self._comparison("figure5", "Ratios of the lengths", arms, claims)

    def long4096(self, longest: int = 4096) -> ComparisonSpec:
        """The abstract's example at equal time, 128 → … → 4096."""
        lengths = [128 * 2**power for power in range((longest // 128).bit_length())]
        arms = (fixed(longest), grow(*lengths, name=f"growlength{longest}"))
        batch = max(self.base.tokens_per_batch, longest)
        changes = {"tokens_per_batch": batch, "evaluation": {"seq_lens": lengths}}
        pipeline = self._pipeline(f"long{longest}", arms=arms, **changes)
        throughout, grown = (arm.name for arm in arms)
        title = f"128 → … → {longest:,} in the same time as fixed {longest:,}"
        compared, claim = pipeline[throughout, grown], lower(grown, throughout)
        return self._comparison(f"long{longest}", title, compared, [claim])

    def long8192(self) -> ComparisonSpec:
        """The same to 8192."""
        return self.long4096(8192)

    def _pipeline(self, name: str, **changes: object) -> PipelineSpec:
        return self.base.derive(name=f"{self.base.name}-{name}", **changes)

    def _comparison(
        self,
        name: str,
        title: str,
        arms: Sequence[spec.ComparedArm],
        claims: Sequence[spec.ClaimSpec],
        context: spec.ContextSpec | None = None,
    ) -> ComparisonSpec:
        return ComparisonSpec(
            name=f"{self.base.name}-{name}",
            title=title,
            arms=tuple(arms),
            claims=tuple(claims),
            context=context,
        )


mini = Paper(  # within these budgets fixed 1,024 learns to use context beyond 128 tokens
    base=PipelineSpec(
        name="mini",
        corpus=spec.ParquetCorpus(paths=("docs.parquet",)),
        tokenizer=spec.BpeTokenizer(vocab_size=1024),
        model=FOUR_LAYERS,
        arms=ARMS,
        budget=spec.BudgetSpec(seconds=840),
        ratios_in="seconds",
        tokens_per_batch=4096,
        optimizer=spec.OptimizerSpec(lr=4e-3),
        evaluation=spec.EvaluationSpec(
            seq_lens=LENGTHS, num_tokens=102_400, every_tokens=1_500_000
        ),
        compute=spec.ComputeSpec(groups=1, cpus_per_worker=2, micro_batch_tokens=4096),
    ),
    sizes={
        "width64": (FOUR_LAYERS.derive(hidden_size=64, intermediate_size=256), 5e-3),
        "width128": (FOUR_LAYERS, 4e-3),
        "width192": (FOUR_LAYERS.derive(hidden_size=192, intermediate_size=768), 3e-3),
    },
    tokens=9_000_000,
    alone={"groups": 1, "cpus_per_worker": 2},
    tables_batch=8192,
    context=spec.ContextSpec(seq_lens=(*LENGTHS, 2048, 4096), num_tokens=32_768, stride=1024),
)
full = mini.derive(
    base={
        "name": "full",
        "corpus": spec.ParquetCorpus(paths=("corpus.parquet",)),
        "tokenizer": spec.TokenizerFile(path="tokenizer.json"),
        "model": spec.PYTHIA_160M,
        "budget": {"seconds": 1200},
        "tokens_per_batch": 65_536,
        "optimizer": {"lr": 6e-4},
        "precision": "bfloat16",
        "evaluation": {"num_tokens": 262_144, "every_tokens": 30_000_000},
        "compute": spec.ComputeSpec(cpus_per_worker=8, use_gpu=True, compile=True),
    },
    sizes={
        "pythia70m": (spec.PYTHIA_70M, 1e-3),
        "pythia160m": (spec.PYTHIA_160M, 6e-4),
        "pythia410m": (spec.PYTHIA_410M, 3e-4),
    },
    tokens=360_000_000,  # the paper's 0.36B, section 4.1
    alone={"groups": 1},
    tables_batch=16_384,  # the paper's, section 3.2, footnote 2
    context={"num_tokens": 524_288, "stride": 256, "documents": LONG_DOCUMENTS},
)
