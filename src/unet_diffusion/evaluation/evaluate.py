"""scripts/evaluate.py: scores of a run on the test split, or of images from elsewhere."""

import os
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from omegaconf import DictConfig, OmegaConf
from pydantic import Field, NonNegativeInt, PositiveInt, validate_call
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from unet_diffusion.config import STRICT, build_datamodule, instantiate, is_sweep_job
from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.data.image_folder import read_image
from unet_diffusion.diffusion.time_distributions import FixedTime
from unet_diffusion.evaluation.denoising import classical_denoisers, denoise, denoising_scores
from unet_diffusion.evaluation.feature_extractor import PACKAGED_DATASETS, load_feature_extractor
from unet_diffusion.evaluation.figures import TEMPLATES, plot, plot_images
from unet_diffusion.evaluation.generation_metrics import METRIC_FORMATS
from unet_diffusion.evaluation.generation_scores import (
    GenerationScorer,
    Samples,
    generate_samples,
    load_samples,
)
from unet_diffusion.generation.pipeline import Pipeline
from unet_diffusion.hardware import inference_batch_size, select_device
from unet_diffusion.images import image_grid, save_png, to_float
from unet_diffusion.runs import Run, Weights, find_runs, unique_name, write_json

NoiseLevel = Annotated[float, Field(gt=0, le=1)]
Record = dict[str, Any]
"""The content of evaluation.json."""


@validate_call(config=STRICT)
def evaluate(
    run: str | None = None,
    runs: str | list[str] | None = None,
    images: str | None = None,
    checkpoint: str = "best",
    weights: Weights = "auto",
    num_samples: NonNegativeInt | None = 2000,
    features: str = "auto",
    seed: NonNegativeInt = 0,
    label: str | int = "auto",
    guidance_scale: float | None = None,
    noise_levels: list[NoiseLevel] | None = None,
    classical: bool = False,
    noise_seed: NonNegativeInt = 0,
    batch_size: Literal["auto"] | PositiveInt = "auto",
    device: str = "auto",
    output: str | None = None,
    cache_dir: str = "~/.cache/unet_diffusion",
    sampler: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
) -> list[Record]:
    """Evaluates runs or images, and writes and returns the content of each evaluation.json.

    See conf/evaluate.yaml for the arguments.
    """
    if [run, runs, images].count(None) != 2:
        raise ValueError("run, runs, images: expected exactly one of them.")
    if num_samples == 0 and (images is not None or not noise_levels):
        raise ValueError("num_samples=0: nothing to evaluate without noise_levels of a run.")
    several = runs is not None or is_sweep_job()
    if images is not None:
        if "_target_" not in (data or {}):
            raise ValueError(f"images={images}: add the dataset to compare with, data=...")
        config = _data_config(None, data or {}, cache_dir)
        path, shape = Path(images).expanduser(), _load_data(config).image_shape
        file_samples = load_samples(path, shape, num_samples)
        file_scorer = _load_scorer(config, features, len(file_samples.images), device)
        directory = _make_directory(output, several, Path("evaluations"))
        generation = _score_samples(file_scorer, file_samples, directory)
        file_record = {"run": images, "split": "test", "noise_levels": [], "generation": generation}
        return [_write(file_record, directory, None)]

    if num_samples is None:
        raise ValueError("num_samples=null: expected a number; all is for images= only.")
    methods = classical_denoisers() if classical else {}
    paths = [runs] if isinstance(runs, str) else runs or []
    selected = [Run.open(run)] if run else find_runs(paths)
    load = partial(
        Pipeline.load,
        checkpoint=checkpoint,
        weights=weights,
        device=device,
        sampler=sampler,
        guidance_scale=guidance_scale,
    )
    for each in selected[1:]:
        load(each)  # raises an error before minutes of sampling
    records = []
    for each in selected:
        pipeline = load(each)
        config = _data_config(each, data or {}, cache_dir)
        datamodule = _load_data(config)
        fast_batch_size = inference_batch_size(each.image_shape, pipeline.device)
        datamodule.batch_size = fast_batch_size if batch_size == "auto" else batch_size
        scorer = samples = None
        if num_samples and (features != "auto" or datamodule.source.name in PACKAGED_DATASETS):
            scorer = _load_scorer(config, features, num_samples, device)
        directory = _make_directory(output, several, each.path / "evaluations")
        if scorer is not None:
            samples = generate_samples(pipeline, label, num_samples, seed, datamodule.batch_size)
        record = _evaluate_denoising(
            pipeline, datamodule, noise_levels or [], noise_seed, methods, directory
        )
        if scorer is not None and samples is not None:
            record["generation"] = _score_samples(scorer, samples, directory)
        elif num_samples:
            print(
                f"No generation scores: the feature extractor in the package is trained on "
                f"Fashion-MNIST, not on {datamodule.source.name}. See features= for others."
            )
        records.append(_write(record, directory, each))
    return records


def _evaluate_denoising(
    pipeline: Pipeline,
    datamodule: ImageDataModule,
    noise_levels: list[float],
    noise_seed: int,
    classical: dict[str, Callable[[Tensor, float], Tensor]],
    directory: Path,
) -> Record:
    """The record without generation scores; writes denoising.png and denoised.png."""
    noise = instantiate(pipeline.run.config, "noise")
    # The noise level of the training, if there was only one.
    percent = noise.percent if isinstance(noise, FixedTime) and noise.percent > 0 else None
    test = datamodule.splits["test"]
    record = {
        "run": pipeline.run.path.name,
        "checkpoint": pipeline.checkpoint.name,
        "weights": pipeline.weights,
        "split": "test",
        "num_test_images": len(test),
        "noise_seed": noise_seed,
        "trained_percent": percent,
        "noise_levels": [],
        "generation": None,
    }
    if not noise_levels:
        return record
    levels = sorted({*noise_levels, percent or noise_levels[0]})
    denoise_with = partial(denoise, pipeline.denoiser, noise_seed=noise_seed, classical=classical)
    batches = tqdm(datamodule.test_dataloader(), "denoising", delay=2, leave=False)
    scores = denoising_scores(denoise_with, batches, levels)
    curves = {
        method: [(level["t"], level["scores"][method]["psnr"]) for level in scores]
        for method in scores[0]["scores"]
    }
    figure = plot(curves, "noise level t", "PSNR, dB (test images)", solid=["network"])
    figure.savefig(directory / "denoising.png", dpi=120)
    batch = test.__getitems__(range(min(8, len(test))))
    rows = [("clean", batch.x0)]
    for t in sorted({levels[len(levels) * sixth // 6] for sixth in (1, 3, 5)}):
        outputs = denoise_with(batch, t)
        rows.append((f"noisy, t = {t:g}", outputs.pop("rescaled").cpu()))
        rows += [(name, x0_hat.cpu()) for name, x0_hat in outputs.items() if name != "noisy"]
    grids = [(title, image_grid(images, len(batch.x0))) for title, images in rows]
    plot_images(grids, columns=1, width=5).savefig(directory / "denoised.png", dpi=120)
    return record | {"noise_levels": scores}


def _score_samples(scorer: GenerationScorer, samples: Samples, directory: Path) -> Record:
    """Scores the images; writes generated.png and nearest_training_images.png."""
    scores, closest = scorer.score(samples)
    save_png(image_grid(to_float(samples.images[:30]), columns=5), directory / "generated.png")
    pairs = image_grid(to_float(closest), columns=len(closest) // 2)
    save_png(pairs, directory / "nearest_training_images.png")
    return scores


def _write(record: Record, directory: Path, run: Run | None) -> Record:
    """Writes the record, prints it, and adds it and the images to the TensorBoard of the run."""
    write_json(directory / "evaluation.json", record)
    text = TEMPLATES.get_template("summary.txt.j2").render(record=record, formats=METRIC_FORMATS)
    print(f"{text}\nSaved to {os.path.relpath(directory)}.")
    if run is None:
        return record
    with SummaryWriter(str(run.path)) as board:
        for path in sorted(directory.glob("*.png")):
            board.add_image(f"evaluation/{path.stem}", read_image(path))
        for level in record["noise_levels"]:
            for method, values in level["scores"].items():  # the x axis takes integers only
                step = round(100 * level["t"])
                board.add_scalar(f"evaluation_psnr/{method}", values["psnr"], step)
        for name, value in (record["generation"] or {"metrics": {}})["metrics"].items():
            board.add_scalar(f"evaluation/{name}", value, 0)
    return record


def _data_config(run: Run | None, data: dict[str, Any], cache_dir: str) -> str:
    """Data config as YAML: that of `data`, or that of the run with the keys in `data` changed."""
    config = dict(data)
    if run is not None:
        if "_target_" not in config:
            config = {**run.config.data, **config}
        config |= {key: run.config.data[key] for key in ("image_size", "channels")}
    config["cache_dir"] = f"{cache_dir}/resized"
    return OmegaConf.to_yaml({"data": config})


@lru_cache(maxsize=1)  # runs= and -m mostly evaluate several runs on the same data
def _load_data(config: str) -> ImageDataModule:
    return build_datamodule(cast(DictConfig, OmegaConf.create(config)))


@lru_cache(maxsize=1)
def _load_scorer(config: str, features: str, num_samples: int, device: str) -> GenerationScorer:
    datamodule = _load_data(config)
    extractor = load_feature_extractor(features, datamodule.source.name)
    extractor.network.to(select_device(device))
    return GenerationScorer(datamodule, extractor, num_samples)


def _make_directory(output: str | None, several: bool, default: Path) -> Path:
    """A new directory; `output` itself if there is only one evaluation."""
    root = default if output is None else Path(output).expanduser()
    directory = root / unique_name() if several or output is None else root
    directory.mkdir(parents=True, exist_ok=True)
    return directory
