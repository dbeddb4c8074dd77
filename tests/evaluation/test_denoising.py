import numpy as np
import pytest
import torch

from unet_diffusion.data.datamodule import Batch, ImageDataModule
from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.diffusion.noise import image_noise
from unet_diffusion.diffusion.predictions import X0Prediction
from unet_diffusion.diffusion.schedules import LinearSchedule
from unet_diffusion.evaluation.denoising import denoised_examples, score_levels
from unet_diffusion.evaluation.metrics import LossByLevel, denoising_metrics
from unet_diffusion.evaluation.words import denoising_table

CPU = torch.device("cpu")


class Half(torch.nn.Module):
    def forward(self, xt, t, label):
        return xt / 2


HALF = Denoiser(Half(), LinearSchedule(), X0Prediction())


def gaussian_ssim(a: np.ndarray, b: np.ndarray, data_range: float) -> float:
    """SSIM of two images as Wang et al. 2004 define it, written out: an 11 x 11 Gaussian window, sigma 1.5, mirrored edges."""
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    a, b = np.pad(a, 5, mode="reflect"), np.pad(b, 5, mode="reflect")
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            p, q = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq, cov = (window * p * p).sum() - mp**2, (window * q * q).sum() - mq**2, (window * p * q).sum() - mp * mq
            values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(np.mean(values))


def test_metrics_against_their_definitions(clothes: Batch):
    torch.manual_seed(0)
    guess = (clothes.x0 + 0.3 * torch.randn_like(clothes.x0))[:6]
    metrics = denoising_metrics((16, 16))
    metrics.update(guess[:4], clothes.x0[:4])
    metrics.update(guess[4:], clothes.x0[4:6])  # batches of different size weigh by their images
    scores = {name: value.item() for name, value in metrics.compute().items()}
    mse = (guess - clothes.x0[:6]).square().mean().item()
    assert scores["mse"] == pytest.approx(mse, rel=1e-5)
    assert scores["psnr"] == pytest.approx(10 * np.log10(2**2 / mse), rel=1e-5)
    pairs = zip(guess[:, 0].double().numpy(), clothes.x0[:6, 0].double().numpy(), strict=True)
    by_hand = [gaussian_ssim(a, b, 2.0) for a, b in pairs]
    assert scores["ssim"] == pytest.approx(np.mean(by_hand), abs=1e-4)


def test_images_too_small_for_its_window_have_no_ssim():
    assert set(denoising_metrics((8, 16))) == {"mse", "psnr"}
    assert set(denoising_metrics((11, 11))) == {"mse", "psnr", "ssim"}


def test_noisy_input_scores_are_the_noise_laws(mini: ImageDataModule):
    # xt - x0 = t (eps - x0), so its mean square is t^2 (1 + E[x0^2])
    mean_square = np.mean([batch.x0.square().mean().item() for batch in mini.test_dataloader()])
    for score in score_levels(HALF, mini.test_dataloader(), [0.1, 0.5, 0.9], seed=0, device=CPU):
        assert score.answers["noisy"]["mse"] == pytest.approx(score.percent**2 * (1 + mean_square), rel=0.01)


def test_scores_do_not_depend_on_the_batch_size(mini: ImageDataModule):
    split = mini.splits["test"]
    whole = [split.__getitems__(range(60))]
    parts = [split.__getitems__(range(0, 7)), split.__getitems__(range(7, 60))]
    one, many = (score_levels(HALF, batches, [0.3, 0.6], seed=0, device=CPU) for batches in (whole, parts))
    for a, b in zip(one, many, strict=True):
        assert a.answers.keys() == b.answers.keys()
        for name, scores in a.answers.items():
            assert scores == pytest.approx(b.answers[name], rel=1e-5)
    other = score_levels(HALF, whole, [0.3, 0.6], seed=1, device=CPU)
    assert other[0].answers["noisy"]["mse"] != one[0].answers["noisy"]["mse"]


def test_the_rescaled_input_is_what_one_would_show(clothes: Batch):
    (score,) = score_levels(HALF, [clothes], [0.25], seed=0, device=CPU)
    eps = image_noise(0, clothes.number.tolist(), (1, 16, 16))
    shown = (clothes.x0 + eps / 3).clamp(-1, 1)  # 0.75 x0 + 0.25 eps at full contrast
    assert score.answers["rescaled"]["mse"] == pytest.approx((shown - clothes.x0).square().mean().item(), rel=1e-5)


def test_other_denoisers_get_the_noisy_images_and_the_noises_strength(clothes: Batch):
    told = []

    def clairvoyant(images: torch.Tensor, strength: float) -> torch.Tensor:
        told.append(strength)
        return images - strength * image_noise(0, clothes.number.tolist(), (1, 16, 16))

    scores = score_levels(HALF, [clothes], [0.25, 0.5], seed=0, device=CPU, others={"clairvoyant": clairvoyant})
    assert told == pytest.approx([1 / 3, 1])
    assert all(score.answers["clairvoyant"]["mse"] < 1e-10 for score in scores)


def test_all_is_noise_at_level_one(clothes: Batch):
    (score,) = score_levels(HALF, [clothes], [1.0], seed=0, device=CPU)
    assert all(np.isfinite(value) for answer in score.answers.values() for value in answer.values())


def test_rows_of_examples_begin_with_the_clean_images(clothes: Batch):
    rows = denoised_examples(HALF, clothes, [0.2, 0.5], seed=0, device=CPU)
    assert [name for name, _ in rows] == ["clean", "noise 0.2", "network", "noise 0.5", "network"]
    assert torch.equal(rows[0][1], clothes.x0)
    eps = image_noise(0, clothes.number.tolist(), (1, 16, 16))
    torch.testing.assert_close(rows[2][1], (0.8 * clothes.x0 + 0.2 * eps) / 2)


def test_the_table_shows_each_level_and_marks_the_trained_one(clothes: Batch):
    text = denoising_table(score_levels(HALF, [clothes], [0.3, 0.5], seed=0, device=CPU), own=0.5)
    rows = text.splitlines()[2:4]
    assert [row.split()[0] for row in rows] == ["0.30", "0.50"]
    assert ["*" in row for row in rows] == [False, True]


def test_the_loss_by_level_is_the_mean_in_each_bin():
    metric = LossByLevel(0.0, 1.0)
    metric.update(torch.tensor([1.0, 3.0, 10.0]), torch.tensor([0.05, 0.15, 1.0]))
    metric.update(torch.tensor([5.0]), torch.tensor([0.1999]))
    found = {name: value.item() for name, value in metric.compute().items()}
    assert found == {"val_by_level/loss_0-0.2": 3.0, "val_by_level/loss_0.8-1": 10.0}
    metric.reset()
    assert metric.compute() == {}


def test_a_single_level_has_no_bins():
    metric = LossByLevel(0.5, 0.5)
    metric.update(torch.tensor([1.0]), torch.tensor([0.5]))
    assert metric.compute() == {}
