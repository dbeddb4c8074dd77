"""Optuna's side of a sweep: trials that look hopeless end early, and a study that was interrupted goes on."""

import warnings

import lightning as L
import optuna
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from unet_diffusion.errors import UserError

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=ExperimentalWarning)


class Pruning(Callback):
    """Tells Optuna the validation loss, and ends the training where its pruner sees no hope in it.

    Hydra's sweeper keeps the trial to itself, and knows trials that are complete or failed, none that are pruned. So the trial
    is found in the study's storage, as the running one with this job's values, and one that ends early is scored as it is then:
    to Optuna it is a complete trial with a bad value, which is what it is.

    Args:
        pruner: decides by what the other trials had at the same step.
    """

    def __init__(self, pruner: BasePruner) -> None:
        self.pruner = pruner
        self._study: optuna.Study | None = None
        self._trial: FrozenTrial | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Finds the trial.

        Raises:
            UserError: this is no job of a sweep by Optuna that keeps its study and has one aim.
        """
        sweeper = HydraConfig.get().sweeper if HydraConfig.initialized() else None
        if sweeper is None or not sweeper.get("storage") or not sweeper.get("study_name"):
            raise UserError("callbacks.pruning works in a sweep by Optuna that keeps its study: start from sweep=optuna")
        self._study = optuna.load_study(str(sweeper.study_name), RDBStorage(str(sweeper.storage)))
        if len(self._study.directions) > 1:
            raise UserError("callbacks.pruning works with one hydra.sweeper.direction: type ~callbacks.pruning for several")
        words = HydraConfig.get().overrides.task
        running = self._study.get_trials(states=(TrialState.RUNNING,))
        fitting = [trial for trial in running if all(f"{key}={value}" in words for key, value in trial.params.items())]
        self._trial = fitting[-1] if fitting else None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._study is None or self._trial is None or trainer.sanity_checking:
            return
        loss = float(trainer.callback_metrics["val/loss"])
        # a pruner goes by the study's direction, whatever is reported to it
        value = -loss if self._study.direction == StudyDirection.MAXIMIZE else loss
        storage, number = self._study._storage, self._trial._trial_id
        storage.set_trial_intermediate_value(number, trainer.global_step, value)
        ended = trainer.global_step >= trainer.estimated_stepping_batches
        if not ended and self.pruner.prune(self._study, storage.get_trial(number)):
            print(f"Ended at step {trainer.global_step}: its validation loss {loss:.4f} is worse than others' were there.")
            trainer.should_stop = True


def go_on_with_study(sweeper: DictConfig) -> None:
    """Lets a sweep by Optuna go on where it was interrupted: to `n_trials` in all, the interrupted ones first.

    Args:
        sweeper: `hydra.sweeper`, which is changed.
    """
    storage = RDBStorage(str(sweeper.storage))
    try:
        study = optuna.load_study(str(sweeper.study_name), storage)
    except KeyError:
        return  # it was interrupted before there was a study
    trials = study.get_trials()
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            storage.set_trial_state(trial._trial_id, TrialState.WAITING)  # the next one to be asked for, with the same values
    finished = sum(trial.state.is_finished() for trial in trials)
    print(f"Its study has {finished} of {sweeper.n_trials} trials.")
    sweeper.n_trials = max(0, sweeper.n_trials - finished)
    if sweeper.sampler.get("seed") is not None:
        sweeper.sampler.seed += finished  # the same seed would suggest the same values again
