"""The scores of a training in metrics.json, which may come from an unknown origin."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from unet_diffusion.runs.files import read_json


class Metrics(BaseModel):
    """The content of metrics.json."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    scores: dict[str, float]
    num_test_images: NonNegativeInt
    noise_seed: NonNegativeInt
    steps: NonNegativeInt
    images_seen: NonNegativeInt  # training images that the loss has used
    seconds: float  # of training, without the test
    parameters: NonNegativeInt


def read_metrics(file: Path) -> Metrics | None:
    """Reads metrics.json; None if it is missing or damaged."""
    try:
        return Metrics.model_validate(read_json(file))
    except ValidationError:
        return None
