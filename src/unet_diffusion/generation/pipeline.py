"""A trained run with its sampler: from seeds and labels to images."""

import dataclasses
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from unet_diffusion.diffusion.denoiser import CFGDenoiser, Denoiser
from unet_diffusion.diffusion.noise import seeded_noise
from unet_diffusion.errors import UserError
from unet_diffusion.experiment.build import build_sampler, check_parts, named_sampler
from unet_diffusion.experiment.parts import part_of
from unet_diffusion.generation.denoising import denoise_additive, denoise_images
from unet_diffusion.generation.labels import class_labels
from unet_diffusion.generation.photos import is_generator
from unet_diffusion.generation.sampling import sample_images
from unet_diffusion.hardware import DType, select_device, select_dtype
from unet_diffusion.restoration import Operator, dpir, pnp_flow
from unet_diffusion.runs.hub import upload
from unet_diffusion.runs.run import Run, Weights
from unet_diffusion.runs.saved_model import model_card, save_model
from unet_diffusion.samplers import Sampler, SamplerOutput


@dataclass(frozen=True, repr=False)
class Pipeline:
    """A trained denoiser with guidance and a sampler.

    Example::

        pipeline = Pipeline.from_pretrained("pretrained")
        images = pipeline(10, label="sneaker", seed=1).images   # (10, 1, 16, 16), about [-1, 1]
    """

    run: Run
    denoiser: Denoiser
    cfg_denoiser: CFGDenoiser
    sampler: Sampler
    device: torch.device
    dtype: torch.dtype  # autocast dtype of the network in sampling
    weights: Weights  # ema or raw
    checkpoint: Path

    @classmethod
    def from_pretrained(
        cls,
        run: Run | str | Path,
        *,
        checkpoint: str = "best",
        weights: Weights = "auto",
        device: str = "auto",
        dtype: DType = "auto",
        sampler: Sampler | str | None = None,
        guidance_scale: float | None = None,
    ) -> "Pipeline":
        """Loads the weights of a run.

        Args:
            run: a run, anything that `Run.open` accepts, or `user/name` on the Hugging Face Hub.
            checkpoint: `best` or `last`.
            weights: `ema`, `raw`, or `auto`: the EMA if the run has one.
            device: `auto`, `cpu`, `cuda`, `mps`.
            dtype: autocast dtype in sampling; `auto`: bfloat16 if the device is fast at it.
            sampler: `HeunSampler(10)`, or the name of a file in conf/sampler; None: of the run.
            guidance_scale: at least 1 (off); None: that of the run.
        """
        if not isinstance(run, Run):
            is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", str(run)) and not Path(run).parent.exists()
            run = Run.open(f"hf://{run}" if is_hub_id else run)
        sampler = build_sampler(run.config) if sampler is None else sampler
        sampler = named_sampler(sampler) if isinstance(sampler, str) else sampler
        scale = run.config.guidance_scale if guidance_scale is None else guidance_scale
        selected_device = select_device(device)
        denoiser = run.load_denoiser(checkpoint, weights, selected_device)
        check_parts(denoiser, sampler, scale, run.config.label_dropout)
        return cls(
            run=run,
            denoiser=denoiser,
            cfg_denoiser=CFGDenoiser(denoiser, scale),
            sampler=sampler,
            device=selected_device,
            dtype=select_dtype(dtype, selected_device.type),
            weights=run.resolve_weights(weights),
            checkpoint=run.checkpoint_path(checkpoint),
        )

    def __call__(
        self,
        num_samples: int = 1,
        *,
        label: str | int | Tensor | None = "auto",
        guidance_scale: float | None = None,
        sampler: Sampler | str | None = None,
        steps: int | None = None,
        seed: int = 0,
        eps: Tensor | None = None,
        x0: Tensor | None = None,
        strength: float = 0.6,
        batch_size: int | None = None,
        return_trajectory: bool = False,
    ) -> SamplerOutput:
        """Generates images (num_samples, C, H, W) in about [-1, 1] on the CPU.

        Args:
            num_samples: at least 1; with `eps` or `x0`, their number of images.
            label: labels (num_samples,), or an argument of `class_labels`.
            guidance_scale: at least 1 (off); None: that of the pipeline.
            sampler: as in `from_pretrained`; None: that of the pipeline.
            steps: changed number of steps of the sampler; None: its own.
            seed: image i of a seed is always the same, with equal dtype up to rounding.
            eps: noise (num_samples, C, H, W) to start from instead of that of `seed`.
            x0: images (num_samples, C, H, W) to start from (Meng et al. 2022, "SDEdit").
            strength: with `x0`: noise level that it is noised to, in (0, 1]; 1 is pure noise.
            batch_size: images per batch; None: fast on the device. The images do not depend on it.
            return_trajectory: keep the images after each step.
        """
        config = self.run.config
        sampler = self.sampler if sampler is None else sampler
        sampler = named_sampler(sampler) if isinstance(sampler, str) else sampler
        if steps is not None:
            sampler = dataclasses.replace(sampler, steps=steps)
        given = [each for each in (eps, x0) if each is not None]
        for images in given:
            self._check_shape(images)
        num_samples = len(given[0]) if given else num_samples
        if guidance_scale is None:
            guidance_scale = self.cfg_denoiser.guidance_scale
        check_parts(self.denoiser, sampler, guidance_scale, config.label_dropout)
        return sample_images(
            CFGDenoiser(self.denoiser, guidance_scale),
            sampler,
            seeded_noise(seed, range(num_samples), config.image_shape) if eps is None else eps,
            label if isinstance(label, Tensor) else self.labels(label, num_samples),
            seed=seed,
            batch_size=batch_size,
            device=self.device,
            dtype=self.dtype,
            x0=x0,
            strength=strength,
            return_trajectory=return_trajectory,
        )

    def denoise(self, images: Tensor, t: float, label: str | int | None = None) -> Tensor:
        """Predicts the clean images, on the CPU, for noisy ones (B, C, H, W) in about [-1, 1].

        Images of any size are denoised in tiles. `t` in [0, 1] is their noise level; `label` is an
        argument of `class_labels`.
        """
        self._check_shape(images)
        if not 0 <= t <= 1:
            raise UserError(f"t={t}: expected a value in [0, 1].")
        labels = self.labels(label, len(images))
        return denoise_images(self.denoiser, images, t, self.run.config.image_shape, label=labels)

    @torch.inference_mode()
    def restore(
        self,
        operator: Operator,
        y: Tensor,
        noise_std: float = 0.0,
        steps: int | None = None,
        *,
        label: str | int | None = None,
        seed: int = 0,
        on_step: Callable[[Tensor], object] = lambda x: None,
    ) -> Tensor:
        """Restores images of which y = A x + noise was measured; on the CPU.

        A generator, which is trained up to t = 1, has a different result for each seed
        (`restoration.pnp_flow`); other denoisers have one (`restoration.dpir`).

        Args:
            operator: A, such as `restoration.Mask`, with its tensors on the CPU.
            y: the measured images (B, C, h, w), in the units of [-1, 1].
            noise_std: of the noise in y, at least 0.
            steps: network evaluations per image; None: 24, or 100 of a generator.
            label: for a generator, an argument of `class_labels`.
            seed: of a generator.
            on_step: called with the images after each step.
        """
        if not is_generator(self.run.config):
            denoise = partial(denoise_additive, self.denoiser, self.run.config.image_shape)
            return dpir(denoise, operator, y, noise_std, steps or 24, on_step=on_step)
        self._check_shape(y)
        shape, counter = operator.initial(y).shape, itertools.count()
        labels = self.labels(label, len(y))

        def predict_x0(xt: Tensor, t: Tensor) -> Tensor:
            on_device = None if labels is None else labels.to(self.device)
            return self.cfg_denoiser(xt.to(self.device), t.to(self.device), on_device).cpu()

        return pnp_flow(
            predict_x0,
            self.denoiser.schedule,
            operator,
            y,
            noise_std,
            steps or 100,
            fresh_noise=lambda: seeded_noise(seed, range(len(y)), shape[1:], next(counter)),
            on_step=on_step,
        )

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> Path:
        """Saves the weights, what sampling needs of the config, and a model card with the scores.

        The folder can be opened like a run directory, with the sampler and the guidance scale of
        this pipeline. Returns model.safetensors in it.
        """
        path = Path(folder).expanduser()
        scale = self.cfg_denoiser.guidance_scale
        changes = {"sampler": part_of(self.sampler), "guidance_scale": scale}
        run = dataclasses.replace(self.run, config=self.run.config.model_copy(update=changes))
        return save_model(path, run, self.denoiser, self.weights, self.checkpoint, dtype)

    def model_card(self) -> str:
        """Markdown: the training, and the scores of these weights that evaluate.py has written."""
        return model_card(self.run, self.denoiser, self.weights, self.checkpoint)

    def push_to_hub(self, repo_id: str, private: bool = False, token: str | None = None) -> str:
        """Uploads the saved model to the Hugging Face Hub, and returns the address of the commit.

        A repository `user/name` that does not exist is created. token=None: of `hf auth login`.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(Path(folder), repo_id, private, token)

    def __repr__(self) -> str:
        run, size = self.run, sum(p.numel() for p in self.denoiser.parameters())
        shape = " x ".join(map(str, run.config.image_shape))
        return f"Pipeline({run.path}: {size:,} parameters, images {shape}, {self.sampler})"

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, which `label` selects."""
        return self.run.class_names

    @property
    def sampler_name(self) -> str:
        """Class and arguments of the sampler, such as `HeunSampler(steps=10, clip='static')`."""
        return repr(self.sampler)

    def settings(self, nfe: int, seed: int, label: str | int | None) -> dict[str, Any]:
        """How images are generated, for records."""
        return {
            "run": self.run.path.name,
            "checkpoint": self.checkpoint.name,
            "weights": self.weights,
            "sampler": self.sampler_name,
            "nfe": nfe,
            "dtype": str(self.dtype).removeprefix("torch."),
            "guidance_scale": self.cfg_denoiser.guidance_scale,
            "seed": seed,
            "label": "none" if label is None or not self.denoiser.net.num_classes else label,
        }

    def labels(self, label: str | int | None, n: int) -> Tensor | None:
        """Class labels of `n` images, see `class_labels`."""
        return class_labels(label, n, self.denoiser.net.num_classes, self.run.class_names)

    def _check_shape(self, images: Tensor) -> None:
        shape, channels = tuple(images.shape), self.run.config.image_shape[0]
        if len(shape) != 4 or shape[1] != channels:
            raise UserError(f"images of shape {shape}: expected (B, {channels}, H, W).")
