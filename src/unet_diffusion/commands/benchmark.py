"""The benchmarks of scripts/benchmark.py, and the training loops that they compare."""

import contextlib
import io
import itertools
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, RandomHorizontalFlip, Resize, ToTensor
from torchvision.transforms.functional import to_pil_image

from unet_diffusion.commands.train import build_module, train
from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.data.sources import RawSplit, read_image
from unet_diffusion.diffusion import Denoiser, LinearSchedule, X0Prediction, seeded_noise
from unet_diffusion.evaluation import timing
from unet_diffusion.evaluation.denoising import denoising_scores
from unet_diffusion.evaluation.feature_extractor import load_feature_extractor
from unet_diffusion.evaluation.generation_scores import GenerationScorer
from unet_diffusion.evaluation.timing import Cases, seconds_for
from unet_diffusion.experiment.build import Experiment, build
from unet_diffusion.experiment.schema import PathStr, Recorded, TrainConfig
from unet_diffusion.generation.pipeline import Pipeline
from unet_diffusion.generation.sampling import sample_images
from unet_diffusion.hardware import accelerator_device, prefers_channels_last, set_memory_format
from unet_diffusion.images import to_uint8
from unet_diffusion.models import Network
from unet_diffusion.runs.files import write_json
from unet_diffusion.runs.run import Run
from unet_diffusion.training.trainer import apply_speed_settings

Case = Literal["lesson_loop", "bare_loop", "trainer"]
Result = tuple[dict[str, Any], str]  # what the record contains, and a Markdown table


class Arguments(TrainConfig):
    """The keys of conf/benchmark.yaml."""

    benchmark: Literal["throughput", "sampling", "time_to_mse", "time_to_fd"]
    benchmark_output: PathStr
    benchmark_rounds: PositiveInt
    benchmark_steps: PositiveInt
    benchmark_warmup_steps: PositiveInt
    benchmark_cases: Annotated[list[Case], Field(min_length=1)]
    batch_sizes: Annotated[list[PositiveInt], Field(min_length=1)]
    num_samples: PositiveInt
    target_mse: PositiveFloat
    max_lesson_steps: PositiveInt
    target_fd: PositiveFloat
    scored_samples: PositiveInt


@dataclass(frozen=True)
class Setup:
    """What is measured."""

    arguments: Arguments
    experiment: Experiment
    device: torch.device

    @property
    def datamodule(self) -> ImageDataModule:
        return self.experiment.datamodule

    @property
    def dtype(self) -> torch.dtype:  # autocast
        mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        return mixed.get(str(self.experiment.recorded.precision), torch.float32)


def build_experiment(config: TrainConfig) -> Experiment:
    """An experiment that is not trained."""
    return build(config, Path(config.output_dir), Recorded(), first_step=None)


@dataclass(frozen=True)
class Loop:
    """A plain training loop."""

    net: Network
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
    denoiser = build_experiment(setup.arguments).denoiser
    net = denoiser.net.to(device)

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
    speed = setup.arguments.speed.model_copy(update={"compile": False, "images_on_device": False})
    experiment = build_experiment(setup.arguments.model_copy(update={"speed": speed}))
    module = build_module(experiment).to(setup.device)
    apply_speed_settings(experiment, module, setup.device)
    denoiser: Denoiser = module.denoiser
    split, size = setup.datamodule.splits["train"], setup.datamodule.batch_size
    images = split.batch(range(min(len(split), 50 * size) // size * size)).x0
    batches = itertools.cycle(torch.split(images.to(setup.device), size))

    def loss() -> Tensor:
        x0 = next(batches)
        t = module.time_distribution.sample(len(x0), device=setup.device)
        with torch.autocast(setup.device.type, setup.dtype, setup.dtype != torch.float32):
            return denoiser.loss(x0, torch.randn_like(x0), t)

    return Loop(denoiser.net, module.optimizer(denoiser.parameters()), loss)


LOOPS: dict[str, Callable[[Setup], Loop]] = {"lesson_loop": lesson_loop, "bare_loop": bare_loop}


class StepTimer(Callback):
    """Records the times at which the warm-up and the last step of a training ended."""

    times: ClassVar[list[float]] = []  # of the latest training

    def __init__(self, warmup_steps: int) -> None:
        self.warmup_steps = warmup_steps
        self.times.clear()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step in (self.warmup_steps, trainer.max_steps):
            self.times.append(timing.now(trainer.strategy.root_device))


@contextmanager
def temporary_run(setup: Setup, seed: int, **limits: Any) -> Iterator[Run]:
    """A run that is trained with changed `trainer` keys and a `StepTimer`, and then deleted."""
    arguments = setup.arguments
    warmup_steps = arguments.benchmark_warmup_steps
    callbacks = dict.fromkeys(("progress_bar", "model_summary")) | {
        "step_timer": {"_target_": f"{__name__}.StepTimer", "warmup_steps": warmup_steps}
    }
    trainer = arguments.trainer.model_copy(update={"max_epochs": -1, **limits})
    changes = {"seed": seed, "trainer": trainer, "callbacks": arguments.callbacks | callbacks}
    with tempfile.TemporaryDirectory() as directory:
        run_dir = f"{directory}/run"
        config = {key: getattr(arguments, key) for key in TrainConfig.model_fields}
        train(TrainConfig(**config | changes | {"run_dir": run_dir}))
        yield Run.open(run_dir)


def loop_rate(setup: Setup, loop: Loop) -> float:
    """Images per second of a loop, after its warm-up steps."""
    seconds_for(setup.arguments.benchmark_warmup_steps, loop.step, setup.device)
    seconds = seconds_for(setup.arguments.benchmark_steps, loop.step, setup.device)
    return setup.arguments.benchmark_steps * setup.datamodule.batch_size / seconds


def trainer_rate(setup: Setup) -> float:
    """Images per second of the training script, without validations."""
    last = setup.arguments.benchmark_warmup_steps + setup.arguments.benchmark_steps
    steps = {"max_steps": last, "val_check_interval": last, "accumulate_grad_batches": 1}
    short = {"limit_val_batches": 1, "limit_test_batches": 1}
    with temporary_run(setup, setup.arguments.seed, max_time=None, **steps, **short):
        start, end = StepTimer.times
    return setup.arguments.benchmark_steps * setup.datamodule.batch_size / (end - start)


def throughput(setup: Setup) -> Result:
    """Training images per second of several cases."""
    names = setup.arguments.benchmark_cases
    loops = {name: LOOPS[name](setup) for name in names if name in LOOPS}
    cases: Cases = {name: partial(loop_rate, setup, loop) for name, loop in loops.items()}
    if "trainer" in names:
        cases["trainer"] = partial(trainer_rate, setup)
    rates = timing.run_rounds(cases, setup.arguments.benchmark_rounds)
    table = timing.markdown_table(timing.rate_rows(rates, list(loops)))
    return {"images_per_second": rates}, table


def time_to_mse(setup: Setup) -> Result:
    """Seconds of training until the test MSE at t = 0.5 is at most `target_mse`.

    The lesson's loop has batches of 128. It is scored every `benchmark_steps` steps, which is not
    counted. The trainer trains with the seeds 0, 1, ...; its validations are counted.
    """
    results = {}
    for seed in range(setup.arguments.benchmark_rounds):
        with temporary_run(setup, seed, max_time=None) as run:
            metrics = run.metrics.model_dump() if run.metrics else {}
        result = {key: metrics[key] for key in ("seconds", "steps")}
        results[f"trainer, seed {seed}"] = result | {"mse": metrics["scores"]["test/mse"]}
    trainer_seconds = statistics.median(each["seconds"] for each in results.values())

    torch.manual_seed(0)
    loop = lesson_loop(setup, batch_size=128)
    denoiser = Denoiser(loop.net, LinearSchedule(), X0Prediction())
    steps, seconds, mse = 0, 0.0, float("inf")
    while mse > setup.arguments.target_mse and steps < setup.arguments.max_lesson_steps:
        seconds += seconds_for(setup.arguments.benchmark_steps, loop.step, setup.device)
        steps += setup.arguments.benchmark_steps
        denoiser.eval()
        batches, noise_seed = setup.datamodule.test_dataloader(), setup.arguments.noise_seed
        (level,) = denoising_scores(denoiser, batches, [0.5], noise_seed)
        mse = level["scores"]["network"]["mse"]
        denoiser.train()
        print(f"lesson_loop: {seconds:.1f} s, {steps} steps, MSE {mse:.4f}", file=sys.stderr)
    results["lesson_loop"] = {"seconds": seconds, "steps": steps, "mse": mse}

    factor = f"{'at least ' * (mse > setup.arguments.target_mse)}{seconds / trainer_seconds:.1f}"
    note = (
        f"Target: {setup.arguments.target_mse:g}, for all. The trainer is {factor} times as fast."
    )
    return results, f"{timing.markdown_table(results)}\n\n{note}"


def time_to_fd(setup: Setup) -> Result:
    """Frechet distance after trainings of `trainer.max_time` with the seeds 0, 1, ...

    The record is the shortest time at which every seed reaches `target_fd`. Each time needs a
    separate training, because the learning rate decays to zero at its end. Validations are counted;
    the test and the sampling are not.
    """
    extractor = load_feature_extractor("auto", setup.datamodule.source.name)
    scorer = GenerationScorer(setup.datamodule, extractor, setup.arguments.scored_samples)
    results = {}
    for seed in range(setup.arguments.benchmark_rounds):
        with temporary_run(setup, seed) as run:
            output = Pipeline.from_pretrained(run, device=str(setup.device))(
                setup.arguments.scored_samples
            )
            scores, _ = scorer.score(to_uint8(output.images), None)
            metrics = run.metrics.model_dump() if run.metrics else {}
        result = {key: metrics[key] for key in ("seconds", "steps", "images_seen")}
        result |= {"nfe": output.nfe} | scores["metrics"]
        print(f"seed {seed}: {result}", file=sys.stderr)
        results[f"seed {seed}"] = result
    distances = [each["frechet_distance"] for each in results.values()]
    reached = sum(distance <= setup.arguments.target_fd for distance in distances)
    real = scores["real_baseline"]["frechet_distance"]
    target = setup.arguments.target_fd
    note = f"Frechet distance {timing.spread(distances, '.3f')}, at most {target:g} for {reached} "
    note += f"of {len(distances)} seeds; real training images {real:.3f}."
    return results, f"{timing.markdown_table(results)}\n\n{note}"


@torch.inference_mode()
def sampling(setup: Setup) -> Result:
    """Generated images per second against the bare network evaluations that they cost."""
    device, num_samples = setup.device, setup.arguments.num_samples
    denoiser = setup.experiment.denoiser.to(device).eval()  # speed does not depend on weights
    set_memory_format(denoiser.net, prefers_channels_last(device))
    sampler = setup.experiment.sampler
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
    for size in setup.arguments.batch_sizes:
        cases[f"evaluations, batches of {size}"] = partial(bare_rate, size)
        cases[f"sampler, batches of {size}"] = partial(sampler_rate, size)
    rates = timing.run_rounds(cases, setup.arguments.benchmark_rounds)
    bare = [name for name in rates if "evaluations" in name]
    fastest = max(bare, key=lambda name: statistics.median(rates[name]))
    table = timing.markdown_table(timing.rate_rows(rates, [fastest]))
    return {"images_per_second": rates, "nfe": nfe}, f"{table}\n\n{nfe} evaluations per image."


def benchmark(arguments: Arguments) -> None:
    """Measures, prints a table and writes <benchmark_output>/<benchmark>.json."""
    device = torch.device(accelerator_device(str(arguments.value("trainer.accelerator"))))
    setup = Setup(arguments, build_experiment(arguments), device)
    file = Path(arguments.benchmark_output).expanduser() / f"{arguments.benchmark}.json"
    file.parent.mkdir(parents=True, exist_ok=True)  # fails before the measurement, not after
    functions = (throughput, sampling, time_to_mse, time_to_fd)
    function = {each.__name__: each for each in functions}[arguments.benchmark]
    with contextlib.redirect_stdout(io.StringIO()):  # train() prints its own results
        results, table = function(setup)
    facts = machine_facts(setup)
    write_json(file, {"overrides": arguments.overrides, **facts, **results})
    print(f"\n{table}\n\n{', '.join(f'{key} {value}' for key, value in facts.items())}")
    print(f"Record: {os.path.relpath(file)}")


def machine_facts(setup: Setup) -> dict[str, Any]:
    """What rates depend on, apart from the config."""
    return {
        "processor": timing.processor_name(setup.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": setup.experiment.recorded.precision,
        "batch size": setup.datamodule.batch_size,
    }
