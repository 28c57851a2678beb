"""AdamW over two groups: what decays and what does not."""

import torch
from torch.distributed.tensor import DTensor

from glray.spec.training import OptimizerSpec


def build_optimizer(model: torch.nn.Module, spec: OptimizerSpec) -> torch.optim.AdamW:
    """Fused AdamW; matrices and embeddings decay, norms and biases (one dimension) do not.

    Its moments are made here and not in the first step: what the run needs of memory is seen before
    step 0, and a checkpoint finds tensors to load into.
    """
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=True)
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


@torch.no_grad()
def update_norm(optimizer: torch.optim.AdamW, lr: float) -> torch.Tensor:
    """L2 norm of the update just made, weight decay apart: a scalar on the device, for which the
    host does not wait. All ranks call it where the parameters are sharded.

    From the moments (Kingma & Ba 2015, algorithm 1), so that no weights are kept to compare with.
    """
    squares = []
    for group in optimizer.param_groups:
        first_decay, second_decay = group["betas"]
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            mean, square = (_own_shard(state[name]) for name in ("exp_avg", "exp_avg_sq"))
            root = (square / (1 - second_decay ** state["step"])).sqrt_().add_(group["eps"])
            step = (mean / (1 - first_decay ** state["step"])).div_(root)
            squares.append(torch.linalg.vector_norm(step).square())
    total = torch.stack(squares).sum()
    if isinstance(parameter, DTensor):
        torch.distributed.all_reduce(total)
    return total.sqrt() * lr


def _own_shard(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
