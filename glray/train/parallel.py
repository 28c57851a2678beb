"""The model as a group of workers trains it: compiled, recomputed, replicated or sharded."""

import contextlib
import gc
import warnings
from collections.abc import Iterator

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from glray.model.decoder import allocate
from glray.model.loss import NextTokenLoss
from glray.model.weights import own_shard
from glray.spec.compute import ComputeSpec
from glray.spec.model import Precision
from glray.train.context import WorkerContext, least_over_ranks


def prepare_model(
    model: NextTokenLoss, compute: ComputeSpec, precision: Precision, ctx: WorkerContext
) -> None:
    """Compile, recompute and shard ``model`` as the spec says, in place, and give it memory, of
    which it has none yet (``meta_model``): no rank ever holds the whole of a sharded model.

    Decoder blocks are compiled and sharded one by one: all are alike, so one of them is compiled
    and each is gathered only while it computes.
    """
    blocks = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if compute.activation_checkpointing:
        model.network.gradient_checkpointing_enable({"use_reentrant": False})
    # A graph a length, and one more where a rank's last micro-batch is shorter; flex attention
    # compiles its own, and beyond the limit would have all scores in memory.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    # Else each block would be cut where DDP's buckets end, into graphs with other bits. Blocks
    # overlap with DDP's sums as they are.
    torch._dynamo.config.optimize_ddp = False
    if compute.compile:
        for block in blocks:
            block.compile(dynamic=False)
        model.compile_losses = True  # it decides by the device
    if compute.parallelism == "fsdp" and ctx.world_size > 1:
        mesh = init_device_mesh(ctx.device.type, (ctx.world_size,))
        policy = MixedPrecisionPolicy()
        if precision == "bfloat16":
            policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32)
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
    allocate(model, ctx.device)


def replicated(model: NextTokenLoss, ctx: WorkerContext) -> torch.nn.Module:
    """What to call in training: under DDP a wrapper of ``model``, else ``model`` itself.

    A restart must not change the order of float sums. DDP regroups the gradients after its first
    step by when each was ready, so a fresh wrapper sums in another order than one that has gone on
    (seen to change bits at 3 and 4 workers); while it looks for unused parameters it does not.
    """
    if ctx.world_size == 1 or isinstance(model, FSDPModule):
        return model
    with warnings.catch_warnings():
        # Its new name does not exist in PyTorch 2.11. There is nothing to broadcast.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
        return DistributedDataParallel(
            model,
            broadcast_buffers=False,
            find_unused_parameters=True,
            gradient_as_bucket_view=True,  # no copy of the gradients, and none of their memory
        )


def computing_in(
    precision: Precision, model: torch.nn.Module, device: torch.device
) -> torch.autocast:
    """Within the block a forward pass computes in ``precision``; weights stay float32. TF32
    is off on purpose (``PipelineSpec.precision``).

    FSDP2 sees to that itself: in bfloat16 it gathers weights as bfloat16, and activations are
    bfloat16 from the embedding on, where autocast keeps those between the blocks in float32.
    """
    enabled = precision == "bfloat16" and not isinstance(model, FSDPModule)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def summing_over_ranks(
    model: torch.nn.Module, *, now: bool
) -> contextlib.AbstractContextManager[None]:
    """Within the block a backward pass sums gradients over ranks only if ``now``."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
    elif isinstance(model, DistributedDataParallel) and not now:
        return model.no_sync()
    return contextlib.nullcontext()


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Within the block the model is in ``eval()`` mode, after it in the mode before, and sharded
    again: as no backward pass follows, FSDP2 leaves the outermost weights whole."""
    was_training = model.training
    model.eval()
    yield
    model.train(was_training)
    if isinstance(model, FSDPModule):
        model.reshard()


def whole_weights(network: PreTrainedModel, ctx: WorkerContext) -> dict[str, torch.Tensor]:
    """The network's weights on rank 0's CPU, gathered where they are sharded; all ranks call it.

    A tied weight is there once, under its first name.
    """
    weights = {}
    for name, parameter in network.named_parameters():
        weight = whole(parameter)
        if ctx.rank == 0:
            weights[name] = weight.detach().cpu()
    return weights


def are_weights_finite(network: PreTrainedModel, ctx: WorkerContext) -> bool:
    """Whether every weight is a number and not infinite, on every rank; all ranks call it."""
    finite = torch.stack([torch.isfinite(own_shard(p)).all() for p in network.parameters()]).all()
    return bool(least_over_ranks(ctx, int(finite)))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, gathered where it is sharded: then all ranks call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def release_models() -> None:
    """Give back what models that are no longer used hold of memory, and their compiled graphs: a
    compiled or sharded model refers to itself, so that only the collector frees it."""
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
