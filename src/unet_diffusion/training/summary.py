"""What a finished training leaves for people: its key choices for TensorBoard, and the last words in the terminal."""

import os
import re
import shlex
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unet_diffusion.runs import Run


def key_choices(cfg: DictConfig) -> dict[str, Any]:
    """What a sweep would compare, for TensorBoard's HParams tab: group choices and the parts' own numbers and switches."""
    choices: dict[str, Any] = dict(cfg.choices)
    for group in ("noise", "schedule", "prediction", "optimizer", "lr_schedule", "model", "data"):
        raw = OmegaConf.to_container(cfg[group], resolve=False)
        for key, value in raw.items() if isinstance(raw, dict) else ():
            if isinstance(value, list):
                choices[f"{group}.{key!s}"] = "-".join(map(str, value))
            elif isinstance(value, (bool, int, float)) and not str(key).startswith("_"):
                choices[f"{group}.{key!s}"] = value
    return choices | {"seed": cfg.seed, "max_steps": cfg.trainer.max_steps}


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
        said["TensorBoard"] = f"tensorboard --logdir {shlex.quote(str(path.parent))}"
    if any(run.path.glob("checkpoints/*.ckpt")):
        said["Sample"] = f"python scripts/sample.py {_typed('run', path)}"
        said["Evaluate"] = f"python scripts/evaluate.py {_typed('run', path)}"
    print(f"\nTrained for {seconds:.0f} s.")
    print("\n".join(f"{name:<12} {text}" for name, text in said.items()))


def _typed(key: str, value: Path) -> str:
    """`key=value` as it must be typed, with the quotes that the shell and Hydra's grammar need."""
    plain = re.fullmatch(r"[\w./-]+", str(value))
    return f"{key}={value}" if plain else shlex.quote(f"{key}='{value}'")
