"""The scores in metrics.json and evaluation.json, which may come from an unknown origin."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from unet_diffusion.runs.files import read_json


class Record(BaseModel):
    """Base class: other keys are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class Metrics(Record):
    """The content of metrics.json."""

    scores: dict[str, float]
    num_test_images: NonNegativeInt
    noise_seed: NonNegativeInt
    steps: NonNegativeInt
    images_seen: NonNegativeInt  # training images that the loss has used
    seconds: float  # of training, without the test
    parameters: NonNegativeInt


class SamplingSettings(Record):
    """How images were generated, see `Pipeline.settings`."""

    run: str
    checkpoint: str
    weights: str
    sampler: str
    nfe: NonNegativeInt
    dtype: str = "float32"
    guidance_scale: float
    seed: NonNegativeInt
    label: str | int


class Memorization(Record):
    """Distances to training images, see `generation_scores.memorization`."""

    ratio: float


class FeatureScores(Record):
    """Comparison with real images, see `generation_metrics`."""

    frechet_distance: float
    precision: float
    recall: float


class GenerationScores(Record):
    """Scores of generated images, see `GenerationScorer.score`."""

    settings: SamplingSettings
    memorization: Memorization
    num_samples: NonNegativeInt
    reference: str
    metrics: FeatureScores | None  # None without a feature extractor, as what follows
    real_baseline: FeatureScores | None = None
    real_baseline_std: FeatureScores | None = None
    class_accuracy: float | None = None
    real_class_accuracy: float | None = None
    reference_hash: str | None = None
    feature_extractor: str | None = None


class MethodScores(Record):
    """Of a denoising method."""

    psnr: float


class DenoisingScores(Record):
    """Scores at one noise level, see `evaluation.denoising`."""

    t: float
    scores: dict[str, MethodScores]  # by method


class PhotoScores(Record):
    """Mean scores of a method at one noise level, see `evaluation.photos`."""

    noise_std: float
    method: str
    psnr: float
    ssim: float


class Evaluation(Record):
    """The content of evaluation.json, of the data of a run or of a folder of photographs."""

    checkpoint: str
    weights: str
    noise_seed: NonNegativeInt
    num_test_images: NonNegativeInt | None = None
    noise_levels: list[DenoisingScores] = []
    generation: GenerationScores | None = None
    folder: str | None = None
    num_images: NonNegativeInt | None = None
    task: str | None = None  # None: denoising
    photos: list[PhotoScores] = []


AnyRecord = TypeVar("AnyRecord", bound=Record)


def read_record(schema: type[AnyRecord], file: Path) -> AnyRecord | None:
    """Reads a JSON file; None if it is missing or damaged."""
    try:
        return schema.model_validate(read_json(file))
    except ValidationError:
        return None
