"""SmolLM2-135M trained on for a few steps: a run that starts from a pretrained folder.

``benchmarks/smollm2.py --work smollm2 …`` leaves the folder in ``smollm2/model``; another place is
given by ``--set init=… --set tokenizer.path=…``.
"""

from glray.spec import (
    BudgetSpec,
    ComputeSpec,
    EvaluationSpec,
    OptimizerSpec,
    PipelineSpec,
    StdlibCorpus,
    TokenizerFile,
    grow,
)


def pipeline() -> PipelineSpec:
    """A step takes 15 to 30 seconds on two cores."""
    return PipelineSpec(
        name="smollm2",
        corpus=StdlibCorpus(),
        tokenizer=TokenizerFile(path="smollm2/model/tokenizer.json"),
        init="smollm2/model",
        arms=(grow(512, 1024, 2048, name="grow"),),
        budget=BudgetSpec(tokens=18 * 4096),
        tokens_per_batch=4096,
        optimizer=OptimizerSpec(lr=1e-4),
        evaluation=EvaluationSpec(seq_lens=(512, 1024, 2048), num_tokens=16_384),
        compute=ComputeSpec(cpus_per_worker=2, micro_batch_tokens=2048),
    )
