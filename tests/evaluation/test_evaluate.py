"""Evaluations of real runs and of files, end to end in this process."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import composed, real_images
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.errors import UserError
from unet_diffusion.evaluation.evaluate import evaluate
from unet_diffusion.evaluation.features import judge_for

Script = Callable[..., tuple[int, str, str]]
MINI = "data=fashion_mnist_mini"


def last_evaluation(run: Path) -> Path:
    return max((run / "evaluations").iterdir())


@pytest.fixture
def run(generator: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(generator, tmp_path / "generator"))


@pytest.fixture(scope="module")
def evaluated(generator: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run and its evaluation: both kinds of score."""
    path = Path(shutil.copytree(generator, tmp_path_factory.mktemp("evaluated") / "generator"))
    typed = ("num_images=200", "levels=[0.2,0.6]", "guidance=1", "seed=3", "++sampler.steps=2", "batch_size=77")
    return path, evaluate(composed(f"run={path}", *typed, config="evaluate"))


def test_every_score_says_how_it_was_taken(evaluated: tuple[Path, dict[str, Any]]):
    path, record = evaluated
    assert json.loads(last_evaluation(path).joinpath("evaluation.json").read_text()) == record
    score = record["generation"]
    assert score["sampler"] == "DDIM(steps=2, grid=uniform, clipping=static, eta=0.0)"
    assert (score["label"], score["images"], score["guidance"], score["seed"], score["weights"]) == ("auto", 200, 1, 3, "ema")
    assert score["nfe"] == 4  # two steps, each with and without the class
    assert score["reference"] == "test split of fashion_mnist_mini, 1000 images at 16x16"
    assert score["feature_network"].startswith("fashion_mnist_features-")
    assert 0 < score["floor"]["frechet_distance"] < 1 < score["closeness"]["frechet_distance"]
    assert 0 < score["floor_spread"]["frechet_distance"] < score["floor"]["frechet_distance"]
    assert score["floor_draws"] == 5
    assert 0 <= score["class_accuracy"] <= 1
    assert 0.85 < score["real_class_accuracy"] < 0.95
    assert sum(entry["asked"] for entry in score["classes"]) == 200


def test_an_evaluation_leaves_pictures_and_the_same_in_tensorboard(evaluated: tuple[Path, dict[str, Any]]):
    path, record = evaluated
    for name in ("denoising.png", "denoised.png", "drawn.png", "neighbours.png"):
        assert np.asarray(Image.open(last_evaluation(path) / name).convert("L")).std() > 20
    events = EventAccumulator(str(path)).Reload()
    (scalar,) = events.Scalars("evaluate/frechet_distance")
    assert scalar.value == pytest.approx(record["generation"]["closeness"]["frechet_distance"], rel=1e-5)
    curve = events.Scalars("evaluate_psnr_by_percent/network")
    assert [point.step for point in curve] == [20, 60]
    assert [point.value for point in curve] == pytest.approx([s["network"]["psnr"] for s in record["levels"]], rel=1e-5)
    assert "evaluate/neighbours" in events.Tags()["images"]


def test_scores_do_not_depend_on_the_batch_and_no_evaluation_is_lost(run: Path):
    typed = (f"run={run}", "num_images=200", "levels=[]", "sampler=ancestral", "sampler.steps=2")  # it adds noise on the way
    one, many = (evaluate(composed(*typed, f"batch_size={size}", config="evaluate"))["generation"] for size in (200, 33))
    for figure, value in one["closeness"].items():
        assert many["closeness"][figure] == pytest.approx(value, rel=1e-3, abs=0.011)  # a neighbour or two may differ
    assert many["memorisation"]["pixels"]["drawn"] == pytest.approx(one["memorisation"]["pixels"]["drawn"], rel=1e-3)
    assert len(list((run / "evaluations").glob("*/evaluation.json"))) == 2


def test_files_are_scored_as_the_run_that_drew_them(run: Path, script: Script, tmp_path: Path):
    status, out, err = script("sample", f"run={run}", "num_images=200", "label=none", "output=drawn")
    assert status == 0, err
    status, out, err = script("evaluate", f"run={run}", "label=none", "num_images=200", "levels=[]")
    assert status == 0, err
    of_run = json.loads((last_evaluation(run) / "evaluation.json").read_text())["generation"]
    status, out, err = script("evaluate", "images=drawn/samples.npz", MINI, "num_images=null")
    assert status == 0, err
    of_archive = json.loads((last_evaluation(tmp_path) / "evaluation.json").read_text())["generation"]
    assert of_archive["closeness"] == pytest.approx(of_run["closeness"], rel=1e-4, abs=1e-5)
    assert of_archive["images"] == 200
    assert of_archive["sampler"] is None
    assert "200 images of drawn/samples.npz (16x16)" in out
    (tmp_path / "files").mkdir()
    with np.load(tmp_path / "drawn" / "samples.npz") as arrays:
        for i, image in enumerate(arrays["arr_0"]):
            Image.fromarray(image[..., 0]).save(tmp_path / "files" / f"{i:04d}.png")
    status, out, err = script("evaluate", "images=files", MINI, "output=of_files")
    assert status == 2
    assert "holds 200 images, fewer than num_images=2000" in err
    status, out, err = script("evaluate", "images=files", MINI, "num_images=200", "output=of_files")
    assert status == 0, err
    of_files = json.loads((tmp_path / "of_files" / "evaluation.json").read_text())["generation"]
    assert of_files["closeness"] == pytest.approx(of_run["closeness"], rel=1e-4, abs=1e-5)


def test_several_runs_are_evaluated_one_after_another(short_run: Path, generator: Path, script: Script, tmp_path: Path):
    for name, path in (("a", short_run), ("b", generator)):
        shutil.copytree(path, tmp_path / "runs" / name)
    status, out, err = script("evaluate", "runs=runs", "num_images=200", "levels=[]")
    assert status == 0, err
    assert out.index("1 of 2: 06_classes, b") < out.index("2 of 2: lesson, a")
    for name in "ab":
        folder = last_evaluation(tmp_path / "runs" / name)
        assert json.loads((folder / "evaluation.json").read_text())["generation"]["source"] == f"run {name}"
        assert np.asarray(Image.open(folder / "drawn.png").convert("L")).std() > 25
    (tmp_path / "runs" / "a" / "checkpoints" / "best.ckpt").unlink()
    before = sorted(tmp_path.rglob("*"))
    for typed, said in (
        (["runs=runs"], "has no checkpoint best"),
        (["runs=runs", "output=here"], "output=here goes with a single run"),
        (["runs=runs", "run=runs/a"], "run= and runs= exclude each other"),
        (["runs=nowhere"], "holds no runs"),
    ):
        status, _, err = script("evaluate", *typed)
        assert status == 2
        assert said in err
    assert sorted(tmp_path.rglob("*")) == before


def test_copies_of_training_images_are_found(mini: ImageDataModule, tmp_path: Path):
    copies = real_images(mini, "train", 200, seed=5).permute(0, 2, 3, 1).numpy()
    new = real_images(mini, "test", 200, seed=5).permute(0, 2, 3, 1).numpy()
    ratios = {}
    for name, images in (("copies", copies), ("new", new)):
        np.savez(tmp_path / f"{name}.npz", arr_0=images)
        typed = (f"images={tmp_path / name}.npz", MINI, "num_images=null", f"output={tmp_path / name}")
        ratios[name] = evaluate(composed(*typed, config="evaluate"))["generation"]["memorisation"]
    assert ratios["copies"]["pixels"]["ratio"] == ratios["copies"]["pixels"]["drawn"] == 0
    assert ratios["copies"]["features"]["ratio"] < 1e-3
    assert ratios["copies"]["pixels"]["nearer"] == 1
    assert ratios["new"]["pixels"]["nearer"] < 0.04
    assert ratios["new"]["pixels"]["ratio"] == pytest.approx(1, abs=0.15)
    assert ratios["new"]["features"]["ratio"] == pytest.approx(1, abs=0.15)
    pairs = np.asarray(Image.open(tmp_path / "copies" / "neighbours.png"))
    assert np.array_equal(pairs[2:66], pairs[68:132])  # each copy stands above the image that it is of
    assert pairs[2:66].std() > 20


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["images=drawn.npz"], "add data=, such as data=fashion_mnist"),
        (["images=nowhere", MINI], "images=nowhere must be a folder of images or an .npz file"),
        (["images=broken.npz", MINI], "images=broken.npz cannot be read"),
        (["images=pickled.npz", MINI], "images=pickled.npz cannot be read"),
        (["images=floats.npz", MINI], "its arr_0 is float64"),
        (["images=drawn.npz", MINI], "holds 10 images, fewer than num_images=2000"),
        (["images=drawn.npz", MINI, "num_images=null"], "num_images=10 is too few"),
        (["images=empty", MINI], "images=empty holds no images"),
        (["images=drawn.npz", MINI, "features=gone.safetensors"], "features=gone.safetensors must be"),
        (["images=drawn.npz", MINI, "features=broken.safetensors"], "features=broken.safetensors is no feature network"),
        (["images=drawn.npz", MINI, "features=gone.pth"], "features=gone.pth is no file"),
        (["images=labels.npz", MINI], "its arr_1 is float64 [3], where a class number for each of 10 is needed"),
        (["images=drawn.npz", MINI, "sampler.steps=2", "guidance=1"], "sampler.steps=2 guidance=1: says"),
        (["images=drawn.npz", MINI, "num_images=0"], "num_images=0 leaves nothing to score"),
        (["images=drawn.npz", MINI, "classical=true"], "classical=true is about denoising"),
        (["runs=[]"], "runs=[] names no folder"),
        (["images=drawn.npz", MINI, "classical=maybe"], "classical=maybe must be true or false"),
    ],
)
def test_images_that_cannot_be_scored_are_refused(script: Script, tmp_path: Path, arguments: list[str], said: str):
    np.savez(tmp_path / "drawn.npz", arr_0=np.zeros((10, 16, 16, 1), np.uint8))
    np.savez(tmp_path / "labels.npz", arr_0=np.zeros((10, 16, 16, 1), np.uint8), arr_1=np.zeros(3))
    np.savez(tmp_path / "floats.npz", arr_0=np.zeros((10, 16, 16, 1)))
    np.savez(tmp_path / "pickled.npz", arr_0=np.array([{"a": 1}], dtype=object))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04")
    (tmp_path / "broken.safetensors").write_bytes(b"12345678")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    status, _, err = script("evaluate", *arguments)
    assert status == 2
    assert said in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_no_judge_for_images_that_it_does_not_know():
    with pytest.raises(UserError, match=r"drawings of cifar10 cannot be scored .*train_features.py data=cifar10"):
        judge_for("auto", "cifar10")


def test_where_nothing_can_be_written_nothing_is_scored(run: Path, script: Script, tmp_path: Path):
    (tmp_path / "file").touch()
    status, out, err = script("evaluate", f"run={run}", "num_images=200", "output=file/x")
    assert status == 2
    assert "file/x cannot be written" in err
    assert "Drawing" not in out


def test_too_few_images_to_compare_with_are_said(run: Path, script: Script):
    before = sorted(run.rglob("*"))
    for typed, said in (
        ("data.val_fraction=0.97", "needs 200 or more training and test images, and there are 150: num_images=0 leaves"),
        ("levels=[]", "leaves nothing to score"),
    ):
        status, _, err = script("evaluate", f"run={run}", typed, f"num_images={0 if typed == 'levels=[]' else 2000}")
        assert status == 2
        assert said in err
    assert sorted(run.rglob("*")) == before


def test_jobs_of_a_sweep_into_one_folder_keep_apart(run: Path, script: Script, tmp_path: Path):
    status, _, err = script("evaluate", "-m", f"run={run}", "seed=1,2", "num_images=200", "levels=[]", "output=both")
    assert status == 0, err
    seeds = [json.loads(file.read_text())["generation"]["seed"] for file in (tmp_path / "both").glob("*/evaluation.json")]
    assert sorted(seeds) == [1, 2]


def test_levels_without_noise_are_refused(run: Path, script: Script):
    status, _, err = script("evaluate", f"run={run}", "levels=[0,0.5]")
    assert status == 2
    assert "levels=0 has no noise to take out" in err


def test_a_study_of_samplers_is_one_plot(run: Path, script: Script):
    status, out, err = script(
        "evaluate", "-m", f"run={run}", "sampler=ddim,heun", "sampler.steps=2,3", "num_images=200", "levels=[]", "guidance=0"
    )
    assert status == 0, err
    study = json.loads((run / "sampler_study.json").read_text())["evaluations"]
    assert not (run / "multirun.yaml").exists()
    found = {(entry["generation"]["sampler"].partition("(")[0], entry["generation"]["nfe"]) for entry in study}
    assert found == {("DDIM", 2), ("DDIM", 3), ("Heun", 3), ("Heun", 5)}
    for line in ("DDIM(grid=uniform", "Heun(grid=uniform"):
        assert line in out[out.index("over network evaluations an image") :]
    assert np.asarray(Image.open(run / "sampler_study.png").convert("L")).std() > 10
    assert not Path("multirun.yaml").exists()
    assert len(list((run / "evaluations").glob("*/evaluation.json"))) == 4


def test_the_weights_that_come_with_the_package():
    judge = judge_for("auto", "fashion_mnist")
    assert sum(p.numel() for p in judge.network.parameters()) == 183_986
    assert judge.network.training is False
    assert len(judge.class_names) == 10
    with torch.inference_mode():
        assert judge.features(torch.zeros(2, 1, 16, 16, dtype=torch.uint8)).shape == (2, 64)
