"""`scripts/compare.py`: the drawings of several runs side by side, with the distance and the cost under each."""

import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from omegaconf import DictConfig
from PIL import Image

from unet_diffusion.checks import whole_number
from unet_diffusion.diffusion.noise import image_noise
from unet_diffusion.errors import UserError, first_line
from unet_diffusion.evaluation.drawings import FromRun
from unet_diffusion.evaluation.evaluate import data_of
from unet_diffusion.evaluation.features import judge_for
from unet_diffusion.evaluation.scoring import GenerationScore, score_drawings
from unet_diffusion.evaluation.words import in_words
from unet_diffusion.images import grid
from unet_diffusion.inference.asked import Generator
from unet_diffusion.inference.draw import draw
from unet_diffusion.runs import named_runs

_COLUMNS = 5
_ROWS = 6


def compare(cfg: DictConfig) -> Path:
    """Draws from and scores each run in the folder that `conf/compare.yaml` names; returns the picture's place.

    Raises:
        UserError: there are no runs, one cannot be used, or an argument is out of its range.
    """
    try:
        count = whole_number("num_images", cfg.num_images, at_least=1)
        seed = whole_number("seed", cfg.seed, at_least=0)
        batch_size = whole_number("batch_size", cfg.batch_size, at_least=1)
        output = Path(str(cfg.output)).expanduser()
        if output.suffix.lower() not in (".png", ".jpg", ".webp"):
            raise ValueError(f"output={cfg.output} must end in .png, .jpg or .webp")
    except ValueError as error:
        raise UserError(first_line(error)) from error
    tiles = []
    runs = named_runs(cfg)
    for run in runs:
        run.checkpoint(cfg.checkpoint)  # one that is missing is said before minutes of drawing
    for run in runs:
        generator = Generator.load(cfg, run)
        datamodule = data_of(cfg, run, batch_size)
        judge = judge_for(cfg.features, datamodule.source.name)
        score = score_drawings(FromRun(generator, "auto", count, seed, batch_size), datamodule, judge).score
        print(f"{run.config.name}\n{in_words(score, judge.accuracy)}\n")
        tiles.append((str(run.config.name), _drawn(generator, seed), score))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _picture(tiles, output)
    except (OSError, ValueError) as error:
        raise UserError(f"output={output} cannot be written ({first_line(error)}): name a file in another folder") from error
    print(f"Picture {os.path.relpath(output)}")
    return output


def _drawn(generator: Generator, seed: int) -> Image.Image:
    count = _ROWS * _COLUMNS
    trained = generator.trained
    eps = image_noise(seed, range(count), trained.run.image_shape)
    label = trained.labels("auto", count)
    images = draw(generator.guided, generator.sampler, eps, label, seed=seed, device=trained.device).images
    return Image.fromarray(grid(images, _COLUMNS).permute(1, 2, 0).numpy())


def _picture(tiles: Sequence[tuple[str, Image.Image, GenerationScore]], path: Path) -> None:
    figure = Figure(figsize=(2.7 * len(tiles), 4.0), layout="constrained")
    for axes, (name, image, score) in zip(figure.subplots(1, len(tiles), squeeze=False)[0], tiles, strict=True):
        axes.imshow(image)
        axes.set(xticks=[], yticks=[], title=name)
        distance, floor = score.closeness.frechet_distance, score.floor.frechet_distance
        axes.set_xlabel(f"distance {distance:.2f} (real {floor:.2f})\n{score.facts['nfe']} NFE")
        axes.spines[:].set_visible(False)
    figure.savefig(path, dpi=110)
