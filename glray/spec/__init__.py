"""What a person declares: frozen pydantic values, and the files they are read from."""

from glray.spec.base import Spec
from glray.spec.comparison import ClaimSpec, ComparisonSpec, ContextSpec, faster, lower, same
from glray.spec.compute import ComputeSpec
from glray.spec.corpus import (
    ArrowCorpus,
    BpeTokenizer,
    JsonlCorpus,
    MixtureCorpus,
    ParquetCorpus,
    SourceSpec,
    StdlibCorpus,
    TextCorpus,
    TokenizerFile,
)
from glray.spec.fork import Fork, StageEnd
from glray.spec.loading import load_comparison, load_pipeline, to_yaml
from glray.spec.model import (
    PYTHIA_1_4B,
    PYTHIA_1B,
    PYTHIA_14M,
    PYTHIA_31M,
    PYTHIA_70M,
    PYTHIA_160M,
    PYTHIA_410M,
    GPTNeoXModel,
    LlamaModel,
)
from glray.spec.pipeline import ComparedArm, PipelineSpec
from glray.spec.positions import (
    BaseFrequencies,
    Extrapolation,
    Interpolation,
    NtkAware,
    PositionsSpec,
    Yarn,
)
from glray.spec.rates import RateGrid, log_rates
from glray.spec.schedule import (
    ArmSpec,
    BudgetSpec,
    CalibrationSpec,
    StageSpec,
    fixed,
    grow,
    reverse,
    shuffle,
    two_phase,
)
from glray.spec.search import SearchSpec
from glray.spec.training import (
    CosineSchedule,
    EvaluationSpec,
    LinearSchedule,
    OptimizerSpec,
    StableDecaySchedule,
)

__all__ = [
    "PYTHIA_1B",
    "PYTHIA_1_4B",
    "PYTHIA_14M",
    "PYTHIA_31M",
    "PYTHIA_70M",
    "PYTHIA_160M",
    "PYTHIA_410M",
    "ArmSpec",
    "ArrowCorpus",
    "BaseFrequencies",
    "BpeTokenizer",
    "BudgetSpec",
    "CalibrationSpec",
    "ClaimSpec",
    "ComparedArm",
    "ComparisonSpec",
    "ComputeSpec",
    "ContextSpec",
    "CosineSchedule",
    "EvaluationSpec",
    "Extrapolation",
    "Fork",
    "GPTNeoXModel",
    "Interpolation",
    "JsonlCorpus",
    "LinearSchedule",
    "LlamaModel",
    "MixtureCorpus",
    "NtkAware",
    "OptimizerSpec",
    "ParquetCorpus",
    "PipelineSpec",
    "PositionsSpec",
    "RateGrid",
    "SearchSpec",
    "SourceSpec",
    "Spec",
    "StableDecaySchedule",
    "StageEnd",
    "StageSpec",
    "StdlibCorpus",
    "TextCorpus",
    "TokenizerFile",
    "Yarn",
    "faster",
    "fixed",
    "grow",
    "load_comparison",
    "load_pipeline",
    "log_rates",
    "lower",
    "reverse",
    "same",
    "shuffle",
    "to_yaml",
    "two_phase",
]
