"""Does growing the length pay, and is it the growing? A study with controls, on equal tokens.

``benchmarks/study.py`` trains it seed by seed, keeps its records and renders ``docs/study.md``.
``small`` is for two CPU cores and the ``docs.parquet`` of ``benchmarks/docs_corpus.py``, at a
quarter of the paper's lengths; ``toy`` takes seconds and only tests that script.

The controls: the full length throughout, whose loss is known at several budgets; the shortest one
throughout; two phases, without the lengths between; and the same lengths shuffled and reversed.
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate, pairwise

from glray import spec
from glray.search.space import Space, search_pipeline
from glray.spec import (
    ArmSpec,
    ClaimSpec,
    ComparedArm,
    ComparisonSpec,
    Fork,
    NtkAware,
    PipelineSpec,
    Spec,
    StageEnd,
    StageSpec,
    Yarn,
    fixed,
    grow,
    lower,
    reverse,
    shuffle,
    two_phase,
)

CURVE = (0.5, 0.6, 0.8)
"""Shares of the budget at which the full length's loss is known too: decays that fork from its
stable phase. Its whole run is the last point."""
DECAY = 0.2
"""Share of any budget over which the rate decays at its end."""
LONGER = 1.2
"""The shortest length throughout is also trained for this multiple of the budget. Where a step at
full length costs up to 1.43 times as much as one at the shortest, growing takes the time of at most
1.17 times as many of these."""
TRUNK_END = 0.8
"""Share of the budget up to which that run shares the stable phase of the others."""
FULL_SHARES = (0.1, 0.25, 0.36, 0.5, 0.75)


class Study(Spec):
    """Every pipeline and comparison at one scale."""

    base: PipelineSpec  # what all pipelines share; its name is the scale
    lengths: tuple[int, ...]  # ascending by doubling
    longer_length: int  # of one more stage
    rates: dict[str, float]  # by arm
    segments: int  # of the shuffled arm
    pilot_lrs: tuple[float, ...]
    pilot_seed: int = 100
    gate: float  # nats: the full length must surely gain more from far context in the pilot

    @property
    def tokens(self) -> int:
        """The budget of an arm."""
        assert self.base.budget.tokens is not None
        return self.base.budget.tokens

    # ---- the arms, by their roles

    @property
    def growing(self) -> str:
        """The paper's arm."""
        return "growlength"

    @property
    def long(self) -> str:
        """The full length throughout."""
        return f"llm{self.lengths[-1]}"

    @property
    def short(self) -> str:
        """The shortest length throughout."""
        return f"llm{self.lengths[0]}"

    @property
    def shuffled(self) -> str:
        """Growing without the order."""
        return f"{self.growing}-shuffled"

    @property
    def core_arms(self) -> tuple[ArmSpec, ...]:
        """The arms of the primary contrasts and their controls. Those that share a prefix with
        growing train at its rate; the shortest length also at its own, if that is another."""
        short, long = self.lengths[0], self.lengths[-1]
        rate, own = self.rates[self.growing], self.rates[self.short]
        growing = grow(*self.lengths, lr=rate)
        stable = [Fraction(str(share)) * Fraction(str(1 - DECAY)) for share in CURVE]
        arms = [
            cut(fixed(long, lr=self.rates[self.long]), *stable),
            cut(fixed(short, lr=rate), Fraction(str(TRUNK_END))),
            growing,
            cut(two_phase(short, long, share=0.9, lr=rate), Fraction(str(TRUNK_END))),
            two_phase(short, long, share=0.64, lr=rate),
            shuffle(growing, segments=self.segments),
            reverse(growing, final_share=0.05),
        ]
        return (*arms, *([fixed(short, name=f"{self.short}-tuned", lr=own)] if own != rate else []))

    @property
    def further_arms(self) -> tuple[ArmSpec, ...]:
        """The arms of further questions that need no other pipeline."""
        rate, lengths = self.rates[self.growing], self.lengths
        (short, *_, long), inner = lengths, lengths[:-1]
        by_share = [
            ArmSpec(
                name=f"full-{100 * share:.0f}",
                stages=(
                    *(StageSpec(seq_len=n, ratio=(1 - share) / len(inner)) for n in inner),
                    StageSpec(seq_len=long, ratio=share),
                ),
                lr=rate,
            )
            for share in FULL_SHARES
        ]
        starts = [
            grow(*doubled, name=f"from-{doubled[0]}", lr=rate)
            for doubled in ((short // 4, short // 2, *lengths), (short // 2, *lengths))
        ]
        starts += [
            grow(*lengths[n:], name=f"from-{lengths[n]}", lr=rate) for n in range(1, len(inner))
        ]
        leaps = [
            grow(first, long, name=f"leap-{long // first}{of}", positions=positions, lr=rate)
            for first in (long // 2, long // 4, short)
            for of, positions in (
                ("", spec.Extrapolation()),
                ("-yarn", Yarn()),
                ("-theta", NtkAware()),
            )
        ]
        rewarmed = grow(*lengths, name="rewarmed", lr=rate).derive(rewarm_steps=20)
        return (*by_share, *starts, *leaps, rewarmed)

    # ---- pipelines

    def pipeline(self) -> PipelineSpec:
        """All arms that share tokens, model and budget, so that they share their prefixes."""
        return self.base.derive(arms=(*self.core_arms, *self.further_arms))

    def equal_tokens(self) -> PipelineSpec:
        """The core arms alone: ``glray plan`` shows what they share."""
        return self.pipeline().derive(only=[arm.name for arm in self.core_arms])

    def decay(self, share: float) -> PipelineSpec:
        """The full length on a ``share`` of the budget: a decay from its run's stable phase."""
        start = Fork(run=self._run(self.long), at=StageEnd(stage=CURVE.index(share)))
        arm = fixed(self.lengths[-1], lr=self.rates[self.long])
        return self._from(start, f"decay-{100 * share:.0f}", arm, share * DECAY, decay=1.0)

    def longer(self) -> PipelineSpec:
        """The shortest length on ``LONGER`` times the budget, from the first phase of two."""
        start = Fork(run=self._run("two-phase-90"), at=StageEnd(stage=0))
        arm = fixed(self.lengths[0], lr=self.rates[self.growing])
        share = LONGER - TRUNK_END
        return self._from(start, "longer", arm, share, decay=DECAY * LONGER / share)

    def pilot(self) -> PipelineSpec:
        """Rates for the arms that have one of their own, under a seed of its own."""
        tuned = (fixed(self.lengths[-1]), fixed(self.lengths[0]), grow(*self.lengths))
        return self.base.derive(
            name=f"{self.base.name}-pilot",
            arms=[arm.at_rate(lr) for arm in tuned for lr in self.pilot_lrs],
            seeds=(self.pilot_seed,),
        )

    def searched(self) -> PipelineSpec:
        """For a search: the schedules of the lengths whose boundaries lie at tenths of the
        budget."""
        return self.base.derive(
            name=f"{self.base.name}-schedules",
            arms=(grow(*self.lengths, lr=self.rates[self.growing]),),
            search=spec.SearchSpec(arm=self.growing, grid=10),
        )

    def schedules(self) -> PipelineSpec:
        """All of them (``benchmarks/surface.py``)."""
        searched = self.searched()
        return search_pipeline(searched, Space.of(searched).all())

    # ---- comparisons

    def core(self) -> ComparisonSpec:
        """The four primary contrasts, and what they are read with."""
        arms = [ComparedArm(pipeline=self.pipeline(), arm=arm.name) for arm in self.core_arms]
        for share in CURVE:
            (decayed,) = self.decay(share)[self.long]
            arms.append(decayed.derive(label=f"{self.long}-{100 * share:.0f}"))
        (longer,) = self.longer()[self.short]
        arms.append(longer.derive(label=f"{self.short}-longer"))
        return self._comparison("core", "Does growing pay?", arms, self.contrasts)

    @property
    def contrasts(self) -> tuple[ClaimSpec, ...]:
        """The primary contrasts, each arm at its own length on the same far targets."""
        controls = (self.long, self.shuffled, "two-phase-90", self.short)
        return tuple(lower(self.growing, control) for control in controls)

    def full_shares(self) -> ComparisonSpec:
        """Which share of the budget at full length?"""
        return self._further("full-shares", self._named("full-"))

    def starts(self) -> ComparisonSpec:
        """Which length to start with?"""
        return self._further("starts", self._named("from-"))

    def leaps(self) -> ComparisonSpec:
        """One leap of ×2, ×4 and ×8, extrapolated, with YaRN or a larger θ: no stages between."""
        return self._further("leaps", self._named("leap-"))

    def rewarming(self) -> ComparisonSpec:
        """Does the rate have to warm up again at each boundary?"""
        return self._further("rewarming", ["rewarmed"])

    def documents_apart(self) -> ComparisonSpec:
        """Is it the same if no window crosses a document?"""
        return self._again("documents-apart", attention="document")

    def double_budget(self) -> ComparisonSpec:
        """Does the sign hold at twice the budget?"""
        return self._again("double-budget", budget={"tokens": 2 * self.tokens})

    def half_width(self) -> ComparisonSpec:
        """Does the sign hold at half the width?"""
        model = self.base.model
        assert model is not None
        half = {"hidden_size": model.hidden_size // 2, "intermediate_size": 2 * model.hidden_size}
        return self._again("half-width", model=half)

    def llama(self) -> ComparisonSpec:
        """Does the sign hold for a Llama with grouped heads?"""
        model = self.base.model
        assert model is not None
        size = {name: getattr(model, name) for name in ("num_layers", "hidden_size", "num_heads")}
        grouped = spec.LlamaModel(
            **size, intermediate_size=8 * model.hidden_size // 3 // 64 * 64 or 64, num_kv_heads=1
        )
        return self._again("llama", model=grouped)

    def one_more_stage(self) -> ComparisonSpec:
        """Does the sign hold with one more stage, at four times the length?"""
        scored = self.base.evaluation.seq_lens
        return self._again(
            "one-more-stage",
            (*self.lengths, self.longer_length),
            chunk_len=self.longer_length,
            evaluation={"seq_lens": (*scored, self.longer_length)},
        )

    def code(self) -> ComparisonSpec:
        """Does the sign hold for another corpus, the standard library's code?"""
        return self._again("code", corpus=spec.StdlibCorpus())

    def _run(self, arm: str) -> str:
        return f"{self.base.compute.storage}/{self.base.name}/{arm}"

    def _from(
        self, start: Fork, name: str, arm: ArmSpec, share: float, *, decay: float
    ) -> PipelineSpec:
        """A pipeline that goes on from a stable phase, for a share of the budget, the last part
        ``decay`` of which decays as the base does."""
        schedule = self.base.optimizer.schedule
        ends = spec.StableDecaySchedule(warmup=0, decay=round(decay, 6), final=schedule.final)
        return self.base.derive(
            name=f"{self.base.name}-{name}",
            model=None,
            start=start,
            arms=(arm,),
            budget={"tokens": round(share * self.tokens)},
            optimizer={"schedule": ends},
        )

    def _named(self, start: str) -> list[str]:
        return [arm.name for arm in self.further_arms if arm.name.startswith(start)]

    def _further(self, name: str, arms: Sequence[str]) -> ComparisonSpec:
        """Further arms of the pipeline beside growing and the full length, each judged against
        growing."""
        names = (self.long, self.growing, *arms)
        claims = [lower(arm, self.growing) for arm in arms]
        return self._comparison(name, self.title(name), self.pipeline()[names], claims)

    def _again(
        self, name: str, lengths: tuple[int, ...] | None = None, **changes: object
    ) -> ComparisonSpec:
        """The first contrast in another pipeline, with the rates of this one."""
        lengths = lengths or self.lengths
        arms = (
            grow(*lengths, lr=self.rates[self.growing]),
            fixed(lengths[-1], lr=self.rates[self.long]),
        )
        pipeline = self.base.derive(name=f"{self.base.name}-{name}", arms=arms, **changes)
        growing, long = (arm.name for arm in arms)
        claims = [lower(growing, long)]
        return self._comparison(name, self.title(name), pipeline[growing, long], claims)

    def title(self, name: str) -> str:
        """What the comparison of this name asks."""
        return (getattr(type(self), name.replace("-", "_")).__doc__ or name).splitlines()[0]

    def _comparison(
        self, name: str, title: str, arms: Sequence[ComparedArm], claims: Sequence[ClaimSpec]
    ) -> ComparisonSpec:
        return ComparisonSpec(
            name=f"{self.base.name}-{name}", title=title, arms=tuple(arms), claims=tuple(claims)
        )


def cut(arm: ArmSpec, *places: Fraction) -> ArmSpec:
    """The same arm with a marked end at further places, shares of its budget: others go on from
    there."""
    ratios = [Fraction(str(stage.ratio)) for stage in arm.stages]
    ends = [end / sum(ratios) for end in accumulate(ratios)]
    every = sorted({*ends, *places})
    stages = [
        arm.stages[next(n for n, its in enumerate(ends) if end <= its)].derive(
            ratio=float(end - start)
        )
        for start, end in pairwise((Fraction(0), *every))
    ]
    return arm.derive(stages=stages)


small = Study(
    base=PipelineSpec(
        name="study",
        corpus=spec.ParquetCorpus(paths=("docs.parquet",)),
        tokenizer=spec.BpeTokenizer(vocab_size=1024),
        model=spec.GPTNeoXModel(num_layers=4, hidden_size=128, num_heads=2, intermediate_size=512),
        arms=(fixed(256),),
        budget=spec.BudgetSpec(tokens=1_500_000),
        ratios_in="tokens",
        tokens_per_batch=2048,
        chunk_len=256,
        optimizer=spec.OptimizerSpec(
            lr=6e-3, schedule=spec.StableDecaySchedule(warmup=0.05, decay=DECAY)
        ),
        seeds=tuple(range(8)),
        evaluation=spec.EvaluationSpec(
            seq_lens=(32, 64, 128, 256), num_tokens=65_536, stage_ends=False
        ),
        compute=spec.ComputeSpec(
            groups=2,
            cpus_per_worker=1,
            micro_batch_tokens=2048,
            checkpoint_every_tokens=1_000_000,
            keep_checkpoints="stages",
        ),
    ),
    lengths=(32, 64, 128, 256),
    longer_length=1024,
    rates={"growlength": 6e-3, "llm256": 6e-3, "llm32": 6e-3},
    segments=60,
    pilot_lrs=(3e-3, 6e-3, 1.2e-2),
    gate=0.02,
)
toy = small.derive(
    base={
        "name": "toy",
        "arms": (fixed(64),),
        "corpus": spec.StdlibCorpus(),
        "tokenizer": spec.BpeTokenizer(vocab_size=300),
        "model": {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64},
        "budget": {"tokens": 60 * 128},
        "tokens_per_batch": 128,
        "chunk_len": 64,
        "seeds": (0, 1, 2),
        "evaluation": {"seq_lens": (8, 16, 32, 64), "num_tokens": 640},
        "compute": {"cpus_per_worker": 1},
    },
    lengths=(8, 16, 32, 64),
    longer_length=128,
    rates={"growlength": 1e-2, "llm64": 1e-2, "llm8": 2e-2},
    segments=12,
    pilot_lrs=(5e-3, 1e-2, 2e-2, 4e-2),
    gate=-1.0,
)
