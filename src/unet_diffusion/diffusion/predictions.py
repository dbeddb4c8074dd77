"""Predictions: what the raw network's output means, and how a clean image is read from it."""

from abc import ABC, abstractmethod

from torch import Tensor


class Prediction(ABC):
    """What the network is asked for."""

    @abstractmethod
    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What a perfect network would answer, (B, C, H, W)."""

    @abstractmethod
    def x0_hat(self, answer: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The clean image that the network's `answer` at `xt` and `t` stands for, (B, C, H, W)."""


class X0Prediction(Prediction):
    """The network answers with the clean image itself, as in the lesson."""

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return x0

    def x0_hat(self, answer: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return answer
