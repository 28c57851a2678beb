"""What is written when a run starts or goes on: ``run.json`` and its own ``spec.yaml``."""

from typing import Any

from glray.errors import UserError
from glray.files import write_text
from glray.plan import MICROSECONDS
from glray.run.profile import Profile, prices_of, profile_path
from glray.run.records import Execution, Manifest, StartedExecution
from glray.run.run import Run
from glray.spec.identity import differences
from glray.spec.loading import load_pipeline, to_yaml


def record_start(
    run: Run, environment: dict[str, Any], execution: Execution, step: int
) -> list[str]:
    """Write ``run.json`` and ``spec.yaml`` of a run that goes on from ``step``.

    ``run.json`` lists every execution with the step that it began at. Returns what of this one
    differs from the one before, ``num_workers 2 → 3``: from here on bits may differ too. Raises
    UserError if the directory holds another run.
    """
    recorded = recorded_manifest(run) if step else None
    execution = execution.at(tuple(stage.seq_len for stage in run.plan.own_stages))
    before = [entry for entry in recorded.executions if entry.first_step < step] if recorded else []
    changes = execution.differences(before[-1]) if before else []
    if changes or not before:
        before.append(StartedExecution(first_step=step, **execution.model_dump()))
    else:  # the execution may be that of the run it forked from, which may have other lengths
        lengths, known = map(str, run.seq_lens), before[-1].micro_batch_tokens
        known = known | execution.micro_batch_tokens
        own = {"micro_batch_tokens": {n: known[n] for n in lengths if n in known}}
        before[-1] = before[-1].model_copy(update=own)
    write_text(run.directory / "spec.yaml", to_yaml(run.spec))
    predicted = recorded.predicted_seconds if recorded else None
    if predicted is None:
        predicted = _predicted_seconds(run, execution)
    fields: dict[str, Any] = {"executions": tuple(before), "predicted_seconds": predicted}
    if recorded is not None:
        fields["fork"] = recorded.fork
    started = run.manifest.model_copy(update={"environment": environment, **fields})
    started.write(run.directory / "run.json")
    return changes


def recorded_manifest(run: Run) -> Manifest | None:
    """What the run's directory was started with; None if it was not. Raises UserError if another
    run was."""
    path = run.directory / "run.json"
    recorded, planned = Manifest.read(path), run.manifest
    if recorded is None or recorded.fingerprint == planned.fingerprint:
        return recorded
    changes = differences(recorded.identity, planned.identity)
    shown = "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")
    raise UserError(
        f"{run.directory}: holds run {recorded.fingerprint}, this spec is {planned.fingerprint} "
        f"({shown}): its records would mix two runs; use another name "
        f"(--set name={planned.pipeline}-2), for a comparison another --set compute.storage=…, or "
        "delete the directory"
    )


def unapplied_fields(run: Run) -> list[str]:
    """The fields of the spec that differ from those a finished run was trained with: nothing of it
    is done again, so they are not applied. Its place does not count, nor what is only measured."""
    recorded = load_pipeline(run.directory / "spec.yaml").model_dump(mode="json")
    changes = differences(recorded, run.spec.model_dump(mode="json"))
    fields = [change.partition(":")[0] for change in changes]
    return [field for field in fields if field not in ("compute.storage", "compute.calibrate")]


def _predicted_seconds(run: Run, execution: Execution) -> float | None:
    """Seconds of all steps by a profile of the pipeline, which has one worker; None without one,
    and if some steps are a parent's."""
    if execution.num_workers > 1 or run.plan.first_step:
        return None
    try:
        profile = Profile.read(profile_path(run.spec))
    except UserError:  # glray plan and glray run have said it
        return None
    costs = prices_of(profile, run.spec, set(run.seq_lens))
    if costs is None:
        return None
    return run.plan.total_cost(costs.step_microseconds) / MICROSECONDS
