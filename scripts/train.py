"""Trains: `python scripts/train.py [group=choice] [key=value]`; -m for a sweep, --help for the groups and keys."""

from pathlib import Path

from omegaconf import DictConfig

from unet_diffusion.cli import run_script
from unet_diffusion.training.experiment import train
from unet_diffusion.training.job import planned_job


def job(cfg: DictConfig) -> None:
    path, overrides = planned_job(cfg)
    train(cfg, path, overrides)


if __name__ == "__main__":
    run_script(job, Path(__file__).parents[1] / "conf" / "train.yaml")
