"""What a step costs at each length, as it was measured on a machine: what ``glray profile`` leaves.

Its record lies in the storage, and ``glray plan`` takes a pipeline's prices from there.
"""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from glray.files import AnyPath
from glray.plan import MICROSECONDS
from glray.record import Record
from glray.spec.identity import fingerprint
from glray.spec.model import Precision
from glray.spec.pipeline import PipelineSpec
from glray.storage import storage_path

Kernel = Literal["sdpa", "eager"]
"""How attention is computed: fused, or with its scores in memory."""


@dataclass(frozen=True)
class Setting:
    """What a profile varies beside the length."""

    kernel: Kernel
    compile: bool
    precision: Precision

    @property
    def name(self) -> str:
        """``sdpa, compiled, bfloat16``."""
        return f"{self.kernel}, {'compiled' if self.compile else 'not compiled'}, {self.precision}"


@dataclass(frozen=True)
class LengthCost:
    """What one length costs. None is what could not be measured: a step that does not fit, or
    memory that the system does not count."""

    seq_len: int
    peak_bytes: int | None
    """Most memory of one optimizer step, weights and moments included."""
    largest_batch_tokens: int | None
    """Tokens of the largest batch that goes through the model at once."""
    step_seconds: tuple[float, ...] = ()
    """Of whole optimizer steps, warm-up excluded."""
    phase_shares: Mapping[str, float] | None = None
    """Of a step: ``forward``, ``backward`` and ``optimizer``."""

    @property
    def fits(self) -> bool:
        """Whether a step could be taken."""
        return bool(self.step_seconds)

    @property
    def seconds(self) -> float:
        """Of the median step."""
        return statistics.median(self.step_seconds)

    @property
    def spread(self) -> float:
        """Half of the range between the steps' quartiles, as a share of the median."""
        if len(self.step_seconds) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.step_seconds, n=4, method="inclusive")
        return (third - first) / 2 / self.seconds


@dataclass(frozen=True)
class SettingCosts:
    """All lengths under one setting, ascending."""

    setting: Setting
    lengths: tuple[LengthCost, ...]

    @property
    def fitting(self) -> tuple[LengthCost, ...]:
        """Those of which a step could be taken."""
        return tuple(cost for cost in self.lengths if cost.fits)

    @property
    def most_saved(self) -> float | None:
        """Share of the longest fitting length's time that any schedule can save, which is what the
        cheapest alone saves; None where fewer than two fit."""
        if len(self.fitting) < 2:
            return None
        return 1 - min(cost.seconds for cost in self.fitting) / self.fitting[-1].seconds

    @property
    def step_microseconds(self) -> dict[int, int]:
        """What a step takes by length, of those that fit."""
        return {c.seq_len: max(1, round(c.seconds * MICROSECONDS)) for c in self.fitting}

    def at(self, seq_len: int) -> LengthCost | None:
        """The cost of a length; None if it was not measured or does not fit."""
        return next((cost for cost in self.fitting if cost.seq_len == seq_len), None)

    def with_lengths_of(self, other: "SettingCosts") -> "SettingCosts":
        """These costs, and the other's of lengths that these lack."""
        lengths = {cost.seq_len: cost for cost in (*other.lengths, *self.lengths)}
        return SettingCosts(self.setting, tuple(lengths[seq_len] for seq_len in sorted(lengths)))


class Profile(Record):
    """A profile of one pipeline's model on one machine; its first setting is the pipeline's own
    unless another was asked for."""

    remedy = "nothing can be priced; delete it, and run glray profile again"

    pipeline: str
    tokens_per_batch: int
    budget_bytes: int
    """Memory that the largest batch may take: the device's, or what was given."""
    environment: dict[str, Any]
    settings: tuple[SettingCosts, ...]

    def keep(self, path: AnyPath) -> None:
        """Write it, with what one before it on the same machine has of other lengths and
        settings."""
        before = Profile.read(path)
        known = {}
        if before is not None and _priced_by(before) == _priced_by(self):
            known = {costs.setting: costs for costs in before.settings}
        merged = {costs.setting: costs for costs in self.settings}
        for setting, costs in known.items():
            own = merged.get(setting)
            merged[setting] = costs if own is None else own.with_lengths_of(costs)
        self.model_copy(update={"settings": tuple(merged.values())}).write(path)

    @property
    def machine(self) -> str:
        """Whose prices these are."""
        return str(self.environment.get("gpu") or self.environment.get("processor") or "unknown")

    def of(self, spec: PipelineSpec) -> SettingCosts | None:
        """The costs under the pipeline's own setting."""
        own = own_setting(spec)
        return next((costs for costs in self.settings if costs.setting == own), None)


def _priced_by(profile: Profile) -> tuple[object, ...]:
    """What prices have to have in common to stand side by side."""
    return tuple(
        profile.environment.get(name) for name in ("gpu", "processor", "num_cpus", "torch")
    )


def prices_of(
    profile: Profile | None, spec: PipelineSpec, seq_lens: Iterable[int]
) -> SettingCosts | None:
    """What the pipeline's steps cost by a profile; None unless it has all of ``seq_lens`` under the
    pipeline's own setting."""
    costs = profile.of(spec) if profile is not None else None
    if costs is None or any(costs.at(seq_len) is None for seq_len in seq_lens):
        return None
    return costs


def own_setting(spec: PipelineSpec) -> Setting:
    """That in which the pipeline trains."""
    return Setting("sdpa", spec.compute.compile, spec.precision)


def profile_path(spec: PipelineSpec) -> AnyPath:
    """``<storage>/profiles/<fingerprint>.json``: of what decides a step's cost, so that another
    model's or batch's profile is never taken for this one's."""
    compute = {"cpus_per_worker", "use_gpu", "activation_checkpointing", "micro_batch_tokens"}
    whole = dict.fromkeys(("model", "init", "tokenizer", "tokens_per_batch", "attention"), True)
    decisive = spec.model_dump(mode="json", include={**whole, "compute": compute})
    if spec.start is not None:
        decisive["start"] = spec.start.run
    return storage_path(spec.compute) / "profiles" / f"{fingerprint(decisive)}.json"
