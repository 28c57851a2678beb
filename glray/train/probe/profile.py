"""A profile of a pipeline's model on this machine: the paper's Tables 1 to 3 (section 3.2).

Memory comes first, so that no length is timed that does not fit. Times are of whole optimizer steps
at a constant number of tokens, all lengths interleaved (see ``glray.train.probe.calibration``),
each setting for itself. One worker, no Ray.
"""

import statistics
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedConfig

from glray.errors import UserError
from glray.run.profile import LengthCost, Profile, Setting, SettingCosts
from glray.spec.pipeline import BLOCK_TOKENS, PipelineSpec
from glray.train.context import LocalContext
from glray.train.environment import environment
from glray.train.parallel import release_models
from glray.train.probe.calibration import interleaved_steps
from glray.train.probe.memory import MemoryOfSteps, budget_bytes, counts_memory
from glray.train.probe.scratch import ScratchModel, profiled_config

MIN_ROUNDS = 5
"""Turns of each length at least: their spread is shown."""
PHASE_ROUNDS = 3
"""Steps of which the parts are timed, after one that does not count."""


def measure(
    spec: PipelineSpec,
    seq_lens: Sequence[int],
    settings: Sequence[Setting],
    memory_gib: float | None,
    say: Callable[[str], None],
) -> Profile:
    """Measure every length under every setting; ``say`` is told what is being done. Raises
    UserError if it cannot be."""
    seq_lens = sorted(set(seq_lens))
    _refuse(spec, seq_lens, settings)
    gpu = spec.compute.use_gpu
    ctx = LocalContext(device=torch.device("cuda" if gpu else "cpu"))
    if not gpu:
        torch.set_num_threads(spec.compute.cpus_per_worker)
    budget = budget_bytes(ctx, memory_gib)
    config = profiled_config(spec, seq_lens[-1])
    costs = []
    for setting in settings:
        peaks: dict[int, int | None] = dict.fromkeys(seq_lens)
        largest: dict[int, int | None] = dict.fromkeys(seq_lens)
        fitting = seq_lens
        if counts_memory(ctx):
            memory = MemoryOfSteps(spec, setting, config, ctx, budget)
            for seq_len in seq_lens:
                say(f"{setting.name}: memory at {seq_len:,}")
                peaks[seq_len] = memory.peak(seq_len)
                largest[seq_len] = memory.largest_batch(seq_len)
            fitting = [seq_len for seq_len in seq_lens if peaks[seq_len] is not None]
        say(f"{setting.name}: steps of every length, interleaved")
        timed = _timed(spec, setting, config, ctx, fitting) if fitting else {}
        costs.append(
            SettingCosts(
                setting,
                tuple(
                    LengthCost(seq_len, peaks[seq_len], largest[seq_len], *timed.get(seq_len, ()))
                    for seq_len in seq_lens
                ),
            )
        )
    return Profile(spec.name, spec.tokens_per_batch, budget, environment(ctx), tuple(costs))


def _refuse(spec: PipelineSpec, seq_lens: Sequence[int], settings: Sequence[Setting]) -> None:
    if spec.compute.use_gpu and not torch.cuda.is_available():
        raise UserError(
            "compute.use_gpu is true, but PyTorch finds no GPU here: nothing could be measured; "
            "add --set compute.use_gpu=false, or run it where the GPU is"
        )
    for seq_len in seq_lens:
        if seq_len < 1:
            raise UserError(f"--seq-lens: {seq_len} is no window; a length is 1 or more")
        if BLOCK_TOKENS % seq_len:
            raise UserError(
                f"--seq-lens: {seq_len} does not divide a token block of {BLOCK_TOKENS:,} tokens: "
                "no run could train it; use powers of two"
            )
        if spec.tokens_per_batch % seq_len:
            batches = -(-spec.tokens_per_batch // seq_lens[-1])
            raise UserError(
                f"--seq-lens: {seq_len} does not divide tokens_per_batch {spec.tokens_per_batch}: "
                "no batch of it has as many tokens as the others; use divisors, or add --set "
                f"tokens_per_batch={batches * seq_lens[-1]}"
            )
    if spec.attention == "document" and any(setting.kernel == "eager" for setting in settings):
        raise UserError(
            "--attention eager: the pipeline keeps documents apart (attention 'document'), which "
            "only sdpa does here; add --set attention=window"
        )


def _timed(
    spec: PipelineSpec,
    setting: Setting,
    config: PreTrainedConfig,
    ctx: LocalContext,
    seq_lens: Sequence[int],
) -> dict[int, tuple[tuple[float, ...], dict[str, float]]]:
    """Seconds of the steps of each length, and the shares of a step's parts."""
    release_models()
    model = ScratchModel(spec, setting, config, ctx)
    for seq_len in seq_lens:
        model.step(seq_len)  # compiled, and the allocator warm
    steps = interleaved_steps(model._trainee, seq_lens, min_rounds=MIN_ROUNDS)
    found = {}
    for seq_len in seq_lens:
        rounds = [model.phases(seq_len) for _ in range(PHASE_ROUNDS + 1)][1:]
        parts = {name: statistics.median(parts[name] for parts in rounds) for name in rounds[0]}
        shares = {name: seconds / sum(parts.values()) for name, seconds in parts.items()}
        found[seq_len] = (tuple(steps[seq_len]), shares)
    return found
