"""The runs of a spec, planned as the command that trains plans them."""

from glray.data.corpus import PreparedCorpus
from glray.model.config import starting_model
from glray.run.run import Run, with_calibration
from glray.spec import PipelineSpec
from glray.train.runs import plan_runs, validate_pipeline


def planned(spec: PipelineSpec, corpus: PreparedCorpus) -> list[Run]:
    """Every run of a spec whose steps are known: in tokens, or calibrated."""
    runs = plan_runs(with_calibration(spec), corpus, starting_model(spec))
    assert runs is not None, "seconds decide and nothing is calibrated"
    return runs


def validated(spec: PipelineSpec, corpus: PreparedCorpus) -> list[Run]:
    """``planned``, after what the driver checks first. Raises UserError."""
    validate_pipeline(with_calibration(spec), corpus, starting_model(spec))
    return planned(spec, corpus)
