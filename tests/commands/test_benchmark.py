"""Benchmarks measure what they claim to. No test asks how fast anything is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SMALL, Script

from unet_diffusion.commands import benchmark as command
from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.evaluation import timing
from unet_diffusion.experiment.compose import compose, read_arguments

Run = Callable[..., tuple[dict[str, Any], str]]
CPU = torch.device("cpu")
STEPS = ("benchmark_steps=2", "benchmark_warmup_steps=1", "benchmark_rounds=2")
TINY = (*SMALL, *STEPS, "num_samples=6", "batch_sizes=[2,4]", "callbacks.previews=null")


@pytest.fixture
def run(script: Script, tmp_path: Path) -> Run:
    """Runs scripts/benchmark.py; returns the record and the standard output."""

    def benchmark(name: str, *overrides: str) -> tuple[dict[str, Any], str]:
        status, out, err = script("benchmark", f"benchmark={name}", *TINY, *overrides)
        assert status == 0, err
        assert [path.name for path in tmp_path.iterdir()] == ["benchmarks"]
        return json.loads((tmp_path / "benchmarks" / f"{name}.json").read_text()), out

    return benchmark


def make_setup(*overrides: str) -> command.Setup:
    arguments = read_arguments(compose("benchmark", [*TINY, *overrides]), command.Arguments)
    return command.Setup(arguments, command.build_experiment(arguments), CPU)


def test_table_has_medians_and_ratios_within_a_round():
    rows = timing.rate_rows({"base": [1.0, 2.0, 4.0], "new": [3.0, 4.0, 4.0]}, ["base"])
    assert timing.markdown_table(rows).splitlines() == [
        "|      |         images/s |              / base |",
        "|:-----|-----------------:|--------------------:|",
        "| base | 2.0 (1.0 to 4.0) | 1.00 (1.00 to 1.00) |",
        "| new  | 4.0 (3.0 to 4.0) | 2.00 (1.00 to 3.00) |",
    ]


def test_lesson_loop_has_the_images_of_the_image_cache(mini: ImageDataModule):
    dataset = command.PILDataset(mini.source.load("train", None), mini.image_size)
    cached = mini.splits["train"].cached.images[:50, ..., 0] / 127.5 - 1
    for index in range(50):
        image, label = dataset[index]
        views = (image[0].numpy(), image[0].flip(-1).numpy())
        # PIL and torchvision round differently.
        assert min(np.abs(view - cached[index]).mean() for view in views) < 0.02
        assert label == dataset.raw.labels[index]


@pytest.mark.parametrize("name", ["lesson_loop", "bare_loop"])
def test_loops_train(name: str):
    torch.manual_seed(0)
    loop = command.LOOPS[name](make_setup("optimizer.lr=1e-3"))
    before = np.mean([loop.loss().item() for _ in range(4)])
    for _ in range(20):
        loop.step()
    assert np.mean([loop.loss().item() for _ in range(4)]) < 0.98 * before


def test_throughput_runs_all_cases(run: Run):
    cases = "lesson_loop,bare_loop,trainer"
    record, out = run("throughput", f"benchmark_cases=[{cases}]")
    assert set(record["images_per_second"]) == set(cases.split(","))
    assert (record["threads"], record["precision"]) == (1, "32-true")
    assert record["processor"] in out
    assert "benchmark_steps=2" in record["overrides"]
    warmup, last_step = command.StepTimer.times
    assert warmup < last_step
    for rates in record["images_per_second"].values():
        assert f"{np.mean(rates):,.1f} ({min(rates):,.1f} to {max(rates):,.1f})" in out


@pytest.mark.parametrize(("target", "steps", "seeds"), [(100, 2, 2), (1e-9, 4, 1)])
def test_time_to_mse_stops_at_the_target_or_limit(run: Run, target: float, steps: int, seeds: int):
    limits = (f"benchmark_rounds={seeds}", "max_lesson_steps=3", "trainer.max_steps=3")
    record, out = run("time_to_mse", f"target_mse={target}", "data.batch_size=250", *limits)
    assert record["lesson_loop"]["steps"] == steps
    assert ("at least" in out) == (target < 1)
    assert record["trainer, seed 0"]["steps"] == 3
    assert len({each["mse"] for name, each in record.items() if "seed" in name}) == seeds


def test_time_to_fd_scores_each_seed(run: Run):
    limits = ("benchmark_rounds=2", "trainer.max_steps=3", "scored_samples=200", "target_fd=1e-9")
    overrides = ("sampler=ddim", "sampler.steps=2", "data.batch_size=250")
    record, out = run("time_to_fd", *overrides, *limits)
    scores = [record[f"seed {seed}"] for seed in (0, 1)]
    assert [(each["steps"], each["nfe"]) for each in scores] == [(3, 2)] * 2
    assert scores[0]["frechet_distance"] != scores[1]["frechet_distance"]
    assert "at most 1e-09 for 0 of 2 seeds; real training images 0." in out


def test_sampling_is_compared_with_bare_evaluations(run: Run):
    record, out = run("sampling", "sampler=heun", "sampler.steps=2")
    assert record["nfe"] == 3
    assert len(record["images_per_second"]) == 4
    assert "| sampler, batches of 4 " in out
