"""The score of a set of drawn images: how near it comes to real ones, with everything that the figures depend on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.errors import UserError
from unet_diffusion.evaluation.classes import ClassScore, class_accuracy, class_scores
from unet_diffusion.evaluation.drawings import DrawingSource
from unet_diffusion.evaluation.features import Judge
from unet_diffusion.evaluation.generation import Closeness
from unet_diffusion.evaluation.memorisation import Nearness, nearest_training_image
from unet_diffusion.evaluation.neighbours import nearest
from unet_diffusion.evaluation.real import RealImages

SCALE = ("images", "feature_network", "reference", "reference_mark")
"""What two records of a `GenerationScore` must have in common for their distances to be compared."""
_FEWEST = 200
_CLOSEST = 8


@dataclass(frozen=True)
class GenerationScore:
    """How near drawn images come to real ones, with everything that the figures depend on."""

    closeness: Closeness
    floor: Closeness
    """The same of as many real training images, a mean over draws that share no image: what perfect images would score."""
    floor_spread: Closeness | None
    """Standard deviation over these draws; None where there are too few images for two."""
    floor_draws: int
    class_accuracy: float | None
    """Share of the drawn images recognised as the class asked for; None where none was."""
    real_class_accuracy: float | None
    """Share of the test images recognised as what they are; None where the judge does not know their classes."""
    classes: list[ClassScore]
    """Class by class; empty where the judge does not know the dataset's classes."""
    memorisation: dict[str, Nearness]
    """Nearness to the training images, in `pixels` and in `features`."""
    images: int
    reference: str
    reference_mark: str
    """Another one for other test images."""
    feature_network: str
    facts: dict[str, object]
    """Of the drawing: source, sampler, nfe, label, guidance, seed, weights."""

    def as_dict(self) -> dict[str, object]:
        record = asdict(self)
        facts: dict[str, object] = record.pop("facts")
        return record | facts


@dataclass(frozen=True)
class Scored:
    """A score, and some of the images that it is of."""

    score: GenerationScore
    first: Tensor
    """The first of them, uint8 (n, C, H, W)."""
    closest: Tensor
    """uint8 (2 * n, C, H, W): n drawn images, the most like one of the training's first, then for each that training image."""


def score_drawings(source: DrawingSource, datamodule: ImageDataModule, judge: Judge, shown: int = 30) -> Scored:
    """Compares images with the test split of a dataset, and with its training split to find copies.

    Images are looked at a batch at a time and dropped; of each one its features stay (256 bytes for 64 of them).

    Args:
        source: of the images.
        datamodule: the dataset.
        judge: whose features are compared.
        shown: how many of the images are returned.

    Raises:
        UserError: there are more images than training images, so that there is no floor at this count, or too few.
    """
    check_count(source.count, datamodule, judge)
    real = RealImages.of(datamodule, judge, source.count)
    features, labels, distances = [], [], []
    first = torch.empty(0, datamodule.channels, *datamodule.image_size, dtype=torch.uint8)
    closest: list[tuple[float, Tensor, Tensor]] = []
    progress = tqdm(total=source.count, desc="drawing and scoring", unit=" images", delay=2, leave=False, disable=None)
    for images, label in source.batches():
        features.append(judge.features(images))
        labels.append(torch.full((len(images),), -1) if label is None else label)
        first = torch.cat([first, images[: shown - len(first)]])
        near, rows = nearest_training_image(images, real.training, datamodule.flip)
        distances.append(near)
        few = near.argsort()[:_CLOSEST]
        closest += zip(near[few].tolist(), images[few], real.training[rows[few]], strict=True)
        closest = sorted(closest, key=lambda entry: entry[0])[:_CLOSEST]
        progress.update(len(images))
    progress.close()
    drawn, label = torch.cat(features), torch.cat(labels)

    known = judge.class_names == datamodule.class_names
    probabilities = judge.probabilities(drawn) if known else None
    height, width = datamodule.image_size
    score = GenerationScore(
        closeness=real.reference.closeness(drawn),
        floor=Closeness.mean(real.floors),
        floor_spread=Closeness.spread(real.floors) if len(real.floors) > 1 else None,
        floor_draws=len(real.floors),
        class_accuracy=None if probabilities is None else class_accuracy(probabilities, label),
        real_class_accuracy=real.class_accuracy,
        classes=[] if probabilities is None else class_scores(probabilities, label, judge.class_names),
        memorisation={
            "pixels": Nearness.of(torch.cat(distances), real.held_out["pixels"]),
            "features": Nearness.of(nearest(drawn, real.features)[0], real.held_out["features"]),
        },
        images=len(drawn),
        reference=f"test split of {datamodule.source.name}, {len(datamodule.splits['test'])} images at {height}x{width}",
        reference_mark=real.mark,
        feature_network=judge.name,
        facts=source.facts(),
    )
    return Scored(score, first, torch.stack([entry[1] for entry in closest] + [entry[2] for entry in closest]))


def scale_of(record: Mapping[str, object]) -> tuple[object, ...]:
    """The values of `SCALE` in a score's record."""
    return tuple(record.get(key) for key in SCALE)


def check_count(count: int, datamodule: ImageDataModule, judge: Judge) -> None:
    """Refuses counts that cannot be scored; before minutes of drawing.

    Raises:
        UserError: they, or the images to compare with, are too few for a covariance of the judge's features, or they are too
            many for a floor.
    """
    fewest, most = max(_FEWEST, 2 * judge.width), len(datamodule.splits["train"])
    if (there := min(most, len(datamodule.splits["test"]))) < fewest:
        raise UserError(
            f"a distance in {judge.width} features needs {fewest} or more training and test images, and there are {there}: "
            f"num_images=0 leaves drawings unscored"
        )
    if count < fewest:
        raise UserError(f"num_images={count} is too few for a distance in {judge.width} features: give {fewest} or more")
    if count > most:
        raise UserError(
            f"num_images={count} is more than the {most} training images, which give the floor at this count: "
            f"try num_images={most}"
        )
