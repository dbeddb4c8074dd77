"""Scores of a run on the test split: how it denoises and how it draws, as a table, a JSON file and a plot."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from matplotlib.figure import Figure
from omegaconf import DictConfig, ListConfig

from unet_diffusion.checks import fraction, whole_number
from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.diffusion.levels import FixedLevel
from unet_diffusion.diffusion.noise import image_noise
from unet_diffusion.errors import UserError, first_line
from unet_diffusion.evaluation.denoising import LevelScore, score_levels
from unet_diffusion.evaluation.generation import (
    GenerationScore,
    Reference,
    class_accuracy,
    feature_network_id,
    real_images,
)
from unet_diffusion.images import to_uint8
from unet_diffusion.inference.asked import Generator
from unet_diffusion.inference.draw import draw
from unet_diffusion.parts import build, build_datamodule
from unet_diffusion.runs import Run

JUDGED = ("fashion_mnist", "fashion_mnist_mini")
"""Data that the feature network knows."""
FEWEST = 200
"""Fewer images than this say nothing about 64 features."""


def evaluate(cfg: DictConfig) -> dict[str, object]:
    """Scores the run that `conf/evaluate.yaml` names: denoising level by level, and drawing where that can be judged.

    Returns:
        What `evaluation.json` holds.

    Raises:
        UserError: the run or its data cannot be used, or an argument is out of its range.
    """
    try:
        if not isinstance(cfg.levels, ListConfig):
            raise ValueError(f"levels={cfg.levels} must be a list of fractions, such as levels=[0.1,0.5,0.9]")
        levels = {fraction("levels", level) for level in cfg.levels}
        noise_seed = whole_number("noise_seed", cfg.noise_seed, at_least=0)
        seed = whole_number("seed", cfg.seed, at_least=0)
        batch_size = whole_number("batch_size", cfg.batch_size, at_least=1)
        count = whole_number("num_images", cfg.num_images, at_least=0)
        if 0 < count < FEWEST:
            raise ValueError(f"num_images={count} is too few for a distance: give {FEWEST} or more, or 0 for none")
    except ValueError as error:
        raise UserError(first_line(error)) from error
    generator = Generator.load(cfg)
    trained = generator.trained
    run = trained.run
    trained.labels(cfg.label, count)  # a mistake is said before anything is scored
    seen = build(run.config, "noise")
    own = seen.percent if isinstance(seen, FixedLevel) else None
    levels |= {own} if levels and own is not None else set()
    config = run.config.copy()
    config.data.cache_dir = f"{cfg.cache_dir}/resized"
    if cfg.data_root is not None:
        config.data.root = cfg.data_root
    datamodule = build_datamodule(config)
    datamodule.batch_size = batch_size
    judged = count > 0 and datamodule.source.name in JUDGED
    if judged:
        _check_count(datamodule, count)
    record: dict[str, object] = {
        "checkpoint": str(run.checkpoint(cfg.checkpoint).name),
        "weights": trained.weights,
        "split": "test",
        "images": len(datamodule.splits["test"]),
        "noise_seed": noise_seed,
        "data_range": "[-1, 1], not clipped",
        "trained_percent": own,
    }
    print(f"{record['checkpoint']}, {trained.weights} weights, against {record['images']} test images.")
    if levels:
        batches = datamodule.test_dataloader()
        scores = score_levels(trained.denoiser, batches, sorted(levels), noise_seed, trained.device)
        record["levels"] = [score.as_dict() for score in scores]
        print(f"\nDenoising, noise seed {noise_seed}:\n\n{table(scores, own)}\n")
        with _writing(run):
            print(f"Plot    {os.path.relpath(plot(scores, own, run.path / 'evaluation.png'))}")
    if count and not judged:
        print(f"No score for drawing: the feature network knows Fashion-MNIST alone, and this is {datamodule.source.name}.")
    elif count:
        drawing = score_drawing(generator, datamodule, cfg.label, count, seed, batch_size)
        record["generation"] = drawing.as_dict()
        print(in_words(drawing))
    with _writing(run):
        print(f"Scores  {os.path.relpath(run.write_json('evaluation.json', record))}")
    return record


def score_drawing(
    generator: Generator, datamodule: ImageDataModule, label: object, count: int, seed: int, batch_size: int
) -> GenerationScore:
    """Draws `count` images and compares them with the test split.

    Args:
        generator: draws.
        datamodule: the run's data.
        label: class that is asked for, see `labels_for`.
        count: images, `FEWEST` or more.
        seed: of the images, 0 or more.
        batch_size: images at a time.

    Raises:
        UserError: the feature network does not know this data, or its training split has fewer images, so that there is no
            floor at this count.
    """
    if datamodule.source.name not in JUDGED:
        raise UserError(f"drawings of {datamodule.source.name} cannot be scored: the feature network knows Fashion-MNIST alone")
    _check_count(datamodule, count)
    trained, sampler = generator.trained, generator.sampler
    eps, labels = image_noise(seed, range(count), trained.run.image_shape), trained.labels(label, count)
    drawn = draw(generator.guided, sampler, eps, labels, seed=seed, batch_size=batch_size, device=trained.device)
    images, real = to_uint8(drawn.images), real_images(datamodule, "test", None)
    reference = Reference(real)
    arguments = ", ".join(f"{name}={value}" for name, value in vars(sampler).items() if not name.startswith("_"))
    return GenerationScore(
        frechet_distance=reference.frechet_distance(images),
        floor=reference.frechet_distance(real_images(datamodule, "train", count, seed)),
        class_accuracy=class_accuracy(images, labels),
        images=count,
        reference=f"test split of {datamodule.source.name}, {len(real)} images at {images.shape[-2]}x{images.shape[-1]}",
        feature_network=feature_network_id(),
        sampler=f"{type(sampler).__name__}({arguments})",
        nfe=drawn.nfe,
        label="none" if labels is None else str(label),
        guidance=generator.guided.weight,
        seed=seed,
        weights=trained.weights,
    )


def in_words(score: GenerationScore) -> str:
    """A distance with what it depends on, in a few lines."""
    recognised = "" if score.class_accuracy is None else f", {score.class_accuracy:.1%} recognised as their class"
    return (
        f"Drawing: Fréchet distance {score.frechet_distance:.2f} (real images: {score.floor:.2f}){recognised}\n"
        f"         {score.images} images, {score.sampler}, {score.nfe} NFE,\n"
        f"         label {score.label}, guidance {score.guidance:g}, seed {score.seed}, {score.weights} weights;\n"
        f"         against the {score.reference}; features {score.feature_network}"
    )


def _check_count(datamodule: ImageDataModule, count: int) -> None:
    most = len(datamodule.splits["train"])
    if count > most:
        raise UserError(
            f"num_images={count} is more than the {most} training images, which give the floor at this count: "
            f"try num_images={most}"
        )


@contextmanager
def _writing(run: Run) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"run={run.path} cannot be written ({error}): copy the run to a folder that can") from error


def table(scores: Sequence[LevelScore], own: float | None) -> str:
    """The scores as text, a row a level; the level that the run was trained at is marked."""
    columns = {"mse": ("MSE", "{:9.4f}"), "psnr": ("PSNR dB", "{:9.2f}"), "ssim": ("SSIM", "{:9.3f}")}
    names = [name for name in columns if name in scores[0].network]
    head = "".join(f"{columns[name][0]:>9}" for name in names)
    lines = [f"          {'network':^{len(head)}}   {'noisy input itself':^{len(head)}}", f"noise t   {head}   {head}"]
    for score in scores:
        mark = "*" if score.percent == own else " "
        network, noisy = (
            "".join(columns[name][1].format(values[name]) for name in names) for values in (score.network, score.noisy)
        )
        lines.append(f"{score.percent:7.2f} {mark} {network}   {noisy}")
    return "\n".join(lines) + ("\n(* the level it was trained at)" if own is not None else "")


def plot(scores: Sequence[LevelScore], own: float | None, path: Path) -> Path:
    """PSNR over the noise level, of the network and of the noisy input, as a PNG; returns where."""
    percents = [score.percent for score in scores]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(percents, [score.network["psnr"] for score in scores], "o-", label="network")
    axes.plot(percents, [score.noisy["psnr"] for score in scores], "o--", color="grey", label="noisy input itself")
    if own is not None:
        axes.axvline(own, color="black", linewidth=0.8, linestyle=":", label="trained at")
    axes.set(xlabel="noise level t", ylabel="PSNR in dB (test images)", title="Denoising, level by level")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    return path
