"""One training, from a config to a run folder with its scores."""

import logging
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from omegaconf import DictConfig, OmegaConf

from unet_diffusion.checks import number, seed_number, whole_number
from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.diffusion.guidance import check_guidance
from unet_diffusion.errors import UserError, first_line
from unet_diffusion.parts import build, build_datamodule, build_denoiser
from unet_diffusion.paths import named_path
from unet_diffusion.runs import Run, remove_if_empty, write_json
from unet_diffusion.training.hardware import check_hardware, fast_precision
from unet_diffusion.training.job import RUN_PATH
from unet_diffusion.training.limits import check_limits
from unet_diffusion.training.module import DenoisingModule
from unet_diffusion.training.speed import Speed
from unet_diffusion.training.summary import key_choices, say_goodbye


def train(cfg: DictConfig, path: Path, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Trains what `cfg` describes and leaves a run folder at `path`.

    Everything that can be refused is refused before the folder is made; where not even one step was done, it is removed again.

    Args:
        cfg: the composed `conf/train.yaml`.
        path: a folder that does not exist yet.
        overrides: what the user typed, for the record.

    Returns:
        The final scores by name; empty for `trainer.fast_dev_run`, which leaves no run folder.

    Raises:
        UserError: something in the config cannot be done.
    """
    _quieten()
    check_hardware(cfg.trainer)
    if cfg.trainer.precision == "auto":
        cfg.trainer.precision = fast_precision(cfg.trainer.accelerator)
        print(f"precision=auto: {cfg.trainer.precision} is fast here")
    try:
        check_limits(cfg.trainer)
        whole_number("noise_seed", cfg.noise_seed, at_least=0)
        L.seed_everything(seed_number("seed", cfg.seed), workers=True, verbose=False)
    except ValueError as error:
        raise UserError(first_line(error)) from error
    if cfg.data.root is not None:
        cfg.data.root = str(named_path("data.root", cfg.data.root).absolute())  # the run must be usable from any directory
    datamodule = build_datamodule(cfg)
    OmegaConf.update(cfg, "class_names", list(datamodule.class_names))
    cfg.num_classes = len(datamodule.class_names)
    module = build_module(cfg, datamodule.image_size, overrides)
    trainer = build_trainer(cfg, path, overrides)
    device = trainer.strategy.root_device
    try:
        speed = Speed.chosen(cfg.speed, device, datamodule.splits["train"].num_bytes)
    except ValueError as error:
        raise UserError(first_line(error)) from error
    print(f"speed on {device.type}: {speed}")
    speed.prepare(module, device)
    speed.place(datamodule, device)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.hparams.update(key_choices(cfg, overrides))  # it writes them to hparams.yaml
    with _made(path, cfg, overrides, trainer) as run:
        started = time.perf_counter()
        trainer.fit(module, datamodule=datamodule)
        seconds = time.perf_counter() - started
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            print("One batch of training and of validation ran; trainer.fast_dev_run keeps nothing.")
            return {}
        return _final_scores(cfg, run, trainer, module, datamodule, seconds)


def build_module(cfg: DictConfig, image_size: tuple[int, int], overrides: Sequence[str] = ()) -> DenoisingModule:
    """The LightningModule of a config.

    Raises:
        UserError: a part refuses its arguments. The optimizer and the network are tried, so that a learning rate or an image
            size that cannot work is found here.
    """
    parts = {"levels": "noise", "optimizer": "optimizer", "lr_schedule": "lr_schedule"}
    try:
        module = DenoisingModule(
            denoiser=build_denoiser(cfg),
            image_shape=(cfg.data.channels, *image_size),
            noise_seed=cfg.noise_seed,
            label_dropout=cfg.label_dropout,
            **{argument: build(cfg, key) for argument, key in parts.items()},
        )
        known = module.denoiser.num_classes
        check_guidance(number("guidance", cfg.guidance, low=0), known, cfg.label_dropout)
        if 0 < known < cfg.num_classes:
            raise ValueError(
                f"model.num_classes={known} is less than the data's {cfg.num_classes}: try '${{num_classes}}', or 0"
            )
    except ValueError as error:
        raise UserError(first_line(error)) from error
    try:
        module.optimizer(module.parameters())
    except (TypeError, ValueError) as error:
        raise _refusal("optimizer", overrides, error) from error
    image = torch.zeros(1, cfg.data.channels, *image_size)
    shape = "x".join(map(str, image.shape[1:]))
    try:
        with torch.inference_mode():
            answer = module.eval()(image, image.new_ones(1))
    except (RuntimeError, TypeError) as error:
        raise UserError(f"model: the network does not take the data's {shape} images ({first_line(error)})") from error
    if answer.shape != image.shape:
        got = "x".join(map(str, answer.shape[1:]))
        raise UserError(f"model: the network answers {got} to {shape} images; its answer must have the shape of its input")
    module.train()
    return module


def build_trainer(cfg: DictConfig, path: Path, overrides: Sequence[str] = ()) -> L.Trainer:
    """Lightning's Trainer with the config's loggers and callbacks, all writing below `path`; writes nothing yet.

    Raises:
        UserError: an argument is refused.
    """
    build(cfg, "sampler")  # its mistakes are said by its own name here, not by that of the callback that draws with it
    loggers: list[Logger] = [build(cfg, f"logger.{name}", save_dir=str(path)) for name in cfg.get("logger") or ()]
    callbacks: list[Callback] = [build(cfg, f"callbacks.{name}") for name in cfg.get("callbacks") or ()]
    if cfg.averaging:
        callbacks.append(build(cfg, "averaging"))  # last: what others do at the end of a validation is done with the average
    try:
        trainer: L.Trainer = L.Trainer(
            **OmegaConf.to_container(cfg.trainer, resolve=True),  # type: ignore[arg-type]
            logger=loggers,
            callbacks=callbacks,
            default_root_dir=path,
        )
    except (MisconfigurationException, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise _refusal("trainer", overrides, error) from error
    return trainer


def _refusal(part: str, overrides: Sequence[str], error: Exception) -> UserError:
    """A library's refusal of its arguments, with those that the user typed, as the library does not say which it means."""
    typed = [override for override in overrides if override.lstrip("+~").startswith(f"{part}.")]
    return UserError(f"{part}: {' '.join(typed) or 'an argument'} is refused ({first_line(error)}): see `--cfg job -p {part}`")


@contextmanager
def _made(path: Path, cfg: DictConfig, overrides: Sequence[str], trainer: L.Trainer) -> Iterator[Run]:
    """Makes the run folder (in the first process) and removes it again where nothing was trained."""
    if trainer.is_global_zero:
        run = Run.create(path, cfg, overrides)
        os.environ[RUN_PATH] = str(path)
    else:
        run = Run(path, cfg)
    try:
        yield run
    finally:
        os.environ.pop(RUN_PATH, None)
        nothing_kept = trainer.global_step == 0 or trainer.fast_dev_run  # type: ignore[attr-defined]
        if trainer.is_global_zero and nothing_kept:
            shutil.rmtree(path, ignore_errors=True)
            remove_if_empty(path.parent)


def _final_scores(
    cfg: DictConfig, run: Run, trainer: L.Trainer, module: DenoisingModule, datamodule: ImageDataModule, seconds: float
) -> dict[str, float]:
    """Scores the best checkpoint on the test split and writes the figures down."""
    saved = trainer.checkpoint_callback
    best = Path(saved.best_model_path) if isinstance(saved, ModelCheckpoint) and saved.best_model_path else None
    scores = {}
    if isinstance(saved, ModelCheckpoint) and best is not None and saved.best_model_score is not None:
        scores[str(saved.monitor)] = float(saved.best_model_score)
    steps = trainer.global_step
    trainer.test(module, datamodule=datamodule, ckpt_path=best, verbose=False, weights_only=True if best else None)
    scores |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    if trainer.is_global_zero:
        record = {
            "scores": scores,
            "scored_weights": str(best.relative_to(run.path)) if best else "those at the end of the training",
            "test_images": len(datamodule.splits["test"]),
            "noise_seed": cfg.noise_seed,
            "steps": steps,
            "images_seen": steps * cfg.data.batch_size * trainer.world_size * trainer.accumulate_grad_batches,
            "seconds": round(seconds, 1),
            "parameters": sum(p.numel() for p in module.denoiser.parameters()),
        }
        write_json(run.path / "metrics.json", record)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(dict(logger.hparams), scores, step=steps)
                logger.finalize("success")
        say_goodbye(run, record, seconds)
    return scores


def _quieten() -> None:
    """Silences remarks about choices that this project makes on purpose."""
    for message in (
        r".*does not have many workers.*",  # batches are one gather from memory; workers would only cost
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*Experiment logs directory .* exists and is not empty.*",
        r".*The number of training batches .* is smaller than the logging interval.*",
        r".*`torch.jit.trace(_method)?` is deprecated.*",  # TensorBoard's own way of drawing the graph
        r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
