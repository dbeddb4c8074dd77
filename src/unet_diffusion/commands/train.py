"""scripts/train.py: one training, from a config to a run directory with its scores."""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.callbacks import Timer as TimeLimit
from lightning.pytorch.loggers import TensorBoardLogger

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.errors import UserError
from unet_diffusion.experiment.build import Experiment, build
from unet_diffusion.experiment.schema import TrainConfig
from unet_diffusion.runs.files import write_json
from unet_diffusion.runs.printed_commands import command_line, shell_override
from unet_diffusion.runs.run import Run, save_config
from unet_diffusion.training.callbacks import InterruptedTraining, StopOnSignal
from unet_diffusion.training.loggers import close_loggers, start_loggers
from unet_diffusion.training.module import DenoisingModule
from unet_diffusion.training.run_directory import TrainingPlan, open_run_directory
from unet_diffusion.training.trainer import apply_speed_settings, build_trainer, ignore_warnings

Arguments = TrainConfig


def train(config: TrainConfig) -> float | None:
    """Trains the denoiser of conf/train.yaml with overrides, and scores it on the test split.

    Returns:
        The score named by `optimized_metric`, the objective of a sweep; None for fast_dev_run.
    """
    ignore_warnings()
    with open_run_directory(config) as plan:
        if plan.finished_score is not None:
            print_finished(plan.run_dir)
            return plan.finished_score
        experiment = build(plan.config, plan.run_dir, plan.recorded, plan.first_step)
        module = build_module(experiment)
        init_from = initialize_weights(module, plan)
        time_limit = TimeLimit(experiment.config.trainer.max_time)
        stop_on_signal = StopOnSignal(plan.run_dir / "checkpoints" / "last.ckpt")
        trainer = build_trainer(experiment, plan.run_dir, [stop_on_signal, time_limit])
        check_optimized_metric(experiment, module)
        apply_speed_settings(experiment, module, trainer.strategy.root_device)

        data = experiment.datamodule
        with start_run(plan, experiment, trainer, init_from), stop_on_signal.handle_signals():
            fit(trainer, module, data, plan.checkpoint)
            if trainer.fast_dev_run:  # type: ignore[attr-defined]
                print("fast_dev_run: training and validation work. Nothing was saved.")
                return None
            training = training_record(trainer, module, time_limit)
            scores = test(experiment, trainer, module)
            if trainer.is_global_zero:
                save_scores(plan.run_dir, trainer, scores, training)
                print_summary(plan.run_dir, experiment, scores)
    return scores[experiment.config.optimized_metric]


def fit(
    trainer: L.Trainer, module: DenoisingModule, data: ImageDataModule, checkpoint: Path | None
) -> None:
    """Trains; an error while the checkpoint is restored is one of the checkpoint."""
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if checkpoint is None or module.is_training_started or isinstance(error, UserError):
            raise
        raise UserError(f"{checkpoint}: damaged, or not of this run ({error}).") from error


def build_module(experiment: Experiment) -> DenoisingModule:
    """The LightningModule of an experiment."""
    return DenoisingModule(
        denoiser=experiment.denoiser,
        objective=experiment.objective,
        time_distribution=experiment.time_distribution,
        image_shape=experiment.datamodule.image_shape,
        optimizer=experiment.optimizer,
        lr_schedule=experiment.lr_schedule,
        ema=experiment.ema,
        seed=experiment.config.seed,
        noise_seed=experiment.config.noise_seed,
        label_dropout=experiment.config.label_dropout,
        camera_noise=experiment.config.camera_noise,
    )


def initialize_weights(module: DenoisingModule, plan: TrainingPlan) -> str | None:
    """Loads the weights that `init_from` names; returns their file or run, None without."""
    init_from = plan.recorded.init_from or plan.config.init_from
    if init_from is None or plan.checkpoint is not None:
        return init_from
    run = Run.open(init_from, key="init_from")
    load_weights(module.denoiser, run)
    if module.ema_denoiser is not None:
        module.ema_denoiser.load_state_dict(module.denoiser.state_dict())
    return str(run.selected_checkpoint or run.path)  # `latest` changes


def load_weights(denoiser: Denoiser, run: Run) -> None:
    """Loads the weights of another run; parameters that it does not have keep their values."""
    own, state = denoiser.state_dict(), run.load_denoiser().state_dict()
    shapes = {name: list(value.shape) for name, value in own.items()}
    if others := [n for n, value in state.items() if shapes.get(n) != list(value.shape)]:
        names = ", ".join(f"{n} {list(state[n].shape)}" for n in others[:5])
        raise UserError(
            f"init_from={run.path}: {len(others)} parameters do not fit this network, such as "
            f"{names}. Use the model.* and data.* of that run."
        )
    denoiser.load_state_dict(state, strict=False)
    new = [name for name in own if name not in state]
    print(f"Weights of {os.path.relpath(run.path)}; new parameters: {', '.join(new) or 'none'}.")


def check_optimized_metric(experiment: Experiment, module: DenoisingModule) -> None:
    """Checks that the objective of a sweep is one of the final scores."""
    known = [monitor_of(experiment), *map(str, module.test_metrics.keys(keep_base=False))]
    if (metric := experiment.config.optimized_metric) not in known:
        raise UserError(f"optimized_metric={metric}: expected one of {', '.join(known)}.")


@contextmanager
def start_run(
    plan: TrainingPlan, experiment: Experiment, trainer: L.Trainer, init_from: str | None
) -> Iterator[None]:
    """Starts the loggers and writes the config; closes the loggers at the end."""
    config, path = experiment.config, plan.run_dir
    if not trainer.is_global_zero or config.trainer.fast_dev_run:
        yield
        return
    failed = True
    try:
        class_names = list(experiment.datamodule.class_names)
        saved = config.model_copy(update={"class_names": class_names})
        recorded = start_loggers(experiment, path, plan.first_step)
        recorded = recorded.model_copy(update={"init_from": init_from})
        if plan.run is None:
            save_config(path, saved, recorded, config.overrides)
        else:
            save_config(path, saved, recorded, plan.run.overrides)
            print(f"Resuming {os.path.relpath(path)} from {plan.checkpoint or 'the start'}.")
            if (plan.first_step or 0) >= (limit := config.trainer.max_steps) > 0:
                print(f"It has {plan.first_step} steps of trainer.max_steps={limit}: test only.")
            if plan.run.metrics is not None:  # scores at a former limit
                steps = plan.run.metrics.steps
                (path / "metrics.json").replace(path / f"metrics-{steps}.json")
        yield
        failed = False
    except InterruptedTraining as interrupt:
        print(f"Interrupted at step {interrupt.step}, checkpoint saved. Resume with:")
        print(f"{command_line('train')} {shell_override('resume', path)}")
        raise
    finally:
        close_loggers(trainer.loggers, failed)


def training_record(
    trainer: L.Trainer, module: DenoisingModule, time_limit: TimeLimit
) -> dict[str, float]:
    """Facts about the training, before the test loads the state of best.ckpt."""
    return {
        "steps": trainer.global_step,
        "images_seen": module.images_seen * trainer.world_size,
        "seconds": round(time_limit.time_elapsed(), 1),
        "parameters": sum(p.numel() for p in module.denoiser.parameters()),
    }


def test(experiment: Experiment, trainer: L.Trainer, module: DenoisingModule) -> dict[str, float]:
    """Scores of the best checkpoint: its validation loss, and the metrics on the test split."""
    monitor, data = monitor_of(experiment), experiment.datamodule
    best = trainer.checkpoint_callback
    path, score = None, trainer.callback_metrics.get(monitor)
    if isinstance(best, ModelCheckpoint) and best.best_model_path:
        path = best.best_model_path
        score = score if best.best_model_score is None else best.best_model_score
    if score is None:  # the training ended before this resume, which has logged this validation
        loggers, trainer.loggers = trainer.loggers, []
        trainer.validate(module, datamodule=data, ckpt_path=path, verbose=False, weights_only=True)
        score = trainer.callback_metrics[monitor]
        trainer.loggers = loggers
    trainer.test(module, datamodule=data, ckpt_path=path, verbose=False, weights_only=True)
    scores = {monitor: score, **trainer.callback_metrics}
    return {name: float(value) for name, value in scores.items() if value is not None}


def save_scores(
    run_dir: Path, trainer: L.Trainer, scores: dict[str, float], training: dict[str, float]
) -> None:
    """Writes metrics.json and TensorBoard's hyper-parameters."""
    module = trainer.lightning_module
    assert isinstance(module, DenoisingModule)
    num_test_images = len(trainer.datamodule.splits["test"])  # type: ignore[attr-defined]
    record = {
        "scores": scores,
        "num_test_images": num_test_images,
        "noise_seed": module.noise_seed,
        **training,
    }
    write_json(run_dir / "metrics.json", record)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(dict(logger.hparams), scores, step=int(training["steps"]))
            logger.finalize("success")


def print_summary(run_dir: Path, experiment: Experiment, scores: dict[str, float]) -> None:
    """Prints the test scores and the next commands."""
    path = Path(os.path.relpath(run_dir))
    names = {"test/mse": "MSE", "test/psnr": "PSNR (dB)", "test/ssim": "SSIM"}
    shown = ", ".join(f"{names[key]} {scores[key]:.4f}" for key in names if key in scores)
    print(f"\nTest split, best checkpoint: {shown}")
    print(f"Previews:    {path / 'previews'}")
    if "tensorboard" in experiment.loggers:
        print(f"TensorBoard: tensorboard --logdir {shlex.quote(str(path.parent))}")
    for script in ("sample", "evaluate"):
        command = f"{command_line(script)} {shell_override('run', path)}"
        print(f"{script.capitalize() + ':':<12} {command}")


def print_finished(run_dir: Path) -> None:
    """Prints how a finished run can be continued."""
    path = os.path.relpath(run_dir)
    print(f"{path} is finished. Use resume={path} with a higher trainer.max_steps or max_time.")


def monitor_of(experiment: Experiment) -> str:
    """The metric that selects best.ckpt."""
    return experiment.config.value("callbacks.checkpoint.monitor") or "val/loss"
