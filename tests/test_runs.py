import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers import composed, weights

from unet_diffusion.errors import UserError
from unet_diffusion.evaluation.records import read_metrics
from unet_diffusion.runs import Run
from unet_diffusion.saved_checkpoint import load_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def copied(short_run: Path, tmp_path: Path) -> Path:
    """The short run, moved elsewhere: a copy that a test may damage."""
    return Path(shutil.copytree(short_run, tmp_path / "moved" / "run"))


def test_a_moved_run_is_rebuilt_from_its_own_config(copied: Path):
    run = Run.open(copied)
    assert run.image_shape == (1, 16, 16)
    denoiser = run.load_denoiser("last", CPU)
    assert not denoiser.training
    expected = weights(copied, "last")
    assert all(torch.equal(value, expected[f"denoiser.{name}"]) for name, value in denoiser.state_dict().items())


def test_a_run_is_opened_by_a_checkpoint_in_it(copied: Path):
    run = Run.open(copied / "checkpoints" / "last.ckpt")
    assert run.path == copied.resolve()
    assert run.checkpoint("best").name == "last.ckpt"


def test_what_is_no_run_is_refused(tmp_path: Path):
    (tmp_path / "note.txt").write_text("hello")
    for where in (tmp_path, tmp_path / "note.txt"):
        with pytest.raises(UserError, match="is no run"):
            Run.open(where)
    with pytest.raises(UserError, match="does not exist"):
        Run.open(tmp_path / "nothing")


@pytest.mark.parametrize("content", ["", "a: [", "just text", "model: 3", "- a\n- b", "\x00"])
def test_a_damaged_config_is_refused(copied: Path, content: str):
    (copied / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
        Run.open(copied)


def test_a_run_without_checkpoints_says_so(copied: Path):
    (copied / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(UserError, match="has no checkpoint best: it has last: try checkpoint=last"):
        Run.open(copied).checkpoint("best")
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint best"):
        Run.open(copied).checkpoint("best")


@pytest.mark.parametrize("keep", [0, 10, 1000, 0.5, 0.99])
def test_a_truncated_checkpoint_is_named(copied: Path, keep: float):
    path = copied / "checkpoints" / "best.ckpt"
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(UserError, match=r"best\.ckpt is damaged, cut short or no checkpoint"):
        Run.open(copied).load_denoiser("best", CPU)


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_checkpoint_with_a_payload_is_refused_and_runs_nothing(copied: Path, tmp_path: Path):
    mark = tmp_path / "it-ran"
    path = copied / "checkpoints" / "best.ckpt"
    torch.save({"state_dict": {}, "x": Payload(mark)}, path)
    with pytest.raises(UserError, match="none of its code was run"):
        Run.open(copied).load_denoiser("best", CPU)
    path.write_bytes(pickle.dumps(Payload(mark)))  # the old format without a zip around it
    with pytest.raises(UserError, match="no checkpoint"):
        Run.open(copied).load_denoiser("best", CPU)
    assert not mark.exists()


def test_a_flipped_byte_is_noticed(copied: Path):
    path = copied / "checkpoints" / "best.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        Run.open(copied).load_denoiser("best", CPU)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
def test_nobody_waits_for_a_named_pipe(copied: Path):
    """Opened to be read, it answers when somebody writes into it."""
    for name in ("checkpoints/last.ckpt", "config.yaml", "metrics.json"):
        (copied / name).unlink()
        os.mkfifo(copied / name)
    assert read_metrics(copied / "metrics.json") == {"scores": {}}
    with pytest.raises(UserError, match=r"last.ckpt is damaged, cut short or no checkpoint"):
        load_checkpoint(copied / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match="is no run"):
        Run.open(copied)


def test_files_that_are_no_checkpoints_are_refused(copied: Path):
    path = copied / "checkpoints" / "odd.ckpt"
    for content in ([1, 2], {"state_dict": {3: torch.ones(1)}}, {"state_dict": {"a": 1}}, {"weights": {}}):
        torch.save(content, path)
        with pytest.raises(UserError, match="is no checkpoint of a run"):
            load_checkpoint(path)
    with pytest.raises(UserError, match="no checkpoint"):
        load_checkpoint(copied / "metrics.csv")


def test_another_networks_checkpoint_is_refused(copied: Path):
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["model"]["channels"] = [8, 16, 24]
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="does not fit the network"):
        Run.open(copied).load_denoiser("best", CPU)


FOREIGN = (
    "os.system",
    "subprocess.Popen",
    "builtins.eval",
    "torch.hub.load",
    "unet_diffusion.saved_checkpoint.pickle.loads",
    "unet_diffusion.saved_checkpoint.load_checkpoint",
    "unet_diffusion.parts.build",
    "unet_diffusion.nothing.There",
)


@pytest.mark.parametrize("target", FOREIGN)
@pytest.mark.parametrize("place", ["model", "data.source", "sampler"])
def test_a_config_that_names_foreign_classes_is_refused(copied: Path, target: str, place: str):
    config = yaml.safe_load((copied / "config.yaml").read_text())
    node = config
    for key in place.split("."):
        node = node[key]
    node["_target_"] = target
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="not a class of this project"):
        Run.open(copied)


def test_a_config_with_references_is_refused(copied: Path):
    # a reference could lead from a part that is checked to a node that is not
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["model"]["dense_bottleneck"] = "${evil}"
    config["evil"] = {"_target_": "logging.FileHandler", "filename": str(copied / "made")}
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="holds references"):
        Run.open(copied)


def test_a_part_in_anothers_place_is_refused(copied: Path):
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["schedule"] = dict(config["sampler"])
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="schedule describes a OneShot, where a Schedule belongs"):
        Run.open(copied).load_denoiser("best", CPU)


def test_a_new_run_never_takes_an_existing_folder(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").touch()
    with pytest.raises(UserError, match="cannot be made"):
        Run.create(tmp_path / "mine", composed(), [])
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["photo.png"]
