import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import Malicious, call, composed, weights

from unet_diffusion.errors import UserError
from unet_diffusion.experiment.saved import validate_config
from unet_diffusion.experiment.schema import Recorded, TrainConfig
from unet_diffusion.runs.checkpoints import load_checkpoint
from unet_diffusion.runs.files import write_json
from unet_diffusion.runs.records import Metrics
from unet_diffusion.runs.run import Run, find_runs, save_config


@pytest.fixture
def copied(short_run: Path, tmp_path: Path) -> Path:
    """A copy of the short run in another directory."""
    return Path(shutil.copytree(short_run, tmp_path / "moved" / "run"))


def test_moved_run_is_rebuilt_from_its_own_config(copied: Path):
    file = Run.open(copied / "checkpoints" / "last.ckpt")
    assert (file.path, file.checkpoint_path("best").name) == (copied.resolve(), "last.ckpt")
    run = Run.open(copied)
    assert run.config.image_shape == (1, 16, 16)
    assert run.class_names[9] == "ankle-boot"
    assert run.metrics is not None
    denoiser = run.load_denoiser("last")
    assert not denoiser.training
    expected = weights(copied, "last")
    for name, value in denoiser.state_dict().items():
        assert torch.equal(value, expected[f"denoiser.{name}"])


def test_ema_and_raw_weights_are_selected(generator_run: Path, short_run: Path):
    state = weights(generator_run, "last")
    run = Run.open(generator_run)
    assert [run.resolve_weights(each) for each in ("auto", "ema", "raw")] == ["ema", "ema", "raw"]
    assert Run.open(short_run).resolve_weights("auto") == "raw"
    with pytest.raises(UserError, match=r"^weights=ema: .* Use weights=raw"):
        Run.open(short_run).resolve_weights("ema")
    name = "net.stem.weight"
    for which, prefix in (("auto", "ema_denoiser"), ("raw", "denoiser")):
        loaded = run.load_denoiser("last", which).state_dict()[name]
        assert torch.equal(loaded, state[f"{prefix}.{name}"])
    assert not torch.equal(*(run.load_denoiser("last", w).net.stem.weight for w in ("ema", "raw")))


def test_latest_is_the_newest_run(short_run: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("04_flow/a", "lesson/b", "lesson/c")):
        shutil.copytree(short_run, tmp_path / "runs" / name)
        os.utime(tmp_path / "runs" / name / "overrides.yaml", (1e9 - age, 1e9 - age))
    call("export", run="runs/lesson/b")  # a saved model is not a run
    assert Run.open("latest").path.name == "a"
    assert Run.open("latest:lesson").path.name == "b"
    shutil.copytree(short_run, tmp_path / "latest-models")
    assert Run.open("latest-models").path.name == "latest-models"
    with pytest.raises(UserError, match=r"run=latest:other: no runs below runs/other"):
        Run.open("latest:other")


def test_find_runs_returns_all_runs_below_a_directory(short_run: Path, tmp_path: Path):
    for name in ("b", "a", "deep/c"):
        (tmp_path / name).mkdir(parents=True)
        for file in ("config.yaml", "overrides.yaml"):
            shutil.copy(short_run / file, tmp_path / name)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.yaml").write_text("[")  # is skipped
    (tmp_path / "broken" / "overrides.yaml").write_text("[]")
    names = [run.path.name for run in find_runs([str(tmp_path), str(tmp_path / "a")])]
    assert names == ["a", "b", "c"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"^runs=.*empty: no run directories found"):
        find_runs([str(tmp_path / "empty")])


def test_missing_checkpoint_names_the_existing_ones(copied: Path):
    (copied / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(UserError, match=r"^checkpoint=best: not in run .* It has last\."):
        Run.open(copied).checkpoint_path("best")
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(UserError, match="It has no checkpoint yet"):
        Run.open(copied).checkpoint_path("best")


@pytest.mark.parametrize("kept", [0, 10, 1000, 0.5, 0.99])
def test_damaged_checkpoint_is_named(copied: Path, kept: float):
    path = copied / "checkpoints" / "best.ckpt"
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(UserError, match=r"best\.ckpt: "):
        Run.open(copied).load_denoiser("best")
    content[60:65] = b"\x00\x00\x00\x00."  # the unpickler raises IndexError
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"best\.ckpt: damaged, truncated"):
        load_checkpoint(path)


NAN = {"denoiser.net.stem.0.bias": torch.full((8,), torch.nan)}


@pytest.mark.parametrize(
    ("content", "message"),
    [([1, 2], "not a checkpoint of a run"), ({"weights": {}}, "not a checkpoint of a run")]
    + [
        ({"state_dict": state}, "not a checkpoint of a run")
        for state in ({5: torch.ones(1)}, {"a": 5}, [torch.ones(1)], None)
    ]
    + [({"state_dict": NAN}, "the weights are not finite")],
)
def test_checkpoint_with_other_content_is_refused(copied: Path, content: Any, message: str):
    path = copied / "checkpoints" / "best.ckpt"
    if message.endswith("finite"):
        content["state_dict"] = weights(copied, "best") | content["state_dict"]
    torch.save(content, path)
    with pytest.raises(UserError, match=rf"best\.ckpt: {message}"):
        Run.open(copied).load_denoiser()


def test_checkpoint_with_code_is_refused_and_runs_nothing(copied: Path, tmp_path: Path):
    payload = Malicious(str(tmp_path / "created"))
    path = copied / "checkpoints" / "best.ckpt"
    torch.save({"state_dict": {}, "x": payload}, path)
    with pytest.raises(UserError, match=r"contains more than tensors"):
        Run.open(copied).load_denoiser("best")
    path.write_bytes(pickle.dumps(payload))  # the old format without a zip archive
    with pytest.raises(UserError, match=r"best\.ckpt: "):
        Run.open(copied).load_denoiser("best")
    assert not (tmp_path / "created").exists()


def test_checkpoint_of_another_network_raises(copied: Path):
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["model"]["channels"] = [8, 16, 24]
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"best\.ckpt does not fit .*config\.yaml"):
        Run.open(copied).load_denoiser("best")


def test_saved_config_and_overrides_are_read_back(tmp_path: Path):
    overrides = ["noise.percent=0.3", "name='a b'"]
    config = composed("noise.percent=0.3")
    named = config.model_copy(update={"class_names": ["a"]})
    save_config(tmp_path / "new", named, Recorded(), overrides)
    run = Run.open(tmp_path / "new")
    assert (run.overrides, run.class_names) == (overrides, ["a"])
    saved = validate_config(TrainConfig, run.values, run.path / "config.yaml")
    assert saved.noise == config.noise
    assert (run.value("noise"), run.value("noise.percent")) == ("fixed", 0.3)
    (tmp_path / "new" / "overrides.yaml").unlink()
    assert run.overrides == []


@pytest.mark.parametrize(
    "text", ["", "a", "{a: b}", "[", "!!python/name:os.getcwd", "[&a [b], *a]", "[" * 200_000]
)
def test_damaged_overrides_are_refused(copied: Path, text: str):
    (copied / "overrides.yaml").write_text(text)
    with pytest.raises(UserError, match=r"overrides\.yaml"):
        _ = Run.open(copied).overrides


def test_metrics_of_an_unfinished_or_damaged_run_are_none(tmp_path: Path):
    save_config(tmp_path, composed(), Recorded(), [])
    run = Run.open(tmp_path)
    assert run.metrics is None
    for text in ("", "{", "[]", "\x00", "3", "[" * 100_000):
        (tmp_path / "metrics.json").write_text(text)
        assert run.metrics is None
    metrics = {"scores": {"test/mse": 0.5}, "num_test_images": 9, "noise_seed": 0, "steps": 1}
    metrics |= {"images_seen": 8, "seconds": 1.5, "parameters": 7}
    write_json(tmp_path / "metrics.json", metrics)
    assert run.metrics == Metrics(**metrics)
    write_json(tmp_path / "metrics.json", metrics | {"steps": "x/../../../victim"})
    assert run.metrics is None


def test_link_that_leaves_the_run_directory_is_refused(copied: Path, tmp_path: Path):
    (copied / "inside.yaml").symlink_to(copied / "overrides.yaml")
    assert Run.open(copied).path == copied.resolve()
    (copied / "previews2").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"previews2: a link that leaves the run directory"):
        Run.open(copied)


def test_written_file_replaces_a_planted_link(tmp_path: Path):
    (tmp_path / "victim").write_text("mine")
    for name in ("new.json", ".new.json.tmp"):
        (tmp_path / name).symlink_to(tmp_path / "victim")
    write_json(tmp_path / "new.json", {"a": 1})
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / "new.json").is_symlink()
