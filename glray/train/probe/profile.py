"""A profile of a pipeline's model on this machine: the paper's Tables 1 to 3 (section 3.2).

Memory comes first, so that no length is timed that does not fit. Times are of whole optimizer steps
at a constant number of tokens, all lengths interleaved (see ``glray.train.probe.calibration``),
each setting for itself. One worker, no Ray.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from transformers import PreTrainedConfig

from glray.data.blocks.tokenizer import load_tokenizer
from glray.data.windows import Batch
from glray.errors import UserError
from glray.machine import free_memory_bytes
from glray.model.config import longest_config
from glray.model.decoder import meta_model
from glray.model.weights import drawn
from glray.progress import advance, working
from glray.run.profile import Kernel, LengthCost, Profile, Setting, SettingCosts
from glray.spec.corpus import BpeTokenizer
from glray.spec.pipeline import BLOCK_TOKENS, PipelineSpec
from glray.spec.schedule import fixed
from glray.train.context import WorkerContext, device_clock
from glray.train.execution import environment, execution
from glray.train.parallel import release_models
from glray.train.probe.calibration import interleaved_steps
from glray.train.probe.memory import (
    gpu_budget_bytes,
    gpu_peak_bytes,
    halved_until_it_fits,
    peak_bytes,
    peak_bytes_in_a_process,
)
from glray.train.trainee import Trainee

MIN_ROUNDS = 5
"""Turns of each length at least: their spread is shown."""
PHASE_ROUNDS = 3
"""Steps of which the parts are timed, after one that does not count."""
MOST_TOKENS = 2**21
"""The largest batch that is tried."""
SMALL_TOKENS = 4_096
"""Of the smaller of a CPU's two small batches; the other has twice as many."""
CPU_SHARE = 0.8
"""Of a machine's free memory that is the budget where none is given."""


@dataclass(frozen=True)
class ProfiledModel:
    """A pipeline's model under a setting, on this machine alone, in whichever process."""

    spec: PipelineSpec
    """The pipeline as it would train each of the profiled lengths under the setting."""
    config: PreTrainedConfig
    kernel: Kernel

    @classmethod
    def under(
        cls, setting: Setting, spec: PipelineSpec, seq_lens: Sequence[int]
    ) -> "ProfiledModel":
        """The model for ``seq_lens``. No corpus is read: a BPE that would be trained on it counts
        with the size asked for. Raises UserError."""
        if isinstance(spec.tokenizer, BpeTokenizer):
            num_ids = spec.tokenizer.vocab_size
        else:
            num_ids = load_tokenizer(spec.tokenizer).vocab_size
        chunk_len = spec.chunk_tokens  # a parent's has to stay
        fits = all(chunk_len % seq_len == 0 for seq_len in seq_lens)
        spec = spec.derive(
            arms=[fixed(seq_len) for seq_len in seq_lens],
            only=None,
            search=None,
            calibration=None,
            chunk_len=chunk_len if fits else None,
            precision=setting.precision,
            compute={"compile": setting.compile},
        )
        return cls(spec, longest_config(spec, vocab_size=num_ids, eos_id=0), setting.kernel)

    def at_once(self, tokens: int) -> "ProfiledModel":
        """In batches of ``tokens`` tokens that go through the model at once."""
        compute = self.spec.compute.derive(micro_batch_tokens=tokens)
        batch = {"tokens_per_batch": tokens, "compute": compute}  # not divisible by every length
        return replace(self, spec=self.spec.model_copy(update=batch))

    @property
    def ctx(self) -> WorkerContext:
        """The one worker."""
        return WorkerContext(device=torch.device("cuda" if self.spec.compute.use_gpu else "cpu"))

    def trainee(self) -> Trainee:
        """A scratch model with its optimizer; on a CPU this process computes with its threads."""
        if not self.spec.compute.use_gpu:
            torch.set_num_threads(self.spec.compute.cpus_per_worker)
        network = meta_model(self.config)
        if self.kernel == "eager":
            network.set_attn_implementation("eager")
        executed = execution(self.spec, self.ctx)
        return Trainee(network, drawn(seed=0), self.spec, self.ctx, executed)

    def take_steps(self, seq_len: int) -> None:
        """Two optimizer steps: in the second the gradients' memory is there again."""
        trainee = self.trainee()
        batch = trainee.random_batch(seq_len)
        for _ in range(2):
            trainee.step_seconds(batch)

    def peak_bytes(self, seq_len: int, budget: int) -> int | None:
        """Bytes at the peak of one optimizer step, weights and moments included; None if it takes
        more than ``budget``."""
        work = partial(self.take_steps, seq_len)
        if self.spec.compute.use_gpu:
            return gpu_peak_bytes(work, self.ctx.device, budget)
        return peak_bytes_in_a_process(work, budget)

    def largest_batch_tokens(self, seq_len: int, budget: int) -> int | None:
        """Tokens of the largest batch that goes through the model at once; 0 if not one window
        fits, None if the system counts no memory."""

        def peak(rows: int) -> int | None:
            return self.at_once(rows * seq_len).peak_bytes(seq_len, budget)

        most = MOST_TOKENS // seq_len
        if self.spec.compute.use_gpu:  # tried, to an eighth
            rows, taken = halved_until_it_fits(most, peak)
            finer = [rows * eighths // 8 for eighths in range(15, 8, -1)]
            rows = next((n for n in finer if rows < n < most and peak(n) is not None), rows)
        else:  # proportion, from the memory of two small batches
            rows, taken = halved_until_it_fits(max(1, SMALL_TOKENS // seq_len), peak)
            more = None if taken is None else peak(2 * rows)
            if taken is not None and more is not None:
                if more <= taken:  # nothing that the system counts has grown
                    return None
                rows = min(most, rows + (budget - taken) * rows // (more - taken))
        return 0 if taken is None else rows * seq_len


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
    _validate(spec, seq_lens, settings)
    models = [ProfiledModel.under(setting, spec, seq_lens) for setting in settings]
    gpu, ctx = spec.compute.use_gpu, models[0].ctx
    if memory_gib is not None:
        budget = int(memory_gib * 2**30)
    else:
        budget = gpu_budget_bytes(ctx.device) if gpu else int(CPU_SHARE * free_memory_bytes())
    counts_memory = gpu or peak_bytes(lambda: None) is not None
    costs = []
    for setting, model in zip(settings, models, strict=True):
        memory: dict[int, tuple[int | None, int | None]] = dict.fromkeys(seq_lens, (None, None))
        with working(f"{setting.name}: memory", len(seq_lens)):
            for n in seq_lens if counts_memory else ():
                say(f"{setting.name}: memory at {n:,}")
                memory[n] = model.peak_bytes(n, budget), model.largest_batch_tokens(n, budget)
                advance(1)
        say(f"{setting.name}: steps of every length, interleaved")
        fitting = [n for n in seq_lens if memory[n][0] is not None or not counts_memory]
        with working(f"{setting.name}: steps of every length, interleaved", 1):
            timed = _timed(model, fitting) if fitting else {}
        lengths = tuple(LengthCost(n, *memory[n], *timed.get(n, ())) for n in seq_lens)
        costs.append(SettingCosts(setting, lengths))
    return Profile(
        pipeline=spec.name,
        tokens_per_batch=spec.tokens_per_batch,
        budget_bytes=budget,
        environment=environment(ctx),
        settings=tuple(costs),
    )


def _validate(spec: PipelineSpec, seq_lens: Sequence[int], settings: Sequence[Setting]) -> None:
    if spec.compute.use_gpu and not torch.cuda.is_available():
        raise UserError(
            "compute.use_gpu is true, but PyTorch finds no GPU here: nothing could be measured; "
            "add --set compute.use_gpu=false, or run it where the GPU is"
        )
    for seq_len in seq_lens:
        if seq_len < 1:
            raise UserError(f"seq_lens: {seq_len} is not a length; give 1 or more")
        if BLOCK_TOKENS % seq_len:
            raise UserError(
                f"seq_lens: {seq_len} does not divide a token block of {BLOCK_TOKENS:,} tokens: "
                "no run could train it; use powers of two"
            )
        if spec.tokens_per_batch % seq_len:
            batches = -(-spec.tokens_per_batch // seq_lens[-1])
            raise UserError(
                f"seq_lens: {seq_len} does not divide tokens_per_batch {spec.tokens_per_batch}: "
                "no batch of it has as many tokens as the others; use divisors, or add --set "
                f"tokens_per_batch={batches * seq_lens[-1]}"
            )
    if spec.attention == "document" and any(setting.kernel == "eager" for setting in settings):
        raise UserError(
            "kernel eager: the pipeline keeps documents apart (attention 'document'), which "
            "only sdpa does here; add --set attention=window"
        )


def _timed(
    model: ProfiledModel, seq_lens: Sequence[int]
) -> dict[int, tuple[tuple[float, ...], dict[str, float]]]:
    """Seconds of the steps of each length, and the shares of a step's parts."""
    release_models()
    trainee = model.trainee()
    with working("warming up every length", len(seq_lens)):
        trainee.warm_up(map(trainee.random_batch, seq_lens))
    steps = interleaved_steps(trainee, seq_lens, min_rounds=MIN_ROUNDS)
    found = {}
    for seq_len in seq_lens:
        batch = trainee.random_batch(seq_len)
        rounds = [_phase_seconds(trainee, batch) for _ in range(PHASE_ROUNDS + 1)][1:]
        phases = {name: statistics.median(parts[name] for parts in rounds) for name in rounds[0]}
        shares = {name: seconds / sum(phases.values()) for name, seconds in phases.items()}
        found[seq_len] = tuple(steps[seq_len]), shares
    return found


def _phase_seconds(trainee: Trainee, batch: Batch) -> dict[str, float]:
    """Seconds of ``forward`` (the loss and its gradient by the logits), ``backward`` and
    ``optimizer`` in a step. The device is waited for after each."""
    seconds, now = {"forward": 0.0, "backward": 0.0}, partial(device_clock, trainee.ctx.device)
    tokens = torch.from_numpy(batch.tokens).to(trainee.ctx.device)
    for rows in tokens.split(trainee.execution.rows_at_once(batch.seq_len)):
        start = now()
        total = trainee.forward(rows[:, :-1], rows[:, 1:])
        middle = now()
        (total / trainee.spec.tokens_per_batch).backward()
        seconds["forward"] += middle - start
        seconds["backward"] += now() - middle
    start = now()
    trainee.update(trainee.spec.optimizer.lr)
    return seconds | {"optimizer": now() - start}
