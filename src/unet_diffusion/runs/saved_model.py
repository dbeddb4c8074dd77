"""Saved models: model.safetensors, the config that sampling needs, and a model card.

A saved model can be opened like a run directory.
"""

import re
import shlex
from pathlib import Path

import torch
from safetensors.torch import save

from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.errors import UserError
from unet_diffusion.experiment.build import model_part
from unet_diffusion.experiment.locations import without_local_paths
from unet_diffusion.experiment.saved import config_text
from unet_diffusion.experiment.schema import Recorded
from unet_diffusion.runs.files import write_atomically
from unet_diffusion.runs.records import Evaluation, GenerationScores, read_record
from unet_diffusion.runs.run import Run, Weights
from unet_diffusion.templates import TEMPLATES


def save_model(
    folder: Path,
    run: Run,
    denoiser: Denoiser,
    weights: Weights,
    checkpoint: Path,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes the weights of a run's denoiser into a folder, and returns model.safetensors in it."""
    if (folder / "checkpoints").exists():
        raise UserError(f"{folder}: is a run directory. Use another folder.")
    for file in (folder / "config.yaml", folder / "README.md"):
        if file.exists() and not (folder / "model.safetensors").exists():
            raise UserError(f"{file}: is not that of a saved model. Use another folder.")
    config = run.config.model_copy(
        update={
            "data": without_local_paths(dict(run.config.data)),
            "model": model_part(run.config, denoiser.net.num_classes),
            "ema": run.config.ema if weights == "ema" else None,
        }
    )
    state = {
        name: value.to("cpu", dtype if value.is_floating_point() else None).contiguous()
        for name, value in denoiser.net.state_dict().items()
    }
    write_atomically(folder / "model.safetensors", save(state, {"format": "pt"}))
    write_atomically(folder / "config.yaml", config_text(config, Recorded()))
    write_atomically(folder / "README.md", model_card(run, denoiser, weights, checkpoint))
    return folder / "model.safetensors"


def model_card(run: Run, denoiser: Denoiser, weights: Weights, checkpoint: Path) -> str:
    """Markdown: the training, and the scores of these weights that evaluate.py has written.

    Evaluations that cannot be compared with the last one are left out.
    """
    if run.saved_model:
        return (run.path / "README.md").read_text(encoding="utf-8")
    files = sorted(run.path.glob("evaluations/*/evaluation.json"))
    records = [record for file in files if (record := read_record(Evaluation, file))]
    records = [r for r in records if (r.checkpoint, r.weights) == (checkpoint.name, weights)]
    photos = [each for each in records if each.photos and each.task is None]
    labels = ("auto", "all") if denoiser.net.num_classes else ("none",)
    generations = [each.generation for each in records if each.generation]
    scores = [each for each in generations if each.metrics and each.settings.label in labels]

    def conditions(each: GenerationScores) -> tuple[object, ...]:
        return each.num_samples, each.reference_hash, each.feature_extractor

    local_path = r"=['\"]?(~|\.*[/\\]|\w:\\)"
    overrides = [each for each in run.overrides if not re.search(local_path, each)]
    is_best = checkpoint.stem == "best" and weights == run.resolve_weights()
    return TEMPLATES.get_template("model_card.md.j2").render(
        run=run,
        weights=weights,
        num_parameters=sum(p.numel() for p in denoiser.parameters()),
        metrics=run.metrics if is_best else None,
        overrides=shlex.join(overrides),
        photos=photos[-1] if photos else None,
        scores=[each for each in scores if conditions(each) == conditions(scores[-1])],
    )
