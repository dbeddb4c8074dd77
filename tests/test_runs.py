import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers import composed, weights
from unet_diffusion.generation.export import export

from unet_diffusion.runs import (
    Run,
    find_runs,
    load_checkpoint,
    read_json,
    unique_name,
    write_atomically,
    write_json,
)


@pytest.fixture
def copied(short_run: Path, tmp_path: Path) -> Path:
    """A copy of the short run in another directory."""
    return Path(shutil.copytree(short_run, tmp_path / "moved" / "run"))


def test_moved_run_is_rebuilt_from_its_own_config(copied: Path):
    run = Run.open(copied)
    assert run.image_shape == (1, 16, 16)
    assert run.class_names[9] == "ankle-boot"
    assert run.metrics is not None
    denoiser = run.load_denoiser("last")
    assert not denoiser.training
    expected = weights(copied, "last")
    for name, value in denoiser.state_dict().items():
        assert torch.equal(value, expected[f"denoiser.{name}"])


def test_ema_and_raw_weights_are_selected(generator_run: Path):
    content = load_checkpoint(generator_run / "checkpoints" / "last.ckpt")
    run = Run.open(generator_run)
    assert [run.resolve_weights(each) for each in ("auto", "ema", "raw")] == ["ema", "ema", "raw"]
    name = "net.stem.weight"
    for which, key in (("auto", "state_dict"), ("raw", "current_model_state")):
        loaded = run.load_denoiser("last", which).state_dict()[name]
        assert torch.equal(loaded, content[key][f"denoiser.{name}"])
    assert not torch.equal(*(run.load_denoiser("last", w).net.stem.weight for w in ("ema", "raw")))


def test_ema_weights_of_a_run_without_ema_raise(short_run: Path):
    assert Run.open(short_run).resolve_weights("auto") == "raw"
    with pytest.raises(ValueError, match=r"^weights=ema: .* Use weights=raw"):
        Run.open(short_run).resolve_weights("ema")


def test_checkpoint_file_opens_its_run(copied: Path):
    run = Run.open(copied / "checkpoints" / "last.ckpt")
    assert run.path == copied.resolve()
    assert run.checkpoint_path("best").name == "last.ckpt"


def test_other_paths_are_not_runs(tmp_path: Path):
    (tmp_path / "note.txt").write_text("hello")
    for path in (tmp_path, tmp_path / "note.txt"):
        with pytest.raises(ValueError, match=r"^run=.*: not a run directory"):
            Run.open(path)
    with pytest.raises(ValueError, match=r"^resume=.*: no such file or directory"):
        Run.open(tmp_path / "missing", key="resume")


def test_latest_is_the_newest_run(short_run: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("04_flow/a", "lesson/b", "lesson/c")):
        shutil.copytree(short_run, tmp_path / "runs" / name)
        os.utime(tmp_path / "runs" / name / "overrides.yaml", (1e9 - age, 1e9 - age))
    export(run="runs/lesson/b")  # a saved model is not a run
    assert Run.open("latest").path.name == "a"
    assert Run.open("latest:lesson").path.name == "b"
    shutil.copytree(short_run, tmp_path / "latest-models")
    assert Run.open("latest-models").path.name == "latest-models"
    with pytest.raises(ValueError, match=r"run=latest:other: no runs below runs/other"):
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
    with pytest.raises(ValueError, match=r"^runs=.*empty: no run directories found"):
        find_runs([str(tmp_path / "empty")])


def test_missing_checkpoint_names_the_existing_ones(copied: Path):
    (copied / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(ValueError, match=r"^checkpoint=best: not in run .* It has last\."):
        Run.open(copied).checkpoint_path("best")
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(ValueError, match="It has no checkpoint yet"):
        Run.open(copied).checkpoint_path("best")


@pytest.mark.parametrize("keep", [0, 10, 1000, 0.5, 0.99])
def test_truncated_checkpoint_is_named(copied: Path, keep: float):
    path = copied / "checkpoints" / "best.ckpt"
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(ValueError, match=r"best\.ckpt: "):
        Run.open(copied).load_denoiser("best")


class Payload:
    """Creates a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_checkpoint_with_code_is_refused_and_runs_nothing(copied: Path, tmp_path: Path):
    payload = Payload(tmp_path / "created")
    path = copied / "checkpoints" / "best.ckpt"
    torch.save({"state_dict": {}, "x": payload}, path)
    with pytest.raises(ValueError, match=r"contains more than tensors"):
        Run.open(copied).load_denoiser("best")
    path.write_bytes(pickle.dumps(payload))  # the old format without a zip archive
    with pytest.raises(ValueError, match=r"best\.ckpt: "):
        Run.open(copied).load_denoiser("best")
    assert not payload.path.exists()


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": None}, {"weights": {}}])
def test_other_content_is_not_a_checkpoint(tmp_path: Path, content: object):
    torch.save(content, tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint of a run"):
        load_checkpoint(tmp_path / "odd.ckpt")


def test_checkpoint_of_another_network_raises(copied: Path):
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["model"]["channels"] = [8, 16, 24]
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"best\.ckpt does not fit .*config\.yaml"):
        Run.open(copied).load_denoiser("best")


def test_weights_that_are_not_finite_raise(copied: Path):
    path = copied / "checkpoints" / "best.ckpt"
    content = torch.load(path, weights_only=True)
    content["state_dict"]["denoiser.net.stem.0.bias"][0] = float("nan")
    torch.save(content, path)
    with pytest.raises(ValueError, match="the weights are not finite"):
        Run.open(copied).load_denoiser("best")


def test_saved_config_and_overrides_are_read_back(tmp_path: Path):
    overrides = ["noise.percent=0.3", "name='a b'"]
    Run(tmp_path / "new", composed(*overrides[:1])).save_config(overrides)
    assert (tmp_path / "new" / "config.yaml").is_file()
    assert Run(tmp_path / "new", composed()).overrides == overrides
    assert Run(tmp_path, composed()).overrides == []


def test_metrics_of_an_unfinished_or_damaged_run_are_none(tmp_path: Path):
    run = Run(tmp_path, composed())
    assert run.metrics is None
    for text in ("", "{", "[]", "\x00", "3"):
        (tmp_path / "metrics.json").write_text(text)
        assert run.metrics is None
    write_json(tmp_path / "metrics.json", {"test/mse": 0.5})
    assert run.metrics == {"test/mse": 0.5}


def test_failed_write_keeps_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "new" / "file.json"
    write_json(path, {"a": 1})
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "half")
    assert read_json(path) == {"a": 1}


def test_unique_names_differ_and_are_valid_folder_names():
    names = {unique_name() for _ in range(20)}
    assert len(names) == 20
    assert all(name.replace("-", "").isalnum() for name in names)


def test_damaged_pickle_in_a_checkpoint_is_a_user_error(copied: Path):
    path = copied / "checkpoints" / "best.ckpt"
    damaged = bytearray(path.read_bytes())
    damaged[60:65] = b"\x00\x00\x00\x00."  # the unpickler raises IndexError
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"best\.ckpt: damaged, truncated"):
        load_checkpoint(path)
