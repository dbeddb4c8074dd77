"""Evaluations of runs, end to end."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Script, Trained, call
from PIL import Image

from unet_diffusion.errors import UserError
from unet_diffusion.generation.pipeline import Pipeline


def evaluate(run: Path, **arguments: Any) -> dict[str, Any]:
    (record,) = call("evaluate", run=str(run), num_samples=200, dtype="float32", **arguments)
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
    settings = {"noise_levels": [0.2, 0.6], "guidance_scale": 2, "sampler": {"steps": 2}}
    return path, evaluate(path, batch_size=77, seed=3, **settings)


def test_record_says_how_every_score_was_taken(evaluated: tuple[Path, dict[str, Any]]):
    path, record = evaluated
    assert read_record(last_evaluation(path)) == record
    expected = {"run": "generator", "checkpoint": "best.ckpt", "weights": "ema"}
    assert record.items() >= (expected | {"num_test_images": 1000}).items()
    scores = record["generation"]
    assert scores["settings"] == {
        "run": "generator",
        "checkpoint": "best.ckpt",
        "weights": "ema",
        "sampler": "DDIMSampler(steps=2, time_grid='uniform', clip='static', eta=0.0)",
        "nfe": 4,  # two steps, each with and without the class
        "label": "auto",
        "dtype": "float32",
        "guidance_scale": 2,
        "seed": 3,
    }
    assert scores["num_samples"] == 200
    assert scores["reference"] == "test split of fashion_mnist_mini, 1000 images at 16x16"
    assert scores["feature_extractor"].startswith("fashion_mnist_features-")
    assert scores["real_baseline"]["frechet_distance"] < 1 < scores["metrics"]["frechet_distance"]
    assert 0 <= scores["class_accuracy"] <= 1
    for name in ("denoising", "denoised", "generated", "nearest_training_images"):
        assert contrast(last_evaluation(path) / f"{name}.png") > 20


def test_model_card_has_the_scores(evaluated: tuple[Path, dict[str, Any]], tmp_path: Path):
    run, record = evaluated
    Pipeline.from_pretrained(run).save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert f"| {record['generation']['metrics']['frechet_distance']:.3f} |" in card
    assert "unet-diffusion train experiment" not in card  # trained without a command line
    assert "Classes of the training images: t-shirt, trouser" in card
    again = Pipeline.from_pretrained(tmp_path / "saved")
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == card
    assert "Generated images" not in Pipeline.from_pretrained(run, checkpoint="last").model_card()


def test_runs_are_evaluated_one_by_one(short_run: Path, run: Path, script: Script, tmp_path: Path):
    shutil.copytree(short_run, tmp_path / "runs" / "a")
    shutil.copytree(run, tmp_path / "runs" / "b")
    arguments = ("runs=runs", "num_samples=200", "noise_levels=[]")
    status, out, err = script("evaluate", *arguments)
    assert status == 0, err
    assert out.index("b: best.ckpt, ema weights") < out.index("a: best.ckpt, raw weights")
    for name in "ab":
        directory = last_evaluation(tmp_path / "runs" / name)
        assert read_record(directory)["generation"]["settings"]["run"] == name
    (tmp_path / "runs" / "a" / "checkpoints" / "best.ckpt").unlink()
    before = sorted(tmp_path.rglob("*"))
    status, _, err = script("evaluate", *arguments)
    assert (status, "checkpoint=best: not in run" in err) == (2, True)
    assert sorted(tmp_path.rglob("*")) == before


def test_invalid_arguments_are_reported(script: Script):
    for arguments, message in (
        (["run=x", "runs=x"], "run, runs: expected exactly one"),
        (["runs=nowhere"], "runs=nowhere: no run directories found"),
        (["run=x", "num_samples=null"], "num_samples=None: should be a valid integer"),
    ):
        status, _, err = script("evaluate", *arguments)
        assert (status, message in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["output=file/x", "num_samples=200"], "Not a directory"),
        (["data.val_fraction=0.97", "num_samples=200"], "expected 200 (for 64 features) to 150"),
        (["num_samples=0", "noise_levels=[]"], "num_samples=0: nothing to evaluate"),
        (["noise_levels=[0,0.5]"], "noise_levels.0=0: "),
    ],
)
def test_arguments_that_do_not_fit_the_run_are_reported(
    run: Path, script: Script, tmp_path: Path, arguments: list[str], message: str
):
    (tmp_path / "file").touch()
    status, out, err = script("evaluate", f"run={run}", *arguments)
    assert (status, message in err, "Generation" in out) == (2, True, False)
    assert not (run / "evaluations").exists()


def test_unknown_data_are_scored_by_memorization(run: Path, script: Script, tmp_path: Path):
    (tmp_path / "images").mkdir()
    random = np.random.default_rng(0)
    for i in range(40):
        image = Image.fromarray(random.integers(0, 256, (16, 16), dtype=np.uint8))
        image.save(tmp_path / "images" / f"{i}.png")
    data = ("data=image_folder", "data.root=images", "data.batch_size=8")
    status, out, err = script("evaluate", f"run={run}", *data, "noise_levels=[0.5]")
    assert status == 0, err
    assert "No Frechet distance: set features" in out
    record = read_record(last_evaluation(run))
    assert record["generation"]["metrics"] is None
    assert record["generation"]["num_samples"] == 32  # the training images, instead of 2000
    assert f"that of test images: {record['generation']['memorization']['ratio']:.2f}" in out
    for name in ("generated", "nearest_training_images"):
        assert contrast(last_evaluation(run) / f"{name}.png") > 20
    assert script("report", f"runs={run}", "output=report")[0] == 0
    assert "Generated images" not in Pipeline.from_pretrained(run).model_card()
    assert record["noise_levels"][0]["scores"]["network"]["psnr"] > 0


def test_network_with_clusters_is_scored_without_class_accuracy(trained: Trained):
    path = trained(
        *("experiment=06_class_conditional", "data.num_clusters=30", "model.channels=[16]"),
        *("trainer.max_steps=4", "trainer.max_time=null", "callbacks.previews=null"),
        *("+trainer.limit_val_batches=1", "+trainer.limit_test_batches=1", "logger=csv"),
    )
    scores = evaluate(path, noise_levels=[], sampler={"steps": 2})["generation"]
    assert scores["settings"]["guidance_scale"] == 1.25
    assert scores["class_accuracy"] is None
    assert scores["real_class_accuracy"] > 0.8  # of the classes of the dataset
    pipeline = Pipeline.from_pretrained(path)
    assert pipeline.labels("all", 31).tolist() == [*range(30), 0]
    assert pipeline.labels("cluster-7", 2).tolist() == [7, 7]


def test_photographs_are_scored_with_noise_that_is_neither_clipped_nor_rounded(
    run: Path, tmp_path: Path
):
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(3):
        gradient = np.linspace(100, 155, 48 * 64).reshape(48, 64) + rng.normal(0, 3, (48, 64))
        Image.fromarray(gradient.astype(np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    (record,) = call("evaluate", run=str(run), images=str(tmp_path / "photos"), noise_std=[50, 10])
    assert read_record(last_evaluation(run)) == record
    means = {(each["noise_std"], each["method"]): each["psnr"] for each in record["photos"]}
    assert set(means) == {(std, name) for std in (10, 50) for name in ("noisy", "network")}
    for std in (10, 50):
        assert means[std, "noisy"] == pytest.approx(20 * np.log10(255 / std), abs=0.5)
    rows = [
        row for row in record["per_image"] if (row["noise_std"], row["method"]) == (10, "noisy")
    ]
    assert np.mean([row["psnr"] for row in rows]) == pytest.approx(means[10, "noisy"])
    assert contrast(last_evaluation(run) / "photos.png") > 5
    card = Pipeline.from_pretrained(run).model_card()
    assert f"| 50 | network | {means[50, 'network']:.2f} |" in card


@pytest.mark.parametrize(
    ("task", "first", "methods"),
    [
        ("inpaint", "measured", ["biharmonic"]),
        ("enlarge", "bicubic", []),
        ("deblur", "measured", ["richardson_lucy", "wiener"]),
    ],
)
def test_restored_photographs_are_scored_beside_other_methods(
    tmp_path: Path, task: str, first: str, methods: list[str]
):
    rows, columns = np.mgrid[:40, :48]
    disc = (rows - 20) ** 2 + (columns - 24) ** 2 < 150
    image = np.where(disc[..., None], [230, 60, 40], (30 + rows * 2)[..., None]).astype(np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(image).save(tmp_path / "photos" / "a.png")
    arguments = {"images": str(tmp_path / "photos"), "task": task, "methods": methods}
    output = tmp_path / "evaluation"
    (record,) = call("evaluate", run="pretrained:photos", output=str(output), **arguments)
    psnr = {row["method"]: row["psnr"] for row in record["photos"]}
    assert list(psnr) == [first, "network", *methods]
    assert psnr["network"] > psnr[first] + 1
    assert all(psnr[name] > psnr[first] - 6 for name in methods)
    assert record["task"] == task
    assert contrast(output / "photos.png") > 10


def test_methods_of_another_task_are_refused(tmp_path: Path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    arguments = {"images": str(tmp_path), "task": "enlarge", "methods": ["bm3d"]}
    with pytest.raises(UserError, match="methods=bm3d: expected some of none with task=enlarge"):
        call("evaluate", run="pretrained:photos", output=str(tmp_path / "out"), **arguments)
