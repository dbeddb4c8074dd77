"""The benchmarks of scripts/benchmark.py, and the training loops that they compare."""

import contextlib
import io
import itertools
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, RandomHorizontalFlip, Resize, ToTensor
from torchvision.transforms.functional import to_pil_image

from unet_diffusion.benchmarks import harness
from unet_diffusion.benchmarks.harness import Cases, Setup, seconds_for, temporary_run
from unet_diffusion.config import build_datamodule, build_denoiser, instantiate
from unet_diffusion.data.sources import RawSplit, read_image
from unet_diffusion.diffusion import Denoiser, LinearSchedule, X0Prediction, seeded_noise
from unet_diffusion.evaluation.denoising import denoising_scores
from unet_diffusion.evaluation.feature_extractor import load_feature_extractor
from unet_diffusion.evaluation.generation_scores import GenerationScorer
from unet_diffusion.generation.pipeline import Pipeline, sample_images
from unet_diffusion.hardware import accelerator_device, prefers_channels_last, set_memory_format
from unet_diffusion.images import to_uint8
from unet_diffusion.runs import write_json
from unet_diffusion.training.train import apply_speed_settings, build_module, select_precision

Result = tuple[dict[str, Any], str]  # what the record contains, and a Markdown table


@dataclass(frozen=True)
class Loop:
    """A plain training loop."""

    net: nn.Module
    optimizer: Optimizer
    loss: Callable[[], Tensor]  # of the next batch

    def step(self) -> None:
        loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


class PILDataset(Dataset[tuple[Tensor, int]]):
    """A dataset as in torchvision: every access makes a PIL image and applies transforms."""

    def __init__(self, raw: RawSplit, image_size: tuple[int, int]) -> None:
        self.raw = raw
        self.transform = Compose([Resize(image_size), ToTensor(), RandomHorizontalFlip()])

    def __len__(self) -> int:
        return len(self.raw.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        raw = self.raw.images[index]
        image = to_pil_image(raw if isinstance(raw, np.ndarray) else read_image(raw))
        return self.transform(image) * 2 - 1, int(self.raw.labels[index])


def lesson_loop(setup: Setup, batch_size: int | None = None) -> Loop:
    """What a reader of the lesson writes: PIL transforms, DataLoader, eager fp32, Adam at 1e-4."""
    data, device, percent = setup.datamodule, setup.device, 0.5
    dataset = PILDataset(data.source.load("train", data.root), data.image_size)
    loader = DataLoader(dataset, batch_size or data.batch_size, shuffle=True, drop_last=True)
    batches = (batch for _ in itertools.count() for batch in loader)
    net: nn.Module = instantiate(setup.cfg, "model").to(device)

    def loss() -> Tensor:
        x0 = next(batches)[0].to(device)
        xt = x0 * (1 - percent) + torch.randn_like(x0) * percent
        t = torch.full((len(x0),), percent, device=device)
        return nn.functional.mse_loss(net(xt, t), x0)

    return Loop(net, torch.optim.Adam(net.parameters(), lr=1e-4), loss)


def bare_loop(setup: Setup) -> Loop:
    """The denoising loss with the config's network, optimizer and precision; not compiled.

    Up to 50 batches of training images (B, C, H, W) are on the device.
    """
    cfg = setup.cfg.copy()
    cfg.speed.update(compile=False, images_on_device=False)
    module = build_module(cfg, setup.datamodule).to(setup.device)
    apply_speed_settings(cfg, module, setup.datamodule, setup.device)
    denoiser: Denoiser = module.denoiser
    split, size = setup.datamodule.splits["train"], setup.datamodule.batch_size
    images = split.__getitems__(range(min(len(split), 50 * size) // size * size)).x0
    batches = itertools.cycle(torch.split(images.to(setup.device), size))

    def loss() -> Tensor:
        x0 = next(batches)
        t = module.time_distribution.sample(len(x0), device=setup.device)
        with torch.autocast(setup.device.type, setup.dtype, setup.dtype != torch.float32):
            return denoiser.loss(x0, torch.randn_like(x0), t)

    return Loop(denoiser.net, module.optimizer(denoiser.parameters()), loss)


LOOPS: dict[str, Callable[[Setup], Loop]] = {"lesson_loop": lesson_loop, "bare_loop": bare_loop}


def loop_rate(setup: Setup, loop: Loop) -> float:
    """Images per second of a loop, after its warm-up steps."""
    seconds_for(setup.benchmark_warmup_steps, loop.step, setup.device)
    seconds = seconds_for(setup.benchmark_steps, loop.step, setup.device)
    return setup.benchmark_steps * setup.datamodule.batch_size / seconds


def trainer_rate(setup: Setup) -> float:
    """Images per second of the training script, without validations."""
    last = setup.benchmark_warmup_steps + setup.benchmark_steps
    steps = {"max_steps": last, "val_check_interval": last, "accumulate_grad_batches": 1}
    short = {"limit_val_batches": 1, "limit_test_batches": 1}
    with temporary_run(setup, setup.cfg.seed, max_time=None, **steps, **short):
        start, end = harness.StepTimer.times
    return setup.benchmark_steps * setup.datamodule.batch_size / (end - start)


def throughput(setup: Setup) -> Result:
    """Training images per second of several cases."""
    names = setup.benchmark_cases
    loops = {name: LOOPS[name](setup) for name in names if name in LOOPS}
    cases: Cases = {name: partial(loop_rate, setup, loop) for name, loop in loops.items()}
    if "trainer" in names:
        cases["trainer"] = partial(trainer_rate, setup)
    rates = harness.run_rounds(cases, setup.benchmark_rounds)
    table = harness.markdown_table(harness.rate_rows(rates, list(loops)))
    return {"images_per_second": rates}, table


def time_to_mse(setup: Setup) -> Result:
    """Seconds of training until the test MSE at t = 0.5 is at most `target_mse`.

    The lesson's loop has batches of 128. It is scored every `benchmark_steps` steps, which is not
    counted. The trainer trains with the seeds 0, 1, ...; its validations are counted.
    """
    results = {}
    for seed in range(setup.benchmark_rounds):
        with temporary_run(setup, seed, max_time=None) as run:
            metrics = run.metrics or {}
        result = {key: metrics[key] for key in ("seconds", "steps")}
        results[f"trainer, seed {seed}"] = result | {"mse": metrics["scores"]["test/mse"]}
    trainer_seconds = statistics.median(each["seconds"] for each in results.values())

    torch.manual_seed(0)
    loop = lesson_loop(setup, batch_size=128)
    denoiser = Denoiser(loop.net, LinearSchedule(), X0Prediction())
    steps, seconds, mse = 0, 0.0, float("inf")
    while mse > setup.target_mse and steps < setup.max_lesson_steps:
        seconds += seconds_for(setup.benchmark_steps, loop.step, setup.device)
        steps += setup.benchmark_steps
        denoiser.eval()
        batches, noise_seed = setup.datamodule.test_dataloader(), setup.cfg.noise_seed
        (level,) = denoising_scores(denoiser, batches, [0.5], noise_seed)
        mse = level["scores"]["network"]["mse"]
        denoiser.train()
        print(f"lesson_loop: {seconds:.1f} s, {steps} steps, MSE {mse:.4f}", file=sys.stderr)
    results["lesson_loop"] = {"seconds": seconds, "steps": steps, "mse": mse}

    factor = f"{'at least ' * (mse > setup.target_mse)}{seconds / trainer_seconds:.1f}"
    note = f"Target: {setup.target_mse:g}, for all. The trainer is {factor} times as fast."
    return results, f"{harness.markdown_table(results)}\n\n{note}"


def time_to_fd(setup: Setup) -> Result:
    """Frechet distance after trainings of `trainer.max_time` with the seeds 0, 1, ...

    The record is the shortest time at which every seed reaches `target_fd`. Each time needs a
    separate training, because the learning rate decays to zero at its end. Validations are counted;
    the test and the sampling are not.
    """
    extractor = load_feature_extractor("auto", setup.datamodule.source.name)
    scorer = GenerationScorer(setup.datamodule, extractor, setup.scored_samples)
    results = {}
    for seed in range(setup.benchmark_rounds):
        with temporary_run(setup, seed) as run:
            output = Pipeline.from_pretrained(run, device=str(setup.device))(setup.scored_samples)
            scores, _ = scorer.score(to_uint8(output.images), None)
            metrics = run.metrics or {}
        result = {key: metrics[key] for key in ("seconds", "steps", "images_seen")}
        result |= {"nfe": output.nfe} | scores["metrics"]
        print(f"seed {seed}: {result}", file=sys.stderr)
        results[f"seed {seed}"] = result
    distances = [each["frechet_distance"] for each in results.values()]
    reached = sum(distance <= setup.target_fd for distance in distances)
    real = scores["real_baseline"]["frechet_distance"]
    note = f"Frechet distance {harness.spread(distances, '.3f')}, at most {setup.target_fd:g} for "
    note += f"{reached} of {len(distances)} seeds; real training images {real:.3f}."
    return results, f"{harness.markdown_table(results)}\n\n{note}"


@torch.inference_mode()
def sampling(setup: Setup) -> Result:
    """Generated images per second against the bare network evaluations that they cost."""
    device, num_samples = setup.device, setup.num_samples
    denoiser = build_denoiser(setup.cfg).to(device).eval()  # speed does not depend on weights
    set_memory_format(denoiser.net, prefers_channels_last(device))
    sampler = instantiate(setup.cfg, "sampler")
    arguments: dict[str, Any] = {"device": device, "dtype": setup.dtype}
    eps = seeded_noise(0, range(num_samples), setup.datamodule.image_shape)
    nfe = sample_images(denoiser, sampler, eps[:2], **arguments).nfe

    def bare_rate(size: int) -> float:
        xt = eps[:size].to(device)
        evaluate = partial(denoiser.net, xt, xt.new_full((len(xt),), 0.5))
        calls = max(1, nfe * num_samples // len(xt))
        with torch.autocast(device.type, setup.dtype, enabled=setup.dtype != torch.float32):
            seconds = seconds_for(calls, evaluate, device)
        return calls * len(xt) / nfe / seconds

    def sampler_rate(size: int) -> float:
        sample = partial(sample_images, denoiser, sampler, eps, batch_size=size, **arguments)
        return num_samples / seconds_for(1, sample, device)

    cases: Cases = {}
    for size in setup.batch_sizes:
        cases[f"evaluations, batches of {size}"] = partial(bare_rate, size)
        cases[f"sampler, batches of {size}"] = partial(sampler_rate, size)
    rates = harness.run_rounds(cases, setup.benchmark_rounds)
    bare = [name for name in rates if "evaluations" in name]
    fastest = max(bare, key=lambda name: statistics.median(rates[name]))
    table = harness.markdown_table(harness.rate_rows(rates, [fastest]))
    return {"images_per_second": rates, "nfe": nfe}, f"{table}\n\n{nfe} evaluations per image."


def benchmark(cfg: DictConfig) -> None:
    """Measures, prints a table and writes <benchmark_output>/<benchmark>.json."""
    select_precision(cfg)
    datamodule = build_datamodule(cfg)
    device = torch.device(accelerator_device(cfg.trainer.accelerator))
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    setup = Setup(cfg=cfg, datamodule=datamodule, device=device, **settings)
    file = Path(setup.benchmark_output).expanduser() / f"{setup.benchmark}.json"
    file.parent.mkdir(parents=True, exist_ok=True)  # fails before the measurement, not after
    functions = (throughput, sampling, time_to_mse, time_to_fd)
    function = {each.__name__: each for each in functions}[setup.benchmark]
    with contextlib.redirect_stdout(io.StringIO()):  # train() prints its own results
        results, table = function(setup)
    facts = harness.machine_facts(setup)
    write_json(file, {"overrides": [*HydraConfig.get().overrides.task], **facts, **results})
    print(f"\n{table}\n\n{', '.join(f'{key} {value}' for key, value in facts.items())}")
    print(f"Record: {os.path.relpath(file)}")
