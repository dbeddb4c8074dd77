"""What Lightning has no public way for: the only file that uses its undocumented names."""

from pathlib import Path
from typing import Any

import lightning as L


def validate_after_this_step(trainer: L.Trainer) -> None:
    """Validates after the current batch, whatever `val_check_interval` says.

    `val_check_batch` is the number of batches between validations. With `should_stop`, Lightning
    would validate too, but log the values of an earlier step for the last one.
    """
    trainer.val_check_batch = 1


def move_checkpoint_paths(checkpoint: dict[str, Any], directory: Path) -> None:
    """Changes the paths in the states of ModelCheckpoint: Lightning deletes the files there."""
    for state in checkpoint["callbacks"].values():
        if isinstance(state, dict) and "best_model_path" in state:
            state["dirpath"] = str(directory)
            for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
                state[key] = state[key] and str(directory / Path(state[key]).name)
            state["best_k_models"] = {
                str(directory / Path(file).name): score
                for file, score in state["best_k_models"].items()
                if file.endswith(".ckpt")
            }
