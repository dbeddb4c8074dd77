"""A training of a generator: classes, levels, what it shows and what it saves."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import composed
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unet_diffusion.data.datamodule import Batch
from unet_diffusion.training import hardware
from unet_diffusion.training.building import build_module
from unet_diffusion.training.hardware import fast_precision


def test_labels_are_dropped_image_by_image():
    torch.manual_seed(0)
    draws = build_module(composed("label_dropout=0.25"), (16, 16)).draws
    label = torch.arange(10).repeat(1000)
    batch = Batch(torch.zeros(10_000, 1, 1, 1), label, torch.arange(10_000))
    dropped = draws.for_batch(batch, 0).label
    gone = dropped == -1
    assert gone.float().mean().item() == pytest.approx(0.25, abs=0.015)
    assert torch.equal(dropped[~gone], label[~gone])
    # in every batch of ten some are gone and some are not, and hardly two batches are alike
    by_batch = gone.view(1000, 10)
    assert 0.9 < by_batch.any(dim=1).float().mean() < 0.98  # 1 - 0.75^10 = 0.944
    assert not torch.equal(draws.for_batch(batch, 1).label, dropped)
    draws.label_dropout = 0.0
    assert torch.equal(draws.for_batch(batch, 2).label, label)


def test_training_tells_the_network_the_label_and_drops_it(generator: Path, monkeypatch: pytest.MonkeyPatch):
    config = yaml.safe_load((generator / "config.yaml").read_text())
    assert config["num_classes"] == config["model"]["num_classes"] == 10
    assert config["class_names"][7] == "sneaker"
    module = build_module(composed("experiment=06_classes", "num_classes=10", "model.channels=[16]"), (16, 16))
    seen = []
    module.denoiser.net.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[2]))
    monkeypatch.setattr("unet_diffusion.training.module.is_logged", lambda _: False)
    batch_of = composed("experiment=06_classes").data.batch_size
    label = torch.arange(batch_of) % 10
    for _ in range(5):
        module.training_step(Batch(torch.zeros(batch_of, 1, 16, 16), label, torch.arange(batch_of)), 0)
    told = torch.stack(seen)
    assert (told == -1).float().mean().item() == pytest.approx(0.1, abs=0.05)
    assert (told[told != -1] == label.expand(5, -1)[told != -1]).all()


def test_tensorboard_shows_the_loss_by_level(generator: Path):
    events = EventAccumulator(str(generator)).Reload()
    by_level = {tag for tag in events.Tags()["scalars"] if tag.startswith("val_by_level/")}
    assert by_level == {f"val_by_level/loss_{edge}" for edge in ("0-0.2", "0.2-0.4", "0.4-0.6", "0.6-0.8", "0.8-1")}
    overall = events.Scalars("val/loss")[-1].value
    losses = [events.Scalars(tag)[-1].value for tag in by_level]
    assert min(losses) < overall < max(losses)


def test_pictures_show_several_levels_and_a_row_a_class(generator: Path):
    denoised = np.asarray(Image.open(generator / "pictures" / "denoised-000008.png"))[..., 0]
    assert denoised.shape == (11 * 66 + 2, 8 * 66 + 2)  # clean, then noisy and denoised at five levels
    clean, *noisy = (denoised[66 * row + 2 : 66 * row + 66 : 4].astype(float) for row in (0, 1, 3, 5, 7, 9))
    off = [np.abs(row - clean).mean() for row in noisy]
    assert off == sorted(off)  # more noise from level to level
    drawn = np.asarray(Image.open(generator / "pictures" / "drawn-000008.png"))
    assert drawn.shape == (10 * 66 + 2, 8 * 66 + 2, 3)


def test_the_same_noise_is_drawn_from_every_time_and_is_not_the_trainings(trained: Callable[..., Path]):
    """Also by a sampler that adds noise on the way."""
    typed = ("sampler=ancestral", "sampler.steps=3", "noise=uniform", "model=unet", "model.channels=[16]")
    typed += ("trainer.max_steps=4", "optimizer.lr=1e-12", "lr_schedule=constant", "trainer.log_every_n_steps=1")
    once, often = trained(*typed), trained(*typed, "trainer.val_check_interval=1")
    for name in ("drawn", "denoised"):
        first, second = (np.asarray(Image.open(often / "pictures" / f"{name}-00000{i}.png")).astype(int) for i in (1, 2))
        assert np.abs(first - second).max() <= 1
    # the losses and not the weights: those of a network that begins as nothing follow every last bit of its gradients
    losses = []
    for run in (once, often):
        rows = csv.DictReader((run / "metrics.csv").read_text().splitlines())
        losses.append([float(row["train/loss"]) for row in rows if row["train/loss"]])
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(("amx", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_bf16_is_chosen_where_it_is_fast(monkeypatch: pytest.MonkeyPatch, amx: bool, expected: str):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(hardware.torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx}, raising=False)
    assert fast_precision("auto") == expected


def test_a_gpu_decides_for_itself(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for supported, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, s=supported: s)
        assert fast_precision("auto") == expected


def test_what_auto_became_is_saved(trained: Callable[..., Path]):
    run = trained("precision=auto", "trainer.max_steps=1")
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["precision"] in ("bf16-mixed", "32-true")
