"""Loggers: scalars, image grids and hyper-parameters arrive, and a resumed run continues."""

import os
import sys
from pathlib import Path

import pytest
from helpers import FEW_BATCHES, SMALL, Script

from unet_diffusion.runs.run import Run

SCALARS = ("train/loss", "val/loss", "test/mse", "learning_rate")
LIMITS = ("trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1")
LIMITS += FEW_BATCHES


@pytest.fixture
def logged_run(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request):
    """Trains 4 steps with the logger of the test, resumes to 6, and returns its name."""
    logger = request.param
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read by its import
    pytest.importorskip(logger)
    overrides = (*SMALL, *LIMITS, "run_dir=run", f"logger={logger}")
    overrides += ("logger.wandb.offline=true",) if logger == "wandb" else ()
    for arguments in (overrides, ("resume=run", "trainer.max_steps=6")):
        status, _, errors = script("train", *arguments)
        assert status == 0, errors
    recorded = Run.open(tmp_path / "run").config.recorded.loggers[logger]
    return recorded.get("id") or recorded.get("run_name") or recorded["name"]


@pytest.mark.slow
@pytest.mark.parametrize("logged_run", ["wandb"], indirect=True)
def test_wandb_has_scalars_and_images_offline(logged_run: str, tmp_path: Path):
    folders = list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{logged_run}"))
    assert folders
    content = b"".join(file.read_bytes() for each in folders for file in each.glob("*.wandb"))
    for name in (*SCALARS, "previews/denoised", "percent"):
        assert name.encode() in content, name
    for kind in ("denoised", "generated"):
        images = [f for each in folders for f in each.glob(f"files/media/images/previews/{kind}_*")]
        assert len(images) == 3


@pytest.mark.slow
@pytest.mark.parametrize("logged_run", ["mlflow"], indirect=True)
def test_mlflow_has_scalars_and_images_in_a_local_database(logged_run: str, tmp_path: Path):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("unet_diffusion")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == logged_run
    assert set(SCALARS) <= run.data.metrics.keys()
    assert run.data.params["noise/percent"] == "0.5"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [each.step for each in history] == [0, 1, 2, 3, 4, 5]
    images = client.list_artifacts(run.info.run_id, "images")
    assert len([each for each in images if each.path.endswith(".png")]) == 6


@pytest.mark.slow
@pytest.mark.parametrize("logged_run", ["trackio"], indirect=True)
def test_trackio_has_scalars_and_images_in_a_local_folder(logged_run: str, tmp_path: Path):
    import trackio

    (run,) = trackio.Api().runs("unet_diffusion")
    assert run.name == logged_run
    assert run.config["noise"]["percent"] == 0.5
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs("unet_diffusion", logged_run)
    assert set(SCALARS) <= {key for row in rows for key in row}
    assert [row["step"] for row in rows if "train/loss" in row] == [0, 1, 2, 3, 4, 5]
    assert len([row for row in rows if "previews/generated" in row]) == 3


def test_logger_without_its_package_raises(script: Script, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    status, _, errors = script("train", *SMALL, "logger=wandb", "run_dir=run")
    assert status == 2
    assert "wandb: not installed" in errors
    assert not os.path.exists(tmp_path / "run")
