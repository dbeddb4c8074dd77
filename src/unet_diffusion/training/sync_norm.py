"""BatchNorm over the images of all processes, also on CPUs, where torch's SyncBatchNorm refuses to work."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins import TorchSyncBatchNorm
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm


class SyncNorms(TorchSyncBatchNorm):
    """Lightning's plugin that lets a network's BatchNorms see the images of all processes while it trains.

    On a GPU they become torch's, on a CPU those below.
    """

    def __init__(self) -> None:
        self._were: list[tuple[nn.Module, type[nn.Module]]] = []

    def apply(self, model: nn.Module) -> nn.Module:
        assert isinstance(model, L.LightningModule)
        if model.trainer.strategy.root_device.type != "cpu":
            return super().apply(model)
        self._were = [(layer, type(layer)) for layer in model.modules() if isinstance(layer, _BatchNorm)]
        for layer, _ in self._were:
            layer.__class__ = _SyncNorm  # it has the same weights and buffers, and keeps them
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        for layer, kind in self._were:
            layer.__class__ = kind
        return model if self._were else super().revert(model)


class _SyncNorm(_BatchNorm):
    """BatchNorm, written out with sums over all processes where it trains."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            normalised: Tensor = super().forward(input)
            return normalised
        x = input.float()
        axes = (0, *range(2, x.ndim))
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = x.new_tensor(x.numel() / x.shape[1])
        dist.all_reduce(count)
        mean = _sum_over_all(x.sum(axes)) / count
        centred = x - mean.view(shape)
        variance = _sum_over_all(centred.square().sum(axes)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        y = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any images will do."""

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Moves the running statistics towards those of this batch."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _SumOverAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # the losses of all processes depend on the sum, and so on what each of them added to it
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _sum_over_all(own: Tensor) -> Tensor:
    total: Tensor = _SumOverAll.apply(own)
    return total
