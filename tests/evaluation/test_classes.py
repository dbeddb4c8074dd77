import pytest
import torch
from helpers import real_images

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.evaluation.classes import class_accuracy, class_scores
from unet_diffusion.evaluation.features import judge_for

PROBABILITIES = torch.tensor([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.2, 0.8, 0.0], [0.7, 0.3, 0.0]])


def test_each_class_by_hand():
    a, b, c = class_scores(PROBABILITIES, torch.tensor([0, 1, 1, -1]), ("a", "b", "c"))
    assert (a.name, a.asked, a.agreement, a.share) == ("a", 1, 1.0, 0.75)
    assert a.confidence == pytest.approx((0.9 + 0.6 + 0.7) / 3)
    assert (b.asked, b.agreement, b.share) == (2, 0.5, 0.25)
    assert b.confidence == pytest.approx(0.8)
    assert (c.asked, c.agreement, c.share, c.confidence) == (0, None, 0.0, None)
    assert class_accuracy(PROBABILITIES, torch.tensor([0, 1, 1, -1])) == pytest.approx(2 / 3)


def test_nothing_asked_nothing_recognised():
    assert [score.agreement for score in class_scores(PROBABILITIES, None, ("a", "b", "c"))] == [None] * 3
    assert class_accuracy(PROBABILITIES, None) is None
    assert class_accuracy(PROBABILITIES, torch.full((4,), -1)) is None


def test_real_images_are_recognised(mini: ImageDataModule):
    judge = judge_for("auto", "fashion_mnist_mini")
    label = torch.from_numpy(mini.splits["test"].cached.labels)
    probabilities = judge.probabilities(judge.features(real_images(mini, "test", None)))
    assert probabilities is not None
    recognised = class_accuracy(probabilities, label)
    assert recognised is not None
    assert recognised > 0.88
    assert recognised == pytest.approx(judge.accuracy, abs=0.03)
    scores = class_scores(probabilities, label, judge.class_names)
    assert [score.name for score in scores] == list(mini.class_names)
    assert sum(score.share for score in scores) == pytest.approx(1)
    assert all(0.05 < score.share < 0.15 for score in scores)
