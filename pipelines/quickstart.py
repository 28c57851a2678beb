"""Three minutes per run on two cores: does growing from 128 to 1024 tokens beat a fixed length?

A 1.8-million-parameter Pythia-shaped model learns the running Python's standard library. All
three arms train the same number of calibrated seconds, on the same tokens in the same order.
"""

from glray.spec import (
    BpeTokenizer,
    BudgetSpec,
    ComputeSpec,
    EvaluationSpec,
    GPTNeoXModel,
    OptimizerSpec,
    PipelineSpec,
    SearchSpec,
    StdlibCorpus,
    fixed,
    grow,
)


def pipeline() -> PipelineSpec:
    """Growing 128 → 1024 against fixed 1024 and fixed 128, at equal training time."""
    return PipelineSpec(
        name="quickstart",
        corpus=StdlibCorpus(),
        tokenizer=BpeTokenizer(vocab_size=4096),
        model=GPTNeoXModel(num_layers=4, hidden_size=128, num_heads=4, intermediate_size=512),
        arms=(grow(128, 256, 512, 1024), fixed(1024), fixed(128)),
        budget=BudgetSpec(seconds=160),
        ratios_in="seconds",
        tokens_per_batch=4096,
        optimizer=OptimizerSpec(lr=3e-3),
        evaluation=EvaluationSpec(seq_lens=(128, 256, 512, 1024, 2048), num_tokens=24_576),
        compute=ComputeSpec(
            cpus_per_worker=2, micro_batch_tokens=2048, checkpoint_every_tokens=500_000
        ),
        search=SearchSpec(arm="growlength", num_trials=4),
    )
