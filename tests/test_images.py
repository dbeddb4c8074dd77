import numpy as np
import torch
from PIL import Image

from unet_diffusion.images import grid, save_png, to_float, to_uint8


def test_bytes_survive_the_way_to_float_and_back():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(values)), values)
    assert to_float(values)[[0, 255]].tolist() == [-1.0, 1.0]


def test_what_lies_outside_is_clipped():
    assert to_uint8(torch.tensor([-3.0, -1.0, 0.0, 1.0, 9.0])).tolist() == [0, 0, 128, 255, 255]


def test_grid_enlarges_pixel_by_pixel_and_keeps_the_order(tmp_path):
    x = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 1, 16, 16)
    save_png(grid(x, columns=2), tmp_path / "new" / "grid.png")
    picture = np.asarray(Image.open(tmp_path / "new" / "grid.png"))
    assert picture.shape == (2 * 66 + 2, 2 * 66 + 2, 3)
    assert [picture[34, 34, 0], picture[34, 100, 0], picture[100, 34, 0]] == [0, 128, 255]
    assert (picture[:2] == 255).all()  # the frame
