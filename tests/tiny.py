"""The smallest pipeline that has everything: three stages, two arms, an evaluation beyond both."""

from glray.files import AnyPath
from glray.spec import (
    ArmSpec,
    BpeTokenizer,
    BudgetSpec,
    ComputeSpec,
    EvaluationSpec,
    GPTNeoXModel,
    OptimizerSpec,
    PipelineSpec,
    StdlibCorpus,
)


def arm(name: str, *seq_lens: int, **fields: object) -> ArmSpec:
    """An arm whose stages are given by their lengths."""
    return ArmSpec.model_validate({"name": name, "stages": seq_lens, **fields})


def tiny_spec(storage: AnyPath, **fields: object) -> PipelineSpec:
    """12 steps of 64 tokens through 8, 16 and 32, against a fixed 32; 1 layer of width 16."""
    declared: dict[str, object] = {
        "name": "tiny",
        "corpus": StdlibCorpus(),
        "tokenizer": BpeTokenizer(vocab_size=300),
        "model": GPTNeoXModel(num_layers=1, hidden_size=16, num_heads=2, intermediate_size=32),
        "arms": (
            arm("grow", 8, 16, 32),
            arm("fixed32", 32),
        ),
        "budget": BudgetSpec(tokens=12 * 64),
        "tokens_per_batch": 64,
        "optimizer": OptimizerSpec(lr=1e-2),
        "evaluation": EvaluationSpec(seq_lens=(8, 32, 64), num_tokens=128),
        "compute": ComputeSpec(
            storage=str(storage),
            micro_batch_tokens=32,
            checkpoint_every_tokens=192,
            log_every_steps=2,
        ),
    }
    return PipelineSpec.model_validate(declared | fields)
