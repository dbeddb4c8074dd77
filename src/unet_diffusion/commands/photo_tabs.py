"""The tabs of the playground for photographs."""

import dataclasses
import itertools
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unet_diffusion import images
from unet_diffusion.commands.offline_gradio import gr
from unet_diffusion.data.photo_files import Photo, encode_photo, read_photo
from unet_diffusion.data.sources import oriented
from unet_diffusion.diffusion.noise import estimate_noise_std
from unet_diffusion.errors import UserError
from unet_diffusion.generation.photos import (
    count_tiles,
    denoise_pages,
    highest_noise_level,
    photo_noise_std,
    to_float,
)
from unet_diffusion.generation.pipeline import Pipeline
from unet_diffusion.generation.restoration import deblur, enlarge, inpaint
from unet_diffusion.restoration import gaussian_kernel

PREVIEW_SIDE = 384  # pixels of the centre of a photograph
MAX_RESTORED = 2_000_000  # pixels of a photograph that is restored: minutes on two cores
FILL, ENLARGE, SHARPEN = "Fill", "Enlarge", "Sharpen"


class PhotoTabs:
    """The functions behind the tabs: what they return depends on their arguments alone."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def build(self) -> None:
        """Adds the tabs to the page."""
        with gr.Tab("Photo"):
            self._denoise_tab()
        with gr.Tab("Restore"):
            self._restore_tab()

    def open_photo(self, file: str | None) -> Any:
        """The estimated noise of an uploaded photograph."""
        if file is None:
            return gr.skip()
        return round(photo_noise_std(_read_photo(file)), 1)

    def preview_photo(
        self, file: str | None, std: float, added: float, strength: float
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """The centre of a photograph, noisy and denoised."""
        if file is None:
            return None
        photo = _read_photo(file)
        height, width = photo.pages[0].shape[:2]
        top, left = (max(0, (side - PREVIEW_SIDE) // 2) for side in (height, width))
        part = photo.pages[0][top : top + PREVIEW_SIDE, left : left + PREVIEW_SIDE]
        noisy = _with_noise(dataclasses.replace(photo, pages=[part]), added)
        (denoised,) = self._denoise_photo(noisy, std, added, strength)
        return _shown(noisy.pages[0], photo), _shown(denoised, photo)

    def denoise_photo(
        self,
        file: str | None,
        std: float,
        added: float,
        strength: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio passes it
    ) -> Any:
        """The whole photograph, noisy and denoised, and the file in its own format."""
        if file is None:
            raise gr.Error("Upload a photo first.", print_exception=False)
        photo = _with_noise(_read_photo(file), added)
        shape = self.pipeline.run.config.image_shape
        total = count_tiles(photo, self.pipeline.denoiser, shape)
        done = itertools.count(1)

        def report() -> None:
            progress((next(done), total), unit="tiles")

        pages = self._denoise_photo(photo, std, added, strength, report)
        target = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"]), Path(file).name)
        target.write_bytes(encode_photo(photo, pages, photo.kind))
        shown = _shown(photo.pages[0], photo), _shown(pages[0], photo)
        return shown, gr.update(value=str(target), interactive=True)

    def _denoise_photo(
        self,
        photo: Photo,
        std: float,
        added: float,
        strength: float,
        on_tile: Callable[[], object] = lambda: None,
    ) -> list[np.ndarray]:
        total_std = math.hypot(std or 0, added)
        schedule = self.pipeline.denoiser.schedule
        t = float(schedule.time_of_noise(torch.tensor(total_std / 127.5)))
        t = min(t, highest_noise_level(self.pipeline.run.config))
        shape = self.pipeline.run.config.image_shape
        denoiser = self.pipeline.denoiser
        return denoise_pages(photo, denoiser, t, shape, strength=strength, on_tile=on_tile)

    def _denoise_tab(self) -> None:
        gr.Markdown("Remove the noise of a photo. It does not leave this computer.")
        with gr.Row():
            with gr.Column(scale=1):
                file = gr.File(label="Photo (JPEG, PNG, TIFF, WebP)", file_types=["image"])
                std = gr.Slider(0, 80, 0, step=0.1, label="Noise, of 255 (estimated)")
                strength = gr.Slider(0, 1, 1, step=0.05, label="Strength")
                added = gr.Slider(0, 80, 0, step=1, label="Add noise, to try it")
                button = gr.Button("Denoise the whole photo", variant="primary")
                download = gr.DownloadButton("Download the photo", interactive=False)
            with gr.Column(scale=2):
                slider = gr.ImageSlider(
                    label="Noisy and denoised (the centre, until the whole photo is denoised)",
                    format="jpeg",
                    interactive=False,
                    elem_classes="titled",
                )
        inputs = [file, std, added, strength]
        opened = file.change(self.open_photo, file, std, show_progress="hidden")
        opened.then(self.preview_photo, inputs, slider, show_progress="hidden")
        gr.on(
            [std.release, added.release, strength.release],
            self.preview_photo,
            inputs,
            slider,
            trigger_mode="always_last",
            show_progress="hidden",
        )
        started = button.click(_disabled, None, download, show_progress="hidden")
        started.then(self.denoise_photo, inputs, [slider, download])

    def restore(
        self,
        task: str,
        drawing: dict[str, Any] | None,
        factor: float,
        blur_std: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Any:
        """The image and the restored one, and that as a PNG file."""
        if drawing is None or drawing["background"] is None:
            raise gr.Error("Upload a photo first.", print_exception=False)
        pixels = drawing["background"][..., :3]
        painted = np.any([layer[..., 3] > 0 for layer in drawing["layers"]], axis=0)
        if task == FILL and not painted.any():
            raise gr.Error("Paint over what is to be filled.", print_exception=False)
        if pixels[..., 0].size > MAX_RESTORED:
            size = f"{MAX_RESTORED / 1e6:g} megapixels"
            raise gr.Error(f"Use a photo of at most {size}.", print_exception=False)
        x = images.to_float(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])
        steps, done = 8 if task == SHARPEN else 16, itertools.count(1)
        options = {"steps": steps, "on_step": lambda _: progress((next(done), steps))}
        before = x
        if task == FILL:
            after = inpaint(self.pipeline, x, torch.from_numpy(~painted), **options)
        elif task == ENLARGE:
            before = torch.nn.functional.interpolate(x, scale_factor=factor, mode="bicubic")
            after = enlarge(self.pipeline, x, int(factor), **options)
        else:
            std = max(0.3 / 127.5, float(estimate_noise_std(x)))
            after = deblur(self.pipeline, x, gaussian_kernel(blur_std), noise_std=std, **options)
        shown = [images.to_uint8(each[0]).permute(1, 2, 0).numpy() for each in (before, after)]
        file = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"]), "restored.png")
        images.save_png(images.to_uint8(after[0]), file)
        return tuple(shown), gr.update(value=str(file), interactive=True)

    def _restore_tab(self) -> None:
        gr.Markdown("Paint over a scratch and it is filled; or enlarge or sharpen the photo.")
        with gr.Row():
            with gr.Column(scale=1):
                task = gr.Radio([FILL, ENLARGE, SHARPEN], value=FILL, label="Task")
                factor = gr.Slider(2, 4, 2, step=1, label="Factor", visible=False)
                blur = gr.Slider(0.5, 5, 1.6, step=0.1, label="Blur in pixels", visible=False)
                button = gr.Button("Restore", variant="primary")
                download = gr.DownloadButton("Download the result", interactive=False)
            with gr.Column(scale=2):
                drawing = gr.ImageEditor(
                    label="Photo",
                    sources=["upload", "clipboard"],
                    brush=gr.Brush(default_size=16, colors=["#ff0000"]),
                    layers=False,
                    transforms=(),
                )
                slider = gr.ImageSlider(
                    label="Before and after",
                    format="jpeg",
                    interactive=False,
                    elem_classes="titled",
                )
        task.change(
            lambda task: [gr.update(visible=task == each) for each in (ENLARGE, SHARPEN)],
            task,
            [factor, blur],
            show_progress="hidden",
        )
        inputs = [task, drawing, factor, blur]
        started = button.click(_disabled, None, download, show_progress="hidden")
        started.then(self.restore, inputs, [slider, download])


def _disabled() -> Any:
    return gr.update(interactive=False)


def _read_photo(file: str) -> Photo:
    try:
        return read_photo(Path(file))
    except UserError as error:
        message = str(error).replace(file, Path(file).name)
        raise gr.Error(message, print_exception=False) from error


def _with_noise(photo: Photo, std: float) -> Photo:
    """A photograph with additional white noise, as if its file had it."""
    if not std:
        return photo
    low, high = photo.value_range
    pages = []
    for page in photo.pages:
        noise = np.random.default_rng(0).standard_normal(page.shape, dtype=np.float32)
        noise[..., page.shape[2] - photo.has_alpha :] = 0
        noisy = page + noise * (std / 255 * (high - low))
        pages.append(np.rint(noisy.clip(low, high)).astype(page.dtype))
    return dataclasses.replace(photo, pages=pages)


def _shown(page: np.ndarray, photo: Photo) -> np.ndarray:
    """uint8 (H, W, 3) for the browser, upright, without alpha."""
    image = images.to_uint8(to_float(page, photo)).expand(3, -1, -1).permute(1, 2, 0).numpy()
    return oriented(image, photo.orientation)
