"""Sharded, replicated and compiled models: what each rank holds, which bits, how many graphs.

Groups take seconds to start, so each test asks one group for all that it has to know.
"""

import copy
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from glray.data.corpus import PreparedCorpus
from glray.model.config import model_config
from glray.model.decoder import build_model, meta_model, pretrained_meta_model
from glray.model.loss import NextTokenLoss
from glray.model.pretrained import read_pretrained
from glray.model.weights import Weights, drawn, from_folder
from glray.spec import GPTNeoXModel, LlamaModel, PipelineSpec
from glray.spec.model import ModelSpec
from glray.train.context import WorkerContext
from glray.train.execution import execution
from glray.train.parallel import prepare_model, whole
from glray.train.trainee import Trainee

from ..group import join_group, start_group
from ..tiny import tiny_spec

SHAPE: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 128,
}
MODELS: list[ModelSpec] = [
    GPTNeoXModel(**SHAPE),
    LlamaModel(**SHAPE, num_kv_heads=1, tie_embeddings=True),
]
CPU = torch.device("cpu")
SLACK_BYTES = 16_384
"""Of positions, indices and the like."""


def config_of(model: ModelSpec) -> PreTrainedConfig:
    return model_config(model, vocab_size=300, eos_id=0, max_seq_len=32)


def drawn_by_transformers(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(copy.deepcopy(config))


def peak_bytes(recorded: profile) -> int:
    """The most that was allocated at once, beyond what had been before."""
    held = most = 0
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    events = recorded.profiler.kineto_results.events()
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()  # type: ignore[attr-defined]
            most = max(most, held)
    return most


def build_sharded(
    network: PreTrainedModel, weights: Weights, spec: PipelineSpec, ctx: WorkerContext
) -> int:
    """Shard and fill ``network``; the bytes that this took at the peak."""
    model = NextTokenLoss(network)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        prepare_model(model, spec.compute, spec.precision, ctx)
        weights(network)
    return peak_bytes(recorded)


def assert_sharded(network: PreTrainedModel, expected: PreTrainedModel, peak: int) -> None:
    shards, largest = 0, 0
    for (name, parameter), (_, other) in zip(
        network.named_parameters(), expected.named_parameters(), strict=True
    ):
        assert isinstance(parameter, DTensor)
        assert torch.equal(whole(parameter), other), name
        shards += parameter.to_local().nbytes
        largest = max(largest, other.nbytes)
    all_bytes = sum(parameter.nbytes for parameter in expected.parameters())
    assert shards <= peak < shards + largest + SLACK_BYTES < all_bytes
    tied = network.get_output_embeddings().weight is network.get_input_embeddings().weight
    assert tied == network.config.tie_word_embeddings
    for name, buffer in expected.named_buffers():
        assert torch.equal(network.get_buffer(name), buffer), name


def check_weights_of_a_rank(
    spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext, folder: str
) -> None:
    for model in MODELS:
        config = config_of(model)
        network = meta_model(config)
        peak = build_sharded(network, drawn(3), spec, ctx)
        assert_sharded(network, drawn_by_transformers(config, 3), peak)
    pretrained = read_pretrained(folder)
    network = pretrained_meta_model(pretrained, config)
    peak = build_sharded(network, from_folder(pretrained), spec, ctx)
    peak -= sum(file.stat().st_size for file in pretrained.weight_files)  # mapped, not read
    assert_sharded(network, drawn_by_transformers(config, 7), peak)


@pytest.mark.parametrize("world_size", [2, 3])
def test_sharded_weights_are_those_of_one_process_which_nobody_holds_whole(
    tmp_path: Path, corpus: PreparedCorpus, world_size: int
) -> None:
    build_model(config_of(MODELS[-1]), 7, CPU).save_pretrained(tmp_path / "folder")
    spec = tiny_spec(tmp_path).derive(compute={"parallelism": "fsdp"})
    folder = str(tmp_path / "folder")
    assert join_group(start_group(check_weights_of_a_rank, world_size, spec, corpus, folder))


def trainee_of(
    spec: PipelineSpec, ctx: WorkerContext, precision: str = "float32", **compute: object
) -> Trainee:
    spec = spec.derive(precision=precision, compute=compute)
    return Trainee.scratch(config_of(MODELS[0]), spec, ctx, execution(spec, ctx))


def gradients_of(trainee: Trainee, seq_len: int = 32) -> tuple[float, list[torch.Tensor]]:
    loss, _ = trainee.gradients(trainee.random_batch(seq_len))
    gradients = [p.grad for p in trainee.model.parameters() if p.grad is not None]
    assert len(gradients) == len(list(trainee.model.parameters()))
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    return loss.item(), [whole(gradient).clone() for gradient in gradients]


def check_graphs_and_precision_of_a_rank(
    spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext
) -> None:
    graphs = []

    def counting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(len(graph.graph.nodes))
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch.nn.Module.compile = partialmethod(torch.nn.Module.compile, backend=counting)  # type: ignore[method-assign, assignment]
    torch.distributed._DEFAULT_FIRST_BUCKET_BYTES = 1  # type: ignore[attr-defined]
    sizes: dict[bool, list[int]] = {False: [], True: []}
    for parallelism in ("ddp", "fsdp"):
        plain = trainee_of(spec, ctx, parallelism=parallelism)
        loss, expected = gradients_of(plain)
        for recompute in (False, True):
            torch._dynamo.reset()
            graphs.clear()
            compiled = trainee_of(
                spec,
                ctx,
                parallelism=parallelism,
                compile=True,
                activation_checkpointing=recompute,
            )
            if isinstance(compiled.replicas, DistributedDataParallel):
                compiled.replicas.bucket_bytes_cap = 4_096  # less than a block, as at 160M
            found, gradients = gradients_of(compiled)
            assert len(graphs) == 1, (parallelism, recompute, graphs)  # of 4 blocks
            sizes[recompute].append(graphs[0])
            assert found == pytest.approx(loss, rel=1e-5)
            for ours, theirs in zip(gradients, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    assert all(ddp == fsdp for ddp, fsdp in sizes.values())

    # In bfloat16 a sharded model gathers bfloat16, and sums gradients in float32.
    rounded = trainee_of(spec, ctx, "bfloat16", parallelism="fsdp")
    assert rounded.execution.parallelism == "fsdp, bfloat16 throughout"
    dtypes: set[torch.dtype] = set()
    for module in rounded.model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.register_forward_pre_hook(
                lambda block, inputs: dtypes.update(
                    tensor.dtype for tensor in (*inputs, *block.parameters())
                )
            )
    found, gradients = gradients_of(rounded)
    assert dtypes == {torch.bfloat16}
    assert found == pytest.approx(loss, rel=1e-3)
    ours, theirs = (torch.cat([g.ravel() for g in one]) for one in (gradients, expected))
    assert 1e-4 < (ours - theirs).norm() / theirs.norm() < 2e-2
    assert {p.dtype for p in rounded.model.parameters()} == {torch.float32}


def test_a_block_is_one_graph_and_sharded_bfloat16_gathers_bfloat16(
    tmp_path: Path, corpus: PreparedCorpus
) -> None:
    spec = tiny_spec(tmp_path)
    group = start_group(check_graphs_and_precision_of_a_rank, 2, spec, corpus)
    assert join_group(group, seconds=300)  # dynamo takes seconds to import


def check_bucket_views_of_a_rank(
    spec: PipelineSpec, corpus: PreparedCorpus, ctx: WorkerContext
) -> None:
    views, copies = trainee_of(spec, ctx), trainee_of(spec, ctx)
    assert isinstance(views.replicas, DistributedDataParallel)
    assert views.replicas.gradient_as_bucket_view
    copies.replicas = DistributedDataParallel(
        copies.model, broadcast_buffers=False, find_unused_parameters=True
    )
    for _ in range(2):
        for trainee in (views, copies):
            trainee.step(trainee.random_batch(8), lr=1e-2)
    for ours, theirs in zip(views.model.parameters(), copies.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_gradients_in_ddps_buckets_change_no_bit(tmp_path: Path, corpus: PreparedCorpus) -> None:
    assert join_group(start_group(check_bucket_views_of_a_rank, 3, tiny_spec(tmp_path), corpus))
