import csv
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from helpers import SMALL, composed, weights
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from unet_diffusion.data.datamodule import Batch
from unet_diffusion.errors import UserError
from unet_diffusion.evaluation.denoising import score_levels
from unet_diffusion.evaluation.evaluate import evaluate
from unet_diffusion.parts import build_datamodule
from unet_diffusion.runs import Run
from unet_diffusion.training.building import build_module
from unet_diffusion.training.experiment import train

FAST = ("trainer.max_steps=4", "trainer.val_check_interval=100")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_network_overfits_one_batch(clothes: Batch):
    torch.manual_seed(0)
    module = build_module(composed("optimizer.lr=3e-3"), (16, 16))
    x0 = clothes.x0[:16]
    eps, t = module.fixed_noise(Batch(*(part[:16] for part in clothes)))
    optimizer = module.optimizer(module.parameters())
    losses = []
    for _ in range(250):
        loss = module.denoiser.loss(x0, eps, t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 50


def test_same_seed_same_weights_to_the_bit(trained: Callable[..., Path]):
    first, second, other = (weights(trained(*FAST, "data.flip=true", f"seed={seed}")) for seed in (0, 0, 1))
    assert same(first, second)
    assert not same(first, other)


def test_validation_and_pictures_leave_the_training_alone(trained: Callable[..., Path]):
    seldom = trained("trainer.max_steps=6", "trainer.val_check_interval=100")
    often = trained("trainer.max_steps=6", "trainer.val_check_interval=1", "noise_seed=7", "callbacks.pictures.num_images=3")
    assert same(weights(seldom), weights(often))


def test_accumulating_two_batches_takes_half_the_steps_a_batch(trained: Callable[..., Path]):
    run = trained("trainer.max_steps=3", "trainer.accumulate_grad_batches=2", "data.batch_size=16")
    record = json.loads((run / "metrics.json").read_text())
    assert record["steps"] == 3
    assert record["images_seen"] == 3 * 2 * 16


def test_clipping_bounds_the_step(trained: Callable[..., Path]):
    sgd = ("optimizer=adam", "optimizer._target_=torch.optim.SGD", "~optimizer.betas", "optimizer.lr=1", "lr_schedule=constant")
    moved = {}
    for name, clip in (("clipped", 1e-3), ("free", "null")):
        before = build_start()
        after = weights(trained("trainer.max_steps=1", *sgd, f"trainer.gradient_clip_val={clip}"))
        moved[name] = torch.cat([(after[key] - value).flatten() for key, value in before.items()]).norm().item()
    assert moved["clipped"] == pytest.approx(1e-3, rel=1e-2)
    assert moved["free"] > 1e-2


def build_start() -> dict[str, torch.Tensor]:
    """The parameters (not the buffers) that a small run with seed 0 starts from."""
    cfg = composed(*SMALL)
    L.seed_everything(0, workers=True, verbose=False)
    build_datamodule(cfg)
    return {name: p.detach().clone() for name, p in build_module(cfg, (16, 16)).named_parameters()}


def test_the_run_folder_is_complete(short_run: Path):
    assert sorted(file.name for file in (short_run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    config = yaml.safe_load((short_run / "config.yaml").read_text())
    assert config["trainer"]["max_steps"] == 12
    assert config["model"]["image_size"] == 16  # resolved
    assert yaml.safe_load((short_run / "overrides.yaml").read_text())[0] == "trainer.max_steps=12"
    record = json.loads((short_run / "metrics.json").read_text())
    assert record["steps"] == 12
    assert record["test_images"] == 1000
    assert set(record["scores"]) == {"val/loss", "test/mse", "test/psnr", "test/ssim"}
    expected = 10 * np.log10(4 / record["scores"]["test/mse"])
    assert record["scores"]["test/psnr"] == pytest.approx(expected, rel=1e-5)


def test_the_csv_holds_every_validation(short_run: Path):
    rows = list(csv.DictReader((short_run / "metrics.csv").open()))
    validated = {int(row["step"]): float(row["val/mse"]) for row in rows if row["val/mse"]}
    assert list(validated) == [4, 9, 11]  # after steps 5, 10 and the last
    assert min(validated.values()) == pytest.approx(json.loads((short_run / "metrics.json").read_text())["scores"]["val/loss"])
    assert float(next(row["train/images_per_second"] for row in rows if row["train/images_per_second"])) > 0


def test_checkpoints_are_plain_data_and_hold_the_best_and_the_last(short_run: Path):
    for name in ("best", "last"):
        content = torch.load(short_run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert content["global_step"] == 12 if name == "last" else content["global_step"] in (5, 10, 12)


def test_pictures_are_saved_and_change_with_training(short_run: Path):
    names = {file.name for file in (short_run / "pictures").iterdir()}
    assert names == {f"{kind}-{step:06d}.png" for kind in ("denoised", "drawn") for step in (5, 10, 12)}
    early, late = (np.asarray(Image.open(short_run / "pictures" / f"denoised-{step:06d}.png")) for step in (5, 12))
    third = early.shape[0] // 3
    assert np.array_equal(early[: 2 * third], late[: 2 * third])  # the same clean and noisy images every time
    assert not np.array_equal(early[2 * third :], late[2 * third :])


def test_tensorboard_reads_back_scalars_pictures_and_the_graph(short_run: Path):
    events = EventAccumulator(str(short_run), size_guidance={"images": 0, "scalars": 0}).Reload()
    scalars = set(events.Tags()["scalars"])
    assert {
        "train/loss",
        "train/learning_rate",
        "train/images_per_second",
        "val/loss",
        "val/mse",
        "val/psnr",
        "val/ssim",
        "test/mse",
    } <= scalars
    assert [event.step for event in events.Scalars("val/mse")] == [4, 9, 11]
    assert set(events.Tags()["images"]) == {"pictures/denoised", "pictures/drawn"}
    last = events.Images("pictures/denoised")[-1]
    assert last.step == 12
    logged = Image.open(BytesIO(last.encoded_image_string)).convert("RGB")
    saved = Image.open(short_run / "pictures" / "denoised-000012.png")
    assert np.array_equal(np.asarray(logged), np.asarray(saved))
    assert events.Tags()["graph"]
    assert any("bottleneck" in node.name for node in events.Graph().node)


def test_hparams_hold_choices_beside_final_scores(short_run: Path):
    events = EventAccumulator(str(short_run)).Reload()
    content = events.PluginTagToContent("hparams")[SESSION_START_INFO_TAG]
    chosen = HParamsPluginData.FromString(content).session_start_info.hparams
    assert chosen["noise.percent"].number_value == 0.5
    assert chosen["model.channels"].string_value == "8-16-32"
    assert chosen["trainer.max_steps"].number_value == 12
    assert "callbacks.progress_bar.refresh_rate" not in chosen
    final = json.loads((short_run / "metrics.json").read_text())["scores"]["test/mse"]
    assert events.Scalars("test/mse")[-1].value == pytest.approx(final)


def test_final_scores_are_those_of_the_best_checkpoint(short_run: Path):
    run = Run.open(short_run)
    loader = build_datamodule(run.config).test_dataloader()
    (score,) = score_levels(run.load_denoiser("best", torch.device("cpu")), loader, [0.5], seed=0, device=torch.device("cpu"))
    record = json.loads((short_run / "metrics.json").read_text())
    for name, value in score.answers["network"].items():
        assert value == pytest.approx(record["scores"][f"test/{name}"], rel=1e-4)


def test_a_time_limit_ends_the_run_and_its_learning_rate(trained: Callable[..., Path]):
    run = trained("trainer.max_time=00:00:00:02", "trainer.max_steps=-1", "trainer.log_every_n_steps=1")
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    rates = [float(row["train/learning_rate"]) for row in rows if row["train/learning_rate"]]
    assert max(rates) == pytest.approx(0.01, rel=0.05)
    assert rates[-1] < max(rates) / 10
    assert any(row["val/mse"] for row in rows)


def test_a_run_that_ends_by_epochs_is_validated_too(trained: Callable[..., Path]):
    run = trained("trainer.max_steps=-1", "trainer.max_epochs=1", "data.batch_size=1500", "trainer.val_check_interval=100")
    record = json.loads((run / "metrics.json").read_text())
    assert record["steps"] == 3
    assert record["scored_weights"] == "checkpoints/best.ckpt"
    assert (run / "pictures" / "drawn-000003.png").is_file()


def test_a_loss_that_is_not_finite_ends_the_run(trained: Callable[..., Path]):
    with pytest.raises(UserError, match=r"(loss|gradient) is not finite in step \d+ .*lower optimizer\.lr"):
        trained("optimizer.lr=1e30", "trainer.max_steps=20", "trainer.log_every_n_steps=2")


def test_colour_images_train_and_score(tmp_path: Path, trained: Callable[..., Path]):
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    run = trained(
        *FAST, "data=image_folder", f"data.root={tmp_path / 'photos'}", "data.image_size=[12,16]", "data.batch_size=8"
    )
    scores = evaluate(composed(f"run={run}", "levels=[0.3]", config="evaluate"))
    record = json.loads((run / "metrics.json").read_text())
    (level,) = [level for level in scores["levels"] if level["percent"] == 0.5]
    assert level["network"]["mse"] == pytest.approx(record["scores"]["test/mse"], rel=1e-4)
    assert record["test_images"] == 4


def test_fast_dev_run_leaves_nothing(trained: Callable[..., Path]):
    assert not trained("trainer.fast_dev_run=true").exists()


def test_bf16_trains(trained: Callable[..., Path]):
    record = json.loads((trained(*FAST, "precision=bf16") / "metrics.json").read_text())
    assert 0 < record["scores"]["test/mse"] < 2


def test_a_training_that_fails_before_its_first_step_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("unet_diffusion.training.module.DenoisingModule.training_step", broken)
    with pytest.raises(RuntimeError, match="on purpose"):
        train(composed(*SMALL, *FAST), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (lambda self, xt, t=None, label=None: xt[:, :, 1:], "answers 1x15x16 to 1x16x16 images"),
        (lambda self, xt: xt, "does not take the data's 1x16x16 images"),
    ],
)
def test_a_network_of_the_wrong_shape_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, forward: object, said: str):
    monkeypatch.setattr("unet_diffusion.models.lesson_unet.LessonUNet.forward", forward)
    with pytest.raises(UserError, match=said):
        train(composed(*SMALL, *FAST), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_existing_folder_is_never_used(short_run: Path):
    before = (short_run / "metrics.json").read_bytes()
    with pytest.raises(UserError, match="cannot be made"):
        train(composed(*SMALL, *FAST), short_run)
    assert (short_run / "metrics.json").read_bytes() == before
