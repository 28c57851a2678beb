"""Which schedule? A search of ten minutes on two cores, and its form for a GPU cluster.

    glray tune pipelines/search.py
    glray tune pipelines/search.py:cluster --set corpus.paths='["corpus.parquet"]'

At the scale of two cores no model learns to use context beyond 128 tokens, so the answer is about
speed alone; ``cluster`` is the search to learn from.
"""

from glray.spec import (
    PYTHIA_160M,
    BpeTokenizer,
    BudgetSpec,
    ComputeSpec,
    EvaluationSpec,
    GPTNeoXModel,
    OptimizerSpec,
    ParquetCorpus,
    PipelineSpec,
    SearchSpec,
    StdlibCorpus,
    grow,
    log_rates,
)


def pipeline() -> PipelineSpec:
    """Eight schedules of 128 to 1,024 beside the baselines, 30 calibrated seconds each; the best
    two again under three fresh seeds."""
    return PipelineSpec(
        name="search",
        corpus=StdlibCorpus(),
        tokenizer=BpeTokenizer(vocab_size=1024),
        model=GPTNeoXModel(num_layers=2, hidden_size=128, num_heads=4, intermediate_size=512),
        arms=(grow(128, 256, 512, 1024),),
        budget=BudgetSpec(seconds=30),
        ratios_in="seconds",
        tokens_per_batch=4096,
        optimizer=OptimizerSpec(lr=3e-3),
        evaluation=EvaluationSpec(seq_lens=(128, 256, 512, 1024), num_tokens=8192),
        compute=ComputeSpec(micro_batch_tokens=2048),
        search=SearchSpec(arm="growlength", last=(0.15, 0.6)),
    )


def cluster() -> PipelineSpec:
    """Pythia 160M in bfloat16, one GPU a trial, as many at once as there are: 24 schedules of two
    lists of lengths at three rates, chosen by Optuna."""
    return pipeline().derive(
        name="search-160m",
        corpus=ParquetCorpus(paths=("corpus.parquet",)),
        tokenizer=BpeTokenizer(vocab_size=32_768),
        model=PYTHIA_160M,
        budget={"seconds": 1200},
        tokens_per_batch=65_536,
        optimizer={"lr": 6e-4},
        precision="bfloat16",
        evaluation={"num_tokens": 262_144, "every_tokens": 30_000_000},
        compute=ComputeSpec(
            cpus_per_worker=8,
            use_gpu=True,
            compile=True,
            micro_batch_tokens="auto",
            checkpoint_every_tokens=200_000_000,
            log_every_steps=50,
        ),
        search={
            "lengths": ((128, 1024), (128, 256, 512, 1024)),
            "lrs": log_rates(3e-4, 1.2e-3, num=3),
            "method": "optuna",
            "num_trials": 24,
        },
    )
