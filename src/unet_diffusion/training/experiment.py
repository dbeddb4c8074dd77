"""One training, from a config to a run folder with its scores."""

import logging
import os
import shutil
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf

from unet_diffusion.checks import seed_number, whole_number
from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.errors import UserError, first_line
from unet_diffusion.evaluation.records import final_scores
from unet_diffusion.locks import one_alone
from unet_diffusion.parts import build_datamodule
from unet_diffusion.paths import named_path
from unet_diffusion.runs import Run, remove_if_empty, write_json
from unet_diffusion.training.building import LOSS, build_module, build_trainer, check_metric
from unet_diffusion.training.checkpoints import why_not_written
from unet_diffusion.training.hardware import check_hardware, fast_precision
from unet_diffusion.training.job import RUN_PATH
from unet_diffusion.training.limits import check_limits
from unet_diffusion.training.module import DenoisingModule
from unet_diffusion.training.processes import check_batch, check_started, started_from_outside
from unet_diffusion.training.resume import Resumed
from unet_diffusion.training.speed import Speed
from unet_diffusion.training.summary import key_choices, python, say_goodbye, typed
from unet_diffusion.training.survival import EndInOrder, InterruptedTraining, TimeTrained, quiet_threads


def train(cfg: DictConfig, path: Path, overrides: Sequence[str] = (), resumed: Resumed | None = None) -> dict[str, float]:
    """Trains what `cfg` describes and leaves a run folder at `path`.

    Everything that can be refused is refused before the folder is made; where not even one step was done, it is removed again.

    Args:
        cfg: the composed `conf/train.yaml`.
        path: a folder that does not exist yet; that of the run that goes on.
        overrides: what the user typed, for the record.
        resumed: the run that goes on; None for a new one.

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
        if cfg.trainer.precision == "16-mixed" and cfg.trainer.gradient_clip_val and cfg.optimizer.get("fused"):
            raise ValueError("optimizer.fused=true clips no gradients in fp16: try optimizer.fused=false or precision=bf16")
        whole_number("noise_seed", cfg.noise_seed, at_least=0)
        L.seed_everything(seed_number("seed", cfg.seed), workers=True, verbose=False)
    except ValueError as error:
        raise UserError(first_line(error)) from error
    # or the strategies of several processes would seed again, and training go on from elsewhere than in a single one
    os.environ.pop("PL_GLOBAL_SEED", None)
    if cfg.data.root is not None:
        cfg.data.root = str(named_path("data.root", cfg.data.root).absolute())  # the run must be usable from any directory
    datamodule = build_datamodule(cfg)
    OmegaConf.update(cfg, "class_names", list(datamodule.class_names))
    cfg.num_classes = len(datamodule.class_names)
    module = build_module(cfg, datamodule.image_size, overrides)
    earlier = resumed.earlier_metrics() if resumed else []
    done = resumed.step + resumed.within if resumed else None
    trainer = build_trainer(cfg, path, overrides, done)
    check_batch(trainer, datamodule)
    if (processes := started_from_outside()) is not None:
        check_started(trainer, processes)
        trainer.strategy.setup_environment()
        path = Path(trainer.strategy.broadcast(str(path)))  # each had planned a folder of its own
        trainer = build_trainer(cfg, path, overrides, done)
    check_metric(str(cfg.optimized_metric), trainer, module)
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
    mine = one_alone(path) if trainer.is_global_zero else nullcontext()
    with mine, _going_on(resumed, trainer) if resumed else _made(path, cfg, overrides, trainer) as run:
        checkpoint = resumed.checkpoint if resumed else None
        if resumed:
            resumed.restore_metrics(trainer, earlier)
        with _ending_in_order(path), _refused_by_lightning(overrides):
            trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
        (seconds,) = (each.seconds for each in trainer.callbacks if isinstance(each, TimeTrained))  # type: ignore[attr-defined]
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            print("One batch of training and of validation ran; trainer.fast_dev_run keeps nothing.")
            return {}
        return _final_scores(cfg, run, trainer, module, datamodule, seconds)


def go_on(cfg: DictConfig, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Goes on with the run that `cfg.resume` names, as if it had never ended; returns its scores.

    Raises:
        UserError: it is no run, or cannot go on with what was typed.
    """
    resumed = Resumed.named(cfg, overrides)
    path = Path(os.path.relpath(resumed.run.path))
    if resumed.finished:
        print(f"{path} is finished, with {resumed.step} steps; raise trainer.max_steps= (or max_epochs=, max_time=) to go on.")
        return final_scores(resumed.run.path)
    print(
        f"Going on with {path} after step {resumed.step}."
        if resumed.checkpoint
        else f"{path} has no checkpoint: from the start."
    )
    return train(resumed.run.config, resumed.run.path, overrides, resumed)


class _RefusedError(UserError):
    """Found when the training had begun; it was not possible from the start."""


@contextmanager
def _refused_by_lightning(overrides: Sequence[str]) -> Iterator[None]:
    """Says which typed words Lightning stumbled over, where it did so by itself: some it checks only when it uses them.

    Errors with a line of anyone else's in their traceback are bugs, and stay what they are.
    """
    try:
        yield
    except Exception as error:
        below = traceback.extract_tb(error.__traceback__)[2:]  # without these lines and the call of `fit`
        typed = [word for word in overrides if word.lstrip("+~").startswith(("trainer", "callbacks", "logger"))]
        by_itself = all(_is_a_librarys(frame.filename) for frame in below)
        if isinstance(error, (UserError, OSError)) or not typed or not by_itself:
            raise
        raise _RefusedError(
            f"the training cannot be done with {' '.join(typed)} ({first_line(error)}): leave out what is not needed, or see "
            f"by debug=true where it fails"
        ) from error


def _is_a_librarys(file: str) -> bool:
    """Whether a file of code is Lightning's or Python's own."""
    python = file.startswith(("<frozen ", sysconfig.get_path("stdlib"))) and "site-packages" not in file
    return python or file.startswith(str(Path(L.__file__).parent))


@contextmanager
def _made(path: Path, cfg: DictConfig, overrides: Sequence[str], trainer: L.Trainer) -> Iterator[Run]:
    """Makes the run folder (in the first process) and removes it again where nothing was trained, or nothing can be."""
    if trainer.is_global_zero:
        run = Run.create(path, cfg, overrides)
        os.environ[RUN_PATH] = str(path)
    else:
        run = Run(path, cfg)
    refused = False
    try:
        yield run
    except _RefusedError:
        refused = not any(path.glob("checkpoints/*.ckpt"))
        raise
    finally:
        os.environ.pop(RUN_PATH, None)
        nothing_kept = trainer.global_step == 0 or refused or trainer.fast_dev_run  # type: ignore[attr-defined]
        if trainer.is_global_zero and nothing_kept:
            shutil.rmtree(path, ignore_errors=True)
            remove_if_empty(path.parent)


@contextmanager
def _going_on(resumed: Resumed, trainer: L.Trainer) -> Iterator[Run]:
    """The folder of a run that goes on; it stays whatever happens."""
    if trainer.is_global_zero:
        resumed.prepare()
    try:
        yield resumed.run
    except Exception as error:
        begun = any(isinstance(callback, EndInOrder) and callback.begun for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if begun or isinstance(error, UserError):
            raise
        if trainer.is_global_zero:
            resumed.undo()
        raise UserError(
            f"{resumed.checkpoint} is no checkpoint to go on from ({type(error).__name__}: {first_line(error)}): "
            f"try resume= with another checkpoint of the run"
        ) from error


@contextmanager
def _ending_in_order(path: Path) -> Iterator[None]:
    """Says how a training goes on that ends before its time."""
    how = f"{python()} scripts/train.py {typed('resume', Path(os.path.relpath(path)))}"
    try:
        with quiet_threads():
            yield
    except InterruptedTraining as end:
        print(f"Ended after step {end.step}; all is saved. To go on:\n{how}")
        sys.exit(128 + end.number)
    except (UserError, OSError) as error:
        if isinstance(error, OSError):
            error = UserError(f"the run's folder {path} cannot be written: {why_not_written(error)}")
        kept = any(path.glob("checkpoints/*.ckpt"))
        if kept:
            error = UserError(f"{error}; the last good checkpoint is kept, and goes on by: {how}")
        raise error


def _final_scores(
    cfg: DictConfig, run: Run, trainer: L.Trainer, module: DenoisingModule, datamodule: ImageDataModule, seconds: float
) -> dict[str, float]:
    """Scores the best checkpoint on the test split and writes the figures down."""
    saved = trainer.checkpoint_callback
    best = Path(saved.best_model_path) if isinstance(saved, ModelCheckpoint) and saved.best_model_path else None
    scores = {}
    if isinstance(saved, ModelCheckpoint) and best is not None and saved.best_model_score is not None:
        scores[str(saved.monitor)] = float(saved.best_model_score)
    elif LOSS in trainer.callback_metrics:
        scores[LOSS] = float(trainer.callback_metrics[LOSS])
    steps = trainer.global_step
    trainer.test(module, datamodule=datamodule, ckpt_path=best, verbose=False, weights_only=True if best else None)
    scores |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    if trainer.is_global_zero:
        record = {
            "scores": scores,
            "scored_weights": os.path.relpath(best, run.path) if best else "those at the end of the training",
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
        r".*It is recommended to use `self.log\('val_by_level.*sync_dist=True.*",  # they are of all processes already
        r".*The number of training batches .* is smaller than the logging interval.*",
        r"Precision .* is not supported by the model summary.*",  # its size is that of the stored weights, in fp32
        r".*`torch.jit.trace(_method)?` is deprecated.*",  # TensorBoard's own way of drawing the graph
        r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
