"""A trained run with its sampler: from seeds and labels to images."""

import difflib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from unet_diffusion.config import instantiate
from unet_diffusion.diffusion.denoiser import NULL_LABEL, CFGDenoiser, Denoiser, DenoiserProtocol
from unet_diffusion.diffusion.noise import seeded_noise
from unet_diffusion.hardware import inference_batch_size, select_device
from unet_diffusion.runs import Run, Weights
from unet_diffusion.samplers.samplers import Sampler, SamplerOutput


@dataclass(frozen=True)
class Pipeline:
    """A trained denoiser with guidance and a sampler."""

    run: Run
    denoiser: Denoiser
    cfg_denoiser: CFGDenoiser
    sampler: Sampler
    device: torch.device
    weights: Weights  # ema or raw
    checkpoint: Path

    @classmethod
    def load(
        cls,
        run: Run,
        *,
        checkpoint: str = "best",
        weights: Weights = "auto",
        device: str = "auto",
        sampler: dict[str, Any] | None = None,
        guidance_scale: float | None = None,
    ) -> "Pipeline":
        """Loads a checkpoint of a run; see conf/sample.yaml for the arguments.

        `sampler` is another sampler (with a `_target_`), or changed keys of the run's sampler.
        """
        sampler = sampler or {}
        merged = sampler if "_target_" in sampler else {**run.config.sampler, **sampler}
        scale = run.config.get("guidance_scale", 1.0) if guidance_scale is None else guidance_scale
        selected_device = select_device(device)
        denoiser = run.load_denoiser(checkpoint, weights, selected_device)
        check_guidance(scale, denoiser.num_classes, run.config.get("label_dropout", 0))
        return cls(
            run=run,
            denoiser=denoiser,
            cfg_denoiser=CFGDenoiser(denoiser, scale),
            sampler=instantiate(OmegaConf.create({"sampler": merged}), "sampler"),
            device=selected_device,
            weights=run.resolve_weights(weights),
            checkpoint=run.checkpoint_path(checkpoint),
        )

    @property
    def sampler_name(self) -> str:
        """Class and arguments of the sampler, such as `HeunSampler(steps=10, clip=static)`."""
        arguments = [f"{k}={v}" for k, v in vars(self.sampler).items() if not k.startswith("_")]
        return f"{type(self.sampler).__name__}({', '.join(arguments)})"

    def settings(self, nfe: int, seed: int, label: str | int) -> dict[str, Any]:
        """How images are generated, for records."""
        return {
            "run": self.run.path.name,
            "checkpoint": self.checkpoint.name,
            "weights": self.weights,
            "sampler": self.sampler_name,
            "nfe": nfe,
            "guidance_scale": self.cfg_denoiser.guidance_scale,
            "seed": seed,
            "label": label if self.denoiser.num_classes else "none",
        }

    def labels(self, label: str | int, n: int) -> Tensor | None:
        """Class labels of `n` images, see `class_labels`."""
        return class_labels(label, n, self.denoiser.num_classes, self.run.class_names)


@torch.inference_mode()
def sample_images(
    denoiser: DenoiserProtocol,
    sampler: Sampler,
    eps: Tensor,
    label: Tensor | None = None,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    x0: Tensor | None = None,
    strength: float = 1.0,
    return_trajectory: bool = False,
) -> SamplerOutput:
    """Generates images (N, C, H, W) in about [-1, 1] on the CPU, batch by batch.

    An image depends on its noise and on `seed` and its index, but not on the batch size.

    Args:
        denoiser: on `device`, in eval mode.
        sampler: the sampler.
        eps: standard Gaussian noise (N, C, H, W).
        label: class labels (N,), -1 for the null class; None for unconditional networks.
        seed: of the noise that stochastic samplers add.
        batch_size: images per batch; None: fast on the device.
        device: device of the denoiser.
        x0: images to start from (N, C, H, W), noised to `strength` (Meng et al. 2022, "SDEdit").
        strength: noise level to start from, in (0, 1]; 1 is pure noise.
        return_trajectory: keep the images after each step.
    """
    device = torch.device(device)
    batch_size = batch_size or inference_batch_size(eps.shape, device)
    outputs = []
    for rows in torch.split(torch.arange(len(eps)), batch_size):
        xt = eps[rows].to(device)
        if x0 is not None and strength < 1:
            t = torch.full((len(rows),), strength, device=device)
            xt = denoiser.schedule.add_noise(x0[rows].to(device), xt, t)
        indices, steps = rows.tolist(), itertools.count(1)  # step 0 is the initial noise
        noise = (seeded_noise(seed, indices, eps.shape[1:], step).to(device) for step in steps)
        output = sampler.sample(
            denoiser,
            xt,
            None if label is None else label[rows].to(device),
            start=1.0 if x0 is None else strength,
            noise=noise.__next__,
            return_trajectory=return_trajectory,
        )
        trajectory = [images.cpu() for images in output.trajectory]
        outputs.append(SamplerOutput(output.images.cpu(), output.nfe, trajectory))
    trajectories = zip(*(output.trajectory for output in outputs), strict=True)
    images = torch.cat([output.images for output in outputs])
    return SamplerOutput(images, outputs[0].nfe, [torch.cat(each) for each in trajectories])


def check_guidance(guidance_scale: float, num_classes: int, label_dropout: float) -> None:
    """Checks that the network has classes and a trained null class if guidance needs them."""
    if guidance_scale == 1:
        return
    if not num_classes:
        raise ValueError(
            f"guidance_scale={guidance_scale}: the network has no classes. Use guidance_scale=1, "
            f"or train with experiment=06_class_conditional."
        )
    if not label_dropout:
        raise ValueError(
            f"guidance_scale={guidance_scale}: the null class is not trained with label_dropout=0. "
            f"Use guidance_scale=1, or train with label_dropout=0.1."
        )


def class_labels(
    label: str | int, n: int, num_classes: int, class_names: Sequence[str]
) -> Tensor | None:
    """Class labels (n,) of `n` images; None for an unconditional network (`num_classes` 0).

    `label` is a class index or name; `all`: the classes in turn; `none`: the null class; `auto`:
    `all` for networks with classes.
    """
    if num_classes == 0:
        if label in ("auto", "none"):
            return None
        raise ValueError(
            f"label={label}: the network has no classes. Train with "
            f"experiment=06_class_conditional, or omit label."
        )
    if label in ("auto", "all"):
        return torch.arange(n) % num_classes
    if label == "none":
        return torch.full((n,), NULL_LABEL)
    names = [re.sub(r"\W", "", name.lower()) for name in class_names]  # tshirttop
    normalized = re.sub(r"\W", "", str(label).lower())
    if normalized in names:
        return torch.full((n,), names.index(normalized))
    if isinstance(label, int) and 0 <= label < num_classes:
        return torch.full((n,), label)
    close = difflib.get_close_matches(str(label), class_names, n=1)
    raise ValueError(
        f"label={label}: expected all, none, 0 to {num_classes - 1}, or one of "
        f"{', '.join(class_names)}." + (f" Did you mean {close[0]}?" if close else "")
    )
