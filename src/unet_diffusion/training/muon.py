"""Muon: momentum whose matrices are made orthogonal, so that every direction of a weight learns at the same pace."""

from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from unet_diffusion.checks import number, shortened
from unet_diffusion.training.hardware import is_fast_at_bf16

_SMALLEST_SIDE = 16
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(Optimizer):
    """Muon for the weights that are large matrices, AdamW for all the rest.

    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". A convolution's weight (out, in, kh, kw)
    counts as the matrix (out, in * kh * kw); torch.optim.Muon takes two-dimensional weights only. Vectors, and matrices with a
    side below 16 such as a last layer's, go to AdamW.

    Args:
        params: the parameters.
        lr: length of a step of the matrices, above 0; a step's singular values are all about `lr`, times the root of
            out / in where that is above 1.
        momentum: decay of the running mean of the gradient, in [0, 1).
        weight_decay: decoupled, 0 or more; of the matrices alone.
        adam_ratio: AdamW's learning rate as a multiple of `lr`, above 0.
        betas: AdamW's decays, each in [0, 1).

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        adam_ratio: float = 0.35,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        number("lr", lr, low=1e-12)
        number("weight_decay", weight_decay, low=0)
        number("adam_ratio", adam_ratio, low=1e-12)
        if len(betas) != 2:
            raise ValueError(f"betas={shortened(list(betas))} must be two numbers, such as [0.9,0.99]")
        for name, decay in (("momentum", momentum), ("betas", betas[0]), ("betas", betas[1])):
            if number(name, decay, low=0, high=1) == 1:
                raise ValueError(f"{name}={decay} must be below 1")
        chosen = list(params)
        matrices = [p for p in chosen if _is_large_matrix(p)]
        rest = [p for p in chosen if not _is_large_matrix(p)]
        groups = [
            {"params": matrices, "lr": lr, "momentum": momentum, "weight_decay": weight_decay},
            {"params": rest, "lr": lr * adam_ratio, "betas": tuple(betas)},
        ]
        super().__init__([group for group in groups if group["params"]], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step on the gradients that the parameters hold."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if "momentum" in group:
                self._step_matrices(group)
            else:
                self._step_rest(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        alike: dict[tuple[int, int], list[tuple[Parameter, Tensor]]] = defaultdict(list)
        for weight in group["params"]:
            if weight.grad is None:
                continue
            mean = self._memory(weight, "momentum")
            mean.lerp_(weight.grad, 1 - group["momentum"])
            ahead = weight.grad.lerp(mean, group["momentum"])  # Nesterov's: the mean after one more such gradient
            alike[(weight.size(0), weight[0].numel())].append((weight, ahead))
        for (out, into), weights in alike.items():
            # all of one shape in one go; a convolution's weight is taken in the order it lies in memory, which saves a copy
            steps = orthogonal(torch.stack([_as_matrix(ahead) for _, ahead in weights]))
            length = group["lr"] * max(1.0, out / into) ** 0.5
            for (weight, _), step in zip(weights, steps, strict=True):
                _as_matrix(weight).mul_(1 - group["lr"] * group["weight_decay"]).sub_(step, alpha=length)

    def _step_rest(self, group: dict[str, Any]) -> None:
        """Adam (Kingma and Ba 2015, alg. 1); without decay, as these are biases, norms and embeddings."""
        weights = [weight for weight in group["params"] if weight.grad is not None]
        if not weights:
            return
        gradients = [weight.grad for weight in weights]
        means = [self._memory(weight, "mean") for weight in weights]
        squares = [self._memory(weight, "square") for weight in weights]
        group["steps"] = group.get("steps", 0) + 1
        (first, second), count = group["betas"], group["steps"]
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, (1 - second**count) ** 0.5)
        torch._foreach_add_(roots, 1e-8)
        torch._foreach_addcdiv_(weights, means, roots, -group["lr"] / (1 - first**count))

    def _memory(self, weight: Parameter, name: str) -> Tensor:
        memory = self.state[weight]
        if name not in memory:
            memory[name] = torch.zeros_like(weight)
        value: Tensor = memory[name]
        return value


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest matrices whose singular values are all about 1 (between 0.7 and 1.2), (N, out, in).

    Five Newton-Schulz iterations with a polynomial that lifts small singular values fast; bfloat16 is enough for it, and taken
    where the device is fast at it.
    """
    wide = matrices.size(-2) <= matrices.size(-1)
    x = matrices if wide else matrices.mT
    x = x.to(_product_dtype(matrices.device.type))
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _POLYNOMIAL
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)  # a x + (b gram + c gram^2) x
    result: Tensor = (x if wide else x.mT).to(matrices.dtype)
    return result


@cache
def _product_dtype(device: str) -> torch.dtype:
    return torch.bfloat16 if is_fast_at_bf16(device) else torch.float32


def _as_matrix(weight: Tensor) -> Tensor:
    """The weight as (out, the rest), without a copy. The order of the columns does not matter to an orthogonal step."""
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        weight = weight.permute(0, 2, 3, 1)
    return weight.view(weight.size(0), -1)


def _is_large_matrix(weight: Parameter) -> bool:
    return weight.ndim >= 2 and min(weight.size(0), weight[0].numel()) >= _SMALLEST_SIDE
