"""Denoising scores of a run on the test split: a table, a JSON file and a plot."""

import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from omegaconf import DictConfig, ListConfig

from unet_diffusion.checks import fraction, whole_number
from unet_diffusion.diffusion.levels import FixedLevel
from unet_diffusion.errors import UserError, first_line
from unet_diffusion.evaluation.denoising import LevelScore, score_levels
from unet_diffusion.parts import build, build_datamodule
from unet_diffusion.runs import Run
from unet_diffusion.training.hardware import pick_device


def evaluate(cfg: DictConfig) -> list[LevelScore]:
    """Scores the run that `conf/evaluate.yaml` names, at its own level and at those of `levels`.

    Raises:
        UserError: the run or its data cannot be used, or an argument is out of its range.
    """
    try:
        if not isinstance(cfg.levels, ListConfig) or not cfg.levels:
            raise ValueError(f"levels={cfg.levels} must be a list of fractions, such as levels=[0.1,0.5,0.9]")
        levels = {fraction("levels", level) for level in cfg.levels}
        noise_seed = whole_number("noise_seed", cfg.noise_seed, at_least=0)
        batch_size = whole_number("batch_size", cfg.batch_size, at_least=1)
    except ValueError as error:
        raise UserError(first_line(error)) from error
    device = pick_device(cfg.device)
    run = Run.named(cfg)
    trained = build(run.config, "noise")
    own = trained.percent if isinstance(trained, FixedLevel) else None
    levels |= set() if own is None else {own}
    denoiser = run.load_denoiser(cfg.checkpoint, device)
    config = run.config.copy()
    config.data.cache_dir = f"{cfg.cache_dir}/resized"
    if cfg.data_root is not None:
        config.data.root = cfg.data_root
    datamodule = build_datamodule(config)
    datamodule.batch_size = batch_size
    scores = score_levels(denoiser, datamodule.test_dataloader(), sorted(levels), noise_seed, device)
    record = {
        "checkpoint": str(run.checkpoint(cfg.checkpoint).name),
        "split": "test",
        "images": len(datamodule.splits["test"]),
        "noise_seed": noise_seed,
        "data_range": "[-1, 1], not clipped",
        "trained_percent": own,
        "levels": [score.as_dict() for score in scores],
    }
    try:
        file = run.write_json("evaluation.json", record)
        picture = plot(scores, own, run.path / "evaluation.png")
    except OSError as error:
        raise UserError(f"run={run.path} cannot be written ({error}): copy the run to a folder that can") from error
    print(f"Denoising on the {record['images']} test images, {record['checkpoint']}, noise seed {noise_seed}:\n")
    print(table(scores, own))
    print(f"\nScores  {os.path.relpath(file)}\nPlot    {os.path.relpath(picture)}")
    return scores


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
