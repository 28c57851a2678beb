"""AdamW over two groups: what decays and what does not."""

import torch
from torch.distributed.tensor import DTensor

from glray.model.weights import own_shard
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
        states = [optimizer.state[parameter] for parameter in group["params"]]
        means, variances = (
            [own_shard(state[name]) for state in states] for name in ("exp_avg", "exp_avg_sq")
        )
        first_bias, second_bias = (1 - decay ** states[0]["step"] for decay in group["betas"])
        updates = torch._foreach_div(variances, second_bias)  # where the gradients have been
        torch._foreach_sqrt_(updates)
        torch._foreach_add_(updates, group["eps"])
        torch._foreach_reciprocal_(updates)
        torch._foreach_mul_(updates, means)
        torch._foreach_mul_(updates, updates)
        sums = [update.sum() for update in updates]  # a CPU's norm of 25 M is off by 1e-3
        squares.append(torch.stack(sums).sum() / first_bias**2)
    total = torch.stack(squares).sum()
    if isinstance(states[0]["exp_avg"], DTensor):
        torch.distributed.all_reduce(total)
    return total.sqrt() * lr
