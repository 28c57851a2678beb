"""A model that is trained for nothing: a run's optimizer steps, on random tokens."""

import torch
from transformers import PreTrainedConfig

from glray.data.blocks.tokenizer import load_tokenizer
from glray.data.windows import Batch
from glray.model.config import model_config, starting_model
from glray.model.decoder import build_model
from glray.run.profile import Setting
from glray.spec.corpus import BpeTokenizer
from glray.spec.pipeline import PipelineSpec
from glray.train.context import LocalContext
from glray.train.execution import execution
from glray.train.probe.micro_batches import declared_micro_batches, declared_tokens_at_once
from glray.train.trainee import Trainee


def at_length(
    spec: PipelineSpec, setting: Setting, seq_len: int, tokens: int, tokens_at_once: int
) -> PipelineSpec:
    """The pipeline as it would train batches of ``tokens`` tokens at ``seq_len`` alone."""
    compute = {"compile": setting.compile, "micro_batch_tokens": tokens_at_once}
    return spec.derive(
        arms=[{"name": "fixed", "stages": [{"seq_len": seq_len}]}],
        search=None,
        calibration=None,
        chunk_len=seq_len,
        tokens_per_batch=tokens,
        precision=setting.precision,
        compute=compute,
    )


def profiled_config(spec: PipelineSpec, max_seq_len: int) -> PreTrainedConfig:
    """The pipeline's model for windows of up to ``max_seq_len`` tokens. No corpus is read: a BPE
    that would be trained on it counts with the size asked for. Raises UserError."""
    if isinstance(spec.tokenizer, BpeTokenizer):
        num_ids = spec.tokenizer.vocab_size
    else:
        num_ids = load_tokenizer(spec.tokenizer).vocab_size
    return model_config(starting_model(spec), vocab_size=num_ids, eos_id=0, max_seq_len=max_seq_len)


class ScratchModel:
    """A model under a setting, its optimizer, and steps of it at any length."""

    def __init__(
        self, spec: PipelineSpec, setting: Setting, config: PreTrainedConfig, ctx: LocalContext
    ) -> None:
        self._setting, self._config, self._ctx = setting, config, ctx
        self._spec = spec
        network = build_model(config, 0, ctx.device)
        if setting.kernel == "eager":
            network.set_attn_implementation("eager")
        under = spec.derive(compute={"compile": setting.compile}, precision=setting.precision)
        executed = execution(under, ctx, declared_micro_batches(under))
        self._trainee = Trainee(network, under, ctx, executed)

    def step(self, seq_len: int, tokens: int | None = None) -> float:
        """Seconds of an optimizer step of the pipeline's batch in its micro-batches, or of one of
        ``tokens`` tokens that goes through the model at once."""
        batch = self._batch(seq_len, tokens or self._spec.tokens_per_batch)
        return self.step_on(batch, tokens or declared_tokens_at_once(self._spec))

    def step_on(self, batch: Batch, tokens_at_once: int) -> float:
        """Seconds of an optimizer step of ``batch``, in micro-batches of so many tokens."""
        seq_len, tokens = batch.seq_len, len(batch.tokens) * batch.seq_len
        spec = at_length(self._spec, self._setting, seq_len, tokens, tokens_at_once)
        self._trainee.spec = spec
        self._trainee.execution = execution(spec, self._ctx, declared_micro_batches(spec))
        return self._trainee.step_seconds(batch)

    def phases(self, seq_len: int) -> dict[str, float]:
        """Seconds of ``forward`` (the loss and its gradient by the logits), ``backward`` and
        ``optimizer`` in a step of the pipeline's batch. The device is waited for after each."""
        tokens = torch.from_numpy(self._batch(seq_len, self._spec.tokens_per_batch).tokens)
        seconds = {"forward": 0.0, "backward": 0.0}
        rows_at_once = max(1, declared_tokens_at_once(self._spec) // seq_len)
        for rows in tokens.to(self._ctx.device).split(rows_at_once):
            start = self._trainee.now()
            total = self._trainee.forward(rows[:, :-1], rows[:, 1:])
            middle = self._trainee.now()
            (total / self._spec.tokens_per_batch).backward()
            seconds["forward"] += middle - start
            seconds["backward"] += self._trainee.now() - middle
        start = self._trainee.now()
        self._trainee.update(self._spec.optimizer.lr)
        return seconds | {"optimizer": self._trainee.now() - start}

    def _batch(self, seq_len: int, tokens: int) -> Batch:
        spec = self._spec.model_copy(update={"tokens_per_batch": tokens})
        self._trainee.spec = spec
        return self._trainee.random_batch(seq_len)
