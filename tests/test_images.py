from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageSequence

from unet_diffusion.images import (
    image_grid,
    save_animation,
    save_png,
    to_float,
    to_pil,
    to_uint8,
    trajectory_strip,
)


def test_uint8_round_trip_and_clipping():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(values)), values)
    assert to_float(values)[[0, 255]].tolist() == [-1.0, 1.0]
    assert to_uint8(torch.tensor([-3.0, -1.0, 0.0, 1.0, 9.0])).tolist() == [0, 0, 128, 255, 255]


def test_grid_enlarges_by_pixels_and_keeps_the_order(tmp_path: Path):
    x = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 1, 16, 16)
    save_png(image_grid(x, columns=2), tmp_path / "new" / "grid.png")
    pixels = np.asarray(Image.open(tmp_path / "new" / "grid.png"))
    assert pixels.shape == (2 * 66 + 2, 2 * 66 + 2, 3)
    assert [pixels[34, 34, 0], pixels[34, 100, 0], pixels[100, 34, 0]] == [0, 128, 255]
    assert (pixels[:2] == 255).all()  # frame
    for width, expected in ((64, 64 * 32), (256, 8 * 256), (5000, 5000)):  # at most 2048
        assert image_grid(torch.zeros(1, 1, 1, width), 1).shape[-1] == expected


def test_pillow_images_are_grey_or_rgb():
    grey, rgb = to_pil(torch.ones(1, 1, 2, 3)), to_pil(-torch.ones(2, 3, 4, 5))
    assert [(image.mode, image.size) for image in grey + rgb] == [("L", (3, 2))] + [
        ("RGB", (5, 4))
    ] * 2
    assert (grey[0].getpixel((0, 0)), rgb[1].getpixel((0, 0))) == (255, (0, 0, 0))


def test_trajectory_strip_has_a_row_per_image_from_first_to_last_step():
    values = torch.linspace(-1, 1, 21)
    trajectory = [value.expand(4, 1, 64, 64) * torch.ones(4, 1, 1, 1) for value in values]
    strip = trajectory_strip(trajectory, rows=2, max_columns=3)
    assert strip.shape == (3, 2 * 66 + 2, 3 * 66 + 2)
    assert strip[0, 34, [34, 100, 166]].tolist() == [0, 128, 255]


def test_animation_pauses_on_the_last_frame(tmp_path: Path):
    frames = [torch.full((3, 8, 8), value, dtype=torch.uint8) for value in (0, 100, 200)]
    for name in ("a.gif", "a.webp"):
        save_animation(frames, tmp_path / name)
        with Image.open(tmp_path / name) as animation:
            copies = [frame.copy() for frame in ImageSequence.Iterator(animation)]
        assert [frame.info["duration"] for frame in copies] == [80, 80, 1500]
