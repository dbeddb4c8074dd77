"""What a finished training leaves for people: its key choices for TensorBoard, and the last words in the terminal."""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from unet_diffusion.runs import Run

_ALWAYS = ("data", "model", "noise.percent", "optimizer.lr", "seed", "trainer.max_steps")
_NEVER = ("callbacks", "logger", "output_dir", "cache_dir", "name", "debug", "hydra")


def key_choices(cfg: DictConfig, overrides: Sequence[str]) -> dict[str, str | bool | int | float]:
    """What one would compare runs by, for TensorBoard's HParams tab: a few keys that always matter, and all that was typed.

    Few on purpose: the tab shows the first handful of columns only.
    """
    named = [override.lstrip("+~").partition("=")[0] for override in overrides]
    keys = [*_ALWAYS, *(key for key in named if key.split(".")[0] not in _NEVER)]
    choices: dict[str, str | bool | int | float] = {}
    for key in keys:
        value = cfg.choices[key] if key in cfg.choices else OmegaConf.select(cfg, key)
        if isinstance(value, ListConfig):
            choices[key] = "-".join(map(str, value))
        elif isinstance(value, (str, bool, int, float)):
            choices[key] = value
    return choices


def say_goodbye(run: Run, record: dict[str, Any], seconds: float) -> None:
    path = Path(os.path.relpath(run.path))
    scores = record["scores"]
    ssim = f", SSIM {scores['test/ssim']:.3f}" if "test/ssim" in scores else ""
    said = {
        "Test images": f"MSE {scores['test/mse']:.4f}, PSNR {scores['test/psnr']:.2f} dB{ssim} ({record['scored_weights']})",
    }
    if (run.path / "pictures").is_dir():
        said["Pictures"] = str(path / "pictures")
    if any(run.path.glob("events.*")):
        said["TensorBoard"] = f"{_command('tensorboard')} --logdir {shlex.quote(str(path.parent))}"
    if any(run.path.glob("checkpoints/*.ckpt")):
        said["Sample"] = f"{python()} scripts/sample.py {typed('run', path)}"
        said["Evaluate"] = f"{python()} scripts/evaluate.py {typed('run', path)}"
    print(f"\nTrained for {seconds:.0f} s.")
    print("\n".join(f"{name:<12} {text}" for name, text in said.items()))


def python() -> str:
    """This Python as it can be typed here."""
    return _command("python")


def _command(name: str) -> str:
    """A program of this environment as it can be typed here: with its folder where the environment is not activated."""
    if shutil.which(name) == str(Path(sys.executable).with_name(name)):
        return name
    path = Path(sys.executable).with_name(name)
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def typed(key: str, value: Path) -> str:
    """`key=value` as it must be typed, with the quotes that the shell and Hydra's grammar need."""
    plain = re.fullmatch(r"[\w./-]+", str(value))
    return f"{key}={value}" if plain else shlex.quote(f"{key}='{value}'")
