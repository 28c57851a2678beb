"""The chunked loss is the plain one, gradients too, without all logits in memory."""

import re
from typing import Any
from unittest import mock

import pytest
import torch
import torch._inductor.config as inductor
import torch.nn.functional as F
from torch._inductor import cpu_vec_isa
from torch._inductor.exc import InductorError
from torch._inductor.graph import GraphLowering
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

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
        loss._SummedLoss.apply(hidden, weight, targets, False).backward()  # type: ignore[no-untyped-call]

    bytes_of = {}
    for name, work in (("chunked", chunked), ("plain", plain)):
        peak = peak_bytes(work)
        if peak is None:
            pytest.skip("this system does not count a process's peak memory")
        bytes_of[name] = peak
    assert bytes_of["chunked"] < 0.8 * logits_bytes  # twice a chunk of 1,024
    assert bytes_of["plain"] > logits_bytes  # so that the measure can fail


# ---- as on a GPU: compiled, with products that accumulate in float32


def loss_inputs(
    num_targets: int, vocab_size: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_targets, 16, generator=generator).to(dtype)
    weight = torch.randn(vocab_size, 16, generator=generator).to(dtype)
    targets = torch.randint(vocab_size, (num_targets,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_losses_and_their_gradients_are_those_of_the_plain_loss(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Traced as for a GPU, each size of a chunk without a break; only the two products whose sums
    leave a GPU in float32, and a CPU in bfloat16, are replaced."""

    def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
        total += left.float() @ right.float()

    def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left.float() @ right.float()

    def traced(function: Any) -> Any:
        return torch.compile(function, dynamic=False, fullgraph=True, backend="aot_eager")

    monkeypatch.setattr(loss, "COMPILED_CHUNK_TARGETS", 8)
    monkeypatch.setattr(loss, "_add_product", add_product)
    monkeypatch.setattr(loss, "_product", product)
    monkeypatch.setattr(loss, "_compiled", traced)
    hidden, weight, targets = loss_inputs(21, 128, dtype)
    summed = loss._SummedLoss.apply(hidden, weight, targets, True)  # type: ignore[no-untyped-call]
    found = torch.autograd.grad(summed, (hidden, weight))
    with torch.no_grad():
        each = loss._each_loss(hidden, weight, targets, compiled=True)
    logits = hidden.float() @ weight.float().T
    plain = F.cross_entropy(logits, targets, reduction="none")
    expected = torch.autograd.grad(plain.sum(), (hidden, weight))
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(each, plain.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(summed, plain.sum().detach(), rtol=tolerance, atol=0)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        assert (ours.float() - theirs.float()).norm() < tolerance * theirs.float().norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_targets_own_gradient_is_their_share_less_one_to_the_bit(dtype: torch.dtype) -> None:
    hidden, weight, targets = loss_inputs(1000, 301, dtype)
    with torch.no_grad():
        _, logits_grad = loss._losses(hidden, weight, targets)
        logits = (hidden @ weight.T).float()
    shares = (logits - logits.logsumexp(dim=-1)[:, None]).exp()
    shares.scatter_add_(1, targets[:, None], -torch.ones(1000, 1))
    assert torch.equal(logits_grad, shares.to(dtype))


def test_the_compiler_has_only_the_logits_and_their_gradient_in_memory() -> None:
    """In bfloat16: nothing as large lies in memory in float32, nor twice. The generated code says
    so; it is neither built for this, nor is a compiler asked for the processor's vectors."""
    code = ""

    class Seen(Exception):
        pass

    def seen(text: str) -> None:
        nonlocal code
        code = text
        raise Seen

    hidden, weight, targets = loss_inputs(64, 1000, torch.bfloat16)
    torch._dynamo.reset()
    with (
        inductor.patch(force_disable_caches=True),
        mock.patch.object(GraphLowering, "save_output_code", seen),
        mock.patch.object(cpu_vec_isa, "valid_vec_isa_list", list),
        torch.no_grad(),
        pytest.raises(InductorError, match="Seen"),
    ):
        loss._compiled(loss._losses)(hidden, weight, targets)
    allocated = re.findall(r"= empty_strided_cpu\((\(.*?\)), \(.*?\), torch\.(\w+)\)", code)
    large = [dtype for shape, dtype in allocated if "1000" in shape]
    assert large == ["bfloat16", "bfloat16"], allocated


class BytesMoved(TorchDispatchMode):
    """Bytes of what operators read and write, in tensors of a vocabulary's size; views move none,
    and a new tensor none before something is written to it."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocab_size, self.count = vocab_size, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func is not torch.ops.aten.detach.default:
            tensors = pytree.tree_leaves((args, kwargs, out))
            self.count += sum(
                each.nbytes
                for each in tensors
                if isinstance(each, torch.Tensor) and self.vocab_size in each.shape
            )
        return out


@pytest.mark.parametrize(("dtype", "logits_moved"), [(torch.float32, 11.0), (torch.bfloat16, 11.5)])
def test_bytes_moved_for_a_chunks_logits(dtype: torch.dtype, logits_moved: float) -> None:
    """In float32 logits, op by op: written by a product; read by logsumexp and gather; read and
    written by ``-`` and ``exp``; read and written where the targets' own are assigned (as the whole
    tensor here); read by two products. That is 11 in float32; in bfloat16 three of them are halves
    and two casts read one and a half each."""
    hidden, weight, targets = loss_inputs(64, 1000, dtype)
    with torch.no_grad(), BytesMoved(1000) as moved:
        _, logits_grad = loss._losses(hidden, weight, targets)
        _ = logits_grad @ weight
        _ = logits_grad.T @ hidden
    weights = 3 * weight.nbytes  # read by two products, and the size of one's result
    assert moved.count - weights == logits_moved * 64 * 1000 * 4
