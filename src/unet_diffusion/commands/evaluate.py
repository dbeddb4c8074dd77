"""scripts/evaluate.py: scores of runs on the test split."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from tabulate import tabulate
from tqdm import tqdm

from unet_diffusion.commands.arguments import PipelineArguments
from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.data.sources import find_images
from unet_diffusion.diffusion.time_distributions import FixedTime
from unet_diffusion.errors import UserError
from unet_diffusion.evaluation.denoising import denoising_scores, x0_hat_by_method
from unet_diffusion.evaluation.feature_extractor import PACKAGED_DATASETS, load_feature_extractor
from unet_diffusion.evaluation.figures import plot, plot_images
from unet_diffusion.evaluation.generation_scores import METRIC_FORMATS, GenerationScorer
from unet_diffusion.evaluation.photos import (
    OTHER_METHODS,
    Method,
    crops_figure,
    mean_scores,
    network_method,
    photo_scores,
)
from unet_diffusion.evaluation.restoration import METHODS, Task, restoration_scores
from unet_diffusion.experiment.build import changed_images
from unet_diffusion.experiment.compose import is_sweep_job
from unet_diffusion.experiment.locations import unique_name
from unet_diffusion.experiment.parts import construct
from unet_diffusion.experiment.schema import PathStr
from unet_diffusion.generation.pipeline import Pipeline
from unet_diffusion.hardware import inference_batch_size, select_device
from unet_diffusion.images import image_grid, save_png, to_float, to_uint8
from unet_diffusion.runs.files import write_json
from unet_diffusion.runs.run import Run, find_runs
from unet_diffusion.templates import TEMPLATES

NoiseStd = Annotated[float, Field(gt=0, le=255)]
NoiseLevel = Annotated[float, Field(gt=0, le=1)]
Record = dict[str, Any]  # the content of evaluation.json


class Arguments(PipelineArguments):
    """The keys of conf/evaluate.yaml."""

    runs: PathStr | list[PathStr] | None
    num_samples: NonNegativeInt
    features: PathStr
    seed: NonNegativeInt
    label: str | int
    noise_levels: list[NoiseLevel]
    noise_seed: NonNegativeInt
    batch_size: Literal["auto"] | PositiveInt
    output: PathStr | None
    cache_dir: PathStr
    images: PathStr | None
    noise_std: Annotated[list[NoiseStd], Field(min_length=1)]
    methods: list[str]
    task: Task | None
    factor: Literal[2, 3, 4]
    blur_std: Annotated[float, Field(gt=0, le=20)]
    data: dict[str, Any] | None = None  # other data, or changed keys of the run's

    def open_runs(self) -> list[Run]:
        """The selected runs."""
        if (self.run is None) == (self.runs is None):
            raise UserError("run, runs: expected exactly one of them.")
        paths = [self.runs] if isinstance(self.runs, str) else self.runs
        return [self.open_run()] if paths is None else find_runs(paths)


class RealImages:
    """The data of a run and the scorer with their features, kept for the next run on them."""

    def __init__(self) -> None:
        self.key: Any = None
        self.datamodule: ImageDataModule
        self.scorer: GenerationScorer | None = None

    def load(self, run: Run, arguments: Arguments) -> None:
        """Opens the data of a run, unless they are those of the last one."""
        kept = {key: run.config.data[key] for key in ("image_size", "channels")}
        changes = (arguments.data or {}) | kept | {"num_clusters": None}
        data = changes if "_target_" in changes else {**run.config.data, **changes}
        if self.key == data:
            return
        self.key, self.scorer = data, None
        self.datamodule = run.datamodule(arguments.cache_dir, changes)
        name = self.datamodule.source.name
        if not arguments.num_samples:
            return
        extractor = None
        if arguments.features != "auto" or name in PACKAGED_DATASETS:
            extractor = load_feature_extractor(arguments.features, name)
            extractor.network.to(select_device(arguments.device))
        else:
            print("No Frechet distance: set features to inception or a file of train_features.py.")
        self.scorer = GenerationScorer(self.datamodule, extractor, arguments.num_samples)


def evaluate(arguments: Arguments) -> list[Record]:
    """Evaluates runs, and returns the content of each evaluation.json."""
    if not (arguments.images or arguments.num_samples or arguments.noise_levels):
        raise UserError("num_samples=0: nothing to evaluate without noise_levels.")
    selected = arguments.open_runs()
    several = arguments.runs is not None or is_sweep_job()
    for run in selected[1:]:
        arguments.load(run)  # raises an error before minutes of sampling
    records, real = [], RealImages()
    for run in selected:
        pipeline = arguments.load(run)
        if arguments.images is None:
            real.load(run, arguments)
        output = arguments.output
        root = run.output_dir / "evaluations" if output is None else Path(output).expanduser()
        directory = root / unique_name() if several or output is None else root
        directory.mkdir(parents=True, exist_ok=True)  # fails before the sampling, not after
        if arguments.images is None:
            records.append(_evaluate(pipeline, real, arguments, directory))
        else:
            records.append(_evaluate_photos(pipeline, arguments, directory))
        write_json(directory / "evaluation.json", records[-1])
        print(f"Saved to {os.path.relpath(directory)}.")
    return records


def _evaluate(
    pipeline: Pipeline, real: RealImages, arguments: Arguments, directory: Path
) -> Record:
    """The content of evaluation.json; writes the figures and prints a summary."""
    config = pipeline.run.config
    changed = changed_images(config, config.recorded, real.datamodule)
    if changed and not arguments.data:
        print(f"{changed} No image of the training is in another split.")
    fast_batch_size = inference_batch_size(config.image_shape, pipeline.device)
    batch_size = arguments.batch_size
    real.datamodule.batch_size = fast_batch_size if batch_size == "auto" else batch_size
    generation = real.scorer and _evaluate_generation(
        pipeline, real.scorer, arguments.label, arguments.seed, directory
    )
    record = _evaluate_denoising(
        pipeline, real.datamodule, arguments.noise_levels, arguments.noise_seed, directory
    )
    record |= {"generation": generation}
    text = TEMPLATES.get_template("summary.txt.j2")
    print(text.render(record=record, formats=METRIC_FORMATS))
    return record


def _evaluate_photos(pipeline: Pipeline, arguments: Arguments, directory: Path) -> Record:
    """Scores on a folder of clean photographs; writes photos.png."""
    files = find_images(Path(str(arguments.images)).expanduser())
    if not files:
        raise UserError(f"images={arguments.images}: no images found.")
    noise_std, seed = sorted(arguments.noise_std), arguments.noise_seed
    known: Collection[str] = OTHER_METHODS if arguments.task is None else METHODS[arguments.task]
    if unknown := [name for name in arguments.methods if name not in known]:
        task = f" with task={arguments.task}" if arguments.task else ""
        expected = ", ".join(known) or "none"
        raise UserError(f"methods={unknown[0]}: expected some of {expected}{task}.")
    if arguments.task is None:
        methods: dict[str, Method] = {"noisy": lambda noisy, _: noisy}
        methods["network"] = network_method(pipeline)
        methods |= {name: OTHER_METHODS[name] for name in arguments.methods}
        rows = photo_scores(files, noise_std, methods, seed)
        figure = crops_figure(files, noise_std[len(noise_std) // 2], methods, seed)
    else:
        factor, blur_std, others = arguments.factor, arguments.blur_std, METHODS[arguments.task]
        selected = [name for name in others if name in arguments.methods]
        rows, crops = restoration_scores(
            pipeline, files, arguments.task, factor, blur_std, selected, seed
        )
        figure = plot_images(crops, columns=3 + len(selected), width=1.8)
    figure.savefig(directory / "photos.png", dpi=120)
    means = mean_scores(rows)
    print(tabulate(means, headers="keys", floatfmt=("g", "", ".2f", ".4f", ".3f")))
    return {
        "run": pipeline.run.path.name,
        "checkpoint": pipeline.checkpoint.name,
        "weights": pipeline.weights,
        "folder": Path(str(arguments.images)).name,
        "num_images": len(files),
        "noise_seed": seed,
        "task": arguments.task,
        "photos": means,
        "per_image": rows,
    }


def _evaluate_denoising(
    pipeline: Pipeline,
    datamodule: ImageDataModule,
    noise_levels: Sequence[float],
    noise_seed: int,
    directory: Path,
) -> Record:
    """The record without generation scores; writes denoising.png and denoised.png."""
    noise = construct(pipeline.run.config.noise, "noise")
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
    batch = test.batch(range(min(8, len(test))))
    rows = [("clean", batch.x0)]
    for t in sorted({levels[len(levels) * sixth // 6] for sixth in (1, 3, 5)}):
        outputs = x0_hat_by_method(pipeline.denoiser, batch, t, noise_seed)
        rows.append((f"noisy, rescaled, t = {t:g}", outputs["rescaled"].cpu()))
        rows.append(("network", outputs["network"].cpu()))
    grids = [(title, image_grid(images, len(batch.x0))) for title, images in rows]
    plot_images(grids, columns=1, width=5).savefig(directory / "denoised.png", dpi=120)
    return record | {"noise_levels": scores}


def _evaluate_generation(
    pipeline: Pipeline, scorer: GenerationScorer, label: str | int, seed: int, directory: Path
) -> Record:
    """Generates and scores images; writes generated.png and nearest_training_images.png."""
    extractor = scorer.extractor
    is_comparable = extractor and extractor.class_names == tuple(pipeline.run.class_names)
    labels = pipeline.labels(label, scorer.num_samples) if is_comparable else None
    batch_size = scorer.datamodule.batch_size
    output = pipeline(scorer.num_samples, label=label, seed=seed, batch_size=batch_size)
    scores, closest = scorer.score(to_uint8(output.images), labels)
    save_png(image_grid(output.images[:30], columns=5), directory / "generated.png")
    pairs = image_grid(to_float(closest), columns=len(closest) // 2)
    save_png(pairs, directory / "nearest_training_images.png")
    return scores | {"settings": pipeline.settings(output.nfe, seed, label)}
