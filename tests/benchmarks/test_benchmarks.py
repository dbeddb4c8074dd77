"""Benchmarks: that they measure what they say. How fast anything is, no test asks."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SMALL, composed
from PIL import Image
from torch import nn

from unet_diffusion.benchmarks.loops import PilImages, bare_loop, lesson_loop, training_flops
from unet_diffusion.benchmarks.memory import peak_of
from unet_diffusion.benchmarks.stopwatch import noted, with_stopwatch
from unet_diffusion.benchmarks.study import table
from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.parts import build, build_denoiser
from unet_diffusion.training.experiment import train

Script = Callable[..., tuple[int, str, str]]
CPU = torch.device("cpu")


def test_operations_are_those_of_the_layers():
    """A product for every weight and place, forward and twice backward, but for the gradient of the images."""
    cfg = composed("model=lesson")
    denoiser = build_denoiser(cfg)
    forward: list[int] = []

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        places = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        forward.append(2 * layer.weight.numel() * len(places) * (places[0, 0].numel() if places.ndim == 4 else 1))

    for layer in denoiser.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            layer.register_forward_hook(count)
    denoiser(torch.zeros(4, 1, 16, 16), torch.full((4,), 0.5))
    assert training_flops(cfg, 4) == 3 * sum(forward) - forward[0]


def test_the_lessons_loop_sees_the_images_that_we_see(mini: ImageDataModule):
    source = build(composed(), "data").source
    raw = source.open("train", None)
    images = raw.read(0, 50)[:, 0].numpy()
    dataset = PilImages(images, raw.labels[:50], 16)
    torch.manual_seed(0)
    cached = mini.splits["train"].cached.images[:50, ..., 0] / 127.5 - 1
    for number in range(50):
        image, label = dataset[number]
        both = [np.abs(view - cached[number]).mean() for view in (image[0].numpy(), image[0].flip(-1).numpy())]
        assert min(both) < 0.02  # PIL's resizing and torchvision's differ by a rounding here and there
        assert label == raw.labels[number]


@pytest.mark.parametrize("loop", [lambda cfg: lesson_loop(cfg, CPU), lambda cfg: bare_loop(cfg, CPU, channels_last=True)])
def test_loops_train(loop: Callable):
    torch.manual_seed(0)
    made = loop(composed(*SMALL, "optimizer.lr=1e-3"))
    losses = [float(made.step()) for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_the_stopwatch_notes_a_training_in_order(tmp_path: Path):
    job = with_stopwatch(composed(*SMALL), 4, tmp_path / "times", warm_up=2)
    train(job, tmp_path / "run")
    times = noted(tmp_path / "times")
    assert list(times) == ["first_step", "warm", "last_step", "fit_end", "test_end"]
    assert all(len(each) == 1 for each in times.values())
    assert sorted(times.values()) == list(times.values())


def test_the_peak_of_memory_is_that_of_the_work():
    million = 2**20 // 4  # numbers of four bytes
    kept = torch.ones(3000 * million)  # of this process, which a new one has nothing to do with
    assert peak_of(torch.ones, 800 * million) - peak_of(torch.ones, 500 * million) == pytest.approx(300, abs=10)
    del kept


def test_a_benchmark_leaves_a_record_and_a_plot(script: Script, tmp_path: Path):
    quick = ("benchmark.study.steps=2", "benchmark.study.warm_up=1", "benchmark.study.rounds=3", "trainer.val_check_interval=2")
    status, out, err = script("benchmark", *SMALL, *quick)
    assert status == 0, err
    record = json.loads((tmp_path / "benchmarks" / "speed.json").read_text())
    assert set(record["rates"]) == {"lesson_loop", "limit", "ours", "ours_with_validation"}
    for name, each in record["rates"].items():
        assert record["images_per_second"][name] == sorted(each)[1]
        assert f"{sorted(each)[1]:,.0f}" in out
    ratios = sorted(a / b for a, b in zip(record["rates"]["ours"], record["rates"]["limit"], strict=True))
    assert f"{ratios[1]:.2f} ({ratios[0]:.2f}-{ratios[2]:.2f})" in out
    assert np.asarray(Image.open(tmp_path / "benchmarks" / "speed.png").convert("L")).std() > 10
    assert {path.name for path in tmp_path.iterdir()} == {"benchmarks"}


def test_time_to_quality_ends_where_the_target_is_reached(script: Script, tmp_path: Path):
    study = ("benchmark=quality", "benchmark.study.every=2", "benchmark.study.rounds=2", "benchmark.study.most=6")
    status, out, err = script("benchmark", *study, *SMALL, "trainer.max_steps=3", "benchmark.study.target=100")
    assert status == 0, err
    record = json.loads((tmp_path / "benchmarks" / "quality.json").read_text())
    assert [look["steps"] for look in record["lesson_loop"]] == [2]
    assert [entry["steps"] for entry in record["ours"]] == [3, 3]
    assert record["ours"][0]["mse"] != record["ours"][1]["mse"]  # other seeds
    status, out, err = script("benchmark", *study, *SMALL, "trainer.max_steps=3", "benchmark.study.target=1e-4")
    assert "as fast, at least" in out  # the lesson's loop was given up


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["benchmark.study.cases=[ours,theirs]"], "must be some of lesson_loop"),
        (["benchmark.study.steps=0"], "benchmark.study.steps=0 must be"),
        (["benchmark=sampling", "benchmark.study.batch_sizes=[0]"], "batch_sizes=0 must be"),
        (["benchmark=nothing"], "nothing"),
    ],
)
def test_mistakes_are_said(script: Script, tmp_path: Path, typed: list[str], said: str):
    status, _, err = script("benchmark", *typed)
    assert status == 2
    assert said in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_table_has_straight_columns():
    lines = table(["", "one", "two"], [["a", "1", "22222"], ["long name", "333", "4"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2] == "| a         |   1 | 22222 |"


def test_a_profile_accounts_for_all_of_a_step(script: Script, tmp_path: Path):
    quick = ("benchmark.study.steps=3", "benchmark.study.warm_up=2")
    status, out, err = script("benchmark", "benchmark=profile", *SMALL, *quick)
    assert status == 0, err
    taken = json.loads((tmp_path / "benchmarks" / "profile.json").read_text())["milliseconds"]
    assert any("DataLoader" in name for name in taken["lesson_loop"])
    for each in taken.values():
        assert all(ms >= 0 for ms in each.values())
        assert sum(ms for name, ms in each.items() if "conv" in name) > 0.05 * sum(each.values())
    for name, each in taken.items():
        assert f"{name}: {sum(each.values()):.1f} ms a step" in out


@pytest.mark.slow
def test_a_made_up_dataset_is_converted_and_trained_on(script: Script, tmp_path: Path):
    quick = ("benchmark.study.counts=[10000,20000]", "benchmark.study.steps=2", "benchmark.study.rounds=1")
    status, out, err = script("benchmark", "benchmark=many", "data.batch_size=16", "model.channels=[4,8]", *quick)
    assert status == 0, err
    entries = json.loads((tmp_path / "benchmarks" / "many.json").read_text())["entries"]
    assert set(entries) == {"10000", "20000"}
    assert entries["20000"]["converting_mib"] == pytest.approx(entries["10000"]["converting_mib"], rel=0.05)
    assert "20,000" in out
    assert {path.name for path in (tmp_path / "benchmarks").iterdir()} == {"many.json", "many.png"}


@pytest.mark.slow
def test_peers_train_beside_ours(script: Script, tmp_path: Path):
    pytest.importorskip("diffusers")
    pytest.importorskip("denoising_diffusion_pytorch")
    quick = ("benchmark.study.steps=2", "benchmark.study.warm_up=1", "benchmark.study.rounds=1", "benchmark.study.width=8")
    status, _, err = script("benchmark", "benchmark=peers", *SMALL, "benchmark.study.channels=[32]", *quick)
    assert status == 0, err
    record = json.loads((tmp_path / "benchmarks" / "peers.json").read_text())
    assert set(record["images_per_second"]) == {"ours", "our bare loop", "denoising-diffusion-pytorch", "diffusers"}
    assert all(each > 0 for each in record["gflop_per_image"].values())
