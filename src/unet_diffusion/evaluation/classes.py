"""What a classifier of real images sees in drawn ones, class by class."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ClassScore:
    """One class among a set of images."""

    name: str
    asked: int
    """How many of the images were asked to be of this class."""
    agreement: float | None
    """Share of those that the classifier sees it in; None where none was asked for."""
    share: float
    """Share of all images that the classifier sees this class in; far below the real share: the class is dropped."""
    confidence: float | None
    """Mean probability that the classifier gives to this class in images that it sees it in; None where it sees none."""


def class_scores(probabilities: Tensor, label: Tensor | None, names: Sequence[str]) -> list[ClassScore]:
    """Scores of each class.

    Args:
        probabilities: the classifier's, (N, K).
        label: class that each image was asked to be, (N,), -1 for none; None where none was.
        names: of the K classes.
    """
    seen = probabilities.argmax(dim=1)
    scores = []
    for number, name in enumerate(names):
        seen_here = seen == number
        asked = seen_here.new_zeros(len(seen)) if label is None else label == number
        scores.append(
            ClassScore(
                name=name,
                asked=int(asked.sum()),
                agreement=float(seen_here[asked].float().mean()) if bool(asked.any()) else None,
                share=float(seen_here.float().mean()),
                confidence=float(probabilities[seen_here, number].mean()) if bool(seen_here.any()) else None,
            )
        )
    return scores


def class_accuracy(probabilities: Tensor, label: Tensor | None) -> float | None:
    """Share of the images that have a label (N,) of 0 or more and are recognised as it; None where none has one."""
    if label is None or not bool((label >= 0).any()):
        return None
    asked = label >= 0
    return float((probabilities.argmax(dim=1) == label)[asked].float().mean())
