from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import composed
from omegaconf import OmegaConf
from PIL import Image

from unet_diffusion.images import to_uint8
from unet_diffusion.runs import Run
from unet_diffusion.samplers.one_shot import OneShot
from unet_diffusion.sampling import draw, run_sampler, sample


def test_image_i_is_the_same_whatever_the_batch_size(short_run: Path):
    run = Run.open(short_run)
    denoiser = run.load_denoiser("best", torch.device("cpu"))
    whole, by_seven, longer = (
        draw(denoiser, OneShot(), count, run.image_shape, seed=3, batch_size=size)
        for count, size in ((20, 20), (20, 7), (33, 33))
    )
    torch.testing.assert_close(by_seven, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(longer[:20], whole, rtol=0, atol=1e-5)
    assert not torch.allclose(draw(denoiser, OneShot(), 20, run.image_shape, seed=4), whole)


def test_npz_and_grid_hold_the_same_images(short_run: Path, tmp_path: Path):
    typed = (
        f"run={short_run}",
        "num_images=10",
        "columns=2",
        "seed=5",
        f"output={tmp_path / 'out'}",
        "++sampler.noise_scale=0.5",
    )
    folder = sample(composed(*typed, config="sample"))
    with np.load(folder / "samples.npz") as arrays:
        images = arrays["arr_0"]
    assert (images.dtype, images.shape) == (np.uint8, (10, 16, 16, 1))
    run = Run.open(short_run)
    expected = draw(run.load_denoiser("best", torch.device("cpu")), OneShot(0.5), 10, run.image_shape, seed=5)
    assert np.abs(images.astype(int) - to_uint8(expected).permute(0, 2, 3, 1).numpy().astype(int)).max() <= 1
    picture = np.asarray(Image.open(folder / "grid.png"))
    assert picture.shape == (2 * 66 + 2, 2 * 66 + 2, 3)  # two rows of two; the other six images are only in the .npz
    assert np.array_equal(picture[2:66:4, 68:132:4, 0], images[1, :, :, 0])


def test_a_samplers_keys_come_from_the_run_unless_given(short_run: Path):
    run = Run.open(short_run)
    run.config.sampler.noise_scale = 0.7
    assert run_sampler(run, OmegaConf.create({})).noise_scale == 0.7
    assert run_sampler(run, OmegaConf.create({"noise_scale": 2})).noise_scale == 2.0
    other = OmegaConf.create({"_target_": "unet_diffusion.samplers.one_shot.OneShot"})
    assert run_sampler(run, other).noise_scale == 1.0


@pytest.mark.parametrize("which", ["best", "last"])
def test_either_checkpoint_can_be_asked(short_run: Path, tmp_path: Path, which: str):
    folder = sample(composed(f"run={short_run}", "num_images=1", f"checkpoint={which}", f"output={tmp_path}", config="sample"))
    with np.load(folder / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (1, 16, 16, 1)
