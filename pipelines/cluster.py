"""Pythia 160M grown from 128 to 1,024 tokens on eight GPUs, as the manifests run it.

    glray cluster check kuberay/rayjob.yaml pipelines/cluster.py
    glray run pipelines/cluster.py --set compute.storage=s3://BUCKET/glray \\
        --set corpus.paths='["s3://BUCKET/corpus"]'

In bfloat16 and compiled: 3.3 billion tokens, 6,294 batches of 2^19. It has not run on a GPU.
"""

from glray.spec import (
    PYTHIA_160M,
    BpeTokenizer,
    BudgetSpec,
    ComputeSpec,
    EvaluationSpec,
    OptimizerSpec,
    ParquetCorpus,
    PipelineSpec,
    grow,
)


def pipeline() -> PipelineSpec:
    """One arm; eight workers of a GPU each, on as many nodes as they need."""
    return PipelineSpec(
        name="cluster",
        corpus=ParquetCorpus(paths=("corpus.parquet",)),
        tokenizer=BpeTokenizer(vocab_size=32_768),
        model=PYTHIA_160M,
        arms=(grow(128, 256, 512, 1024),),
        budget=BudgetSpec(tokens=3_300_000_000),
        tokens_per_batch=524_288,
        optimizer=OptimizerSpec(lr=6e-4),
        precision="bfloat16",
        evaluation=EvaluationSpec(
            seq_lens=(128, 256, 512, 1024), num_tokens=1_048_576, every_tokens=300_000_000
        ),
        compute=ComputeSpec(
            num_workers=8,
            cpus_per_worker=10,
            use_gpu=True,
            compile=True,
            micro_batch_tokens="auto",
            log_every_steps=10,
            wait_seconds=3600,  # nodes are bought, started and set up first
        ),
    )
