"""What a stage boundary does to the loss under each RoPE scaling, in small steps and in one leap.

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
    StableDecaySchedule,
    StdlibCorpus,
    Yarn,
    grow,
)


def arms(name: str, *seq_lens: int) -> tuple[ArmSpec, ...]:
    """``interpolation-leap``: equal tokens at each length. θ by stage grows with the length."""
    thetas = BaseFrequencies(thetas=tuple(10_000 * seq_len / 128 for seq_len in seq_lens))
    scalings = (Extrapolation(), Interpolation(), NtkAware(), thetas, Yarn())
    return tuple(grow(*seq_lens, name=f"{s.kind}-{name}", positions=s) for s in scalings)


def pipeline() -> PipelineSpec:
    """Two layers, enough to copy from context; the learning rate is flat around all boundaries."""
    return PipelineSpec(
        name="boundaries",
        corpus=StdlibCorpus(),
        tokenizer=BpeTokenizer(vocab_size=1024),
        model=GPTNeoXModel(num_layers=2, hidden_size=128, num_heads=4, intermediate_size=512),
        arms=arms("doubling", 128, 256, 512, 1024) + arms("leap", 128, 1024),
        budget=BudgetSpec(tokens=1_200_000),
        tokens_per_batch=4096,
        optimizer=OptimizerSpec(lr=3e-3, schedule=StableDecaySchedule(decay=0.1)),
        seeds=(0, 1, 2),
        evaluation=EvaluationSpec(seq_lens=(128, 256, 512, 1024), num_tokens=16_384),
        compute=ComputeSpec(micro_batch_tokens=2048, checkpoint_every_tokens=2_000_000),
    )
