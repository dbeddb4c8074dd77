"""Previews, and losses that are not finite."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Trained
from PIL import Image

from unet_diffusion.runs.checkpoints import load_checkpoint


def test_previews_keep_their_noise_and_follow_the_training(short_run: Path):
    names = {file.name for file in (short_run / "previews").iterdir()}
    kinds = ("denoised", "generated")
    assert names == {f"{kind}-{step:06d}.png" for kind in kinds for step in (5, 10, 12)}
    early, late = (
        np.asarray(Image.open(short_run / "previews" / f"denoised-{step:06d}.png"))
        for step in (5, 12)
    )
    third = early.shape[0] // 3  # clean, noisy, denoised
    assert np.array_equal(early[: 2 * third], late[: 2 * third])
    assert not np.array_equal(early[2 * third :], late[2 * third :])


@pytest.mark.parametrize("interval", [1, 10])
def test_infinite_loss_changes_no_weights(trained: Trained, tmp_path: Path, interval: int):
    limits = ("trainer.max_steps=20", "trainer.val_check_interval=1", "logger=csv")
    diverging = ("optimizer.lr=1e30", "lr_schedule.warmup=0")
    message = r"^The loss is nan at step \d+ \(learning rate .*Reduce"
    with pytest.raises(ValueError, match=message):
        trained(*limits, *diverging, f"trainer.log_every_n_steps={interval}")
    for checkpoint in tmp_path.rglob("*.ckpt"):
        state = load_checkpoint(checkpoint)["state_dict"]
        assert all(torch.isfinite(value).all() for value in state.values())
