"""Muon for weight matrices and convolutions, AdamW for the other parameters."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, validate_call
from torch import Tensor
from torch.nn import Parameter

from unet_diffusion.errors import STRICT
from unet_diffusion.hardware import select_dtype

MIN_MATRIX_SIDE = 16
Decay = Annotated[float, Field(ge=0, lt=1)]


class Muon(torch.optim.AdamW):
    """Momentum with orthogonalized updates (Jordan et al. 2024, "Muon").

    A convolution weight (out, in, kh, kw) is a matrix (out, in * kh * kw); torch.optim.Muon accepts
    two-dimensional weights only and orthogonalizes them one by one, while this class batches those
    of equal shape. Vectors and matrices with a side below 16 use AdamW without weight decay. The
    singular values of an update are about lr * sqrt(max(1, out / in)). See
    conf/optimizer/muon.yaml for the arguments.
    """

    @validate_call(config=STRICT)
    def __init__(
        self,
        params: Iterable[Parameter],
        lr: PositiveFloat = 0.02,
        momentum: Decay = 0.95,
        weight_decay: NonNegativeFloat = 0.01,
        adam_lr_ratio: PositiveFloat = 0.35,
        betas: Annotated[Sequence[Decay], Field(min_length=2, max_length=2)] = (0.9, 0.99),
    ) -> None:
        params = list(params)
        matrices = [p for p in params if _is_matrix(p)]
        others = [p for p in params if not _is_matrix(p)]
        groups = [
            {"params": matrices, "momentum": momentum, "weight_decay": weight_decay},
            {"params": others, "lr": lr * adam_lr_ratio},
        ]
        groups = [group for group in groups if group["params"]]
        super().__init__(groups, lr=lr, betas=(betas[0], betas[1]), weight_decay=0.0, foreach=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update; see torch.optim.Optimizer.step."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        groups = self.param_groups
        for group in groups:
            if "momentum" in group:
                self._muon_step(group)
            else:
                self.param_groups = [group]
                super().step()
        self.param_groups = groups
        return loss

    def _muon_step(self, group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(weight)
                state["step"] = torch.zeros(())  # AdamW's load_state_dict expects one
            state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
            nesterov = weight.grad.lerp(state["momentum"], group["momentum"])
            matrix = _as_matrix(weight)
            by_shape[matrix.size(0), matrix.size(1)].append((matrix, _as_matrix(nesterov)))
        for (rows, columns), pairs in by_shape.items():
            updates = orthogonalize(torch.stack([gradient for _, gradient in pairs]))
            scale = group["lr"] * max(1.0, rows / columns) ** 0.5
            for (matrix, _), update in zip(pairs, updates, strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=scale)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Moves all singular values of the matrices (N, rows, columns) to between 0.7 and 1.2.

    Five Newton-Schulz iterations with Jordan's coefficients, in bfloat16 where that is fast.
    """
    wide = matrices.size(-2) <= matrices.size(-1)
    x = (matrices if wide else matrices.mT).to(select_dtype("auto", matrices.device.type))
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(5):  # x <- a x + (b G + c G^2) x with G = x x^T
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    result: Tensor = (x if wide else x.mT).to(matrices.dtype)
    return result


def _as_matrix(weight: Tensor) -> Tensor:
    """A view (out, in * kh * kw); the order of the columns does not matter here."""
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        weight = weight.permute(0, 2, 3, 1)
    return weight.view(weight.size(0), -1)


def _is_matrix(weight: Tensor) -> bool:
    return weight.ndim >= 2 and min(weight.size(0), weight[0].numel()) >= MIN_MATRIX_SIDE
