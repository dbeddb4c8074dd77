"""`scripts/sample.py`: images drawn from a trained run, as a grid, an archive, and on request as they form."""

import math
import os
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from unet_diffusion.checks import fraction, shortened, whole_number, whole_number_or_auto
from unet_diffusion.diffusion.noise import image_noise, slerp
from unet_diffusion.errors import UserError, first_line, printable
from unet_diffusion.images import grid, save_png, to_uint8
from unet_diffusion.inference.animation import save_animation, strip
from unet_diffusion.inference.asked import Generator, folder_name
from unet_diffusion.inference.draw import draw
from unet_diffusion.inference.labels import rows_by_class
from unet_diffusion.inference.photos import read_photo
from unet_diffusion.inference.team import Team
from unet_diffusion.paths import named_path
from unet_diffusion.samplers.base import Drawn

_STRIP_ROWS = 8
_MOST_VALUES = 1 << 28  # of all images together, which take four bytes each, some times over
_IN_FOLDER_NAME = ("label", "guidance", "weights", "strength", "to_seed")


def sample(cfg: DictConfig) -> Path:
    """Draws images from the run that `conf/sample.yaml` names; returns the folder that they are written to.

    Of several processes (see `Team`) each draws its share, and the first one writes them all.

    Raises:
        UserError: the run cannot be used, or an argument is out of its range.
    """
    try:
        count = whole_number("num_images", cfg.num_images, at_least=1)
        batch_size = whole_number_or_auto("batch_size", cfg.batch_size, at_least=1)
        seed = whole_number("seed", cfg.seed, at_least=0)
        columns = whole_number("columns", cfg.columns, at_least=1, at_most=1000)
        to_seed = None if cfg.to_seed is None else whole_number("to_seed", cfg.to_seed, at_least=0)
        strength = _checked_strength(cfg)
        if cfg.animation not in ("gif", "webp", None):
            raise ValueError(f"animation={shortened(cfg.animation)} must be gif, webp or null")
        if to_seed is not None and columns < 2:
            raise ValueError(f"columns={columns} must be 2 or more to show the way from seed to to_seed")
    except ValueError as error:
        raise UserError(first_line(error)) from error
    team = Team.joined()
    generator = Generator.load(cfg)
    trained = generator.trained
    shape = trained.run.image_shape
    photo = None
    if cfg.start is not None:
        photo = read_photo(named_path("start", cfg.start), "start", shape, trained.size_multiple)
        shape = (photo.x0.shape[0], photo.x0.shape[1], photo.x0.shape[2])
    keep = bool(cfg.trajectory or cfg.animation)
    rows = min(count, columns)
    _check_memory(count if to_seed is None else rows * columns, shape, len(generator.sampler.levels()) if keep else 1)
    label = trained.labels(cfg.label, count)
    eps = image_noise(seed, range(count), shape)
    if to_seed is not None:
        eps, label = _between(eps[:rows], image_noise(to_seed, range(rows), shape), label, columns)
    x0 = None if photo is None else photo.x0.expand(len(eps), -1, -1, -1)
    drawn = draw(
        generator.guided, generator.sampler, eps, label,
        seed=seed, x0=x0, strength=strength, keep=keep, batch_size=batch_size, device=trained.device, team=team,
    )  # fmt: skip
    if photo is not None:
        drawn = Drawn(photo.cropped(drawn.images), drawn.nfe, [photo.cropped(x) for x in drawn.trajectory])
    folder = _folder(cfg, generator, seed)
    if not team.is_first:
        return folder
    try:
        written = _write(cfg, drawn, label, columns, folder, by_class=to_seed is None)
    except OSError as error:
        raise UserError(f"output={folder} cannot be written ({error}): name another folder") from error
    checkpoint = trained.run.checkpoint(cfg.checkpoint).name
    guided = f", guidance {generator.guided.weight:g}" if label is not None else ""
    print(
        f"Drew {len(eps)} images: {type(generator.sampler).__name__}, {drawn.nfe} network evaluations each, seed {seed}, "
        f"checkpoint {checkpoint}, {trained.weights} weights{guided}."
    )
    for what, path in written.items():
        print(f"{what:<11} {printable(os.path.relpath(path))}")
    return folder


def _check_memory(count: int, shape: tuple[int, int, int], moments: int) -> None:
    """Refuses more images (C, H, W) than are drawn, shown and written at once."""
    most = _MOST_VALUES // (math.prod(shape) * moments)
    if count > most:
        size = "x".join(map(str, shape))
        kept = f" with {moments} moments of each kept" if moments > 1 else ""
        raise UserError(
            f"num_images={shortened(count)}: that many {size} images{kept} may not fit into memory, {most:,} do: "
            f"draw fewer at a time, each time with another seed"
        )


def _checked_strength(cfg: DictConfig) -> float:
    if cfg.start is None and cfg.strength is not None:
        raise ValueError(f"strength={shortened(cfg.strength)} needs an image to start from: add start=photo.png")
    strength = 0.6 if cfg.strength is None else fraction("strength", cfg.strength)
    if strength == 0:
        raise ValueError("strength=0 would give the image back as it is: give a fraction above 0 and up to 1, such as 0.6")
    return strength


def _between(start: Tensor, end: Tensor, label: Tensor | None, columns: int) -> tuple[Tensor, Tensor | None]:
    """A row for each image, from its noise of one seed to that of another; its class stays."""
    shares = torch.linspace(0, 1, columns).tolist()
    eps = torch.stack([slerp(start, end, share) for share in shares], dim=1).flatten(0, 1)
    return eps, None if label is None else label[: len(start)].repeat_interleave(columns)


def _folder(cfg: DictConfig, generator: Generator, seed: int) -> Path:
    if cfg.output:
        return named_path("output", cfg.output)
    defaults = {"label": "auto", "weights": "auto"}
    changed = [f"{key}-{cfg[key]}" for key in _IN_FOLDER_NAME if cfg[key] != defaults.get(key)]
    checkpoint = generator.trained.run.checkpoint(cfg.checkpoint).stem
    changed += [f"checkpoint-{checkpoint}"] if checkpoint != "best" else []
    changed += [f"start-{Path(str(cfg.start)).stem}"] if cfg.start is not None else []
    if "_target_" in cfg.sampler:
        changed.append(type(generator.sampler).__name__)
    changed += [f"{key!s}-{value}" for key, value in cfg.sampler.items() if not str(key).startswith("_")]
    return generator.trained.run.path / "samples" / folder_name(seed, changed)


def _write(cfg: DictConfig, drawn: Drawn, label: Tensor | None, columns: int, folder: Path, by_class: bool) -> dict[str, Path]:
    classes = len(set(label.tolist())) if by_class and label is not None else 1

    def arranged(x: Tensor) -> Tensor:
        """The images that the grid shows: the first ones, or a row of each class."""
        if classes == 1 or label is None:
            return grid(x[: columns * columns], columns)
        shown = rows_by_class(x, label, columns)
        return grid(shown, len(shown) // classes)

    written = {"Grid": folder / "grid.png", "Images": folder / "samples.npz"}
    save_png(arranged(drawn.images), written["Grid"])
    # the layout of the ADM evaluation suite (Dhariwal and Nichol 2021): uint8, N x H x W x C, in arr_0
    arrays = {"arr_0": to_uint8(drawn.images).permute(0, 2, 3, 1).numpy()}
    if label is not None:
        arrays["arr_1"] = label.numpy()  # the suite's place for class numbers
    np.savez_compressed(written["Images"], **arrays)  # type: ignore[arg-type]
    if cfg.trajectory:
        written["Trajectory"] = folder / "trajectory.png"
        save_png(strip(drawn.trajectory, _STRIP_ROWS), written["Trajectory"])
    if cfg.animation:
        written["Animation"] = folder / f"forming.{cfg.animation}"
        save_animation([arranged(x) for x in drawn.trajectory], written["Animation"])
    return written
