import pytest
import torch

from unet_diffusion.data.datamodule import Batch
from unet_diffusion.evaluation.classical import classical_denoisers

pytest.importorskip("skimage")


@pytest.mark.parametrize("name", ["nonlocal_means", "total_variation", "wavelet"])
def test_each_takes_noise_out(clothes: Batch, name: str):
    torch.manual_seed(0)
    noisy = clothes.x0 + 0.4 * torch.randn_like(clothes.x0)
    answer = classical_denoisers()[name](noisy, 0.4)
    assert (answer - clothes.x0).square().mean() < 0.7 * (noisy.clamp(-1, 1) - clothes.x0).square().mean()
    one = classical_denoisers()[name](noisy[5:6], 0.4)
    torch.testing.assert_close(one, answer[5:6])  # each image by itself


def test_colours_are_not_mixed_up(clothes: Batch):
    colour = torch.cat((clothes.x0[:4], clothes.x0[4:8], clothes.x0[8:12]), dim=1)  # another image in each channel
    noisy = colour + 0.3 * torch.randn(colour.shape, generator=torch.Generator().manual_seed(0))
    for denoise in classical_denoisers().values():
        error = (denoise(noisy, 0.3) - colour).square().mean(dim=(0, 2, 3))
        assert (error < 0.09).all()  # the noise's own
