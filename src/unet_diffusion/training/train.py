"""scripts/train.py: one training, from a config to a run directory with its scores."""

import logging
import os
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from filelock import FileLock, Timeout
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar, Timer
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from torch.distributed import is_torchelastic_launched

from unet_diffusion.config import build_datamodule, build_denoiser, check_settings, instantiate
from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.generation.pipeline import check_guidance
from unet_diffusion.hardware import prefers_channels_last, set_memory_format, training_precision
from unet_diffusion.runs import Run, command_line, write_json
from unet_diffusion.samplers import AverageVelocitySampler
from unet_diffusion.training.callbacks import (
    InterruptedTraining,
    ResumeState,
    StopOnSignal,
    ValidateAtEnd,
)
from unet_diffusion.training.loggers import build_loggers, close_loggers, start_loggers
from unet_diffusion.training.module import DenoisingModule
from unet_diffusion.training.run_directory import (
    RUN_DIR_VARIABLE,
    AtomicCheckpointIO,
    TrainingPlan,
    plan_training,
)


def train(cfg: DictConfig) -> float | None:
    """Trains the denoiser of conf/train.yaml with overrides, and scores it on the test split.

    Returns:
        The score named by `optimized_metric`, the objective of a sweep; None for fast_dev_run.
    """
    _ignore_warnings()
    plan = plan_training(cfg)
    run, cfg = plan.run, plan.run.config
    changes_limit = any(override.startswith("trainer.max_") for override in plan.overrides)
    if run.metrics is not None and not changes_limit:
        path = os.path.relpath(run.path)
        print(f"{path} is finished. Use resume={path} with a higher trainer.max_steps or max_time.")
        return float(run.metrics["scores"][cfg.optimized_metric])
    check_settings(cfg)
    select_precision(cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    os.environ.pop("PL_GLOBAL_SEED", None)  # DDP would seed again, after a resume

    datamodule = build_datamodule(cfg)
    module = build_module(cfg, datamodule)
    if cfg.init_from is not None and plan.checkpoint is None:
        source = Run.open(cfg.init_from, key="init_from")
        cfg.init_from = str(source.selected_checkpoint or source.path)  # `latest` changes
        init_weights(module.denoiser, source)
    stop_on_signal = StopOnSignal(run.path / "checkpoints" / "last.ckpt")
    timer = Timer(cfg.trainer.max_time)
    trainer = build_trainer(cfg, plan, stop_on_signal, timer)
    check_optimized_metric(cfg, module)
    apply_speed_settings(cfg, module, datamodule, trainer.strategy.root_device)

    with open_run_directory(plan, trainer), stop_on_signal.handle_signals():
        trainer.fit(module, datamodule=datamodule, ckpt_path=plan.checkpoint, weights_only=True)
        if cfg.trainer.fast_dev_run:
            print("fast_dev_run: training and validation work. Nothing was saved.")
            return None
        seconds = timer.time_elapsed()  # the test restores the timer's state in best.ckpt
        scores = test(run, trainer, module, datamodule)
        if trainer.is_global_zero:
            save_scores(run, trainer, scores, seconds)
            print_summary(run, scores)
    return scores[cfg.optimized_metric]


def select_precision(cfg: DictConfig) -> None:
    """Checks the accelerator and the precision, and replaces `auto`."""
    cfg.trainer.precision = training_precision(str(cfg.trainer.accelerator), cfg.trainer.precision)


def build_module(cfg: DictConfig, datamodule: ImageDataModule) -> DenoisingModule:
    """The LightningModule of a config; checks that its parts accept each other."""
    denoiser = build_denoiser(cfg)
    check_guidance(cfg.guidance_scale, denoiser.num_classes, cfg.label_dropout)
    if 0 < (count := denoiser.num_classes) < cfg.num_classes:
        raise ValueError(f"model.num_classes={count}: at least {cfg.num_classes}, as in the data.")
    objective = instantiate(cfg, "objective")
    objective.check(denoiser, cfg.label_dropout)
    optimizer = instantiate(cfg, "optimizer")
    try:
        optimizer(denoiser.parameters())
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"optimizer: {error}") from error
    sampler = instantiate(cfg, "sampler")  # errors name it, and not callbacks.previews
    x0, t = torch.zeros(1, *datamodule.image_shape), torch.ones(1)
    s = torch.zeros(1) if isinstance(sampler, AverageVelocitySampler) else None
    try:
        with torch.inference_mode():
            denoiser.eval()(x0, t, s=s)
    except RuntimeError as error:
        raise ValueError(f"model: does not accept images {tuple(x0.shape)}: {error}") from error
    return DenoisingModule(
        denoiser=denoiser.train(),
        objective=objective,
        time_distribution=instantiate(cfg, "noise"),
        image_shape=datamodule.image_shape,
        optimizer=optimizer,
        lr_schedule=instantiate(cfg, "lr_schedule") if cfg.get("lr_schedule") else None,
        noise_seed=cfg.noise_seed,
        label_dropout=cfg.label_dropout,
    )


def init_weights(denoiser: Denoiser, run: Run) -> None:
    """Loads the weights of another run; parameters that it does not have keep their values."""
    own, state = denoiser.state_dict(), run.load_denoiser().state_dict()
    shapes = {name: list(value.shape) for name, value in own.items()}
    if others := [n for n, value in state.items() if shapes.get(n) != list(value.shape)]:
        names = ", ".join(f"{n} {list(state[n].shape)}" for n in others[:5])
        raise ValueError(
            f"init_from={run.path}: {len(others)} parameters do not fit this network, such as "
            f"{names}. Use the model.* and data.* of that run."
        )
    denoiser.load_state_dict(state, strict=False)
    new = [name for name in own if name not in state]
    print(f"Weights of {os.path.relpath(run.path)}; new parameters: {', '.join(new) or 'none'}.")


def build_trainer(cfg: DictConfig, plan: TrainingPlan, *own_callbacks: Callback) -> L.Trainer:
    """The Trainer with the callbacks and loggers of a config, which write to the run directory."""
    path = plan.run.path
    callbacks: list[Callback] = [
        instantiate(cfg, f"callbacks.{name}") for name, node in cfg.callbacks.items() if node
    ]
    callbacks += [ValidateAtEnd(), ResumeState(cfg.seed)]
    if cfg.get("ema"):
        callbacks.append(instantiate(cfg, "ema"))
    callbacks += own_callbacks
    for each in callbacks:
        if isinstance(each, ProgressBar) and not sys.stdout.isatty():
            each.disable()  # thousands of lines in a file

    trainer_arguments: dict[str, Any] = OmegaConf.to_container(cfg.trainer, resolve=True)  # type: ignore[assignment]
    del trainer_arguments["max_time"]  # the Timer's
    # In optimizer steps here, in batches for Lightning.
    trainer_arguments["val_check_interval"] *= cfg.trainer.accumulate_grad_batches
    # Lightning's Slurm checkpoint would take precedence over later ones.
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))
    try:
        trainer = L.Trainer(
            **trainer_arguments,
            callbacks=callbacks,
            logger=build_loggers(cfg, plan),
            plugins=plugins,
            default_root_dir=path,
            use_distributed_sampler=False,  # the data module has its own
        )
    except TypeError as error:
        raise ValueError(f"trainer: {error}") from error
    if is_torchelastic_launched() and trainer.world_size != int(os.environ["WORLD_SIZE"]):
        raise ValueError(
            f"trainer.devices={cfg.trainer.devices}: torchrun started {os.environ['WORLD_SIZE']} "
            f"processes. Use accelerator=ddp with as many trainer.devices."
        )
    return trainer


def check_optimized_metric(cfg: DictConfig, module: DenoisingModule) -> None:
    """Checks that the objective of a sweep is one of the final scores."""
    known = [_monitor(cfg), *map(str, module.test_metrics.keys(keep_base=False))]
    if (metric := cfg.optimized_metric) not in known:
        raise ValueError(f"optimized_metric={metric}: expected one of {', '.join(known)}.")


def apply_speed_settings(
    cfg: DictConfig, module: DenoisingModule, datamodule: ImageDataModule, device: torch.device
) -> None:
    """Applies the `speed` section: memory format, compilation, and where the images are stored."""
    cuda = device.type == "cuda"
    image_bytes = datamodule.splits["train"].cached.images.nbytes
    auto = {
        "channels_last": prefers_channels_last(device),
        "compile": cuda,
        "images_on_device": cuda and image_bytes < torch.cuda.mem_get_info(device)[0] / 2,
    }
    speed = {key: auto[key] if cfg.speed[key] == "auto" else cfg.speed[key] for key in auto}
    shown = ", ".join(f"{key} {str(value).lower()}" for key, value in speed.items())
    print(f"{device.type}: {shown}")
    set_memory_format(module.denoiser.net, speed["channels_last"])
    if speed["compile"]:
        # Only the training loss: validation, previews and checkpoints use the plain module.
        # CUDA graphs overwrite the gradients of the previous batch, so these cannot accumulate.
        mode = "reduce-overhead" if cuda and cfg.trainer.accumulate_grad_batches == 1 else "default"
        denoiser = module.denoiser
        denoiser.loss = torch.compile(denoiser.loss, dynamic=False, mode=mode)  # type: ignore[method-assign]
    if speed["images_on_device"]:
        datamodule.splits["train"].to_device(device)


@contextmanager
def open_run_directory(plan: TrainingPlan, trainer: L.Trainer) -> Iterator[None]:
    """Creates and locks the run directory; a new one without a single step is removed again."""
    run, path = plan.run, plan.run.path
    if not trainer.is_global_zero or run.config.trainer.fast_dev_run:
        yield
        return
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"{path}: another process is training in this directory.") from error
    os.environ[RUN_DIR_VARIABLE] = str(path)
    try:
        start_loggers(trainer.loggers, plan)
        run.save_config(plan.overrides if plan.is_new else run.overrides)
        if not plan.is_new:
            print(f"Resuming {os.path.relpath(path)} from {plan.checkpoint or 'the start'}.")
            if run.metrics is not None:  # scores at a former limit
                steps = run.metrics.get("steps", 0)
                (path / "metrics.json").replace(path / f"metrics-{steps}.json")
        yield
    except InterruptedTraining as interrupt:
        print(f"Interrupted at step {interrupt.step}, checkpoint saved. Resume with:")
        print(f"{command_line('train')} {_shell_override('resume', path)}")
        raise
    finally:
        os.environ.pop(RUN_DIR_VARIABLE, None)
        lock.release()
        close_loggers(trainer.loggers, failed=sys.exc_info()[0] is not None)
        if plan.is_new and trainer.global_step == 0:
            shutil.rmtree(path, ignore_errors=True)


def test(
    run: Run, trainer: L.Trainer, module: DenoisingModule, datamodule: ImageDataModule
) -> dict[str, float]:
    """Scores of the best checkpoint: its validation loss, and the metrics on the test split."""
    monitor = _monitor(run.config)
    best = trainer.checkpoint_callback
    path, score = None, trainer.callback_metrics.get(monitor)
    if isinstance(best, ModelCheckpoint) and best.best_model_path:
        path = best.best_model_path
        score = score if best.best_model_score is None else best.best_model_score
    if score is None:  # the training ended before this resume, and `best` has no score
        trainer.validate(
            module, datamodule=datamodule, ckpt_path=path, verbose=False, weights_only=True
        )
        score = trainer.callback_metrics[monitor]
    trainer.test(module, datamodule=datamodule, ckpt_path=path, verbose=False, weights_only=True)
    scores = {monitor: score, **trainer.callback_metrics}
    return {name: float(value) for name, value in scores.items() if value is not None}


def save_scores(run: Run, trainer: L.Trainer, scores: dict[str, float], seconds: float) -> None:
    """Writes metrics.json and TensorBoard's hyper-parameters."""
    datamodule: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
    steps = trainer.global_step
    images_per_step = datamodule.batch_size * trainer.world_size * trainer.accumulate_grad_batches
    record = {
        "scores": scores,
        "num_test_images": len(datamodule.splits["test"]),
        "noise_seed": run.config.noise_seed,
        "steps": steps,
        "images_seen": steps * images_per_step,
        "seconds": round(seconds, 1),
        "parameters": sum(p.numel() for p in trainer.lightning_module.parameters()),
    }
    write_json(run.path / "metrics.json", record)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(dict(logger.hparams), scores, step=steps)
            logger.finalize("success")


def print_summary(run: Run, scores: dict[str, float]) -> None:
    """Prints the test scores and the next commands."""
    path = Path(os.path.relpath(run.path))
    names = {"test/mse": "MSE", "test/psnr": "PSNR (dB)", "test/ssim": "SSIM"}
    shown = ", ".join(f"{names[key]} {scores[key]:.4f}" for key in names if key in scores)
    print(f"\nTest split, best checkpoint: {shown}")
    print(f"Previews:    {path / 'previews'}")
    if "tensorboard" in run.config.logger:
        print(f"TensorBoard: tensorboard --logdir {shlex.quote(str(path.parent))}")
    for script in ("sample", "evaluate"):
        command = f"{command_line(script)} {_shell_override('run', path)}"
        print(f"{script.capitalize() + ':':<12} {command}")


def _monitor(cfg: DictConfig) -> str:
    return OmegaConf.select(cfg, "callbacks.checkpoint.monitor") or "val/loss"


def _shell_override(key: str, path: Path) -> str:
    """`key=path` with the quotes that the shell and Hydra need."""
    value = os.path.relpath(path)
    return f"{key}={value}" if re.fullmatch(r"[\w./-]+", value) else shlex.quote(f"{key}='{value}'")


def _ignore_warnings() -> None:
    """Silences warnings about deliberate choices."""
    for message in (
        r".*does not have many workers.*",  # batches are one indexing operation
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*Experiment logs directory .* exists and is not empty.*",
        r".*ended before the epoch ended and your dataloader is not resumable.*",  # its sampler is
        r".*The number of training batches .* is smaller than the logging interval.*",
        r"Precision .* is not supported by the model summary.*",
        r".*`torch.jit.trace(_method)?` is deprecated.*",  # TensorBoard's graph
        r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
