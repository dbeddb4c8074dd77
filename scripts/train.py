"""Trains: `python scripts/train.py [group=choice] [key=value]`; -m for a sweep, --help for the groups and keys."""

from pathlib import Path

from omegaconf import DictConfig

from unet_diffusion.cli import run_script
from unet_diffusion.training.experiment import go_on, train
from unet_diffusion.training.job import finished_scores, planned_job, worth


def job(cfg: DictConfig) -> float | None:
    path, overrides = planned_job(cfg)
    scores = finished_scores(path)
    if scores is None:
        scores = train(cfg, path, overrides) if cfg.resume is None else go_on(cfg, overrides)
    return worth(scores, cfg.optimized_metric)


if __name__ == "__main__":
    run_script(job, Path(__file__).parents[1] / "conf" / "train.yaml")
