"""scripts/evaluate.py: scores of runs on the test split."""

import os
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from omegaconf import DictConfig, OmegaConf
from pydantic import Field, NonNegativeInt, PositiveInt, validate_call
from tqdm import tqdm

from unet_diffusion.config import STRICT, build_datamodule, instantiate, is_sweep_job, moved_root
from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.diffusion.time_distributions import FixedTime
from unet_diffusion.evaluation.denoising import denoise, denoising_scores
from unet_diffusion.evaluation.feature_extractor import PACKAGED_DATASETS, load_feature_extractor
from unet_diffusion.evaluation.figures import TEMPLATES, plot, plot_images
from unet_diffusion.evaluation.generation_scores import METRIC_FORMATS, GenerationScorer
from unet_diffusion.generation.pipeline import Pipeline
from unet_diffusion.hardware import DType, inference_batch_size, select_device
from unet_diffusion.images import image_grid, save_png, to_float, to_uint8
from unet_diffusion.runs import Run, Weights, find_runs, unique_name, write_json

NoiseLevel = Annotated[float, Field(gt=0, le=1)]
Record = dict[str, Any]  # the content of evaluation.json


@validate_call(config=STRICT)
def evaluate(
    run: str | None = None,
    runs: str | list[str] | None = None,
    checkpoint: str = "best",
    weights: Weights = "auto",
    num_samples: NonNegativeInt = 2000,
    features: str = "auto",
    seed: NonNegativeInt = 0,
    label: str | int = "auto",
    guidance_scale: float | None = None,
    noise_levels: Sequence[NoiseLevel] = (),
    noise_seed: NonNegativeInt = 0,
    batch_size: Literal["auto"] | PositiveInt = "auto",
    device: str = "auto",
    dtype: DType = "auto",
    output: str | None = None,
    cache_dir: str = "~/.cache/unet_diffusion",
    sampler: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
) -> list[Record]:
    """Evaluates runs, and returns the content of each evaluation.json; see conf/evaluate.yaml."""
    if (run is None) == (runs is None):
        raise ValueError("run, runs: expected exactly one of them.")
    if not num_samples and not noise_levels:
        raise ValueError("num_samples=0: nothing to evaluate without noise_levels.")
    several = runs is not None or is_sweep_job()
    paths = [runs] if isinstance(runs, str) else runs or []
    selected = [Run.open(run)] if run else find_runs(paths)
    load = partial(
        Pipeline.from_pretrained,
        checkpoint=checkpoint,
        weights=weights,
        device=device,
        dtype=dtype,
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
        root = each.output_dir / "evaluations" if output is None else Path(output).expanduser()
        directory = root / unique_name() if several or output is None else root
        scorer = None
        if num_samples and (features != "auto" or datamodule.source.name in PACKAGED_DATASETS):
            scorer = _load_scorer(config, features, num_samples, device)
        elif num_samples:
            print("No generation scores: set features to inception or a file of train_features.py.")
        directory.mkdir(parents=True, exist_ok=True)  # fails before the sampling, not after
        generation = scorer and _evaluate_generation(pipeline, scorer, label, seed, directory)
        record = _evaluate_denoising(pipeline, datamodule, noise_levels, noise_seed, directory)
        records.append(record | {"generation": generation})
        write_json(directory / "evaluation.json", records[-1])
        text = TEMPLATES.get_template("summary.txt.j2")
        print(text.render(record=records[-1], formats=METRIC_FORMATS))
        print(f"Saved to {os.path.relpath(directory)}.")
    return records


def _evaluate_denoising(
    pipeline: Pipeline,
    datamodule: ImageDataModule,
    noise_levels: Sequence[float],
    noise_seed: int,
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
        "num_test_images": len(test),
        "noise_seed": noise_seed,
        "training_t": percent,
        "noise_levels": [],
    }
    if not noise_levels:
        return record
    levels = sorted({*noise_levels, percent or noise_levels[0]})
    batches = tqdm(datamodule.test_dataloader(), "denoising", delay=2, leave=False)
    scores = denoising_scores(pipeline.denoiser, batches, levels, noise_seed)
    curves = {
        method: [(level["t"], level["scores"][method]["psnr"]) for level in scores]
        for method in scores[0]["scores"]
    }
    figure = plot(curves, "noise level t", "PSNR, dB (test images)", solid=["network"])
    figure.savefig(directory / "denoising.png", dpi=120)
    batch = test.__getitems__(range(min(8, len(test))))
    rows = [("clean", batch.x0)]
    for t in sorted({levels[len(levels) * sixth // 6] for sixth in (1, 3, 5)}):
        outputs = denoise(pipeline.denoiser, batch, t, noise_seed)
        rows.append((f"noisy, rescaled, t = {t:g}", outputs["rescaled"].cpu()))
        rows.append(("network", outputs["network"].cpu()))
    grids = [(title, image_grid(images, len(batch.x0))) for title, images in rows]
    plot_images(grids, columns=1, width=5).savefig(directory / "denoised.png", dpi=120)
    return record | {"noise_levels": scores}


def _evaluate_generation(
    pipeline: Pipeline, scorer: GenerationScorer, label: str | int, seed: int, directory: Path
) -> Record:
    """Generates and scores images; writes generated.png and nearest_training_images.png."""
    is_comparable = tuple(pipeline.run.class_names) == scorer.extractor.class_names
    labels = pipeline.labels(label, scorer.num_samples) if is_comparable else None
    batch_size = scorer.datamodule.batch_size
    output = pipeline(scorer.num_samples, label=label, seed=seed, batch_size=batch_size)
    scores, closest = scorer.score(to_uint8(output.images), labels)
    save_png(image_grid(output.images[:30], columns=5), directory / "generated.png")
    pairs = image_grid(to_float(closest), columns=len(closest) // 2)
    save_png(pairs, directory / "nearest_training_images.png")
    return scores | {"settings": pipeline.settings(output.nfe, seed, label)}


def _data_config(run: Run, data: dict[str, Any], cache_dir: str) -> str:
    """Data config of the run as YAML, with changed keys in `data` and the cache in `cache_dir`."""
    config = data if "_target_" in data else {**run.config.data, **data}
    config |= {k: run.config.data[k] for k in ("image_size", "channels")} | {"num_clusters": None}
    config["root"] = moved_root(config | {"cache_dir": run.config.data.cache_dir}, cache_dir)
    return OmegaConf.to_yaml({"data": config | {"cache_dir": f"{cache_dir}/resized"}})


@lru_cache(maxsize=1)  # runs= and -m mostly evaluate several runs on the same data
def _load_data(config: str) -> ImageDataModule:
    return build_datamodule(cast(DictConfig, OmegaConf.create(config)))


@lru_cache(maxsize=1)
def _load_scorer(config: str, features: str, num_samples: int, device: str) -> GenerationScorer:
    datamodule = _load_data(config)
    extractor = load_feature_extractor(features, datamodule.source.name)
    extractor.network.to(select_device(device))
    return GenerationScorer(datamodule, extractor, num_samples)
