"""A model that is trained for nothing: a run's optimizer steps, on random tokens."""

import time

import torch
from transformers import PreTrainedConfig

from glray.data.tokenizer import load_tokenizer, vocab_size
from glray.data.windows import Batch
from glray.model.config import model_config, starting_model
from glray.model.decoder import build_model
from glray.model.loss import NextTokenLoss
from glray.run.profile import Setting
from glray.spec.corpus import BpeTokenizer
from glray.spec.pipeline import PipelineSpec
from glray.train.context import LocalContext, synchronize
from glray.train.execution import execution
from glray.train.optimizer import build_optimizer
from glray.train.parallel import prepare_model
from glray.train.probe.micro_batches import declared_micro_batches, declared_tokens_at_once
from glray.train.probe.warm_up import random_batch
from glray.train.step import accumulate_gradients, apply_gradients


def at_length(
    spec: PipelineSpec, setting: Setting, seq_len: int, tokens: int, tokens_at_once: int
) -> PipelineSpec:
    """The pipeline as it would train batches of ``tokens`` tokens at ``seq_len`` alone."""
    compute = {"compile": setting.compile, "micro_batch_tokens": tokens_at_once}
    return spec.with_fields(
        arms=[{"name": "fixed", "stages": [{"seq_len": seq_len}]}],
        search=None,
        calibration=None,
        chunk_len=seq_len,
        tokens_per_batch=tokens,
        precision=setting.precision,
        compute=spec.compute.model_dump() | compute,
    )


def profiled_config(spec: PipelineSpec, max_seq_len: int) -> PreTrainedConfig:
    """The pipeline's model for windows of up to ``max_seq_len`` tokens. No corpus is read: a BPE
    that would be trained on it counts with the size asked for. Raises UserError."""
    if isinstance(spec.tokenizer, BpeTokenizer):
        num_ids = spec.tokenizer.vocab_size
    else:
        num_ids = vocab_size(load_tokenizer(spec.tokenizer).tokenizer)
    return model_config(starting_model(spec), vocab_size=num_ids, eos_id=0, max_seq_len=max_seq_len)


class ScratchModel:
    """A model under a setting, its optimizer, and steps of it at any length."""

    def __init__(
        self, spec: PipelineSpec, setting: Setting, config: PreTrainedConfig, ctx: LocalContext
    ) -> None:
        self._setting, self._config, self._ctx = setting, config, ctx
        self._spec = spec
        self._model = NextTokenLoss(build_model(config, 0, ctx.device), spec.attention)
        if setting.kernel == "eager":
            self._model.network.set_attn_implementation("eager")
        compute = spec.compute.model_copy(update={"compile": setting.compile})
        prepare_model(self._model, compute, ctx)
        self._optimizer = build_optimizer(self._model.network, spec.optimizer)

    def step(self, seq_len: int, tokens: int | None = None) -> float:
        """Seconds of an optimizer step of the pipeline's batch in its micro-batches, or of one of
        ``tokens`` tokens that goes through the model at once."""
        batch = self._batch(seq_len, tokens or self._spec.tokens_per_batch)
        return self.step_on(batch, tokens or declared_tokens_at_once(self._spec))

    def step_on(self, batch: Batch, tokens_at_once: int) -> float:
        """Seconds of an optimizer step of ``batch``, in micro-batches of so many tokens."""
        seq_len, tokens = batch.seq_len, len(batch.tokens) * batch.seq_len
        spec = at_length(self._spec, self._setting, seq_len, tokens, tokens_at_once)
        executed = execution(spec, self._ctx, declared_micro_batches(spec))
        start = self._now()
        accumulate_gradients(self._model, batch, spec, self._ctx, executed)
        self._apply_gradients()
        return self._now() - start

    def phases(self, seq_len: int) -> dict[str, float]:
        """Seconds of ``forward`` (the loss and its gradient by the logits), ``backward`` and
        ``optimizer`` in a step of the pipeline's batch. The device is waited for after each."""
        tokens = torch.from_numpy(self._batch(seq_len, self._spec.tokens_per_batch).tokens)
        seconds = {"forward": 0.0, "backward": 0.0}
        rows_at_once = max(1, declared_tokens_at_once(self._spec) // seq_len)
        for rows in tokens.to(self._ctx.device).split(rows_at_once):
            start = self._now()
            with torch.autocast(
                self._ctx.device.type,
                torch.bfloat16,
                enabled=self._setting.precision == "bfloat16",
            ):
                total = self._model(rows[:, :-1], rows[:, 1:])
            middle = self._now()
            (total / self._spec.tokens_per_batch).backward()
            seconds["forward"] += middle - start
            seconds["backward"] += self._now() - middle
        start = self._now()
        self._apply_gradients()
        return seconds | {"optimizer": self._now() - start}

    def _apply_gradients(self) -> None:
        apply_gradients(self._model, self._optimizer, self._spec.optimizer.max_grad_norm)

    def _batch(self, seq_len: int, tokens: int) -> Batch:
        return random_batch(seq_len, tokens // seq_len, self._config.vocab_size, self._ctx)

    def _now(self) -> float:
        synchronize(self._ctx.device)
        return time.perf_counter()
