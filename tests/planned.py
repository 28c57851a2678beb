"""The runs of a spec, planned as the command that trains plans them."""

from glray.data.corpus import PreparedCorpus
from glray.model.config import starting_model
from glray.run.run import Run, with_calibration
from glray.spec import PipelineSpec
from glray.train.runs import plan_runs, validate_pipeline


def planned(spec: PipelineSpec, corpus: PreparedCorpus) -> list[Run] | None:
    """Every run; None while seconds decide and nothing is calibrated."""
    return plan_runs(with_calibration(spec), corpus, starting_model(spec))


def validated(spec: PipelineSpec, corpus: PreparedCorpus) -> list[Run] | None:
    """``planned``, after what the driver checks first. Raises UserError."""
    validate_pipeline(with_calibration(spec), corpus, starting_model(spec))
    return planned(spec, corpus)
