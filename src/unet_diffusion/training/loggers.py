"""Loggers: Lightning's own and trackio, what all of them get, and how a resumed run continues."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from unet_diffusion.config import choice_or_value, instantiate
from unet_diffusion.runs import unique_name
from unet_diffusion.training.run_directory import TrainingPlan


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


def build_loggers(cfg: DictConfig, plan: TrainingPlan) -> list[Logger]:
    """The loggers of a config; names of new runs are set in the config, for a resume."""
    loggers: list[Logger] = []
    cfg.logger = {kind: node for kind, node in cfg.logger.items() if node}
    for kind, node in cfg.logger.items():
        arguments: dict[str, Any] = {}
        for key in ("id", "run_name", "name"):  # of wandb, MLflow, trackio
            if key in node and node[key] is None:
                node[key] = f"{str(cfg.name).replace('/', '-')}-{unique_name()}"
        if str(node.get("_target_")).endswith(("CSVLogger", "TensorBoardLogger", "WandbLogger")):
            arguments["save_dir"] = str(plan.run.path)
        if str(node.get("_target_")).endswith("TensorBoardLogger"):
            arguments["purge_step"] = plan.first_step
        loggers.append(instantiate(cfg, f"logger.{kind}", **arguments))
        if isinstance(loggers[-1], TensorBoardLogger):
            overrides = [*plan.run.overrides, *plan.overrides]
            loggers[-1].hparams.update(hyper_parameters(cfg, overrides))
    return loggers


def start_loggers(loggers: list[Logger], plan: TrainingPlan) -> None:
    """Starts the runs of the services, and logs all keys of the config as hyper-parameters.

    TensorBoard shows a few, with the scores. MLflow does not accept changed ones.
    """
    cfg = plan.run.config
    for node, logger in zip(cfg.logger.values(), loggers, strict=False):
        try:
            if isinstance(logger, WandbLogger | TrackioLogger):
                logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
                _ = logger.experiment
            elif isinstance(logger, MLFlowLogger) and node.run_id is None:
                logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
                node.run_id = logger.run_id
            elif isinstance(logger, CSVLogger) and not plan.is_new:
                keep_earlier_metrics(logger, plan.run.path / "metrics.csv", plan.first_step or 0)
        except Exception as error:
            raise ValueError(f"logger: {error}") from error


def close_loggers(loggers: list[Logger], failed: bool) -> None:
    """Ends runs that would otherwise continue in the next job of a sweep."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and logger._experiment is not None:
            logger._experiment.finish(exit_code=int(failed))


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


def hyper_parameters(cfg: DictConfig, overrides: list[str]) -> dict[str, Any]:
    """A few keys for TensorBoard's HParams tab: those that matter always, and the overrides.

    TensorBoard takes the columns from one of the runs, so missing values are logged as well.
    """
    keys = ["data", "model", "noise", "noise.percent", "schedule", "prediction", "optimizer"]
    keys += ["optimizer.lr", "seed", "trainer.max_steps"]
    keys += [override.lstrip("+~").partition("=")[0] for override in overrides]
    values = {key: choice_or_value(cfg, key) for key in keys}
    return {key: "-" if value is None else value for key, value in values.items()}


def keep_earlier_metrics(logger: CSVLogger, file: Path, step: int) -> None:
    """Restores the rows before `step` of metrics.csv, which Lightning's logger starts anew."""
    if not file.is_file():
        return
    header, *rows = file.read_text().splitlines(keepends=True)
    position = header.strip().split(",").index("step")
    kept = [row for row in rows if int(row.split(",")[position]) < step]
    logger.experiment.metrics_keys = header.strip().split(",")
    file.write_text("".join([header, *kept]))
