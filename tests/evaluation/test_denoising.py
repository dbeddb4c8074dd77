import numpy as np
import pytest
import torch

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.data.dataset import Batch
from unet_diffusion.diffusion import Denoiser, LinearSchedule, X0Prediction, seeded_noise
from unet_diffusion.evaluation.denoising import (
    denoising_metrics,
    denoising_scores,
    x0_hat_by_method,
)
from unet_diffusion.models import Network


class Half(Network):
    """A network with x0_hat = xt / 2, which gets no labels."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, xt, t, label=None):
        assert label is None
        return self.factor * xt


HALF = Denoiser(Half(), LinearSchedule(), X0Prediction())


def noise_of(batch: Batch) -> torch.Tensor:
    return seeded_noise(0, batch.indices.tolist(), (1, 16, 16))


def test_metrics_match_their_definitions_over_unequal_batches(clothes: Batch):
    torch.manual_seed(0)
    x0 = clothes.x0[:6]
    x0_hat = x0 + 0.3 * torch.randn_like(x0)
    metrics = denoising_metrics((16, 16), prefix="val/")
    metrics.update(x0_hat[:4], x0[:4])
    metrics.update(x0_hat[4:], x0[4:])
    scores = {name: value.item() for name, value in metrics.compute().items()}
    mse = (x0_hat - x0).square().mean().item()
    assert scores["val/mse"] == pytest.approx(mse, rel=1e-5)
    assert scores["val/psnr"] == pytest.approx(10 * np.log10(2**2 / mse), rel=1e-5)
    assert 0 < scores["val/ssim"] < 1
    assert set(denoising_metrics((8, 16))) == {"mse", "psnr"}  # smaller than the window of SSIM
    assert set(denoising_metrics((11, 11))) == {"mse", "psnr", "ssim"}


def test_noisy_mse_matches_the_closed_form(mini: ImageDataModule):
    # xt - x0 = t (eps - x0), so its mean square is t^2 (1 + E[x0^2])
    mean_square = np.mean([batch.x0.square().mean().item() for batch in mini.test_dataloader()])
    for level in denoising_scores(HALF, mini.test_dataloader(), [0.1, 0.5, 0.9], 0):
        expected = level["t"] ** 2 * (1 + mean_square)
        assert level["scores"]["noisy"]["mse"] == pytest.approx(expected, rel=0.01)


def test_scores_depend_on_the_noise_seed_but_not_on_the_batch_size(mini: ImageDataModule):
    split = mini.splits["test"]
    whole = [split.batch(range(60))]
    parts = [split.batch(range(0, 7)), split.batch(range(7, 60))]
    one, many = (denoising_scores(HALF, batches, [0.3, 0.6], 0) for batches in (whole, parts))
    for a, b in zip(one, many, strict=True):
        for method, scores in a["scores"].items():
            assert scores == pytest.approx(b["scores"][method], rel=1e-5)
    other = denoising_scores(HALF, whole, [0.3], 1)
    assert other[0]["scores"]["noisy"] != one[0]["scores"]["noisy"]


def test_rescaled_input_has_full_contrast_and_is_clipped(clothes: Batch):
    expected = (clothes.x0 + noise_of(clothes) / 3).clamp(-1, 1)  # 0.75 x0 + 0.25 eps
    outputs = x0_hat_by_method(HALF, clothes, 0.25, noise_seed=0)
    torch.testing.assert_close(outputs["rescaled"], expected)
    torch.testing.assert_close(outputs["network"], outputs["noisy"] / 2)
    assert x0_hat_by_method(HALF, clothes, 1.0, noise_seed=0)["rescaled"].isfinite().all()
