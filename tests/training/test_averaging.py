"""Which weights each part of the program uses."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SMALL, composed, with_callback
from lightning.pytorch.callbacks import Callback
from PIL import Image

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.diffusion import image_noise
from unet_diffusion.errors import UserError
from unet_diffusion.evaluation.evaluate import evaluate
from unet_diffusion.images import grid
from unet_diffusion.inference.sample import sample
from unet_diffusion.runs import Run
from unet_diffusion.samplers import DDIM
from unet_diffusion.saved_checkpoint import load_checkpoint
from unet_diffusion.training import experiment
from unet_diffusion.training.averaging import EMA
from unet_diffusion.training.building import build_module

CPU = torch.device("cpu")
TYPED = (
    "averaging=ema",
    "averaging.decay=0.8",
    "model=unet",
    "model.channels=[16]",
    "noise=uniform",
    "sampler=ddim",
    "sampler.steps=3",
    "trainer.max_steps=12",
    "trainer.val_check_interval=6",
)


class Follow(Callback):
    """Averages the weights in its own way: ema = decay * ema + (1 - decay) * live, from the first step's weights on."""

    def __init__(self) -> None:
        self.average: dict[str, torch.Tensor] = {}
        self.steps = 0

    def on_train_batch_end(self, trainer, pl_module, *_):
        live = {name: value.detach().clone() for name, value in pl_module.denoiser.named_parameters()}
        decay = min(0.8, (1 + self.steps) / (10 + self.steps))
        self.average = {n: decay * self.average[n] + (1 - decay) * v if self.steps else v for n, v in live.items()}
        self.live, self.steps = live, self.steps + 1


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Follow]:
    """A run with an average, and that average worked out beside it."""
    path, follow = tmp_path_factory.mktemp("runs") / "averaged", Follow()
    with pytest.MonkeyPatch.context() as patch:
        with_callback(patch, follow)
        experiment.train(composed(*SMALL, *TYPED), path, TYPED)
    return Run.open(path), follow


def test_the_checkpoint_holds_both(averaged: tuple[Run, Follow]):
    run, follow = averaged
    content = load_checkpoint(run.checkpoint("last"))
    for name, value in follow.average.items():
        torch.testing.assert_close(content["state_dict"][f"denoiser.{name}"], value)
        torch.testing.assert_close(content["current_model_state"][f"denoiser.{name}"], follow.live[name])
        assert torch.equal(follow.live[name], value) == (not follow.live[name].any())


def test_either_can_be_loaded(averaged: tuple[Run, Follow]):
    run, follow = averaged
    for weights, expected in (("auto", follow.average), ("ema", follow.average), ("raw", follow.live)):
        denoiser = run.load_denoiser("last", CPU, weights)
        assert run.chosen_weights(weights) == ("raw" if weights == "raw" else "ema")
        for name, value in denoiser.named_parameters():
            torch.testing.assert_close(value.detach(), expected[name])


def val_loss(run: Run, mini: ImageDataModule, weights: str) -> float:
    module = build_module(run.config, (16, 16))
    module.denoiser.load_state_dict(run.load_denoiser("last", CPU, weights).state_dict())
    batch = mini.splits["val"].__getitems__(range(len(mini.splits["val"])))
    with torch.inference_mode():
        return float(module.eval().denoiser.loss(batch.x0, *module.fixed_noise(batch), batch.label))


def test_validation_uses_the_average(averaged: tuple[Run, Follow], mini: ImageDataModule):
    run, _ = averaged
    lines = (run.path / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("val/loss")
    last = float([line.split(",")[column] for line in lines[1:] if line.split(",")[column]][-1])
    assert last == pytest.approx(val_loss(run, mini, "ema"), rel=1e-4)
    assert last != pytest.approx(val_loss(run, mini, "raw"), rel=1e-3)


def test_pictures_use_the_average(averaged: tuple[Run, Follow]):
    run, _ = averaged
    shown = np.asarray(Image.open(run.path / "pictures" / "drawn-000012.png")).astype(int)
    eps = image_noise(0, range(16), (1, 16, 16))
    off = {}
    for weights in ("ema", "raw"):
        drawn = DDIM(3, clipping="static").sample(run.load_denoiser("last", CPU, weights), eps)
        off[weights] = np.abs(grid(drawn, columns=8).permute(1, 2, 0).numpy() - shown).max()
    assert off["ema"] <= 1
    assert off["raw"] > 1


def test_the_test_scores_are_the_averages(averaged: tuple[Run, Follow], mini: ImageDataModule):
    run, _ = averaged
    test = json.loads((run.path / "metrics.json").read_text())["scores"]["test/mse"]
    batch = mini.splits["test"].__getitems__(range(len(mini.splits["test"])))
    module = build_module(run.config, (16, 16)).eval()
    eps, t = module.fixed_noise(batch)
    mse = {}
    for weights in ("ema", "raw"):
        denoiser = run.load_denoiser("best", CPU, weights)
        with torch.inference_mode():
            mse[weights] = float((denoiser(denoiser.schedule.mix(batch.x0, eps, t), t) - batch.x0).square().mean())
    assert test == pytest.approx(mse["ema"], rel=1e-4)
    assert test != pytest.approx(mse["raw"], rel=1e-3)


def test_sampling_uses_the_average_unless_raw_is_asked_for(averaged: tuple[Run, Follow], tmp_path: Path):
    run, _ = averaged
    drawn = {}
    for weights in ("auto", "ema", "raw"):
        typed = (f"run={run.path}", "num_images=4", f"weights={weights}", f"output={tmp_path / weights}")
        with np.load(sample(composed(*typed, config="sample")) / "samples.npz") as arrays:
            drawn[weights] = arrays["arr_0"].astype(int)
    assert np.array_equal(drawn["auto"], drawn["ema"])
    assert np.abs(drawn["raw"] - drawn["ema"]).max() > 1


@pytest.mark.parametrize("weights", ["auto", "ema", "raw"])
def test_evaluation_uses_the_weights_it_names(averaged: tuple[Run, Follow], mini: ImageDataModule, weights: str):
    run, _ = averaged
    typed = (f"run={run.path}", f"weights={weights}", "levels=[0.4]", "num_images=0")
    record = evaluate(composed(*typed, config="evaluate"))
    batch = mini.splits["test"].__getitems__(range(len(mini.splits["test"])))
    t, eps = torch.full((len(batch.x0),), 0.4), image_noise(0, range(len(batch.x0)), (1, 16, 16))
    mse = {}
    for name in ("ema", "raw"):
        denoiser = run.load_denoiser("best", CPU, name)
        with torch.inference_mode():
            mse[name] = float((denoiser(denoiser.schedule.mix(batch.x0, eps, t), t) - batch.x0).square().mean())
    used = "raw" if weights == "raw" else "ema"
    assert record["weights"] == used
    assert record["levels"][0]["network"]["mse"] == pytest.approx(mse[used], rel=1e-4)
    assert mse["ema"] != pytest.approx(mse["raw"], rel=1e-3)


def test_a_run_without_an_average_has_none_to_give(short_run: Path):
    run = Run.open(short_run)
    assert run.chosen_weights("auto") == run.chosen_weights("raw") == "raw"
    with pytest.raises(UserError, match=r"weights=ema: .* kept no average"):
        run.load_denoiser("best", CPU, "ema")
    with pytest.raises(UserError, match="weights=old must be ema, raw or auto"):
        run.load_denoiser("best", CPU, "old")


def test_batch_norms_statistics_follow_the_live_network(trained: Callable[..., Path]):
    run = trained("averaging=ema", "trainer.max_steps=4")
    content = load_checkpoint(run / "checkpoints" / "last.ckpt")
    live = content["current_model_state"]
    statistics = [name for name in live if name.endswith(("running_mean", "running_var"))]
    assert statistics
    assert all(torch.equal(content["state_dict"][name], live[name]) for name in statistics)


@pytest.mark.parametrize("decay", [1, 1.5, -0.1, "slow"])
def test_an_impossible_decay_is_refused(decay: object):
    with pytest.raises(ValueError, match=r"^decay="):
        EMA(decay)
