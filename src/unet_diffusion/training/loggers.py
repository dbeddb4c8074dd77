"""Loggers: Lightning's own and trackio, what all of them get, and how a resumed run continues."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor

from unet_diffusion.errors import UserError
from unet_diffusion.experiment.build import Experiment
from unet_diffusion.experiment.schema import Recorded, TrainConfig
from unet_diffusion.runs.files import write_atomically

SCORES = ("loss", "mse", "psnr", "ssim")
COLUMNS = ("epoch", "step", "train/loss", *(f"val/{score}" for score in SCORES))
COLUMNS += tuple(f"test/{score}" for score in SCORES[1:])
"""Of metrics.csv; the learning rates follow."""


class TrackioLogger(Logger):
    """Logs to trackio, and continues an existing run; see conf/logger/trackio.yaml."""

    def __init__(self, project: str, name: str, space_id: str | None = None) -> None:
        super().__init__()
        self._arguments: dict[str, Any] = {"project": project, "name": name, "space_id": space_id}
        self._config: dict[str, Any] = {}
        self._run: Any = None

    @property
    def name(self) -> str:
        return str(self._arguments["project"])

    @property
    def version(self) -> str:
        return str(self._arguments["name"])

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The trackio run; created on first use."""
        if self._run is None:
            import trackio

            self._run = trackio.init(
                **self._arguments, config=self._config, resume="allow", embed=False
            )
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any], *_: Any) -> None:  # type: ignore[override]
        self._config = dict(params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None  # the test after a fit continues it


def start_loggers(experiment: Experiment, run_dir: Path, first_step: int | None) -> Recorded:
    """Starts the runs of the services, and logs all keys of the config as hyper-parameters.

    TensorBoard shows a few, with the scores. MLflow does not accept changed ones.

    Args:
        experiment: with the loggers.
        run_dir: the run directory.
        first_step: at which a resumed run continues; None for a new run.

    Returns:
        What is recorded of the experiment, with the runs of the services.
    """
    recorded, values = experiment.recorded, experiment.config.model_dump(mode="json")
    for kind, logger in experiment.loggers.items():
        names = recorded.loggers.get(kind, {})
        try:
            if isinstance(logger, TensorBoardLogger):
                logger.hparams.update(hyper_parameters(experiment.config))
            elif isinstance(logger, WandbLogger | TrackioLogger):
                logger.log_hyperparams(values)
                _ = logger.experiment
            elif isinstance(logger, MLFlowLogger) and "run_id" not in names:
                logger.log_hyperparams(values)
                names = names | {"run_id": logger.run_id}
            elif isinstance(logger, CSVLogger):
                keep_earlier_metrics(logger, run_dir / "metrics.csv", first_step)
        except Exception as error:
            raise UserError(f"logger.{kind}: {error}") from error
        loggers = recorded.loggers | ({kind: names} if names else {})
        recorded = recorded.model_copy(update={"loggers": loggers})
    return recorded


def close_loggers(loggers: Iterable[Logger], failed: bool) -> None:
    """Ends runs that would otherwise continue in the next job of a sweep."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            wandb.finish(exit_code=int(failed))


def log_image(logger: Logger, name: str, image: Tensor, step: int) -> None:
    """Logs a uint8 image (3, H, W)."""
    array = image.permute(1, 2, 0).numpy()
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, image, step)
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [array], step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, array, key=name, step=step)
    elif isinstance(logger, TrackioLogger):
        import trackio

        logger.log_metrics({name: trackio.Image(array)}, step)


def hyper_parameters(config: TrainConfig) -> dict[str, Any]:
    """A few keys for TensorBoard's HParams tab: those that matter always, and the overrides.

    TensorBoard takes the columns from one of the runs, so missing values are logged as well.
    """
    keys = ["data", "model", "noise", "noise.percent", "schedule", "prediction", "optimizer"]
    keys += ["optimizer.lr", "seed", "trainer.max_steps"]
    keys += [override.lstrip("+~").partition("=")[0] for override in config.overrides]
    values = {key: config.value(key) for key in keys}
    return {key: "-" if value is None else value for key, value in values.items()}


def keep_earlier_metrics(logger: CSVLogger, file: Path, first_step: int | None) -> None:
    """Restores the rows before `first_step` of metrics.csv, which Lightning's logger starts anew.

    All usual columns are written from the start: for a new one, Lightning rewrites the file.
    """
    columns, kept = set(COLUMNS), []
    backup = file.with_name(".metrics.csv")  # remains if the process is killed in between
    if file.is_file():
        file.replace(backup)
    if first_step is not None and backup.is_file():
        with backup.open(newline="", encoding="utf-8", errors="replace") as stream:
            reader = csv.DictReader(stream)
            columns |= set(reader.fieldnames or [])
            # A row that was being written when the process was killed has no valid step.
            rows = [row for row in reader if (row.get("step") or "").isdecimal()]
            kept = [row for row in rows if int(row["step"]) < first_step]
    logger.experiment.metrics_keys = sorted(columns)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, sorted(columns), extrasaction="ignore")
    writer.writeheader()
    writer.writerows(kept)
    write_atomically(file, text.getvalue())
    backup.unlink(missing_ok=True)
