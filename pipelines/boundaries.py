"""What a stage boundary does to the loss under each choice of positions, in small steps and a leap.

``benchmarks/boundaries.py`` runs it and puts intervals over the seeds.
"""

from glray.spec import (
    ArmSpec,
    BaseFrequencies,
    BpeTokenizer,
    BudgetSpec,
    ComputeSpec,
    EvaluationSpec,
    Extrapolation,
    GPTNeoXModel,
    Interpolation,
    NtkAware,
    OptimizerSpec,
    PipelineSpec,
    PositionsSpec,
    StableDecaySchedule,
    StageSpec,
    StdlibCorpus,
    Yarn,
)

LADDERS = {"doubling": (128, 256, 512, 1024), "leap": (128, 1024)}


def arm(ladder: str, positions: PositionsSpec) -> ArmSpec:
    """``interpolation-leap``: equal tokens at each length of the ladder."""
    stages = tuple(StageSpec(seq_len=seq_len) for seq_len in LADDERS[ladder])
    return ArmSpec(name=f"{positions.kind}-{ladder}", stages=stages, positions=positions)


def arms(ladder: str) -> tuple[ArmSpec, ...]:
    """The ladder under every choice; θ of its own grows with the length."""
    thetas = BaseFrequencies(thetas=tuple(10_000 * n / 128 for n in LADDERS[ladder]))
    choices = (Extrapolation(), Interpolation(), NtkAware(), thetas, Yarn())
    return tuple(arm(ladder, positions) for positions in choices)


def pipeline() -> PipelineSpec:
    """Two layers, enough to copy from context; the rate is level around all boundaries."""
    return PipelineSpec(
        name="boundaries",
        corpus=StdlibCorpus(),
        tokenizer=BpeTokenizer(vocab_size=1024),
        model=GPTNeoXModel(num_layers=2, hidden_size=128, num_heads=4, intermediate_size=512),
        arms=arms("doubling") + arms("leap"),
        budget=BudgetSpec(tokens=1_200_000),
        tokens_per_batch=4096,
        optimizer=OptimizerSpec(lr=3e-3, schedule=StableDecaySchedule(decay=0.1)),
        seeds=(0, 1, 2),
        evaluation=EvaluationSpec(seq_lens=(128, 256, 512, 1024), num_tokens=16_384),
        compute=ComputeSpec(
            cpus_per_worker=1, micro_batch_tokens=2048, checkpoint_every_tokens=2_000_000
        ),
    )
