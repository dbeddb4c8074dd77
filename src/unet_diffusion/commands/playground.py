"""scripts/playground.py: a web page to denoise, generate, change and interpolate images."""

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from unet_diffusion.commands.offline_gradio import gr, without_proxies
from unet_diffusion.commands.photo_tabs import PhotoTabs
from unet_diffusion.data.cache import resize
from unet_diffusion.data.sources import FashionMNISTMini, read_image
from unet_diffusion.diffusion.noise import seeded_noise, slerp
from unet_diffusion.errors import UserError
from unet_diffusion.experiment.build import named_sampler
from unet_diffusion.experiment.compose import choices_of
from unet_diffusion.experiment.schema import PathStr, Schema
from unet_diffusion.generation.pipeline import Pipeline
from unet_diffusion.images import (
    evenly_spaced,
    image_grid,
    save_animation,
    save_png,
    to_float,
)
from unet_diffusion.runs.run import Run

NUM_IMAGES = 10
COLUMNS = 5
SKETCH_SIDE = 320  # pixels
CSS = """
.titled [data-testid='block-label'] { position: static }   /* above the image, not on it */
.titled .grid-container { grid-template-columns: repeat(5, minmax(0, 1fr)) !important }
.titled .grid-wrap, .titled .thumbnail-item { min-height: 0; min-width: 0 }
.titled .thumbnail-item { aspect-ratio: 1; height: auto }
"""
SAMPLERS = {name: named_sampler(name) for name in choices_of("sampler")}


class Arguments(Schema):
    """The keys of conf/playground.yaml."""

    run: PathStr
    photos: PathStr | None
    lesson: PathStr | None
    port: Annotated[int, Field(ge=1, le=65535)] | None
    browser: bool
    device: str


def playground(arguments: Arguments) -> None:
    """Serves the page on 127.0.0.1 until Ctrl-C."""
    pipeline = Pipeline.from_pretrained(Run.open(arguments.run), device=arguments.device)
    lesson = None
    if arguments.lesson:
        run = Run.open(arguments.lesson, key="lesson")
        lesson = Pipeline.from_pretrained(run, device=arguments.device)
        if run.config.image_shape != pipeline.run.config.image_shape:
            print(f"lesson={arguments.lesson}: not shown, its images have another size.")
            lesson = None
    photos = None
    if arguments.photos:
        photos = Pipeline.from_pretrained(
            Run.open(arguments.photos, key="photos"), device=arguments.device
        )
    page = Playground(pipeline, lesson, photos).build()
    try:
        with without_proxies():  # Gradio requests its own address
            _, url, _ = page.launch(
                server_name="127.0.0.1",
                server_port=arguments.port,
                inbrowser=arguments.browser,
                quiet=True,
                share=False,
                ssr_mode=False,
                show_error=True,
                footer_links=[],
                prevent_thread_lock=True,
                # Gradio's default fonts are downloaded.
                css=CSS,
                theme=gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("monospace",)),
            )
    except OSError as error:
        if error.errno is not None:  # not Gradio's about ports
            raise
        port = arguments.port or "null"
        raise UserError(
            f"port={port}: in use or reserved. Use another from 1024 to 65535."
        ) from error
    print(f"Playground: {url} (Ctrl-C to stop)", flush=True)
    page.block_thread()


class Playground:
    """The functions behind the page: what they return depends on their arguments alone.

    `lesson` is a second network in the tab Denoise, `photos` that of the tab Photo.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        lesson: Pipeline | None = None,
        photos: Pipeline | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.photos = photos
        self.denoisers = [pipeline, *([lesson] if lesson else [])]
        split = FashionMNISTMini().load("test", None)
        first = [int(np.argmax(split.labels == label)) for label in range(len(split.class_names))]
        images = torch.from_numpy(np.asarray(split.images)[first])[:, None]
        self.examples = torch.split(self.to_float(images), 1)  # one test image of each class
        accepts_interval = pipeline.denoiser.net.accepts_interval
        self.samplers = {
            name: sampler
            for name, sampler in SAMPLERS.items()
            if accepts_interval or not sampler.needs_average_velocity
        }
        self.one_step = SAMPLERS["average_velocity" if accepts_interval else "one_step"]
        self.ten_steps = SAMPLERS["dpm_solver"]

    def to_float(self, images: Tensor) -> Tensor:
        """uint8 images (N, C, H, W) of any size, in the shape of the network in [-1, 1]."""
        channels, height, width = self.pipeline.run.config.image_shape
        return to_float(resize(images, (height, width), channels))

    def read_upload(self, file: str) -> Tensor:
        """Reads an image file as (1, C, H, W) in [-1, 1]."""
        try:
            return self.to_float(read_image(Path(file))[None])
        except UserError as error:
            message = str(error).replace(file, Path(file).name)
            raise gr.Error(message, print_exception=False) from error

    def read_sketch(self, sketch: dict[str, Any]) -> Any:
        """The canvas as (1, C, H, W) in [-1, 1]; no change without a stroke."""
        if not any(layer[..., 3].any() for layer in sketch["layers"]):
            return gr.skip()
        rgb = np.array(Image.fromarray(sketch["composite"]).convert("RGB"))
        return self.to_float(torch.from_numpy(rgb).permute(2, 0, 1)[None])

    def denoise(self, x0: Tensor, t: float, seed: int) -> list[Any]:
        """The clean, the noisy and the denoised images, with the PSNR in their titles."""
        eps = seeded_noise(int(seed or 0), [0], x0.shape[1:])
        shown = [("Clean", x0)]
        for pipeline in self.denoisers:
            xt = pipeline.denoiser.schedule.add_noise(x0, eps, torch.tensor([t]))
            shown += [("Noisy", xt)] if pipeline is self.pipeline else []
            shown.append((pipeline.run.config.name, pipeline.denoise(xt, t)))
        titles = [title if x is x0 else f"{title}, {_psnr(x, x0)}" for title, x in shown]
        return [_image(x, title) for title, (_, x) in zip(titles, shown, strict=True)]

    def generate(
        self, seed: int, label: str, guidance_scale: float, sampler: str, steps: int
    ) -> Iterator[list[Any]]:
        """One evaluation and the selected sampler from the same noise; yields every step."""
        sample = partial(self.pipeline, NUM_IMAGES, label=label, seed=int(seed or 0))
        start = time.perf_counter()
        one = sample(guidance_scale=1, sampler=self.one_step)
        first = _image(one.images, _caption(one.nfe, start))
        steps = 1 if sampler == "one_step" else steps
        start = time.perf_counter()
        output = sample(
            guidance_scale=guidance_scale,
            sampler=self.samplers[sampler],
            steps=steps,
            return_trajectory=True,
        )
        caption = _caption(output.nfe, start)
        last = len(output.trajectory) - 1
        shown = {step: output.trajectory[step] for step in evenly_spaced(last + 1, 21)}
        for step, images in shown.items():
            title = f"step {step} of {last}"
            yield [first, _image(images, title), gr.skip(), gr.skip()]
            time.sleep(0.05)  # to see the steps
        with tempfile.TemporaryDirectory() as folder:
            png, gif = Path(folder, "generated.png"), Path(folder, "generated.gif")
            save_png(image_grid(output.images, COLUMNS), png)
            save_animation([image_grid(images, COLUMNS) for images in shown.values()], gif)
            yield [first, _image(output.images, caption), str(png), str(gif)]

    def image_to_image(self, x0: Tensor, strength: float, label: str, seed: int) -> list[Any]:
        """The image, and what is generated from it after noise of level `strength`."""
        output = self.pipeline(
            NUM_IMAGES,
            label=label,
            seed=int(seed or 0),
            sampler=self.ten_steps,
            x0=x0.expand(NUM_IMAGES, -1, -1, -1),
            strength=strength,
        )
        return [_image(x0), _image(output.images)]

    def interpolate(self, seed: int, to_seed: int, position: float, label: str) -> list[Any]:
        """The image at a position between two seeds, and images from one to the other."""
        shape = self.pipeline.run.config.image_shape
        start, end = (seeded_noise(int(each or 0), [0], shape) for each in (seed, to_seed))
        positions = [position, *torch.linspace(0, 1, NUM_IMAGES).tolist()]
        eps = torch.cat([slerp(start, end, each) for each in positions])
        accepts_interval = self.pipeline.denoiser.net.accepts_interval
        sampler = self.one_step if accepts_interval else self.ten_steps
        images = self.pipeline(label=label, sampler=sampler, eps=eps).images
        return [_image(images[:1]), _image(images[1:])]

    def build(self) -> gr.Blocks:
        """The page: a tab for each function."""
        name = self.pipeline.run.config.name
        _, height, width = self.pipeline.run.config.image_shape
        page = gr.Blocks(title="unet_diffusion", delete_cache=(600, 3600))
        row, column = gr.Row, gr.Column
        # Without triggers: when the page is loaded, and when an input changes.
        live = partial(gr.on, None, trigger_mode="always_last", show_progress="hidden")
        with page:
            gr.Markdown(f"# unet_diffusion\n{name}: {width} x {height} pixels.")
            if self.photos is not None:
                PhotoTabs(self.photos).build()
            with gr.Tab("Denoise"), row():
                with column(scale=1):
                    image = self._image_inputs()
                with column(scale=2):
                    level = gr.Slider(0, 1, 0.5, step=0.01, label="Noise level t")
                    inputs = [image, level, _seed()]
                    with row():
                        outputs = [_output("Clean"), _output("Noisy")]
                    with row():
                        outputs += [_output(each.run.config.name) for each in self.denoisers]
            live(self.denoise, inputs, outputs)
            with gr.Tab("Generate"), row():
                with column(scale=1):
                    inputs = [
                        _seed(),
                        self._label("all"),
                        gr.Slider(1, 5, 1, label="Guidance scale", visible=self._has_classes),
                        gr.Dropdown(list(self.samplers), value="dpm_solver", label="Sampler"),
                        gr.Slider(1, 100, 20, step=1, label="Steps"),
                    ]
                    button = gr.Button("Generate", variant="primary")
                with column(scale=2):
                    with row():
                        outputs = [_output("One evaluation"), _output("Sampler")]
                    with row():
                        files = [gr.DownloadButton(f"Download {each}") for each in ("PNG", "GIF")]
            triggers = [page.load, button.click]
            gr.on(triggers, self.generate, inputs, [*outputs, *files], trigger_mode="always_last")
            with gr.Tab("Image to image"), row():
                with column(scale=1):
                    image = self._image_inputs()
                with column(scale=2):
                    strength = gr.Slider(0.05, 1, 0.6, step=0.05, label="Strength (noise level)")
                    inputs = [image, strength, self._label("none"), _seed()]
                    with row():
                        outputs = [_output("Image"), _output("Generated from it")]
            live(self.image_to_image, inputs, outputs)
            with gr.Tab("Interpolate"):
                with row():
                    seeds = [_seed("From seed"), _seed("To seed", 1)]
                    label = self._label()
                position = gr.Slider(0, 1, 0.5, step=0.01, label="Position between the seeds")
                with row():
                    outputs = [_output("At this position"), _output("From seed to seed")]
            live(self.interpolate, [*seeds, position, label], outputs)
        return page

    @property
    def _has_classes(self) -> bool:
        return self.pipeline.denoiser.net.num_classes > 0

    def _label(self, *first: str) -> gr.Dropdown:
        names = [*first, *self.pipeline.run.class_names] if self._has_classes else []
        choices = [*dict.fromkeys([*names, "none"])]
        return gr.Dropdown(choices, value=choices[0], label="Class", visible=self._has_classes)

    def _image_inputs(self) -> gr.State:
        """Test images, an upload button and a canvas; the state is the selected image."""

        def select(event: gr.SelectData) -> Tensor:
            return self.examples[int(event.index)]

        image = gr.State(self.examples[0])
        gallery = gr.Gallery(
            [_pixels(each) for each in self.examples],
            label="Test images",
            format="png",
            allow_preview=False,
            elem_classes="titled",
            buttons=[],
        )
        upload = gr.UploadButton("Upload an image", file_types=["image"])
        sketch = gr.Sketchpad(
            np.zeros((SKETCH_SIDE, SKETCH_SIDE, 3), dtype=np.uint8),
            label="Or draw",
            brush=gr.Brush(default_size=24, colors=["#ffffff", "#aaaaaa", "#555555", "#000000"]),
            layers=False,
            transforms=(),
            canvas_size=(SKETCH_SIDE, SKETCH_SIDE),
            fixed_canvas=True,
            buttons=[],
        )
        gallery.select(select, None, image)
        upload.upload(self.read_upload, upload, image)
        sketch.input(self.read_sketch, sketch, image, trigger_mode="always_last")
        return image


def _caption(nfe: int, start: float) -> str:
    milliseconds = 1000 * (time.perf_counter() - start)
    return f"NFE {nfe}, {milliseconds:.0f} ms for {NUM_IMAGES} images"


def _psnr(images: Tensor, x0: Tensor) -> str:
    return f"PSNR {float(peak_signal_noise_ratio(images, x0, data_range=2.0)):.1f} dB"


def _pixels(images: Tensor) -> np.ndarray:
    """A single image or a grid, enlarged."""
    columns = min(COLUMNS, len(images))
    min_side = 256 if columns == 1 else 512 // columns
    return image_grid(images, columns, min_side).permute(1, 2, 0).numpy()


def _image(images: Tensor, title: str | None = None) -> Any:
    return gr.update(value=_pixels(images), **({"label": title} if title else {}))  # type: ignore[arg-type]


def _output(title: str) -> gr.Image:
    return gr.Image(
        label=title, format="png", interactive=False, buttons=["download"], elem_classes="titled"
    )


def _seed(title: str = "Seed", value: int = 0) -> gr.Number:
    return gr.Number(value, label=title, precision=0, minimum=0, maximum=2**32 - 1)
