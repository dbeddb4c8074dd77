"""Trains: `python scripts/train.py [group=choice] [key=value]`; -m for a sweep, --help for the groups and keys."""

from pathlib import Path

from omegaconf import DictConfig

from unet_diffusion.cli import run_script
from unet_diffusion.training.experiment import go_on, train
from unet_diffusion.training.job import planned_job


def job(cfg: DictConfig) -> None:
    path, overrides = planned_job(cfg)
    if cfg.resume is None:
        train(cfg, path, overrides)
    else:
        go_on(cfg, overrides)


if __name__ == "__main__":
    run_script(job, Path(__file__).parents[1] / "conf" / "train.yaml")
