"""The chunked loss is the plain one, gradients too, without all logits in memory."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from glray.model import loss
from glray.model.config import model_config
from glray.model.decoder import build_model
from glray.model.loss import NextTokenLoss
from glray.spec import GPTNeoXModel, LlamaModel
from glray.spec.model import ModelSpec
from glray.train.probe.memory import peak_bytes

SHAPE: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 64,
}
MODELS: dict[str, ModelSpec] = {
    "gpt_neox": GPTNeoXModel(**SHAPE),
    "llama": LlamaModel(**SHAPE, num_kv_heads=1),
    "tied llama": LlamaModel(**SHAPE, tie_embeddings=True),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_loss_and_gradients_are_those_of_the_plain_loss(
    monkeypatch: pytest.MonkeyPatch, kind: str, precision: torch.dtype
) -> None:
    # 21 targets in chunks of 8: the last is shorter.
    monkeypatch.setattr(loss, "CHUNK_TARGETS", 8)
    config = model_config(MODELS[kind], vocab_size=128, eos_id=0, max_seq_len=7)
    model = NextTokenLoss(build_model(config, 0, torch.device("cpu")))
    network = model.network
    tokens = torch.randint(128, (3, 8), generator=torch.Generator().manual_seed(0))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        logits = network(input_ids=inputs).logits.float()
        plain = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        (0.5 * plain).backward()
        expected = {name: p.grad.clone() for name, p in network.named_parameters()}
        network.zero_grad()
        total = model(inputs, targets)
    (0.5 * total).backward()
    tolerance = 1e-5 if precision == torch.float32 else 2e-2
    torch.testing.assert_close(total, plain, rtol=tolerance, atol=0)
    for name, parameter in network.named_parameters():
        error = (parameter.grad - expected[name]).norm() / expected[name].norm()
        assert error < tolerance, name
    with torch.autocast("cpu", precision, enabled=precision != torch.float32), torch.no_grad():
        each = model.eval()(inputs, targets)
    assert each.shape == targets.shape
    torch.testing.assert_close(each.sum(), plain.detach(), rtol=tolerance, atol=0)


def test_no_more_than_a_chunk_of_a_large_vocabularys_logits_is_in_memory() -> None:
    hidden = torch.randn(3072, 8, requires_grad=True)
    weight = torch.randn(16_384, 8, requires_grad=True)
    targets = torch.randint(16_384, (3072,))
    logits_bytes = 3072 * 16_384 * 4  # 201 MB

    def plain() -> None:
        F.cross_entropy(hidden @ weight.T, targets, reduction="sum").backward()

    def chunked() -> None:
        summed = loss._SummedLoss.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
        summed.backward()

    bytes_of = {}
    for name, work in (("chunked", chunked), ("plain", plain)):
        peak = peak_bytes(work)
        if peak is None:
            pytest.skip("this system does not count a process's peak memory")
        bytes_of[name] = peak
    assert bytes_of["chunked"] < 0.8 * logits_bytes  # twice a chunk of 1,024
    assert bytes_of["plain"] > logits_bytes  # so that the measure can fail
