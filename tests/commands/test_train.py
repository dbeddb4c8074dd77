"""Short trainings and what they leave in the run directory."""

import json
import time
from io import BytesIO
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml
from helpers import SMALL, Trained, composed, logged, weights, with_callback
from lightning import Callback
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from unet_diffusion.commands.train import train
from unet_diffusion.hardware import training_precision
from unet_diffusion.runs.checkpoints import load_checkpoint
from unet_diffusion.training.run_directory import AtomicCheckpointIO

FAST = (
    *("trainer.max_steps=4", "trainer.val_check_interval=100", "+trainer.limit_val_batches=2"),
    *("+trainer.limit_test_batches=2", "callbacks.previews.num_images=1", "logger=csv"),
)


def record(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_validation_and_previews_do_not_change_the_training(trained: Trained):
    rare = trained(*FAST, "noise=uniform", "data.flip=true")
    often = trained(
        *FAST,
        *("noise=uniform", "data.flip=true", "noise_seed=7", "callbacks.previews.num_images=3"),
        *("trainer.val_check_interval=1", "trainer.num_sanity_val_steps=1", "logger=tensorboard"),
    )
    assert equal(weights(rare), weights(often))


def test_accumulated_steps_are_counted_as_optimizer_steps(trained: Trained):
    accumulate = ("trainer.accumulate_grad_batches=2", "data.batch_size=16")
    run = trained(*FAST, *accumulate, "trainer.val_check_interval=3")
    assert list(logged(run, "val/loss")) == [2, 3]  # after steps 3 and 4
    assert (record(run)["steps"], record(run)["images_seen"]) == (4, 4 * 2 * 16)


def test_run_directory_is_complete(short_run: Path):
    checkpoints = sorted(file.name for file in (short_run / "checkpoints").iterdir())
    assert checkpoints == ["best.ckpt", "last.ckpt"]
    config = yaml.safe_load((short_run / "config.yaml").read_text())
    assert config["trainer"]["max_steps"] == 12
    assert config["model"]["image_size"] == 16  # resolved
    assert len(config["class_names"]) == 10
    scores = record(short_run)["scores"]
    assert set(scores) == {"val/loss", "test/mse", "test/psnr", "test/ssim"}
    assert (record(short_run)["steps"], record(short_run)["num_test_images"]) == (12, 1000)
    assert scores["test/psnr"] == pytest.approx(10 * np.log10(4 / scores["test/mse"]), rel=1e-5)


def test_best_checkpoint_has_the_lowest_validation_loss(trained: Trained):
    """Also if it is not the last one: the learning rate grows to a harmful value."""
    harmful = ("lr_schedule=linear", "lr_schedule.warmup=1", "optimizer.lr=2")
    run = trained(*FAST, *harmful, "trainer.max_steps=8", "trainer.val_check_interval=1")
    losses = logged(run, "val/loss")
    assert list(losses) == list(range(8))
    best = min(losses, key=lambda step: losses[step])
    assert best < 7
    assert load_checkpoint(run / "checkpoints" / "best.ckpt")["global_step"] == best + 1
    assert load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 8
    assert record(run)["scores"]["val/loss"] == pytest.approx(losses[best])


def test_last_step_is_validated_and_every_value_belongs_to_its_step(short_run: Path):
    assert list(logged(short_run, "val/mse")) == [4, 9, 11]  # after steps 5, 10 and 12
    assert list(logged(short_run, "train/loss")) == [1, 3, 5, 7, 9, 11]


def test_seconds_are_those_of_the_fit(trained: Trained, monkeypatch: pytest.MonkeyPatch):
    pause = Callback()
    monkeypatch.setattr(pause, "on_validation_start", lambda *_: time.sleep(0.2))
    monkeypatch.setattr(pause, "on_test_start", lambda *_: time.sleep(1))
    with_callback(monkeypatch, pause)
    start = time.perf_counter()
    seconds = record(trained(*FAST, "trainer.max_steps=1"))["seconds"]
    assert 0.2 <= seconds < time.perf_counter() - start - 1


def test_last_epoch_is_validated(trained: Trained):
    epochs = ("trainer.max_steps=-1", "trainer.max_epochs=2", "+trainer.limit_train_batches=2")
    run = trained(*FAST, *epochs)
    assert (list(logged(run, "val/loss")), record(run)["steps"]) == ([3], 4)
    assert (run / "previews" / "generated-000004.png").is_file()


def test_tensorboard_has_scalars_images_graph_and_hparams(short_run: Path, generator_run: Path):
    events = EventAccumulator(str(short_run), size_guidance={"images": 0, "scalars": 0}).Reload()
    expected = {"train/loss", "learning_rate", "val/loss", "test/mse"}
    assert expected <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("val/mse")] == [4, 9, 11]
    last = events.Images("previews/denoised")[-1]
    logged_image = Image.open(BytesIO(last.encoded_image_string)).convert("RGB")
    saved = Image.open(short_run / "previews" / "denoised-000012.png")
    assert np.array_equal(np.asarray(logged_image), np.asarray(saved))
    assert any("bottleneck" in node.name for node in events.Graph().node)
    content = events.PluginTagToContent("hparams")[SESSION_START_INFO_TAG]
    hparams = HParamsPluginData.FromString(content).session_start_info.hparams
    assert hparams["noise.percent"].number_value == 0.5
    assert hparams["trainer.max_steps"].number_value == 12
    events_of_flow = EventAccumulator(str(generator_run)).Reload()
    content = events_of_flow.PluginTagToContent("hparams")[SESSION_START_INFO_TAG]
    hparams = HParamsPluginData.FromString(content).session_start_info.hparams
    assert hparams["noise.percent"].string_value == "-"  # or the column is missing in TensorBoard
    final = record(short_run)["scores"]["test/mse"]
    assert events.Scalars("test/mse")[-1].value == pytest.approx(final)


def test_fast_dev_run_and_failure_before_the_first_step_leave_nothing(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not trained(*FAST, "trainer.fast_dev_run=true", "ema=default").exists()

    def fail(*_: object) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr("unet_diffusion.training.module.DenoisingModule.training_step", fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        trained(*FAST)
    assert not list(tmp_path.iterdir())


def test_directory_with_other_files_is_not_used(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.png").touch()
    (tmp_path / "project" / ".git").mkdir(parents=True)
    for path in (tmp_path / "photos", tmp_path / "photos" / "me.png", tmp_path / "project"):
        with pytest.raises(ValueError, match="exists and is not a run directory"):
            train(composed(*SMALL, *FAST, f"run_dir={path}"))
    assert [file.name for file in (tmp_path / "photos").iterdir()] == ["me.png"]
    assert (tmp_path / "project" / ".git").is_dir()


def test_checkpoint_that_cannot_be_written_keeps_the_previous_one(tmp_path: Path, monkeypatch):
    path, checkpoint = tmp_path / "last.ckpt", {"state_dict": {"w": torch.ones(10)}}
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)

    disk_full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr("unet_diffusion.runs.files.os.chmod", disk_full)
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, path)
    assert torch.equal(load_checkpoint(path)["state_dict"]["w"], torch.ones(10))
    assert list(tmp_path.iterdir()) == [path]


def test_auto_selects_bf16_on_cpus_that_are_fast_at_it(monkeypatch: pytest.MonkeyPatch):
    fast = {"amx_tile": True, "avx512_bf16": True, "amx_fp16": False}
    for capability, is_fast in fast.items():
        for name in fast:
            supported = name == capability
            monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda it=supported: it)
        assert training_precision("cpu", "auto") == ("bf16-mixed" if is_fast else "32-true")
