"""Pictures of a training: the same images denoised, and the same noise drawn from, at every validation."""

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from unet_diffusion.checks import number, shortened, whole_number
from unet_diffusion.data.datamodule import Batch
from unet_diffusion.diffusion.guidance import GuidedDenoiser
from unet_diffusion.diffusion.noise import image_noise
from unet_diffusion.images import grid, save_png
from unet_diffusion.inference.draw import draw
from unet_diffusion.samplers.base import Sampler
from unet_diffusion.training.module import DenoisingModule

_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
_MOST_CLASSES = 10


class Pictures(Callback):
    """Puts the network's graph and two grids into TensorBoard, and the grids as PNG into `pictures/` of the run folder.

    `denoised`: the first images of the validation split, and below them each level's noisy and denoised row; the levels are
    those at 10, 30, ... 90 percent of the distribution that training draws from. `drawn`: what the sampler draws from pure
    noise; a row a class for networks that know classes. Both use noise of their own seed, never the training stream, and the
    weights that are validated (the average, where one is kept).

    Args:
        sampler: turns noise into images.
        num_images: images a row, 1 to 100.
        noise_seed: seed of the pure noise, 0 or more.
        guidance: weight for drawing by class, 0 or more.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(self, sampler: Sampler, num_images: int = 8, noise_seed: int = 0, guidance: float = 0.0) -> None:
        if not isinstance(sampler, Sampler):
            raise ValueError(f"sampler={shortened(sampler)} describes no sampler: choose one, such as sampler=one_shot")
        self.sampler = sampler
        self.num_images = whole_number("num_images", num_images, at_least=1, at_most=100)
        self.noise_seed = whole_number("noise_seed", noise_seed, at_least=0)
        self.guidance = number("guidance", guidance, low=0.0)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws the network's graph, once."""
        assert isinstance(pl_module, DenoisingModule)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                image = trainer.datamodule.splits["val"].__getitems__([0]).x0.to(pl_module.device)  # type: ignore[attr-defined]
                logger.experiment.add_graph(pl_module.denoiser, (image, image.new_ones(1)))
                # torch keeps whatever it has traced for as long as the process lives (pytorch/pytorch#35600), 8 MB a job here
                torch._C._jit_clear_class_registry()

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # here and not in on_validation_end, as Lightning's averaging puts the live weights back in between
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        assert isinstance(pl_module, DenoisingModule)
        images = trainer.datamodule.splits["val"]  # type: ignore[attr-defined]
        batch = images.__getitems__(range(min(self.num_images, len(images))))
        pictures = {"denoised": self.denoised(pl_module, batch), "drawn": self.drawn(pl_module, batch.x0.shape[1:])}
        for name, picture in pictures.items():
            save_png(picture, Path(trainer.default_root_dir) / "pictures" / f"{name}-{trainer.global_step:06d}.png")
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(f"pictures/{name}", picture, trainer.global_step)

    @torch.inference_mode()
    def denoised(self, module: DenoisingModule, batch: Batch) -> Tensor:
        """Rows clean, then noisy and denoised for each level, as a uint8 picture (3, H, W); the module must be in eval mode."""
        batch = Batch(*(part.to(module.device) for part in batch))
        eps, _ = module.fixed_noise(batch)
        rows = [batch.x0]
        for level in sorted(set(module.levels.quantile(torch.tensor(_SHARES)).tolist())):
            t = batch.x0.new_full((len(batch.x0),), level)
            xt = module.denoiser.schedule.mix(batch.x0, eps, t)
            rows += [xt, module(xt, t, batch.label)]
        return grid(torch.cat(rows).cpu(), columns=len(batch.x0))

    @torch.inference_mode()
    def drawn(self, module: DenoisingModule, image_shape: torch.Size) -> Tensor:
        """Two rows of images drawn from pure noise, or one for each of the first classes; a uint8 picture (3, H, W).

        The module must be in eval mode.
        """
        classes = min(module.denoiser.num_classes, _MOST_CLASSES)
        rows = classes or 2
        eps = image_noise(self.noise_seed, range(rows * self.num_images), image_shape)
        label = torch.arange(classes).repeat_interleave(self.num_images) if classes else None
        guided = GuidedDenoiser(module.denoiser, self.guidance)
        drawn = draw(guided, self.sampler, eps, label, seed=self.noise_seed, device=module.device)
        return grid(drawn.images, columns=self.num_images)
