"""Evaluations of runs and of files, end to end."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Script, composed
from omegaconf import OmegaConf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unet_diffusion.data.datamodule import ImageDataModule
from unet_diffusion.evaluation.evaluate import evaluate

MINI = "data=fashion_mnist_mini"


def evaluate_with(*overrides: str) -> dict[str, Any]:
    cfg = composed(*overrides, config="evaluate")
    arguments = OmegaConf.to_container(cfg, resolve=True)
    del arguments["debug"]
    (record,) = evaluate(**arguments)
    return record


def last_evaluation(directory: Path) -> Path:
    return max((directory / "evaluations").iterdir())


def read_record(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "evaluation.json").read_text())


def contrast(path: Path) -> float:
    return float(np.asarray(Image.open(path).convert("L")).std())


@pytest.fixture
def run(generator_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(generator_run, tmp_path / "generator"))


@pytest.fixture(scope="module")
def evaluated(
    generator_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A run with an evaluation of denoising and generation."""
    parent = tmp_path_factory.mktemp("evaluated")
    path = Path(shutil.copytree(generator_run, parent / "generator"))
    overrides = ("noise_levels=[0.2,0.6]", "guidance_scale=2", "++sampler.steps=2", "seed=3")
    return path, evaluate_with(f"run={path}", "num_samples=200", "batch_size=77", *overrides)


def test_record_says_how_every_score_was_taken(evaluated: tuple[Path, dict[str, Any]]):
    path, record = evaluated
    assert read_record(last_evaluation(path)) == record
    expected = {"run": "generator", "checkpoint": "best.ckpt", "weights": "ema", "split": "test"}
    assert record.items() >= (expected | {"num_test_images": 1000}).items()
    scores = record["generation"]
    assert scores["settings"] == {
        "source": "run generator",
        "checkpoint": "best.ckpt",
        "weights": "ema",
        "sampler": "DDIMSampler(steps=2, time_grid=uniform, clip=static, eta=0.0)",
        "nfe": 4,  # two steps, each with and without the class
        "label": "auto",
        "guidance_scale": 2,
        "seed": 3,
    }
    assert scores["num_samples"] == 200
    assert scores["reference"] == "test split of fashion_mnist_mini, 1000 images at 16x16"
    assert scores["feature_extractor"].startswith("fashion_mnist_features-")
    assert scores["real_baseline"]["frechet_distance"] < 1 < scores["metrics"]["frechet_distance"]
    assert 0 <= scores["class_accuracy"] <= 1


def test_images_are_written_and_shown_in_tensorboard(evaluated: tuple[Path, dict[str, Any]]):
    path, record = evaluated
    for name in ("denoising", "denoised", "generated", "nearest_training_images"):
        assert contrast(last_evaluation(path) / f"{name}.png") > 20
    events = EventAccumulator(str(path)).Reload()
    (scalar,) = events.Scalars("evaluation/frechet_distance")
    metrics = record["generation"]["metrics"]
    assert scalar.value == pytest.approx(metrics["frechet_distance"], rel=1e-5)
    curve = events.Scalars("evaluation_psnr/network")
    assert [point.step for point in curve] == [20, 60]
    psnr = [level["scores"]["network"]["psnr"] for level in record["noise_levels"]]
    assert [point.value for point in curve] == pytest.approx(psnr, rel=1e-5)
    assert "evaluation/nearest_training_images" in events.Tags()["images"]


def test_noise_level_of_the_run_is_added_and_marked(
    short_run: Path, script: Script, tmp_path: Path
):
    run = shutil.copytree(short_run, tmp_path / "short")
    arguments = ("num_samples=0", "noise_levels=[0.2]")
    status, out, err = script("evaluate", f"run={run}", *arguments)
    assert status == 0, err
    record = read_record(last_evaluation(run))
    assert [level["t"] for level in record["noise_levels"]] == [0.2, 0.5]
    assert (record["trained_percent"], record["generation"]) == (0.5, None)
    assert " 0.50*" in out
    assert " 0.20 " in out


def test_scores_do_not_depend_on_the_batch_size(run: Path):
    overrides = ("num_samples=200", "noise_levels=[]", "sampler=ancestral", "sampler.steps=2")
    one, many = (
        evaluate_with(f"run={run}", *overrides, f"batch_size={size}")["generation"]
        for size in (200, 33)
    )
    for name, value in one["metrics"].items():  # a neighbour or two may differ
        assert many["metrics"][name] == pytest.approx(value, rel=1e-3, abs=0.011)
    assert len(list((run / "evaluations").glob("*/evaluation.json"))) == 2


def test_files_score_as_the_run_that_generated_them(run: Path, script: Script, tmp_path: Path):
    arguments = (f"run={run}", "num_samples=200", "label=none")
    status, _, err = script("sample", *arguments, "output=generated")
    assert status == 0, err
    of_run = evaluate_with(*arguments, "noise_levels=[]")["generation"]
    status, out, err = script("evaluate", "images=generated/samples.npz", MINI, "num_samples=null")
    assert status == 0, err
    of_archive = read_record(last_evaluation(tmp_path))["generation"]
    assert of_archive["metrics"] == pytest.approx(of_run["metrics"], rel=1e-4, abs=1e-5)
    assert of_archive["num_samples"] == 200
    assert of_archive["settings"] == {"source": "generated/samples.npz (16x16)"}
    assert "200 images of generated/samples.npz (16x16)" in out
    (tmp_path / "files").mkdir()
    with np.load(tmp_path / "generated" / "samples.npz") as arrays:
        for i, image in enumerate(arrays["arr_0"]):
            Image.fromarray(image[..., 0]).save(tmp_path / "files" / f"{i:04d}.png")
    status, _, err = script("evaluate", "images=files", MINI, "num_samples=200", "output=scores")
    assert status == 0, err
    of_files = read_record(tmp_path / "scores")["generation"]
    assert of_files["metrics"] == pytest.approx(of_run["metrics"], rel=1e-4, abs=1e-5)


def test_runs_are_evaluated_one_by_one(short_run: Path, run: Path, script: Script, tmp_path: Path):
    shutil.copytree(short_run, tmp_path / "runs" / "a")
    shutil.copytree(run, tmp_path / "runs" / "b")
    arguments = ("runs=runs", "num_samples=200", "noise_levels=[]")
    status, out, err = script("evaluate", *arguments)
    assert status == 0, err
    assert out.index("b: best.ckpt, ema weights") < out.index("a: best.ckpt, raw weights")
    for name in "ab":
        directory = last_evaluation(tmp_path / "runs" / name)
        assert read_record(directory)["generation"]["settings"]["source"] == f"run {name}"
    (tmp_path / "runs" / "a" / "checkpoints" / "best.ckpt").unlink()
    before = sorted(tmp_path.rglob("*"))
    status, _, err = script("evaluate", *arguments)
    assert (status, "checkpoint=best: not in run" in err) == (2, True)
    assert sorted(tmp_path.rglob("*")) == before


def test_copies_of_training_images_are_detected(mini: ImageDataModule, tmp_path: Path):
    found = {}
    for name, split in (("copies", "train"), ("new", "test")):
        images = mini.splits[split].uint8(slice(0, 200)).permute(0, 2, 3, 1).numpy()
        np.savez(tmp_path / f"{name}.npz", arr_0=images)
        paths = (f"images={tmp_path / name}.npz", f"output={tmp_path / name}")
        record = evaluate_with(*paths, MINI, "num_samples=null")
        found[name] = record["generation"]["memorization"]
    assert found["copies"]["pixels"]["ratio"] == found["copies"]["pixels"]["generated"] == 0
    assert found["copies"]["features"]["ratio"] < 1e-3
    assert found["copies"]["pixels"]["fraction_closer"] == 1
    assert found["new"]["pixels"]["fraction_closer"] < 0.04
    assert found["new"]["pixels"]["ratio"] == pytest.approx(1, abs=0.15)
    assert found["new"]["features"]["ratio"] == pytest.approx(1, abs=0.15)
    pairs = np.asarray(Image.open(tmp_path / "copies" / "nearest_training_images.png"))
    assert np.array_equal(pairs[2:66], pairs[68:132])  # each copy is above its training image


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["images=good.npz"], "images=good.npz: add the dataset to compare with"),
        (["images=nowhere", MINI], "images=nowhere: 0 images found"),
        (["images=broken.npz", MINI], "images=broken.npz: not an .npz with images"),
        (["images=pickled.npz", MINI], "images=pickled.npz: not an .npz with images"),
        (["images=floats.npz", MINI], "arr_0 is float64"),
        (["images=labels.npz", MINI], "arr_1 is [3], expected (10,)"),
        (["images=good.npz", MINI], "10 images found, num_samples=2000 requested"),
        (["images=good.npz", MINI, "num_samples=null"], "num_samples=10: expected 200"),
        (["images=good.npz", MINI, "num_samples=null", "features=gone.pth"], "features=gone.pth: "),
        (["images=good.npz", MINI, "num_samples=0"], "num_samples=0: nothing to evaluate"),
        (["images=good.npz", MINI, "classical=maybe"], "classical=maybe: "),
        (["images=good.npz", MINI, "run=x"], "run, runs, images: expected exactly one"),
        ([], "run, runs, images: expected exactly one"),
        (["runs=nowhere"], "runs=nowhere: no run directories found"),
    ],
)
def test_invalid_arguments_are_reported_and_nothing_is_written(
    script: Script, tmp_path: Path, arguments: list[str], message: str
):
    images = np.zeros((10, 16, 16, 1), np.uint8)
    np.savez(tmp_path / "good.npz", arr_0=images)
    np.savez(tmp_path / "labels.npz", arr_0=images, arr_1=np.zeros(3))
    np.savez(tmp_path / "floats.npz", arr_0=images / 2)
    np.savez(tmp_path / "pickled.npz", arr_0=np.array([{"a": 1}], dtype=object))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04")
    before = sorted(tmp_path.rglob("*"))
    status, _, err = script("evaluate", *arguments)
    assert status == 2
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["output=file/x"], "file"),
        (["data.val_fraction=0.97", "num_samples=200"], "expected 200 (for 64 features) to 150"),
        (["num_samples=0", "noise_levels=[]"], "num_samples=0: nothing to evaluate"),
        (["num_samples=null"], "num_samples=null: expected a number"),
        (["noise_levels=[0,0.5]"], "noise_levels.0=0: "),
    ],
)
def test_arguments_that_do_not_fit_the_run_are_reported(
    run: Path, script: Script, tmp_path: Path, arguments: list[str], message: str
):
    (tmp_path / "file").touch()
    status, out, err = script("evaluate", f"run={run}", *arguments)
    assert status == 2
    assert message in err
    assert "Generation" not in out
    assert not (run / "evaluations").exists()


def test_data_unknown_to_the_packaged_extractor_gets_a_message(
    run: Path, script: Script, tmp_path: Path
):
    (tmp_path / "images").mkdir()
    random = np.random.default_rng(0)
    for i in range(40):
        image = Image.fromarray(random.integers(0, 256, (16, 16), dtype=np.uint8))
        image.save(tmp_path / "images" / f"{i}.png")
    data = ("data=image_folder", "data.root=images", "data.batch_size=8")
    status, out, err = script("evaluate", f"run={run}", *data, "noise_levels=[0.5]")
    assert status == 0, err
    assert "No generation scores" in out
    record = read_record(last_evaluation(run))
    assert record["generation"] is None
    assert record["noise_levels"][0]["scores"]["network"]["psnr"] > 0


def test_sweep_jobs_with_one_output_have_their_own_directories(
    run: Path, script: Script, tmp_path: Path
):
    arguments = ("-m", f"run={run}", "seed=1,2", "num_samples=200", "noise_levels=[]")
    status, _, err = script("evaluate", *arguments, "output=both")
    assert status == 0, err
    records = [read_record(path) for path in (tmp_path / "both").iterdir()]
    assert sorted(record["generation"]["settings"]["seed"] for record in records) == [1, 2]
