"""The config of a resumed run: what is trained is the run's, the rest the command line's."""

import copy
from typing import Any

from unet_diffusion.errors import UserError
from unet_diffusion.experiment.locations import with_cache
from unet_diffusion.experiment.schema import TrainConfig, TrainerSettings, node_of

_FROM_COMMAND = {
    *("callbacks", "logger", "speed", "debug", "output_dir", "run_dir", "resume", "cache_dir"),
    *("optimized_metric", "sweep_dir", "choices", "overrides", "sweep_job_dir"),
}
_MAY_CHANGE = ("trainer", "callbacks", "logger", "speed", "debug", "cache_dir")
_MAY_CHANGE_GROUPS = ("accelerator", "precision", "data.root", "optimized_metric")


def resumed_config(run: TrainConfig, command: TrainConfig) -> TrainConfig:
    """Merges the config of a run with that of the command that resumes it.

    Callbacks, loggers and the arguments of the Trainer that `TrainerSettings` does not declare come
    from the command line alone: the run can be of unknown origin. What callbacks refer to, such as
    the sampler, is that of the run.
    """
    changed = [override.lstrip("+~").partition("=")[0] for override in command.overrides]
    config = run.model_dump()
    config |= {key: value for key, value in command if key in _FROM_COMMAND}
    config["trainer"] = _merged_trainer(run.trainer, command.trainer, changed)
    data = dict(run.data)
    if "data.root" in changed:
        data["root"] = command.data.get("root")
    config["data"] = with_cache(data, command.cache_dir)
    config["callbacks"] = copy.deepcopy(command.callbacks)
    for key, source in command.references.items():
        parent, _, name = key.rpartition(".")
        if parent.startswith("callbacks."):  # the previews use the sampler of the run
            node_of(config, parent)[name] = node_of(config, source)
    return TrainConfig.model_validate(config)


def check_overrides(run: TrainConfig, run_overrides: list[str], command: TrainConfig) -> None:
    """Checks that the overrides change nothing that a resumed run cannot change."""
    for override in command.overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key.split(".")[0] in _MAY_CHANGE or key in _MAY_CHANGE_GROUPS:
            continue
        old, new = run.value(key), command.value(key)
        if override not in run_overrides and new != old:
            raise UserError(
                f"resume={command.resume}: the run has {key}={old}. A resumed run can change "
                "trainer, callbacks, logger, speed, data.root, accelerator and precision only."
            )


def _merged_trainer(
    run: TrainerSettings, command: TrainerSettings, changed: list[str]
) -> dict[str, Any]:
    merged = command.model_dump()
    for name in TrainerSettings.model_fields:
        is_changed = f"trainer.{name}" in changed or (name == "precision" and name in changed)
        if not is_changed:
            merged[name] = getattr(run, name)
    return merged
