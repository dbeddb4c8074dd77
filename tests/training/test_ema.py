"""EMA: its weights, and what uses them."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers import SMALL, composed, denoising_scores, logged, scores, with_callback
from lightning.pytorch.callbacks import Callback
from PIL import Image

from unet_diffusion.commands.train import train
from unet_diffusion.diffusion.noise import seeded_noise
from unet_diffusion.images import image_grid
from unet_diffusion.runs.checkpoints import load_checkpoint
from unet_diffusion.runs.run import Run, Weights
from unet_diffusion.samplers import DDIMSampler

EMA_RUN = (
    *("ema=default", "ema.decay=0.8", "noise=uniform"),
    *("sampler=ddim", "sampler.steps=3", "trainer.max_steps=12", "trainer.val_check_interval=6"),
)


class ReferenceEMA(Callback):
    """ema = decay * ema + (1 - decay) * raw, from the weights of the first step on."""

    def __init__(self) -> None:
        self.raw: dict[str, torch.Tensor] = {}
        self.ema: dict[str, torch.Tensor] = {}
        self.steps = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        parameters = pl_module.denoiser.named_parameters()
        self.raw = {name: value.detach().clone() for name, value in parameters}
        decay = min(0.8, (1 + self.steps) / (10 + self.steps)) if self.steps else 0
        self.ema = {
            name: decay * self.ema.get(name, value) + (1 - decay) * value
            for name, value in self.raw.items()
        }
        self.steps += 1


EMARun = tuple[Run, ReferenceEMA]


@pytest.fixture(scope="module")
def ema_run(tmp_path_factory: pytest.TempPathFactory) -> EMARun:
    """A run with EMA, and the average computed independently."""
    torch.set_num_threads(1)
    path, reference = tmp_path_factory.mktemp("runs") / "ema", ReferenceEMA()
    with pytest.MonkeyPatch.context() as monkeypatch:
        with_callback(monkeypatch, reference)
        train(composed(*SMALL, *EMA_RUN, f"run_dir={path}"))
    return Run.open(path), reference


def mse(run: Run, split: str, checkpoint: str, weights: Weights) -> float:
    return denoising_scores(run, split, checkpoint, weights)[f"{split}/mse"]


def test_checkpoint_contains_ema_and_raw_weights(ema_run: EMARun):
    run, reference = ema_run
    state = load_checkpoint(run.checkpoint_path("last"))["state_dict"]
    for name, value in reference.ema.items():
        raw = state[f"denoiser.{name}"]
        assert torch.equal(raw, reference.raw[name])
        torch.testing.assert_close(state[f"ema_denoiser.{name}"], value)
        assert not torch.equal(raw, value) or not raw.any()
    for selected, expected in (("auto", reference.ema), ("raw", reference.raw)):
        for name, value in run.load_denoiser("last", selected).named_parameters():
            torch.testing.assert_close(value.detach(), expected[name])


def test_validation_and_test_scores_are_those_of_the_ema(ema_run: EMARun):
    run, _ = ema_run
    loss = logged(run.path, "val/loss")[11]
    assert loss == pytest.approx(mse(run, "val", "last", "ema"), rel=1e-4)
    assert loss != pytest.approx(mse(run, "val", "last", "raw"), rel=1e-3)
    score = scores(run.path)["test/mse"]
    assert score == pytest.approx(mse(run, "test", "best", "ema"), rel=1e-4)
    assert score != pytest.approx(mse(run, "test", "best", "raw"), rel=1e-3)


def test_previews_show_the_ema(ema_run: EMARun):
    run, _ = ema_run
    shown = np.asarray(Image.open(run.path / "previews" / "generated-000012.png")).astype(int)
    eps = seeded_noise(0, range(16), (1, 16, 16))
    difference = {}
    for selected in ("ema", "raw"):
        with torch.inference_mode():
            denoiser = run.load_denoiser("last", selected)
            images = DDIMSampler(3, clip="static").sample(denoiser, eps).images
        grid = image_grid(images, columns=8).permute(1, 2, 0).numpy()
        difference[selected] = np.abs(grid.astype(int) - shown).max()
    assert difference["ema"] <= 1 < difference["raw"]


def test_batchnorm_statistics_are_those_of_the_raw_model(ema_run: EMARun):
    state = load_checkpoint(ema_run[0].checkpoint_path("last"))["state_dict"]
    buffers = [name for name in state if name.endswith(("running_mean", "running_var"))]
    raw = [name for name in buffers if name.startswith("denoiser.")]
    assert len(buffers) == 2 * len(raw) > 0
    assert all(torch.equal(state[f"ema_{name}"], state[name]) for name in raw)
